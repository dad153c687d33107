import { isDeepStrictEqual } from "node:util";
import type { Cluster, ClusterStatus } from "../../crds/cluster.ts";
import type { Host, HostRole } from "../../crds/host.ts";
import { durationMs } from "../../protocol/duration.ts";
import type { KubernetesRoleInput, KubernetesRoleOutputs } from "../../protocol/kubernetes-role.ts";
import type { NewCondition } from "../kube/conditions.ts";
import { assign, clusterOf, KUBERNETES_ROLE, type Member } from "./assign.ts";

/** What the controller saw: custom resources from the caches, the cluster itself through the tunnel. */
export interface Observed {
	readonly cluster: Cluster;
	readonly hosts: readonly Host[];
	readonly others: readonly Cluster[];
	/** Kubernetes versions that the region offers. */
	readonly versions: readonly string[];
	/** Whether the Secret with the join token and the certificate key exists. */
	readonly joinSecret: boolean;
	/** The cluster's own API server; absent while it can't be reached, with the cause in `unreachable`. */
	readonly workload?: WorkloadState;
	readonly unreachable?: string;
	readonly now: number;
}

export interface WorkloadState {
	readonly nodes: readonly NodeState[];
	/** Whether a CoreDNS pod is ready. */
	readonly dnsReady: boolean;
	/** Whether the bootstrap token is known to the cluster. */
	readonly bootstrapToken: boolean;
}

export interface NodeState {
	readonly name: string;
	readonly ready: boolean;
	readonly version?: string;
	readonly message?: string;
	readonly labels: Readonly<Record<string, string>>;
	readonly unschedulable: boolean;
	/** When draining began (annotation on the Node), milliseconds since the epoch. */
	readonly drainStarted?: number;
	/** Pods that a drain has to move away. */
	readonly evictable: number;
}

/** One effect. Every one is idempotent, so a crash between two costs a repetition and nothing else. */
export type Action =
	| { readonly type: "createJoinSecret" }
	| { readonly type: "deleteJoinSecret" }
	| { readonly type: "createBootstrapToken" }
	| { readonly type: "deleteBootstrapToken" }
	| { readonly type: "applyRole"; readonly host: string; readonly role: HostRole }
	| { readonly type: "removeRole"; readonly host: string }
	| { readonly type: "drain"; readonly host: string; readonly force: boolean }
	| { readonly type: "labelNode"; readonly host: string; readonly labels: Readonly<Record<string, string>> }
	| { readonly type: "deleteNode"; readonly host: string }
	| { readonly type: "removeFinalizer"; readonly leftBehind: readonly string[] };

export interface Plan {
	readonly actions: readonly Action[];
	/** Wanted status without conditions. */
	readonly status: Omit<ClusterStatus, "conditions">;
	readonly conditions: readonly NewCondition[];
	/** Look again after this many milliseconds, even if nothing is heard. */
	readonly requeueAfter: number;
}

/** How soon to look again while something is under way, and when all is well: a look travels through the tunnel. */
const BUSY_MS = 3_000;
const STEADY_MS = 120_000;
/** How soon to look again when something stands in the way of beginning; nothing travels for that. */
const WAITING_MS = 30_000;
/** A host that has been gone for this long does not hold up the deletion of its cluster: it cleans itself when it is back. */
const GONE_MS = 5 * 60_000;

type MemberStatus = NonNullable<ClusterStatus["members"]>[number];

/** Name of the Secret with the secrets that joining hosts need. */
export const joinSecretName = (cluster: string): string => `cluster-${cluster}-join`;

/** Decides what to do next for a cluster. Pure: the same observation always gives the same plan. */
export function plan(observed: Observed): Plan {
	if (observed.cluster.metadata.deletionTimestamp !== undefined) return planDeletion(observed);

	const { cluster, hosts } = observed;
	const { members, problems } = assign(cluster, hosts, observed.others);
	const started = hosts.some((host) => clusterOf(host) === cluster.metadata.name);

	if (!started) {
		const refusal = refuse(observed, problems);
		if (refusal !== undefined) return refusal;
	}
	const usable = members.filter((member) => !problems.some((problem) => problem.host === member.host));
	return planMembers(observed, members, usable, problems);
}

/** Nothing was begun, and something stands in the way: begin nothing at all, so that nothing half-made stays. */
function refuse(
	{ cluster, versions }: Observed,
	problems: readonly { reason: string; message: string }[],
): Plan | undefined {
	const found =
		versions.length > 0 && !versions.includes(cluster.spec.version)
			? [
					{
						reason: "VersionNotOffered",
						message: `Kubernetes ${cluster.spec.version} is not offered here. Offered: ${versions.join(", ")}.`,
					},
				]
			: problems;
	const first = found[0];
	if (first === undefined) return undefined;
	return {
		actions: [],
		status: { ...baseStatus(cluster), phase: "Pending", members: [] },
		conditions: [ready(cluster, "False", first.reason, found.map((problem) => problem.message).join(" "))],
		requeueAfter: WAITING_MS,
	};
}

function planMembers(
	observed: Observed,
	members: readonly Member[],
	usable: readonly Member[],
	problems: readonly { reason: string; host?: string; message: string }[],
): Plan {
	const { cluster, workload } = observed;
	const actions: Action[] = [];
	const hostOf = new Map(observed.hosts.map((host) => [host.metadata.name, host]));
	const nodeOf = new Map(workload?.nodes.map((node) => [node.name, node]));
	const view = members.map((member) =>
		viewOf(cluster, member, hostOf.get(member.host), nodeOf.get(member.host), workload !== undefined),
	);
	const statusOf = new Map(view.map((member) => [member.host, member]));
	const isReady = (member: Member) => statusOf.get(member.host)?.phase === "Ready";
	const hasRole = (member: Member) => clusterOf(hostOf.get(member.host) as Host) === cluster.metadata.name;

	const controlPlanes = usable.filter((member) => member.role === "control-plane");
	const first = firstControlPlane(cluster, controlPlanes, hostOf);
	const initialized = cluster.status?.controlPlaneInitialized === true || isApplied(hostOf.get(first?.host ?? ""));

	if (!observed.joinSecret) actions.push({ type: "createJoinSecret" });

	// Members that have begun keep their parameters up to date; who may begin now is decided below.
	const begin = new Set(usable.filter(hasRole).map((member) => member.host));
	if (first !== undefined) begin.add(first.host);
	if (initialized && workload !== undefined) {
		// etcd takes one new member at a time, and only while the ones it has are well.
		const joined = controlPlanes.filter(hasRole);
		const next = controlPlanes.find((member) => !hasRole(member));
		if (next !== undefined && joined.every(isReady)) begin.add(next.host);
		// Workers wait for the control plane to be made, so that their load balancer knows all of it; not for its nodes to
		// be ready, which takes a pod network that workers bring up just as well.
		const made = next === undefined && joined.every((member) => isApplied(hostOf.get(member.host)));
		if (made) for (const member of usable) begin.add(member.host);
	}
	const joining = usable.filter(
		(member) =>
			begin.has(member.host) && member.host !== first?.host && !hasRolePhase(hostOf.get(member.host), "Applied"),
	);
	if (workload !== undefined && joining.length > 0 && !workload.bootstrapToken)
		actions.push({ type: "createBootstrapToken" });

	if (observed.joinSecret) {
		for (const member of usable) {
			const host = hostOf.get(member.host);
			if (host === undefined || !begin.has(member.host)) continue;
			const role = roleFor(observed, member, first?.host, controlPlanes, hostOf);
			const current = host.spec.roles.find((entry) => entry.name === KUBERNETES_ROLE);
			if (!isDeepStrictEqual(plain(role), plain(current))) actions.push({ type: "applyRole", host: member.host, role });
		}
	}

	const leaving = planLeaving(observed, members, actions);
	for (const member of usable) {
		const node = nodeOf.get(member.host);
		const labels = { ...poolOf(cluster, member)?.labels };
		if (node !== undefined && Object.entries(labels).some(([key, value]) => node.labels[key] !== value)) {
			actions.push({ type: "labelNode", host: member.host, labels });
		}
	}

	const all = [...view, ...leaving];
	const readyCount = view.filter((member) => member.phase === "Ready").length;
	const complete = view.length > 0 && readyCount === view.length && leaving.length === 0 && problems.length === 0;
	const dnsMissing = complete && cluster.spec.addons.coredns && workload?.dnsReady === false;
	const done = complete && !dnsMissing && workload !== undefined;
	if (done && workload.bootstrapToken) actions.push({ type: "deleteBootstrapToken" });

	const progress = done ? undefined : progressOf(observed, all, dnsMissing, hostOf);
	const failed = all.find((member) => member.phase === "Failed");
	const wasReady =
		cluster.status?.conditions?.some((c) => c.type === "Ready" && c.status === "True") ||
		["Ready", "Degraded", "Updating"].includes(cluster.status?.phase ?? "");
	const phase: ClusterStatus["phase"] = done
		? "Ready"
		: leaving.length > 0 || (wasReady && joining.length > 0)
			? "Updating"
			: wasReady
				? "Degraded"
				: failed !== undefined
					? "Failed"
					: "Provisioning";
	return {
		actions,
		status: {
			...baseStatus(cluster),
			phase,
			members: all,
			ready: `${readyCount}/${view.length}`,
			...(initialized ? { controlPlaneInitialized: true } : {}),
			...(initialized
				? {
						version:
							workload?.nodes.find((node) => node.name === first?.host)?.version ??
							cluster.status?.version ??
							cluster.spec.version,
					}
				: {}),
			...(progress === undefined ? {} : { progress }),
		},
		conditions: [
			done
				? ready(cluster, "True", "AllNodesReady", `All ${view.length} nodes are ready.`)
				: problems.length > 0
					? ready(
							cluster,
							"False",
							problems[0]?.reason ?? "HostNotReady",
							problems.map((problem) => problem.message).join(" "),
						)
					: failed !== undefined
						? ready(cluster, "False", "HostFailed", `${failed.host}: ${failed.message ?? "failed"}`)
						: ready(
								cluster,
								"False",
								wasReady ? "NodesNotReady" : "Provisioning",
								describe(progress) ?? observed.unreachable ?? "Under way.",
							),
			initialized
				? {
						type: "ControlPlaneInitialized",
						status: "True",
						reason: "Initialized",
						message: "The first control plane has been made; it is never made again.",
					}
				: {
						type: "ControlPlaneInitialized",
						status: "False",
						reason: "Waiting",
						message: "The first control plane is being made.",
					},
			initialized
				? workload === undefined
					? {
							type: "Reachable",
							status: "False",
							reason: "Unreachable",
							message: `The API server can't be reached through the tunnel: ${observed.unreachable ?? "no control plane is connected"}.`,
						}
					: {
							type: "Reachable",
							status: "True",
							reason: "Answering",
							message: "The API server answers through the tunnel.",
						}
				: { type: "Reachable", status: "Unknown", reason: "Waiting", message: "There is no API server yet." },
		],
		requeueAfter: done ? STEADY_MS : BUSY_MS,
	};
}

/** Hosts that carry this cluster's role and are no longer named: drained, then their role is taken away, then the Node. */
function planLeaving(observed: Observed, members: readonly Member[], actions: Action[]): MemberStatus[] {
	const { cluster, workload } = observed;
	const wanted = new Set(members.map((member) => member.host));
	const budget = cluster.spec.upgradePolicy.maxUnavailableWorkers;
	const leaving: MemberStatus[] = [];
	const hosts = observed.hosts.filter((host) => !wanted.has(host.metadata.name) && belongs(host, cluster));
	for (const host of hosts) {
		const { name } = host.metadata;
		const role = roleKind(host, cluster);
		const node = workload?.nodes.find((candidate) => candidate.name === name);
		leaving.push({ host: name, role, phase: "Leaving", message: leavingMessage(host, node) });
		if (leaving.length > budget) continue;
		if (clusterOf(host) !== undefined) {
			const step = drainStep(observed, node);
			actions.push(
				step === "drained"
					? { type: "removeRole", host: name }
					: { type: "drain", host: name, force: step === "force" },
			);
		}
	}
	// The Node goes when its host has been cleaned: until then the kubelet would make it anew.
	for (const node of workload?.nodes ?? []) {
		const host = observed.hosts.find((candidate) => candidate.metadata.name === node.name);
		if (!wanted.has(node.name) && (host === undefined || !belongs(host, cluster))) {
			actions.push({ type: "deleteNode", host: node.name });
		}
	}
	return leaving;
}

/** The whole cluster goes: workers drained and reset, then control planes, the one made first last. */
function planDeletion(observed: Observed): Plan {
	const { cluster, hosts, workload, now } = observed;
	const actions: Action[] = [];
	const mine = hosts.filter((host) => belongs(host, cluster));
	const workers = mine.filter((host) => roleKind(host, cluster) === "worker");
	const firstHost = mine.find((host) => modeOf(host) === "init");
	const others = mine.filter((host) => roleKind(host, cluster) === "control-plane" && host !== firstHost);
	const present = (group: readonly (Host | undefined)[]) =>
		group.filter((host): host is Host => host !== undefined && !isGone(host, now));

	const workersLeft = present(workers);
	const group =
		workersLeft.length > 0
			? workersLeft
			: present(others).length > 0
				? present(others).slice(-1)
				: present([firstHost]);
	for (const host of mine.filter((candidate) => isGone(candidate, now) && clusterOf(candidate) !== undefined)) {
		actions.push({ type: "removeRole", host: host.metadata.name });
	}
	for (const host of group) {
		if (clusterOf(host) === undefined) continue;
		const node = workload?.nodes.find((candidate) => candidate.name === host.metadata.name);
		const step = roleKind(host, cluster) === "worker" ? drainStep(observed, node) : "drained";
		actions.push(
			step === "drained"
				? { type: "removeRole", host: host.metadata.name }
				: { type: "drain", host: host.metadata.name, force: step === "force" },
		);
	}
	const leftBehind = mine.filter((host) => isGone(host, now)).map((host) => host.metadata.name);
	const finished = group.length === 0 && mine.every((host) => isGone(host, now) && clusterOf(host) === undefined);
	if (finished) {
		if (observed.joinSecret) actions.push({ type: "deleteJoinSecret" });
		actions.push({ type: "removeFinalizer", leftBehind });
	}
	const members = mine.map(
		(host): MemberStatus => ({
			host: host.metadata.name,
			role: roleKind(host, cluster),
			phase: "Leaving",
			message: leavingMessage(
				host,
				workload?.nodes.find((node) => node.name === host.metadata.name),
			),
		}),
	);
	const current = group[0];
	const progress =
		current === undefined
			? undefined
			: {
					step: "Removing",
					host: current.metadata.name,
					detail: members.find((member) => member.host === current.metadata.name)?.message ?? "",
				};
	return {
		actions,
		status: {
			...baseStatus(cluster),
			phase: "Deleting",
			members,
			ready: `0/${members.length}`,
			...(progress === undefined ? {} : { progress: stamp(cluster, progress, now) }),
		},
		conditions: [ready(cluster, "False", "Deleting", describe(progress) ?? "Removing the last traces.")],
		requeueAfter: BUSY_MS,
	};
}

type DrainStep = "drain" | "force" | "drained";

/** Whether a node still has to drain. A cluster that can't be asked is not waited for: its node is reset as it is. */
function drainStep({ cluster, workload, now }: Observed, node: NodeState | undefined): DrainStep {
	if (workload === undefined || node === undefined) return "drained";
	if (node.unschedulable && node.evictable === 0) return "drained";
	if (node.drainStarted === undefined) return "drain";
	const limit = durationMs(cluster.spec.upgradePolicy.drainTimeout);
	if (now - node.drainStarted < limit) return "drain";
	// Past the deadline pods are deleted without asking their budgets; a minute later the node goes as it is.
	return now - node.drainStarted < limit + 60_000 ? "force" : "drained";
}

function leavingMessage(host: Host, node: NodeState | undefined): string {
	if (clusterOf(host) !== undefined) {
		if (node?.drainStarted !== undefined && node.evictable > 0) return `Draining: ${node.evictable} pods left.`;
		return "Draining.";
	}
	const role = host.status?.roles?.find((entry) => entry.name === KUBERNETES_ROLE);
	if (host.status?.connection?.state !== "Connected") return "Not connected: it cleans itself when it is back.";
	return role?.phase === "Failed"
		? `Cleaning failed: ${role.message ?? role.step ?? ""}`
		: `Cleaning: ${role?.step ?? "waiting for the host"}.`;
}

/** Whether a host still has something of the cluster: its role is wanted, or not yet undone. */
function belongs(host: Host, cluster: Cluster): boolean {
	const owner = clusterOf(host);
	if (owner !== undefined) return owner === cluster.metadata.name;
	if (!cluster.status?.members?.some((member) => member.host === host.metadata.name)) return false;
	// A report from before the role was taken away says nothing about what is left.
	const reported = host.status?.desiredState?.reportedGeneration ?? 0;
	const outdated = host.status?.connection?.state === "Connected" && reported < (host.metadata.generation ?? 0);
	return outdated || (host.status?.roles ?? []).some((role) => role.name === KUBERNETES_ROLE);
}

const isGone = (host: Host, now: number): boolean => {
	const connection = host.status?.connection;
	if (connection?.state === "Connected") return false;
	const since = connection?.since === undefined ? 0 : Date.parse(connection.since);
	return now - since >= GONE_MS;
};

const parametersOf = (host: Host) => host.spec.roles.find((role) => role.name === KUBERNETES_ROLE)?.parameters;
const modeOf = (host: Host): unknown => parametersOf(host)?.mode ?? outputsOf(host)?.mode;
const outputsOf = (host: Host): (KubernetesRoleOutputs & { readonly mode?: string }) | undefined =>
	host.status?.roles?.find((role) => role.name === KUBERNETES_ROLE)?.outputs;
const roleKind = (host: Host, cluster: Cluster): MemberStatus["role"] =>
	cluster.status?.members?.find((member) => member.host === host.metadata.name)?.role ??
	(modeOf(host) === "init" || modeOf(host) === "join-control-plane" ? "control-plane" : "worker");

const hasRolePhase = (host: Host | undefined, phase: string): boolean =>
	host?.status?.roles?.some((role) => role.name === KUBERNETES_ROLE && role.phase === phase) ?? false;

/** Whether a control plane is up: its role is applied, and it told the digest of the cluster's CA. */
const isApplied = (host: Host | undefined): boolean =>
	host !== undefined && hasRolePhase(host, "Applied") && outputsOf(host)?.caCertHash !== undefined;

/** The control plane that made the cluster, or that will: decided once, since `init` elsewhere would make a second cluster. */
function firstControlPlane(
	cluster: Cluster,
	controlPlanes: readonly Member[],
	hostOf: ReadonlyMap<string, Host>,
): Member | undefined {
	const made = controlPlanes.find((member) => {
		const host = hostOf.get(member.host);
		return host !== undefined && clusterOf(host) === cluster.metadata.name && modeOf(host) === "init";
	});
	return made ?? (cluster.status?.controlPlaneInitialized ? undefined : controlPlanes[0]);
}

const poolOf = (cluster: Cluster, member: Member) => cluster.spec.workers.find((pool) => pool.name === member.pool);

/** What a member's host is asked to be. Stable over time, so that hosts are not asked to do again what they have done. */
function roleFor(
	{ cluster }: Observed,
	member: Member,
	first: string | undefined,
	controlPlanes: readonly Member[],
	hostOf: ReadonlyMap<string, Host>,
): HostRole {
	const current = parametersOf(hostOf.get(member.host) as Host);
	const pool = poolOf(cluster, member);
	// Only control planes that are up, or are about to be, stand in the load balancers.
	const addresses = controlPlanes
		.filter((candidate) => candidate.host === first || isApplied(hostOf.get(candidate.host)))
		.map((candidate) => hostOf.get(candidate.host)?.status?.facts?.primaryAddress)
		.filter((address): address is string => address !== undefined);
	const caCertHash = controlPlanes
		.map((candidate) => outputsOf(hostOf.get(candidate.host) as Host)?.caCertHash)
		.find((hash) => hash !== undefined);
	const mode = member.host === first ? "init" : member.role === "control-plane" ? "join-control-plane" : "join-worker";
	const parameters: KubernetesRoleInput = {
		cluster: cluster.metadata.name,
		// A host that still holds a former cluster of this name must not take it for this one.
		clusterId: cluster.metadata.uid ?? "",
		mode,
		kubernetesVersion: cluster.spec.version,
		nodeName: member.host,
		controlPlaneAddresses: addresses,
		podSubnet: cluster.spec.network.podSubnet,
		serviceSubnet: cluster.spec.network.serviceSubnet,
		dnsDomain: cluster.spec.network.dnsDomain,
		caCertHashes: mode === "init" || caCertHash === undefined ? [] : [caCertHash],
		labels: { ...pool?.labels },
		taints: pool?.taints ?? [],
		controlPlaneSchedulable: cluster.spec.controlPlaneSchedulable,
		addons: cluster.spec.addons,
		...(cluster.spec.endpoint === undefined ? {} : { endpoint: cluster.spec.endpoint }),
		...(typeof current?.nodeAddress === "string" ? { nodeAddress: current.nodeAddress } : {}),
	};
	return {
		name: KUBERNETES_ROLE,
		version: cluster.spec.version,
		parameters: parameters as Record<string, unknown>,
		secretName: joinSecretName(cluster.metadata.name),
	};
}

function viewOf(
	cluster: Cluster,
	member: Member,
	host: Host | undefined,
	node: NodeState | undefined,
	reachable: boolean,
): MemberStatus {
	const base = {
		host: member.host,
		role: member.role,
		...(member.pool === undefined ? {} : { pool: member.pool }),
		...(node?.version === undefined ? {} : { version: node.version }),
	};
	const role = host?.status?.roles?.find((entry) => entry.name === KUBERNETES_ROLE);
	const known = cluster.status?.members?.find((entry) => entry.host === member.host);
	if (host === undefined || clusterOf(host) !== cluster.metadata.name) return { ...base, phase: "Waiting" };
	if (role?.phase === "Failed") {
		return { ...base, phase: "Failed", message: [role.step, role.reason, role.message].filter(Boolean).join(": ") };
	}
	if (host.status?.connection?.state !== "Connected")
		return { ...base, phase: "NotReady", message: "The host is not connected." };
	if (role?.phase !== "Applied" && node === undefined) {
		return {
			...base,
			phase: "Joining",
			message: [role?.step, role?.progress].filter(Boolean).join(" ") || "Waiting for the host to begin.",
		};
	}
	if (!reachable && (known?.phase === "Ready" || known?.phase === "NotReady")) {
		return { ...known, phase: "NotReady", message: "The API server can't be asked how the node is." };
	}
	if (node === undefined) return { ...base, phase: "Joining", message: "Waiting for the node to register." };
	return node.ready
		? { ...base, phase: "Ready" }
		: { ...base, phase: "NotReady", message: node.message ?? "The node is not ready yet." };
}

function progressOf(
	observed: Observed,
	members: readonly MemberStatus[],
	dnsMissing: boolean,
	hostOf: ReadonlyMap<string, Host>,
): ClusterStatus["progress"] {
	const current =
		members.find((member) => member.phase === "Failed") ??
		members.find((member) => member.phase === "Leaving") ??
		members.find((member) => member.phase === "Joining") ??
		members.find((member) => member.phase === "NotReady") ??
		members.find((member) => member.phase === "Waiting");
	const cutOff = observed.cluster.status?.controlPlaneInitialized === true && observed.workload === undefined;
	const step = cutOff
		? { step: "Waiting for the API server to answer", detail: observed.unreachable ?? "" }
		: dnsMissing
			? { step: "Waiting for CoreDNS" }
			: current === undefined
				? { step: "Waiting for the API server to answer", detail: observed.unreachable ?? "" }
				: {
						step: stepName(current, hostOf.get(current.host)),
						host: current.host,
						...(current.message === undefined ? {} : { detail: current.message }),
					};
	return stamp(observed.cluster, step, observed.now);
}

function stepName(member: MemberStatus, host: Host | undefined): string {
	switch (member.phase) {
		case "Failed":
			return "Failed, trying again";
		case "Leaving":
			return "Removing";
		case "Joining":
			return host !== undefined && modeOf(host) === "init"
				? "Making the first control plane"
				: member.role === "control-plane"
					? "Joining a control plane"
					: "Joining workers";
		case "NotReady":
			return "Waiting for the node to be ready";
		default:
			return "Waiting for its turn";
	}
}

/** Keeps `since` while the step is the same, so that people see how long it has taken. */
function stamp(
	cluster: Cluster,
	progress: { step: string; host?: string; detail?: string },
	now: number,
): NonNullable<ClusterStatus["progress"]> {
	const old = cluster.status?.progress;
	const same = old?.step === progress.step && old.host === progress.host;
	return {
		...progress,
		since: same && old.since !== undefined ? old.since : new Date(now).toISOString().replace(/\.\d+Z$/, "Z"),
	};
}

const describe = (progress: ClusterStatus["progress"]): string | undefined =>
	progress === undefined
		? undefined
		: `${progress.step}${progress.host === undefined ? "" : ` on ${progress.host}`}${progress.detail ? `: ${progress.detail}` : ""}`;

const baseStatus = (
	cluster: Cluster,
): Pick<ClusterStatus, "observedGeneration" | "controlPlaneInitialized" | "version" | "endpoint" | "lastBackup"> => ({
	observedGeneration: cluster.metadata.generation ?? 0,
	...(cluster.status?.controlPlaneInitialized === undefined
		? {}
		: { controlPlaneInitialized: cluster.status.controlPlaneInitialized }),
	...(cluster.status?.version === undefined ? {} : { version: cluster.status.version }),
	...(cluster.status?.endpoint === undefined ? {} : { endpoint: cluster.status.endpoint }),
});

const ready = (cluster: Cluster, status: "True" | "False", reason: string, message: string): NewCondition => ({
	type: "Ready",
	status,
	reason,
	message,
	observedGeneration: cluster.metadata.generation ?? 0,
});

const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value ?? null));
