import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { chooseControlPlanes } from "./placement.ts";

/** A host's place in a cluster. */
export interface Member {
	readonly host: string;
	readonly role: "control-plane" | "worker";
	/** Name of the worker pool. */
	readonly pool?: string;
}

/** Why a cluster can't be made as it is written; the reason is the one of its condition. */
export interface Problem {
	readonly reason: "HostNotFound" | "HostTaken" | "HostNotReady" | "NotEnoughHosts" | "NotInRelease";
	readonly host?: string;
	readonly message: string;
}

export interface Assignment {
	readonly members: readonly Member[];
	readonly problems: readonly Problem[];
}

/** Name of the role pack that makes a host a Kubernetes node. */
export const KUBERNETES_ROLE = "kubernetes";

/** The cluster that a host's kubernetes role names, if it has one. */
export const clusterOf = (host: Host): string | undefined => {
	const parameters = host.spec.roles?.find((role) => role.name === KUBERNETES_ROLE)?.parameters;
	return typeof parameters?.cluster === "string" ? parameters.cluster : undefined;
};

/** Whether a host was asked to be a control plane of this cluster. */
const isControlPlaneOf = (host: Host, cluster: string): boolean =>
	clusterOf(host) === cluster &&
	host.spec.roles.some(
		({ name, parameters }) =>
			name === KUBERNETES_ROLE && (parameters.mode === "init" || parameters.mode === "join-control-plane"),
	);

/** Index of hosts by the cluster that their role names, as `namespace/name`. */
export const BY_CLUSTER = "cluster";

/** Index of clusters by the hosts that may concern them; see {@link hostKeysOf}. */
export const BY_HOST = "host";

/** Hosts that concern a cluster, as `namespace/name`: those it names and those it has; `namespace/*` when it selects by labels. */
export function hostKeysOf({ metadata, spec, status }: Cluster): string[] {
	const picks = [spec.controlPlane, ...(spec.workers ?? [])];
	const names = [
		...picks.flatMap((pick) => pick.hosts ?? []),
		...(status?.members ?? []).map(({ host }) => host),
		...(picks.some((pick) => pick.selector !== undefined) ? ["*"] : []),
	];
	return [...new Set(names)].map((name) => `${metadata.namespace}/${name}`);
}

/** Hosts that a cluster named or had and does no longer, by the same keys: whoever else wants them looks again. */
export function letGoBy(previous: Cluster | undefined, now: Cluster | undefined): string[] {
	const still = new Set(now === undefined ? [] : hostKeysOf(now));
	return (previous === undefined ? [] : hostKeysOf(previous)).filter((key) => !still.has(key));
}

/**
 * Decides which hosts are members of a cluster. Hosts that are members already stay (a selector never swaps a working
 * host for another). Of further ones the best suited become control planes ({@link chooseControlPlanes}), and workers are taken in
 * alphabetical order, so that every run decides alike.
 *
 * @param others the other clusters of the region: what an older one names by host is taken.
 */
export function assign(cluster: Cluster, hosts: readonly Host[], others: readonly Cluster[]): Assignment {
	const byName = new Map(hosts.map((host) => [host.metadata.name, host]));
	const claimed = claimedByOlder(cluster, others);
	const used = new Set<string>();
	const members: Member[] = [];
	const problems: Problem[] = [];

	const take = (pick: Cluster["spec"]["controlPlane"], role: Member["role"], pool?: string) => {
		const names = pick.selector === undefined ? (pick.hosts ?? []) : select(pick, role, pool);
		const place = pool === undefined ? { role } : { role, pool };
		for (const name of names) {
			used.add(name);
			members.push({ host: name, ...place });
			const problem = problemOf(name);
			if (problem !== undefined) problems.push(problem);
		}
		if (pick.selector !== undefined && pick.count !== undefined && names.length < pick.count) {
			problems.push({
				reason: "NotEnoughHosts",
				message: `${pool === undefined ? "The control plane" : `Pool ${pool}`} needs ${pick.count} hosts with labels ${labelsText(pick.selector.matchLabels)}, and ${names.length} are free and ready. Enrol more hosts, label them, or lower count.`,
			});
		}
	};

	const select = (pick: Cluster["spec"]["controlPlane"], role: Member["role"], pool?: string): string[] => {
		const isMember = (name: string) =>
			cluster.status?.members?.some((m) => m.host === name && m.role === role && m.pool === pool) ?? false;
		const matching = hosts
			.filter((host) => matches(host, pick.selector?.matchLabels ?? {}) && !used.has(host.metadata.name))
			.filter((host) => isMember(host.metadata.name) || problemOf(host.metadata.name) === undefined);
		if (role === "control-plane") {
			// The status may be older than what the host was asked to be.
			const isPresent = (host: Host) => isMember(host.metadata.name) || isControlPlaneOf(host, cluster.metadata.name);
			return chooseControlPlanes(cluster, {
				present: matching.filter(isPresent),
				candidates: matching.filter((host) => !isPresent(host)),
				count: pick.count ?? matching.length,
			}).map((host) => host.metadata.name);
		}
		const names = matching
			.map((host) => host.metadata.name)
			.sort((a, b) => Number(isMember(b)) - Number(isMember(a)) || (a < b ? -1 : 1));
		return pick.count === undefined ? names : names.slice(0, pick.count);
	};

	const problemOf = (name: string): Problem | undefined => {
		const host = byName.get(name);
		if (host === undefined) {
			return {
				reason: "HostNotFound",
				host: name,
				message: `There is no host ${name} in this region. Enrol it (gp host join-command), or name another.`,
			};
		}
		const owner = clusterOf(host) ?? claimed.get(name);
		if (owner !== undefined && owner !== cluster.metadata.name) {
			return {
				reason: "HostTaken",
				host: name,
				message: `Host ${name} belongs to cluster ${owner}. Take it out there first, or name another host.`,
			};
		}
		if (owner === cluster.metadata.name && clusterOf(host) !== undefined) return undefined;
		return notReady(host, cluster.spec.adopt);
	};

	take(cluster.spec.controlPlane, "control-plane");
	for (const pool of cluster.spec.workers ?? []) take(pool, "worker", pool.name);
	return { members, problems };
}

/** Why a host that isn't a member yet can't become one now. */
function notReady(host: Host, isAdopted: boolean): Problem | undefined {
	const { name } = host.metadata;
	const because = (message: string): Problem => ({ reason: "HostNotReady", host: name, message });
	if (host.metadata.deletionTimestamp !== undefined)
		return because(`Host ${name} is being deleted. Name another host.`);
	if (!host.spec.approved) return because(`Host ${name} waits for approval: gp host approve ${name}.`);
	if (host.spec.maintenance) return because(`Host ${name} is in maintenance: gp host maintenance ${name} off.`);
	if (host.status?.connection?.state !== "Connected") {
		return because(`Host ${name} is not connected. Look at it there: systemctl status gp-agent.`);
	}
	const failed =
		host.status?.checks?.filter(
			// The ports of a node that is to be adopted are its own.
			(check) => !check.ok && check.severity === "error" && !(isAdopted && check.name === "ports"),
		) ?? [];
	if (failed.length > 0) {
		return because(
			`Host ${name} does not meet the prerequisites: ${failed.map((c) => `${c.message} ${c.next ?? ""}`.trim()).join("; ")}`,
		);
	}
	if ((host.status?.roles ?? []).some((role) => role.name === KUBERNETES_ROLE)) {
		return because(`Host ${name} is still being cleaned of its former cluster.`);
	}
	return undefined;
}

/** Hosts that an older cluster names: when two clusters name one host, the older one has it. */
function claimedByOlder(cluster: Cluster, others: readonly Cluster[]): Map<string, string> {
	const age = (c: Cluster) => `${c.metadata.creationTimestamp ?? ""}/${c.metadata.name}`;
	const claimed = new Map<string, string>();
	for (const other of others) {
		if (other.metadata.name === cluster.metadata.name || age(other) > age(cluster)) continue;
		for (const pick of [other.spec.controlPlane, ...(other.spec.workers ?? [])]) {
			for (const name of pick.hosts ?? []) claimed.set(name, other.metadata.name);
		}
	}
	return claimed;
}

const matches = (host: Host, labels: Readonly<Record<string, string>>): boolean =>
	Object.entries(labels).every(([key, value]) => host.metadata.labels?.[key] === value);

const labelsText = (labels: Readonly<Record<string, string>>): string =>
	Object.entries(labels)
		.map(([key, value]) => `${key}=${value}`)
		.join(",");
