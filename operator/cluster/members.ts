import type { Cluster } from "../../crds/cluster.ts";
import type { Host, HostRole } from "../../crds/host.ts";
import type { KubernetesRoleOutputs } from "../../protocol/kubernetes-role.ts";
import { compareVersions } from "../../protocol/versions.ts";
import { clusterOf, KUBERNETES_ROLE, type Member } from "./assign.ts";
import type { MemberStatus, NodeState, Observed, WorkloadState } from "./state.ts";

/** A wanted member with all that is known of it. */
export interface Known {
	readonly member: Member;
	readonly host: Host;
	readonly node: NodeState | undefined;
	/** Version that its role asks for; absent before it was given the role. */
	readonly asked: string | undefined;
	/** It was told to join, or to make the cluster: not one that only prepares. */
	readonly begun: boolean;
	/** Its role is applied as it is asked now, and kubeadm has done its part. */
	readonly applied: boolean;
	/** Applied, the node is ready and runs what was asked, and on a control plane the API server and its etcd say so too. */
	readonly healthy: boolean;
	/** All of that but ready, for want of the network plugin that the cluster's people bring (`network.cni: none`). */
	readonly awaitsNetwork: boolean;
}

/** Joins what the API says of a member, what its host reports, and what the cluster's own API says of its node. */
export function knownOf(observed: Observed, member: Member): Known | undefined {
	const host = observed.hosts.find(({ metadata }) => metadata.name === member.host);
	if (host === undefined) return undefined;
	const { cluster, workload } = observed;
	const node = workload?.nodes.find(({ name }) => name === member.host);
	const mine = clusterOf(host) === cluster.metadata.name;
	const role = mine ? roleOf(host) : undefined;
	const begun = role !== undefined && role.parameters.prepare !== true;
	const applied = begun && isApplied(host);
	const asked = role?.version;
	const isUp = applied && node?.version === asked && answers(workload, member);
	return {
		member,
		host,
		node,
		asked,
		begun,
		applied,
		healthy: isUp && node?.ready === true,
		awaitsNetwork: isUp && awaitsNetwork(cluster, node),
	};
}

/** Whether a node is not ready only because the cluster's people have yet to install their network plugin. */
export const awaitsNetwork = (cluster: Cluster, node: NodeState | undefined): boolean =>
	cluster.spec.network.cni === "none" && node?.ready === false && node.networkMissing === true;

/** Whether a control plane's own API server is ready; what can't be asked at all is judged by its node. */
const answers = (workload: WorkloadState | undefined, { host, role }: Member): boolean =>
	role === "worker" || (workload?.apiServers.get(host)?.ready ?? false);

export const roleOf = (host: Host | undefined): HostRole | undefined =>
	host?.spec.roles.find((role) => role.name === KUBERNETES_ROLE);
export const reportOf = (host: Host | undefined) => host?.status?.roles?.find((role) => role.name === KUBERNETES_ROLE);
export const outputsOf = (host: Host | undefined): (KubernetesRoleOutputs & { readonly mode?: string }) | undefined =>
	reportOf(host)?.outputs;
export const modeOf = (host: Host | undefined): unknown => roleOf(host)?.parameters.mode ?? outputsOf(host)?.mode;

export const isConnected = (host: Host | undefined): boolean => host?.status?.connection?.state === "Connected";

/** Whether the report is about the role as it is wanted now. */
export const isUpToDate = (host: Host): boolean =>
	(host.status?.desiredState?.reportedGeneration ?? 0) >= (host.metadata.generation ?? 0);

/** Whether the role is done: the outputs come from kubeadm's step alone, so a host that only prepared has none. */
export function isApplied(host: Host | undefined): boolean {
	const report = reportOf(host);
	return (
		report?.phase === "Applied" &&
		report.outputs?.nodeName !== undefined &&
		(report.version === undefined || report.version === roleOf(host)?.version)
	);
}

/** Whether the host has been a control plane that is up: it told the digest of the cluster's CA. */
export const isControlPlaneUp = (host: Host | undefined): boolean =>
	isApplied(host) && outputsOf(host)?.caCertHash !== undefined;

/** For how long a host has had no tunnel, in milliseconds; zero while it has one. */
export function goneFor(host: Host, now: number): number {
	const { connection } = host.status ?? {};
	if (connection?.state === "Connected") return 0;
	return now - (connection?.since === undefined ? 0 : Date.parse(connection.since));
}

const CONTROL_PLANE_MODES: readonly unknown[] = ["init", "join-control-plane", "adopt-control-plane"];

/** Whether a host was made, or is asked, to be a control plane, whatever it is named for now. */
export const isControlPlaneByMode = (host: Host): boolean => CONTROL_PLANE_MODES.includes(modeOf(host));

export const roleKind = (host: Host, cluster: Cluster): MemberStatus["role"] =>
	cluster.status?.members?.find((member) => member.host === host.metadata.name)?.role ??
	(isControlPlaneByMode(host) ? "control-plane" : "worker");

/** Whether a host still has something of the cluster: its role is wanted, or not yet undone. */
export function belongs(host: Host, cluster: Cluster): boolean {
	const owner = clusterOf(host);
	if (owner !== undefined) return owner === cluster.metadata.name;
	if (!cluster.status?.members?.some((member) => member.host === host.metadata.name)) return false;
	// A report from before the role was taken away says nothing about what is left.
	return (isConnected(host) && !isUpToDate(host)) || reportOf(host) !== undefined;
}

/** Versions of control planes that leave and still serve, oldest first. */
export const leavingVersions = ({ cluster, hosts }: Observed, known: readonly Known[]): readonly string[] =>
	hosts
		.filter((host) => clusterOf(host) === cluster.metadata.name && isControlPlaneByMode(host))
		.filter(
			({ metadata }) => !known.some(({ member }) => member.host === metadata.name && member.role === "control-plane"),
		)
		.flatMap((host) => roleOf(host) ?? [])
		.filter(({ parameters }) => parameters.prepare !== true)
		.map(({ version }) => version)
		.toSorted(compareVersions);

/**
 * Whether a host that is named has to leave its place in the cluster before it takes the one it is named for: workers don't
 * turn into control planes, nor the other way about, without a drain and without etcd being asked; and what is left of its
 * former place, its Node too, goes before it joins.
 */
export function leavesFirst({ cluster, hosts, workload }: Observed, { host: name, role }: Member): boolean {
	const host = hosts.find(({ metadata }) => metadata.name === name);
	if (host === undefined) return false;
	const owner = clusterOf(host);
	if (owner !== undefined)
		return owner === cluster.metadata.name && isControlPlaneByMode(host) !== (role === "control-plane");
	return belongs(host, cluster) || workload?.nodes.some((node) => node.name === name) === true;
}

/** Members of etcd that must be well for it to take a write (majority). */
export const quorum = (members: number): number => Math.floor(members / 2) + 1;

/** Control planes that a host is asked to take out of etcd. */
export const formerOf = (host: Host): readonly string[] =>
	(roleOf(host)?.parameters.formerControlPlanes as string[] | undefined) ?? [];

/** Whether a living control plane has taken a dead one out of etcd. */
export const isRemovedFromEtcd = ({ cluster, hosts }: Observed, name: string): boolean =>
	hosts.some(
		(host) =>
			clusterOf(host) === cluster.metadata.name &&
			formerOf(host).includes(name) &&
			isUpToDate(host) &&
			reportOf(host)?.phase === "Applied",
	);
