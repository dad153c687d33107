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
 * can't be done although the cluster is alive, the host must stay. When neither an API server nor etcd answers, there is nothing to
 * save. Tells whether nothing more can be done about it.
 */
export async function leaveEtcd(nodeName: string, context: StepContext): Promise<boolean> {
	if (!(await statOf("/etc/kubernetes/admin.conf")) || !(await statOf("/usr/local/bin/etcdctl"))) return false;
	const endpoints = await endpointsOfOthers(nodeName, context);
	if (endpoints === undefined) context.log("neither an API server nor etcd answers: this host's member is left there");
	if (endpoints === undefined || endpoints.length === 0) return true;
	try {
		return await takeOut(nodeName, endpoints, context);
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
 * Removes a node's member, unless it is the only one: that nobody else needs, and etcd refuses to be without. The pods of those
 * that left before it still say for a while that they are ready, so only etcd itself knows.
 *
 * @param others Where members of other nodes may listen.
 * @returns False when a member that has never started may be this node's: it has no name yet.
 */
export async function takeOut(nodeName: string, others: readonly string[], context: StepContext): Promise<boolean> {
	const all = await members(context).catch(() => members(context, others));
	const own = all.find(({ name }) => name === nodeName);
	// By another member: its own stops while it answers.
	if (own && all.length > 1) await remove(own.id, context, others);
	return own !== undefined || all.every(({ name }) => name !== "");
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

/**
 * Where the members of other control planes that are ready listen, as kubeadm notes it on their pods. When no API server answers, be it
 * for a moment or for good, etcd knows as long as it has its majority. Undefined when neither does.
 */
export async function endpointsOfOthers(nodeName: string, context: StepContext): Promise<string[] | undefined> {
	const { exec, signal } = context;
	const question = ["-n", "kube-system", "get", "pods", "-l", "component=etcd", "-o", "json"];
	const { code, stdout } = await exec(
		"kubectl",
		["--kubeconfig=/etc/kubernetes/admin.conf", "--request-timeout=10s", ...question],
		{
			signal,
			codes: true,
		},
	);
	if (code !== 0) {
		const all = await members(context).catch(() => undefined);
		signal.throwIfAborted();
		return all?.filter(({ name }) => name !== nodeName).flatMap(({ clientUrls }) => clientUrls);
	}
	return etcdPods
		.parse(JSON.parse(stdout))
		.items.filter(({ spec }) => spec.nodeName !== nodeName)
		.filter(({ status }) => status.conditions.some(({ type, status }) => type === "Ready" && status === "True"))
		.map(({ metadata }) => metadata.annotations["kubeadm.kubernetes.io/etcd.advertise-client-urls"])
		.filter((url) => url !== undefined);
}

interface EtcdMember {
	/** Hexadecimal. */
	readonly id: string;
	/** Empty before it has started for the first time. */
	readonly name: string;
	readonly clientUrls: readonly string[];
}

async function members(context: StepContext, at?: readonly string[]): Promise<EtcdMember[]> {
	return membersIn(await etcdctl(context, ["member", "list"], at));
}

/** What `etcdctl member list` prints: ID (hexadecimal), status, name, peer URLs, client URLs, whether a learner. */
export function membersIn(list: string): EtcdMember[] {
	const lines = list.split("\n").filter((line) => line !== "");
	return lines
		.map((line) => line.split(", "))
		.map(([id = "", , name = "", , urls = ""]) => ({
			id,
			name,
			clientUrls: urls.split(",").filter((url) => url !== ""),
		}));
}

const remove = (id: string, context: StepContext, at?: readonly string[]) =>
	etcdctl(context, ["member", "remove", id], at);

/** Asks this node's member, or those `at` some endpoints and no other: a second option would add to the first. */
async function etcdctl({ exec, signal }: StepContext, args: string[], at?: readonly string[]): Promise<string> {
	const [own, ...identity] = etcdIdentity;
	const endpoints = at === undefined ? own : `--endpoints=${at.join(",")}`;
	return (await exec("etcdctl", [endpoints, ...identity, "--command-timeout=10s", ...args], { signal })).stdout;
}
