import { z } from "zod";
import type { Primitive } from "./primitive.ts";

const imageWant = z.object({
	/** Path of the archive inside the bundle. */
	blob: z.string(),
	reference: z.string().min(1),
	namespace: z.string().default("k8s.io"),
});
const imageMemory = z.object({ reference: z.string(), namespace: z.string(), existed: z.boolean() });

/** The kubelet never collects an image that bears this label (cri/labels in containerd). */
const PINNED = "io.cri-containerd.pinned=pinned";

/** An image of the bundle in containerd's store, pinned, since there may be no registry to fetch it from again. */
export const image: Primitive<z.output<typeof imageWant>, z.output<typeof imageMemory>> = {
	schema: imageWant,
	// Not the tag: the image of the version before stays beside the new one, for the way back and while it still runs.
	key: ({ namespace, reference }) => `${namespace}/${repositoryOf(reference)}`,
	async observe({ namespace, reference }, { exec, signal }) {
		const { code, stdout } = await exec("ctr", ["-n", namespace, "images", "ls", "-q", `name==${reference}`], {
			signal,
			codes: true,
		});
		if (code === 0 && stdout.split("\n").includes(reference)) return { ok: true };
		return { ok: false, why: `${reference} is not in the image store` };
	},
	async remember({ namespace, reference }, context) {
		const { ok } = await image.observe({ blob: "", namespace, reference }, context, { last: undefined, now: "" });
		return { reference, namespace, existed: ok };
	},
	async apply({ blob, namespace, reference }, context) {
		const { exec, signal } = context;
		await exec("ctr", ["-n", namespace, "images", "import", "--local", await context.blob(blob)], { signal });
		await exec("ctr", ["-n", namespace, "images", "label", reference, PINNED], { signal });
		const { stdout } = await exec("ctr", ["-n", namespace, "images", "ls", "-q"], { signal });
		for (const old of superseded(stdout.split("\n"), reference))
			await exec("ctr", ["-n", namespace, "images", "rm", old], { signal, codes: true });
	},
	async undo({ namespace, reference, existed }, { exec, signal }) {
		if (existed) return;
		const { stdout } = await exec("ctr", ["-n", namespace, "images", "ls", "-q"], { signal, codes: true });
		const all = stdout.split("\n").filter((other) => repositoryOf(other) === repositoryOf(reference));
		if (all.length > 0) await exec("ctr", ["-n", namespace, "images", "rm", ...all], { signal, codes: true });
	},
};

/** A reference without its tag. */
const repositoryOf = (reference: string) => reference.replace(/:[^/:]*$/, "");

/** How many other tags of an image are kept: the one that runs, and the one that it came from. */
const KEPT_TAGS = 2;

/** Tags of the same image that no way back leads to any more: all but the highest few besides the one that is wanted. */
export function superseded(references: readonly string[], wanted: string): string[] {
	const others = references.filter((other) => other !== wanted && repositoryOf(other) === repositoryOf(wanted));
	return others.sort((a, b) => b.localeCompare(a, "en", { numeric: true })).slice(KEPT_TAGS);
}
