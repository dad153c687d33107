import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { statOf } from "./durable.ts";
import type { Primitive, StepContext } from "./primitive.ts";
import { etcdIdentity } from "./version-change.ts";

const etcdMembersWant = z.object({
	/** Names of control planes that are gone: their etcd members are removed, so that they no longer count for the quorum. */
	former: z.array(z.string()),
});

/** The members of the cluster's etcd, without those of control planes that will not come back. */
export const etcdMembers: Primitive<z.output<typeof etcdMembersWant>, Record<string, never>> = {
	schema: etcdMembersWant,
	key: () => "etcd-members",
	observe: async ({ former }, _context, applied) =>
		former.length === 0 || applied.last === applied.now
			? { ok: true }
			: { ok: false, why: `members of ${former.join(", ")} may still be there` },
	remember: async () => ({}),
	async apply({ former }, context) {
		for (const { id, name } of await members(context)) if (former.includes(name)) await remove(id, context);
	},
	undo: async () => {},
};

/**
 * Takes this host's member out of etcd before it stops, if there are others: afterwards it would count as lost. When that
 * can't be done although the cluster is alive, the host must stay. When no API server answers, there is nothing to save.
 */
export async function leaveEtcd(nodeName: string, context: StepContext): Promise<void> {
	if (!(await statOf("/etc/kubernetes/admin.conf")) || !(await statOf("/usr/local/bin/etcdctl"))) return;
	const endpoints = await endpointsOfOthers(nodeName, context);
	if (endpoints === undefined) return context.log("no API server answers: this host's member is left in etcd");
	if (endpoints.length === 0) return;
	try {
		const others = `--endpoints=${endpoints.join(",")}`;
		const own = leaving(await members(context, others), nodeName);
		if (own) await remove(own, context, others);
	} catch (cause) {
		context.signal.throwIfAborted();
		throw new GroundplaneError(
			"StepFailed",
			"this host's member can't be taken out of etcd, and others need its quorum",
			{
				next: "Bring the other control planes back first; it is tried again by itself.",
				cause,
			},
		);
	}
}

/**
 * The member that a node takes with it, unless it is the only one: that nobody else needs, and etcd refuses to be without.
 * The pods of those that left before it still say for a while that they are ready, so only etcd itself knows.
 */
export function leaving(all: readonly { id: string; name: string }[], nodeName: string): string | undefined {
	return all.length < 2 ? undefined : all.find(({ name }) => name === nodeName)?.id;
}

const etcdPods = z.object({
	items: z.array(
		z.object({
			spec: z.object({ nodeName: z.string().default("") }),
			metadata: z.object({ annotations: z.record(z.string(), z.string()).default({}) }),
			status: z.object({ conditions: z.array(z.object({ type: z.string(), status: z.string() })).default([]) }),
		}),
	),
});

/** Where the members of other control planes that are ready listen, as kubeadm notes it on their pods. */
async function endpointsOfOthers(nodeName: string, { exec, signal }: StepContext): Promise<string[] | undefined> {
	const question = ["-n", "kube-system", "get", "pods", "-l", "component=etcd", "-o", "json"];
	const { code, stdout } = await exec(
		"kubectl",
		["--kubeconfig=/etc/kubernetes/admin.conf", "--request-timeout=10s", ...question],
		{
			signal,
			codes: true,
		},
	);
	if (code !== 0) return undefined;
	return etcdPods
		.parse(JSON.parse(stdout))
		.items.filter(({ spec }) => spec.nodeName !== nodeName)
		.filter(({ status }) => status.conditions.some(({ type, status }) => type === "Ready" && status === "True"))
		.map(({ metadata }) => metadata.annotations["kubeadm.kubernetes.io/etcd.advertise-client-urls"])
		.filter((url) => url !== undefined);
}

async function members(context: StepContext, ...options: string[]): Promise<{ id: string; name: string }[]> {
	return membersIn(await etcdctl(context, ...options, "member", "list"));
}

/** What `etcdctl member list` prints: ID (hexadecimal), status, name, peer URLs, client URLs, whether a learner. */
export function membersIn(list: string): { id: string; name: string }[] {
	const lines = list.split("\n").filter((line) => line !== "");
	return lines.map((line) => line.split(", ")).map(([id = "", , name = ""]) => ({ id, name }));
}

const remove = (id: string, context: StepContext, ...options: string[]) =>
	etcdctl(context, ...options, "member", "remove", id);

async function etcdctl({ exec, signal }: StepContext, ...args: string[]): Promise<string> {
	return (await exec("etcdctl", [...etcdIdentity, "--command-timeout=10s", ...args], { signal })).stdout;
}
