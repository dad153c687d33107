import { z } from "zod";
import type { Primitive } from "./primitive.ts";

const manifestWant = z.object({ kubeconfig: z.string().startsWith("/"), content: z.string() });

/** Kubernetes objects, applied server-side. They live and end with their cluster, so there is nothing to undo. */
export const manifest: Primitive<z.output<typeof manifestWant>, Record<string, never>> = {
	schema: manifestWant,
	key: () => "manifest",
	async observe({ kubeconfig, content }, { exec, signal }, applied) {
		if (applied.last !== applied.now) return { ok: false, why: "it was not applied yet" };
		const { stderr, code } = await exec(
			"kubectl",
			["--kubeconfig", kubeconfig, "--request-timeout=20s", "get", "--output=name", "--filename=-"],
			{ signal, input: content, codes: true },
		);
		// An API server that does not answer is not a reason to apply again.
		return code !== 0 && stderr.includes("NotFound") ? { ok: false, why: stderr.trim() } : { ok: true };
	},
	remember: async () => ({}),
	async apply({ kubeconfig, content }, { exec, signal }) {
		await exec(
			"kubectl",
			[
				"--kubeconfig",
				kubeconfig,
				"--request-timeout=30s",
				"apply",
				"--server-side",
				"--force-conflicts",
				"--field-manager=groundplane-agent",
				"--filename=-",
			],
			{ signal, input: content },
		);
	},
	undo: async () => {},
};
