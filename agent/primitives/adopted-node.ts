import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { findKubernetes } from "../kubernetes.ts";
import type { Observation, Primitive } from "./primitive.ts";

const adoptedNodeWant = z.object({
	nodeName: z.string(),
	nodeAddress: z.string(),
	mode: z.enum(["adopt-control-plane", "adopt-worker"]),
});
type Want = z.output<typeof adoptedNodeWant>;

/** A node that others made with kubeadm, and go on to look after: it is looked at, and nothing of it is ever changed or undone. */
export const adoptedNode: Primitive<Want, Record<string, never>> = {
	schema: adoptedNodeWant,
	key: ({ nodeName }) => nodeName,
	observe: async (want) => look(want),
	remember: async () => ({}),
	async apply(want) {
		const { why } = look(want);
		if (why === undefined) return;
		throw new GroundplaneError("PrerequisiteNotMet", why, {
			next: "Nothing is made here by itself: mend the node with kubeadm, or take this host out of its cluster.",
		});
	},
	undo: async () => {},
};

function look({ nodeName, nodeAddress, mode }: Want): Observation {
	const found = findKubernetes();
	const isControlPlane = mode === "adopt-control-plane";
	if (found === undefined) return { ok: false, why: "there is no node here that kubeadm has made" };
	if (found.nodeName !== nodeName) return { ok: false, why: `the node here is ${found.nodeName}, not ${nodeName}` };
	if (isControlPlane && found.controlPlane === undefined) return { ok: false, why: "this node is no control plane" };
	return {
		ok: true,
		outputs: { mode, nodeName, nodeAddress, ...(isControlPlane ? { caCertHash: found.caCertHash } : {}) },
	};
}
