import { isDeepStrictEqual } from "node:util";
import { type Cluster, FORCE_DELETE } from "../../crds/cluster.ts";
import type { Host, HostRole } from "../../crds/host.ts";
import type { FoundKubernetes } from "../../protocol/facts.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { compareVersions, minorsBetween } from "../../protocol/versions.ts";
import { assign, clusterOf, KUBERNETES_ROLE, type Member } from "./assign.ts";
import { cleaningMessage } from "./leaving.ts";
import { belongs, goneFor, isConnected, reportOf, roleKind, roleOf } from "./members.ts";
import { type Action, BUSY_MS, type MemberStatus, type Observed, type Plan, STEADY_MS, WAITING_MS } from "./state.ts";
import { baseStatus, deletingStatus, reachableCondition, ready, stamp, viewOf } from "./status.ts";

/** kubeadm's port of the API server, where the agent's service for the tunnel leads. */
const API_SERVER_PORT = "6443";
/** A host that is out of reach for this long is not waited for when the cluster is released. */
const GONE_MS = 30_000;
/** What a host can't take back in this time does not hold the release up; it goes on trying. */
const RELEASE_MS = 15 * 60_000;

/** Add-ons that a cluster has of kubeadm. */
const KUBEADM_ADDONS: readonly string[] = ["coredns", "kubeProxy"];

const isOn = (wanted: unknown): boolean =>
	wanted === true || (typeof wanted === "object" && wanted !== null && "enabled" in wanted && wanted.enabled === true);

/** What keeps a cluster from being adopted, or makes it another one than the spec says. */
interface Mismatch {
	/** Absent when it is about the cluster as a whole. */
	readonly host?: string;
	readonly message: string;
}

/**
 * A cluster that others made with kubeadm (`spec.adopt`). What its hosts tell of their nodes is compared with the spec, and when
 * all of it fits they get a role that changes nothing there but the region's own way in: rights in the cluster, a client
 * certificate. From then on the cluster is looked at. What would change it is refused, and deleting it releases it.
 */
export function planAdoption(observed: Observed): Plan {
	const { cluster, hosts, workload, unreachable, now } = observed;
	if (cluster.metadata.deletionTimestamp !== undefined) return planRelease(observed);
	const { members, problems } = assign(cluster, hosts, observed.others);
	const mismatches = mismatchesOf(observed, members);
	const isBegun = hosts.some((host) => clusterOf(host) === cluster.metadata.name);
	const found = [...problems, ...mismatches];
	if (!isBegun && found.length > 0) return refusal(cluster, found);

	const runs = runningVersion(observed, members) ?? cluster.status?.version ?? cluster.spec.version;
	const version = packFor(observed, members, runs);
	const actions: Action[] = [];
	const views: MemberStatus[] = [];
	for (const member of members) {
		const host = hosts.find(({ metadata }) => metadata.name === member.host);
		const isMine = host !== undefined && clusterOf(host) === cluster.metadata.name;
		const misfit = found.find((one) => one.host === member.host);
		if (host !== undefined && version !== undefined && (isMine || misfit === undefined)) {
			const role = roleFor(cluster, member, host, version);
			if (!isDeepStrictEqual(role, roleOf(host))) actions.push({ type: "applyRole", host: member.host, role });
		}
		const node = workload?.nodes.find(({ name }) => name === member.host);
		const view = viewOf(observed, member, host, node, false);
		views.push(misfit !== undefined && view.message === undefined ? { ...view, message: misfit.message } : view);
	}
	const leaving = hosts.filter(
		(host) => belongs(host, cluster) && !members.some((member) => member.host === host.metadata.name),
	);
	for (const host of leaving)
		if (clusterOf(host) !== undefined) actions.push({ type: "removeRole", host: host.metadata.name });

	const wasReady = ["Ready", "Degraded"].includes(cluster.status?.phase ?? "");
	const readyCount = views.filter(({ phase }) => phase === "Ready").length;
	const isWhole = readyCount === members.length && workload !== undefined && leaving.length === 0;
	const pending = views.find(({ phase }) => phase !== "Ready");
	const [reason, message] = verdict();
	const isDone = reason === "AllNodesReady";
	const isUnderWay = !isDone && !isWhole && pending !== undefined;
	return {
		actions,
		status: {
			...baseStatus(cluster),
			phase: isDone ? "Ready" : wasReady ? "Degraded" : "Provisioning",
			version: runs,
			controlPlaneInitialized: true,
			members: [
				...views,
				...leaving.map(
					(host): MemberStatus => ({
						host: host.metadata.name,
						role: roleKind(host, cluster),
						phase: "Leaving",
						message: releaseMessage(host),
					}),
				),
			],
			ready: `${readyCount}/${members.length}`,
			...(isUnderWay
				? {
						progress: stamp(
							cluster,
							{
								step: wasReady ? "Waiting for the node to be ready" : "Adopting",
								host: pending.host,
								...(pending.message === undefined ? {} : { detail: pending.message }),
							},
							now,
						),
					}
				: {}),
		},
		conditions: [
			ready(cluster, isDone ? "True" : "False", reason, message),
			{
				type: "Adopted",
				status: "True",
				reason: "LookedAfter",
				message: `${descriptionOf(observed, members)} Its people change it with kubeadm; the region does not, and leaves it running when this Cluster is deleted.`,
			},
			reachableCondition(observed, true),
		],
		requeueAfter: isDone ? STEADY_MS : isUnderWay ? BUSY_MS : WAITING_MS,
	};

	function verdict(): [string, string] {
		if (found.length > 0) return ["AdoptionMismatch", textOf(found)];
		const changed = changesOf(cluster, runs);
		if (changed.length > 0) return ["ChangeNotSupported", changed.join(" ")];
		const strangers = strangersOf(observed, members);
		if (strangers !== undefined) return ["AdoptionIncomplete", strangers];
		if (workload === undefined) return ["Unreachable", unreachable ?? "Waiting for the API server to answer."];
		if (!isWhole)
			return [
				wasReady ? "NodesNotReady" : "Adopting",
				pending === undefined ? "Under way." : `${pending.host}: ${pending.message ?? pending.phase}`,
			];
		if (cluster.spec.addons.coredns && !workload.dnsReady)
			return ["DnsNotReady", "No pod of CoreDNS is ready. If this cluster has none, set addons.coredns: false."];
		return ["AllNodesReady", `All ${members.length} nodes are ready.`];
	}
}

/** Nothing was begun, and something stands in the way: nothing is begun at all, and all of it is told at once. */
const refusal = (cluster: Cluster, found: readonly { readonly message: string }[]): Plan => ({
	actions: [],
	status: { ...baseStatus(cluster), phase: "Pending", members: [] },
	conditions: [ready(cluster, "False", "AdoptionRefused", textOf(found))],
	requeueAfter: WAITING_MS,
});

const textOf = (found: readonly { readonly message: string }[]) => found.map(({ message }) => message).join(" ");

const evidenceOf = (host: Host | undefined): FoundKubernetes | undefined => host?.status?.facts?.kubernetes;

/** Everything in which the hosts' own evidence differs from what the spec says, or from what can be adopted. */
function mismatchesOf(observed: Observed, members: readonly Member[]): Mismatch[] {
	const { cluster, hosts } = observed;
	const found: Mismatch[] = [];
	const evidence = members.map((member) => ({
		member,
		node: evidenceOf(hosts.find(({ metadata }) => metadata.name === member.host)),
	}));
	const reference = evidence.find(({ member, node }) => member.role === "control-plane" && node?.controlPlane)?.node;
	const say = (host: string, message: string) => found.push({ host, message: `Host ${host}: ${message}` });
	for (const { member, node } of evidence) {
		const { host, role } = member;
		if (!hosts.some(({ metadata }) => metadata.name === host)) continue; // `assign` says so
		if (node === undefined) {
			say(host, "no node that kubeadm made is there. Join it to the cluster with kubeadm join first, or take it out.");
			continue;
		}
		if (node.nodeName !== host)
			say(host, `its Node is named ${node.nodeName}. Enrol it by that name (gp host join-command --name).`);
		if (role === "control-plane" && node.controlPlane === undefined)
			say(host, "it is a worker of its cluster. Name it in a worker pool.");
		if (role === "worker" && node.controlPlane !== undefined)
			say(host, "it is a control plane of its cluster. Name it in controlPlane.hosts.");
		if (reference !== undefined && node.caCertHash !== reference.caCertHash)
			say(host, `it is a node of another cluster than ${reference.nodeName}: their CAs differ.`);
		if (node.controlPlane !== undefined)
			for (const problem of controlPlaneProblems(cluster, node.controlPlane)) say(host, problem);
	}
	const dnsDomain = reference?.dnsDomain;
	if (dnsDomain && dnsDomain !== cluster.spec.network.dnsDomain)
		found.push({
			message: `network.dnsDomain is ${cluster.spec.network.dnsDomain}, and the cluster has ${dnsDomain}.`,
		});
	const addons = Object.entries(cluster.spec.addons)
		.filter(([name, wanted]) => !KUBEADM_ADDONS.includes(name) && isOn(wanted))
		.map(([name]) => `addons.${name}`);
	if (addons.length > 0)
		found.push({ message: `The region installs nothing in an adopted cluster: leave ${addons.join(", ")} off.` });

	const runs = runningVersion(observed, members);
	if (runs !== undefined && packFor(observed, members, runs) === undefined)
		found.push({
			message: `Kubernetes ${runs} can't be looked after here, for which a release of the same minor is needed. Offered: ${observed.versions.join(", ")}.`,
		});
	const isBegun = hosts.some((host) => clusterOf(host) === cluster.metadata.name);
	if (!isBegun && runs !== undefined && runs !== cluster.spec.version)
		found.push({ message: `version is ${cluster.spec.version}, and the cluster runs ${runs}.` });
	return found;
}

function controlPlaneProblems(
	{ spec: { network } }: Cluster,
	{ podSubnet, serviceSubnet, etcd, endpoint, missing }: NonNullable<FoundKubernetes["controlPlane"]>,
): string[] {
	const problems: string[] = [];
	if (podSubnet !== "" && podSubnet !== network.podSubnet)
		problems.push(`network.podSubnet is ${network.podSubnet}, and the cluster has ${podSubnet}.`);
	if (serviceSubnet !== network.serviceSubnet)
		problems.push(`network.serviceSubnet is ${network.serviceSubnet}, and the cluster has ${serviceSubnet}.`);
	if (etcd === "external")
		problems.push("its etcd is not on the control planes. Only etcd as kubeadm makes it is taken.");
	if (!endpoint.endsWith(`:${API_SERVER_PORT}`))
		problems.push(
			`its API server listens at ${endpoint || "an unknown address"}. Only port ${API_SERVER_PORT} is taken.`,
		);
	if (missing.length > 0)
		problems.push(
			`what the region's client certificate is made with is not there: ${missing.join(", ")}. Put it there, at least for now.`,
		);
	return problems;
}

/** Nodes of the cluster that the spec does not name; a cluster is adopted whole. */
function strangersOf({ workload }: Observed, members: readonly Member[]): string | undefined {
	const strangers = (workload?.nodes ?? []).filter(({ name }) => !members.some(({ host }) => host === name));
	if (strangers.length === 0) return undefined;
	const names = strangers.map(({ name }) => name).join(", ");
	return `The cluster has nodes that are not named: ${names}. Enrol their hosts (gp host join-command --name NODE) and name them in the spec, or take them out of the cluster with kubectl delete node.`;
}

/** What the spec asks for that is not done to an adopted cluster, and the way that there is. */
const changesOf = ({ spec }: Cluster, runs: string): string[] =>
	spec.version === runs
		? []
		: [
				`version is ${spec.version}, and the cluster runs ${runs}. The region does not change the version of an adopted cluster: run kubeadm upgrade on its hosts, or set version back to ${runs}.`,
			];

/** The oldest version of an API server: what the cluster as a whole can be said to be. */
const runningVersion = ({ hosts }: Observed, members: readonly Member[]): string | undefined =>
	members
		.map((member) => evidenceOf(hosts.find(({ metadata }) => metadata.name === member.host))?.controlPlane?.version)
		.filter((version) => version !== undefined)
		.sort(compareVersions)[0];

/** The release whose role pack the hosts take: the newest offered of the cluster's minor, or the one that they have. */
function packFor({ hosts, versions, cluster }: Observed, members: readonly Member[], runs: string): string | undefined {
	if (versions.length === 0) return runs;
	const fitting = versions.filter((version) => minorsBetween(version, runs) === 0).sort(compareVersions);
	const taken = members
		.map((member) => hosts.find(({ metadata }) => metadata.name === member.host))
		.filter((host) => host !== undefined && clusterOf(host) === cluster.metadata.name)
		.map((host) => roleOf(host)?.version);
	return fitting.at(-1) ?? taken[0];
}

function roleFor(cluster: Cluster, member: Member, host: Host, version: string): HostRole {
	const before = roleOf(host)?.parameters.nodeAddress;
	const isControlPlane = member.role === "control-plane";
	const advertised = isControlPlane ? evidenceOf(host)?.controlPlane?.endpoint.replace(/:\d+$/, "") : undefined;
	const nodeAddress = advertised ?? (typeof before === "string" ? before : undefined);
	const parameters: KubernetesRoleInput = {
		cluster: cluster.metadata.name,
		clusterId: cluster.metadata.uid ?? "",
		mode: isControlPlane ? "adopt-control-plane" : "adopt-worker",
		kubernetesVersion: version,
		nodeName: member.host,
		...(nodeAddress === undefined ? {} : { nodeAddress }),
	};
	return { name: KUBERNETES_ROLE, version, parameters: parameters as Record<string, unknown> };
}

/** What was found, for people. */
function descriptionOf({ hosts }: Observed, members: readonly Member[]): string {
	const found = members
		.map((member) => evidenceOf(hosts.find(({ metadata }) => metadata.name === member.host)))
		.find((node) => node?.controlPlane !== undefined);
	const control = found?.controlPlane;
	if (found === undefined || control === undefined) return "Looked after as it is.";
	const pods = control.podSubnet === "" ? "as their network plugin says" : control.podSubnet;
	const network = found.networks[0] === undefined ? "" : `, network ${found.networks[0]}`;
	return `Looked after as it is: Kubernetes ${control.version}, pods ${pods}, services ${control.serviceSubnet}${network}.`;
}

/**
 * The cluster is given back: each host's role is taken away, which undoes no more than it had done, and the cluster runs on. It
 * always ends; a host out of reach takes its own back at its next contact.
 */
function planRelease(observed: Observed): Plan {
	const { cluster, hosts, now } = observed;
	const mine = hosts.filter((host) => belongs(host, cluster));
	const isForced = cluster.metadata.annotations?.[FORCE_DELETE] === "true";
	const since = Date.parse(cluster.metadata.deletionTimestamp ?? "") || now;
	const isLeft = (host: Host) => isForced || now - since >= RELEASE_MS || goneFor(host, now) >= GONE_MS;
	const actions: Action[] = mine
		.filter((host) => clusterOf(host) !== undefined)
		.map((host) => ({ type: "removeRole", host: host.metadata.name }));
	if (mine.every((host) => isLeft(host) && (isForced || clusterOf(host) === undefined))) {
		if (observed.joinSecret) actions.push({ type: "deleteJoinSecret" });
		actions.push({ type: "removeFinalizer", leftBehind: mine.map((host) => host.metadata.name) });
	}
	const members = mine.map(
		(host): MemberStatus => ({
			host: host.metadata.name,
			role: roleKind(host, cluster),
			phase: "Leaving",
			message: releaseMessage(host),
		}),
	);
	const [current] = members;
	const progress =
		current === undefined
			? undefined
			: {
					step: "Releasing",
					host: current.host,
					...(current.message === undefined ? {} : { detail: current.message }),
				};
	return {
		actions,
		status: deletingStatus(cluster, members, progress, now),
		conditions: [
			ready(
				cluster,
				"False",
				"Deleting",
				"The cluster is released: the region takes its own access back, the cluster runs on.",
			),
		],
		requeueAfter: BUSY_MS,
	};
}

const releaseMessage = (host: Host): string =>
	clusterOf(host) !== undefined || !isConnected(host) || reportOf(host)?.phase === "Failed"
		? cleaningMessage(host)
		: "Released: its node runs on.";
