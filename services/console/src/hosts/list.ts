import type { Host, HostPhase } from "../api/types.ts";
import { hostPhase } from "../live/derive.ts";

export interface HostFilter {
	/** Part of the name, the address or the cluster. */
	readonly text: string;
	readonly phase: HostPhase | undefined;
}

export interface Order {
	readonly key: string;
	readonly direction: "asc" | "desc";
}

/** The hosts that a filter leaves. */
export function filterHosts(hosts: readonly Host[], { text, phase }: HostFilter): Host[] {
	const wanted = text.trim().toLowerCase();
	return hosts.filter((host) => {
		if (phase && hostPhase(host) !== phase) return false;
		const { facts, cluster = "" } = host.status ?? {};
		const places = [host.metadata.name, cluster, facts?.primaryAddress ?? "", facts?.os.prettyName ?? ""];
		return wanted === "" || places.some((place) => place.toLowerCase().includes(wanted));
	});
}

/** Sorted by a column; what is equal in it stays in the order in which it came. */
export function sortBy<Item>(
	items: readonly Item[],
	columns: readonly { readonly key: string; readonly compare?: (a: Item, b: Item) => number }[],
	{ key, direction }: Order,
): Item[] {
	const compare = columns.find((column) => column.key === key)?.compare;
	if (!compare) return [...items];
	return [...items].sort(direction === "asc" ? compare : (a, b) => compare(b, a));
}

/** How many hosts are in each phase. */
export function countPhases(hosts: readonly Host[]): Map<HostPhase, number> {
	const counts = new Map<HostPhase, number>();
	for (const host of hosts) counts.set(hostPhase(host), (counts.get(hostPhase(host)) ?? 0) + 1);
	return counts;
}
