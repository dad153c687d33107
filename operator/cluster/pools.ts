import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import type { Member } from "./assign.ts";
import { ZONE, zoneOf } from "./placement.ts";
import type { NodePatch, NodeState, PoolMarks, Taint } from "./state.ts";

const CONTROL_PLANE_TAINT: Taint = { key: "node-role.kubernetes.io/control-plane", effect: "NoSchedule" };

/**
 * What has to change on a Node for it to bear its pool's labels and taints and its host's failure domain, and no longer those of before.
 * Others are left alone: people and Kubernetes put theirs there too. `undefined` when all is as it should be.
 */
export function poolPatch(cluster: Cluster, member: Member, node: NodeState, host: Host): NodePatch | undefined {
	const { labels: poolLabels, taints } = wantedOf(cluster, member);
	const zone = zoneOf(host);
	const labels = { ...(zone === "" ? {} : { [ZONE]: zone }), ...poolLabels };
	const before = node.pool;
	const marks: PoolMarks = { labels: Object.keys(labels).sort(), taints: taints.map(idOf).sort() };
	const gone = (before?.labels ?? []).filter((name) => !(name in labels) && name in node.labels);
	const ours = new Set([...(before?.taints ?? []), ...marks.taints]);
	const wantedTaints = [...node.taints.filter((taint) => !ours.has(idOf(taint))), ...taints];

	const inStep =
		gone.length === 0 &&
		Object.entries(labels).every(([name, value]) => node.labels[name] === value) &&
		textOf(node.taints) === textOf(wantedTaints) &&
		// A pool without either needs no mark: most have none.
		JSON.stringify(before ?? { labels: [], taints: [] }) === JSON.stringify(marks);
	if (inStep) return undefined;
	return {
		labels: { ...labels, ...Object.fromEntries(gone.map((name) => [name, null])) },
		taints: wantedTaints,
		pool: marks,
		...(node.resourceVersion === undefined ? {} : { resourceVersion: node.resourceVersion }),
	};
}

function wantedOf(cluster: Cluster, member: Member): { labels: Record<string, string>; taints: readonly Taint[] } {
	if (member.role === "control-plane")
		return { labels: {}, taints: cluster.spec.controlPlaneSchedulable ? [] : [CONTROL_PLANE_TAINT] };
	const pool = poolOf(cluster, member);
	return { labels: { ...pool?.labels }, taints: pool?.taints ?? [] };
}

export const poolOf = (cluster: Cluster, member: Member) =>
	cluster.spec.workers.find((pool) => pool.name === member.pool);

const idOf = ({ key, effect }: Taint): string => `${key}:${effect}`;
const textOf = (taints: readonly Taint[]): string =>
	taints
		.map((taint) => `${idOf(taint)}=${taint.value ?? ""}`)
		.sort()
		.join();
