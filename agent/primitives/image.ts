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
	key: ({ namespace, reference }) => `${namespace}/${reference}`,
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
	},
	async undo({ namespace, reference, existed }, { exec, signal }) {
		if (!existed) await exec("ctr", ["-n", namespace, "images", "rm", reference], { signal, codes: true });
	},
};
