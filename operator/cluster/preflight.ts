import { ACCEPT, type Cluster } from "../../crds/cluster.ts";
import { durationMs } from "../../protocol/duration.ts";
import { compareVersions, minorsBetween } from "../../protocol/versions.ts";
import type { KubeObject, Pod } from "../kube/resources.ts";

const GIB = 1024 ** 3;
/** A release's programs and images, beside those of the version that runs. */
const LEAST_DISK = 3 * GIB;

/** A member as preflight looks at it. */
export interface Candidate {
	readonly host: string;
	/** Versions that it runs, or is asked for. */
	readonly versions: readonly string[];
	readonly healthy: boolean;
	readonly filesystems: readonly { readonly path: string; readonly availableBytes: number }[];
}

/** What stands in the way of a version, each a sentence that says what to do. Empty when nothing does. */
export function preflight(
	{ metadata }: Pick<Cluster, "metadata">,
	{
		target,
		versions,
		removedApis: apis,
	}: { target: string; versions: readonly string[]; removedApis: readonly string[] },
	members: readonly Candidate[],
): string[] {
	const findings: string[] = [];
	if (versions.length > 0 && !versions.includes(target))
		findings.push(`Kubernetes ${target} is not offered here. Offered: ${versions.join(", ")}.`);
	for (const { host, versions: its, healthy, filesystems } of members) {
		const apart = its.find((version) => minorsBetween(version, target) > 1);
		if (apart !== undefined)
			findings.push(`${host} is at ${apart}: ${target} is more than one minor away, take the one between first.`);
		if (!healthy) findings.push(`${host} is not well: mend it first, or take it out of the cluster.`);
		const disk = filesystems
			.filter(({ path }) => "/var/lib/containerd".startsWith(path))
			.toSorted((a, b) => b.path.length - a.path.length)[0];
		if (disk !== undefined && disk.availableBytes < LEAST_DISK)
			findings.push(
				`${host} has ${Math.floor(disk.availableBytes / GIB)} GiB left on ${disk.path}: a version needs ${LEAST_DISK / GIB} GiB. Make room there.`,
			);
	}
	if (apis.length > 0 && metadata.annotations?.[ACCEPT] !== target)
		findings.push(
			`Clients still use APIs that ${target} removes: ${apis.join(", ")}. Move them to the newer API, or accept it: gp cluster upgrade ${metadata.name} ${target} --force.`,
		);
	return findings;
}

/**
 * What does not keep a version from being rolled out, and should be known before: budgets that will make drains wait, and what the
 * way back will not restore.
 *
 * @param change `etcd`: its version before and after, where the releases are at hand.
 */
export function notesOf(
	{ spec }: Pick<Cluster, "spec">,
	{
		from,
		to,
		blocking,
		etcd,
	}: { from: string; to: string; blocking: readonly string[]; etcd?: { from: string; to: string } },
): string[] {
	const notes: string[] = [];
	if (blocking.length > 0) {
		const minutes = Math.round(durationMs(spec.upgradePolicy.drainTimeout) / 60_000);
		notes.push(
			`PodDisruptionBudgets that allow no eviction now: ${blocking.join(", ")}. Where their pods run a drain waits; after ${minutes} min (upgradePolicy.drainTimeout) they are deleted all the same.`,
		);
	}
	if (minorsBetween(from, to) === 0) return notes;
	const [older, newer] = [from, to].sort(compareVersions).map(minorOf);
	notes.push(
		compareVersions(to, from) > 0
			? `The way back to ${older} stays open, but it loses something: objects of APIs, and fields, that only ${newer} has can't be seen or written there. Use none of them until you are sure to stay.`
			: `Objects of APIs, and fields, that only ${newer} has can't be seen or written on ${older}: if there are any, move them first.`,
	);
	if (compareVersions(to, from) > 0 && (etcd === undefined || minorsBetween(etcd.from, etcd.to) > 0))
		notes.push(
			`${etcd === undefined ? "Should the release bring a newer minor of etcd, it" : `etcd changes from ${etcd.from} to ${etcd.to} and`} stays there on the way back, since the older one can't read its data; older API servers use it as well.`,
		);
	return notes;
}

const minorOf = (version: string): string => version.split(".").slice(0, 2).join(".");

/**
 * APIs that were asked for since the API servers started and that a version no longer has (`apiserver_requested_deprecated_apis`).
 * Each API server counts its own clients.
 */
export function removedApis(metrics: readonly string[], version: string): string[] {
	const found = new Set<string>();
	for (const [, labels = ""] of metrics.join("\n").matchAll(/^apiserver_requested_deprecated_apis\{([^}]*)\} 1$/gm)) {
		const label = (name: string) => new RegExp(`(?:^|,)${name}="([^"]*)"`).exec(labels)?.[1] ?? "";
		const removed = label("removed_release");
		if (removed === "" || compareVersions(`v${removed}.0`, version) > 0) continue;
		found.add([label("group"), label("version"), label("resource")].filter((part) => part !== "").join("/"));
	}
	return [...found].sort();
}

/** `policy/v1` PodDisruptionBudget. */
export interface Budget extends KubeObject {
	readonly spec?: {
		readonly selector?: {
			readonly matchLabels?: Readonly<Record<string, string>>;
			readonly matchExpressions?: readonly { key: string; operator: string; values?: readonly string[] }[];
		};
	};
	readonly status?: { readonly disruptionsAllowed?: number; readonly expectedPods?: number };
}
/** Whether a budget lets no pod go just now. */
export const allowsNone = ({ status }: Budget): boolean =>
	(status?.disruptionsAllowed ?? 0) === 0 && (status?.expectedPods ?? 0) > 0;

/** Which budgets hold pods back, as `namespace/name (pod NAME)`. */
export function blockedBy(left: readonly Pod[], blocking: readonly Budget[]): string[] {
	return blocking.flatMap(({ metadata, spec }) => {
		const pod = left.find(
			(one) => one.metadata.namespace === metadata.namespace && selects(spec?.selector, one.metadata.labels ?? {}),
		);
		return pod === undefined ? [] : [`${metadata.namespace}/${metadata.name} (pod ${pod.metadata.name})`];
	});
}

/** Whether a label selector (`metav1.LabelSelector`) matches. Of policy/v1, where an empty one matches every pod. */
function selects(selector: NonNullable<Budget["spec"]>["selector"], labels: Readonly<Record<string, string>>): boolean {
	if (selector === undefined) return false;
	return (
		Object.entries(selector.matchLabels ?? {}).every(([key, value]) => labels[key] === value) &&
		(selector.matchExpressions ?? []).every(({ key, operator, values = [] }) => {
			switch (operator) {
				case "In":
					return key in labels && values.includes(labels[key] ?? "");
				case "NotIn":
					return !values.includes(labels[key] ?? "");
				case "Exists":
					return key in labels;
				default:
					return !(key in labels);
			}
		})
	);
}
