import type { Cluster, ClusterMember, Host } from "../api/types.ts";
import { workOf } from "../live/derive.ts";
import { byName } from "../ui/words.ts";

/** How many of a cluster's nodes are ready, and of how many. */
export function readyNodes({ status }: Cluster): { ready: number; total: number } {
	const members = (status?.members ?? []).filter(({ phase }) => phase !== "Leaving");
	return { ready: members.filter(({ phase }) => phase === "Ready").length, total: members.length };
}

export interface MemberRow extends ClusterMember {
	/** The host's own progress, which says more than the cluster's. */
	readonly step: string | undefined;
	readonly progress: string | undefined;
	readonly address: string | undefined;
}

/** Members with what their host is doing: control planes first, then by name. */
export function memberRows(cluster: Cluster, hosts: ReadonlyMap<string, Host>): MemberRow[] {
	return (cluster.status?.members ?? [])
		.map((member) => {
			const host = hosts.get(member.host);
			const work = host && workOf(host);
			return {
				...member,
				step: work ? [work.what, work.detail].filter(Boolean).join(": ") : undefined,
				progress: work?.progress,
				address: host?.status?.facts?.primaryAddress,
			};
		})
		.sort((a, b) => a.role.localeCompare(b.role) || byName(a.host, b.host));
}
