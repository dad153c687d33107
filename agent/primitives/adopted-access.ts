import { z } from "zod";
import { statOf } from "./durable.ts";
import { manifest } from "./manifest.ts";
import type { Primitive } from "./primitive.ts";

const adoptedAccessWant = z.object({ kubeconfig: z.string().startsWith("/"), content: z.string() });
type Want = z.output<typeof adoptedAccessWant>;

/**
 * The region's rights in a cluster that it did not make: applied as any {@link manifest}, and taken away again when the cluster is
 * released. A control plane that is released alone takes them away too: the others see that, and apply them again.
 */
export const adoptedAccess: Primitive<Want, Want> = {
	schema: adoptedAccessWant,
	key: () => "access",
	observe: (want, context, applied) => manifest.observe(want, context, applied),
	remember: async (want) => want,
	apply: (want, context, applied) => manifest.apply(want, context, applied),
	async undo({ kubeconfig, content }, { exec, signal }) {
		// Its people have reset this node, and with it went the way to ask.
		if (!(await statOf(kubeconfig))) return;
		const server = ["--kubeconfig", kubeconfig, "--request-timeout=30s"];
		await exec("kubectl", [...server, "delete", "--ignore-not-found", "--wait=false", "--filename=-"], {
			signal,
			input: content,
		});
	},
};
