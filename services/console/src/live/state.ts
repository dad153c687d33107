import type { Cluster, Host } from "../api/types.ts";
import type { WatchEvent } from "../api/watch.ts";
import { type Activity, changesOf } from "./activity.ts";

/** What the console knows of the region: each object as it was last told. */
export interface LiveState {
	/** False until the first snapshot. */
	readonly isLoaded: boolean;
	readonly hosts: ReadonlyMap<string, Host>;
	readonly clusters: ReadonlyMap<string, Cluster>;
	/** What changed while the page was open, newest first. */
	readonly activity: readonly Activity[];
}

export const emptyState: LiveState = { isLoaded: false, hosts: new Map(), clusters: new Map(), activity: [] };

const KEPT = 200;

/** Takes events in: the next state. Objects that did not change stay the same, so that what shows them needs no new look. */
export function reduce(state: LiveState, events: readonly WatchEvent[], now: number): LiveState {
	let { isLoaded } = state;
	const hosts = new Map(state.hosts);
	const clusters = new Map(state.clusters);
	const changes: Activity[] = [];
	const put = <Kind extends Host | Cluster>(map: Map<string, Kind>, next: Kind) => {
		const { name, uid, resourceVersion } = next.metadata;
		const before = map.get(name);
		if (before?.metadata.uid === uid && before?.metadata.resourceVersion === resourceVersion && resourceVersion) return;
		map.set(name, next);
		if (isLoaded) changes.push(...changesOf(before, next, now));
	};
	const remove = <Kind extends Host | Cluster>(map: Map<string, Kind>, name: string) => {
		const before = map.get(name);
		if (before) changes.push(...changesOf(before, undefined, now));
		map.delete(name);
	};
	const replace = <Kind extends Host | Cluster>(map: Map<string, Kind>, items: readonly Kind[]) => {
		const names = new Set(items.map(({ metadata }) => metadata.name));
		for (const name of [...map.keys()]) if (!names.has(name)) remove(map, name);
		for (const item of items) put(map, item);
	};
	for (const change of events) {
		switch (change.event) {
			case "snapshot":
				replace(hosts, change.hosts);
				replace(clusters, change.clusters);
				isLoaded = true;
				break;
			case "host":
				if (change.type === "deleted") remove(hosts, change.object.metadata.name);
				else put(hosts, change.object);
				break;
			case "cluster":
				if (change.type === "deleted") remove(clusters, change.object.metadata.name);
				else put(clusters, change.object);
				break;
		}
	}
	return { isLoaded, hosts, clusters, activity: [...changes.reverse(), ...state.activity].slice(0, KEPT) };
}
