import { isDeepStrictEqual } from "node:util";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host, HostRole } from "../../crds/host.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { compareVersions } from "../../protocol/versions.ts";
import { clusterOf, KUBERNETES_ROLE } from "./assign.ts";
import { addonsFor } from "./extras.ts";
import type { Leaving } from "./leaving.ts";
import {
	formerOf,
	isApplied,
	isConnected,
	isControlPlaneUp,
	isUpToDate,
	type Known,
	leavingVersions,
	modeOf,
	outputsOf,
	reportOf,
	roleOf,
} from "./members.ts";
import { poolOf } from "./pools.ts";
import type { Action, Observed } from "./state.ts";
import type { Roll } from "./upgrade.ts";

/** Name of the Secret with the secrets that joining hosts need. */
export const joinSecretName = (cluster: string): string => `cluster-${cluster}-join`;

/** Whether the first control plane has been made: from then on it is never made again. */
export const isInitialized = (cluster: Cluster, known: readonly Known[]): boolean =>
	cluster.status?.controlPlaneInitialized === true || isApplied(firstOf(cluster, known)?.host);

/** The control plane that made the cluster, or that will: decided once, since `init` elsewhere would make a second cluster. */
export function firstOf(cluster: Cluster, known: readonly Known[]): Known | undefined {
	const controlPlanes = known.filter(({ member }) => member.role === "control-plane");
	const made = controlPlanes.find(({ host, asked }) => asked !== undefined && modeOf(host) === "init");
	return made ?? (cluster.status?.controlPlaneInitialized ? undefined : controlPlanes[0]);
}

/**
 * Who joins now, and what each member's host is asked to be. The first control plane makes the cluster, the others join one
 * at a time while etcd is well (kubeadm adds each as a learner first), workers join together. Until its turn a host prepares:
 * it fetches and installs all that needs no cluster.
 */
export function planJoining(
	observed: Observed,
	known: readonly Known[],
	{ leaving }: Pick<Leaving, "leaving">,
	roll: Pick<Roll, "inFlight" | "versions">,
): Action[] {
	const { cluster, workload, joinSecret } = observed;
	if (!joinSecret) return [{ type: "createJoinSecret" }];
	const actions: Action[] = [];
	const first = firstOf(cluster, known);
	const initialized = isInitialized(cluster, known);
	const controlPlanes = known.filter(({ member }) => member.role === "control-plane");
	const version = joinVersion(observed, controlPlanes, initialized);

	const begin = new Set(known.filter(({ begun }) => begun).map(({ member }) => member.host));
	// One that began to make the cluster and is no longer named goes first, or there would be two.
	if (first !== undefined && (initialized || leaving.length === 0)) begin.add(first.member.host);
	const next = controlPlanes.find(({ member }) => !begin.has(member.host));
	let publish: string | undefined;
	if (initialized && workload !== undefined && version !== undefined && roll.inFlight.size === 0) {
		const joined = controlPlanes.filter(({ begun }) => begun);
		// etcd takes one new member at a time, and only while the ones it has are well; one that is dead goes first.
		const isWell =
			joined.every((one) => one.healthy || one.awaitsNetwork) && !leaving.some(({ isDeadMember }) => isDeadMember);
		if (next !== undefined && isWell) {
			if (workload.certificates) begin.add(next.member.host);
			else publish = publisherOf(observed, known, leaving);
		}
		// Workers wait for the control plane to be made, so that their load balancer knows all of it; not for its nodes to
		// be ready, which takes a pod network that workers bring up just as well.
		// Nor does a kubelet join that would be newer than one of its API servers.
		const isMade =
			next === undefined &&
			joined.every(({ host }) => isControlPlaneUp(host)) &&
			leavingVersions(observed, known).every((one) => compareVersions(version, one) <= 0);
		if (isMade) for (const { member } of known) begin.add(member.host);
	}

	const joining = known.filter(
		({ member, begun, applied }) => begin.has(member.host) && member !== first?.member && !(begun && applied),
	);
	if (workload !== undefined && joining.some(isNew) && !workload.bootstrapToken)
		actions.push({ type: "createBootstrapToken" });

	const leavingControlPlanes = leaving.filter(({ role }) => role === "control-plane");
	const context: RoleContext = {
		observed,
		known,
		controlPlanes,
		first: first?.member.host,
		leavingControlPlanes,
		remover: removerOf(observed, controlPlanes, leavingControlPlanes),
	};
	for (const one of known) {
		const { host, asked, begun } = one;
		const name = one.member.host;
		const prepare = !begin.has(name);
		const wanted = !initialized
			? cluster.spec.version
			: (roll.versions.get(name) ?? (begun ? asked : (version ?? asked)));
		if (wanted === undefined) continue;
		const role = roleFor(context, one, {
			version: wanted,
			prepare,
			...(name === publish ? { publish: new Date(observed.now).toISOString() } : {}),
		});
		if (!isDeepStrictEqual(plain(role), plain(roleOf(host)))) actions.push({ type: "applyRole", host: name, role });
	}
	return [...actions, ...rolesOfLeaving(context, publish)];
}

/** Those that leave keep their roles as they are, but for what nobody else can do while none of those that stay has joined. */
function rolesOfLeaving(context: RoleContext, publish: string | undefined): Action[] {
	return goingOf(context.observed, context.leavingControlPlanes).flatMap((host): Action[] => {
		const { name } = host.metadata;
		const role = roleOf(host);
		if (role === undefined) return [];
		const { formerControlPlanes: _former, ...others } = role.parameters;
		const former = formerFor(context, name);
		const parameters = {
			...others,
			...(former.length > 0 ? { formerControlPlanes: former } : {}),
			...(name === publish ? { publishCertificates: new Date(context.observed.now).toISOString() } : {}),
		};
		return isDeepStrictEqual(parameters, role.parameters)
			? []
			: [{ type: "applyRole", host: name, role: { ...role, parameters } }];
	});
}

/** Hosts of control planes that leave and still have their role. */
const goingOf = ({ cluster, hosts }: Observed, leaving: Leaving["leaving"]): readonly Host[] =>
	hosts.filter(
		(host) =>
			clusterOf(host) === cluster.metadata.name &&
			leaving.some((one) => one.host === host.metadata.name && one.role === "control-plane" && !one.isDeadMember),
	);

/** A member with a node has joined before: what its role does now is something else. */
const isNew = ({ node, host }: Known): boolean => node === undefined || outputsOf(host)?.nodeName === undefined;

/** Whether members can join: not in the middle of a change of version, which goes on first. */
export const mayJoin = (observed: Observed, known: readonly Known[]): boolean =>
	joinVersion(observed, known, isInitialized(observed.cluster, known)) !== undefined;

/**
 * Version that a new member takes: the one of the control planes. While they differ, nobody joins. Where none of them stays,
 * it is the newest that those have which leave: kubeadm joins no cluster that is newer than itself.
 */
function joinVersion(observed: Observed, known: readonly Known[], initialized: boolean): string | undefined {
	const { cluster } = observed;
	if (!initialized) return cluster.spec.version;
	const controlPlanes = known.filter(({ member }) => member.role === "control-plane");
	const versions = new Set(controlPlanes.filter(({ begun }) => begun).map(({ asked }) => asked));
	if (versions.size === 0) {
		return leavingVersions(observed, known).at(-1) ?? cluster.status?.version ?? cluster.spec.version;
	}
	return versions.size === 1 ? [...versions][0] : undefined;
}

/**
 * The control plane that publishes the certificates again: they last two hours, so a late joiner finds none. `undefined` while
 * one is at it.
 */
function publisherOf(observed: Observed, known: readonly Known[], leaving: Leaving["leaving"]): string | undefined {
	const candidates = [
		...known
			.filter(({ member, healthy, awaitsNetwork }) => member.role === "control-plane" && (healthy || awaitsNetwork))
			.map(({ host }) => host),
		...goingOf(observed, leaving).filter(
			(host) =>
				reportOf(host)?.phase !== "Failed" && observed.workload?.apiServers.get(host.metadata.name)?.ready === true,
		),
	].filter(doesAsTold);
	const isAtIt = candidates.some(
		(host) => roleOf(host)?.parameters.publishCertificates !== undefined && !(isUpToDate(host) && isApplied(host)),
	);
	return isAtIt ? undefined : candidates[0]?.metadata.name;
}

/** Whether a host would do at once what it is told. */
const doesAsTold = (host: Host): boolean => isConnected(host) && !host.spec.maintenance;

interface RoleContext {
	readonly observed: Observed;
	readonly known: readonly Known[];
	readonly controlPlanes: readonly Known[];
	readonly first: string | undefined;
	readonly leavingControlPlanes: Leaving["leaving"];
	/** The control plane that takes dead ones out of etcd. */
	readonly remover: string | undefined;
}

/** What a member's host is asked to be. Stable over time, so that hosts are not asked to do again what they have done. */
function roleFor(
	context: RoleContext,
	{ member, host }: Known,
	{ version, prepare, publish }: { version: string; prepare: boolean; publish?: string },
): HostRole {
	const { cluster } = context.observed;
	const current = roleOf(host)?.parameters;
	const pool = poolOf(cluster, member);
	const caCertHash = context.observed.hosts
		.filter(
			(one) =>
				context.known.some((each) => each.host === one) ||
				// A Host that was deleted leaves its name to another, which may be another cluster's by now.
				(isLeaving(context, one.metadata.name) && [undefined, cluster.metadata.name].includes(clusterOf(one))),
		)
		.map((candidate) => outputsOf(candidate)?.caCertHash)
		.find((hash) => hash !== undefined);
	const mode =
		member.host === context.first ? "init" : member.role === "control-plane" ? "join-control-plane" : "join-worker";
	const former = formerFor(context, member.host);
	const published = publish ?? current?.publishCertificates;
	const parameters: KubernetesRoleInput = {
		cluster: cluster.metadata.name,
		// A host that still holds a former cluster of this name must not take it for this one.
		clusterId: cluster.metadata.uid ?? "",
		mode,
		kubernetesVersion: version,
		nodeName: member.host,
		controlPlaneAddresses: addressesOf(context),
		podSubnet: cluster.spec.network.podSubnet,
		serviceSubnet: cluster.spec.network.serviceSubnet,
		dnsDomain: cluster.spec.network.dnsDomain,
		cni: cluster.spec.network.cni,
		caCertHashes: mode === "init" || caCertHash === undefined ? [] : [caCertHash],
		labels: { ...pool?.labels },
		taints: pool?.taints ?? [],
		controlPlaneSchedulable: cluster.spec.controlPlaneSchedulable,
		addons: addonsFor(cluster, context.observed.extras, version),
		...(cluster.spec.endpoint === undefined ? {} : { endpoint: cluster.spec.endpoint }),
		...(typeof current?.nodeAddress === "string" ? { nodeAddress: current.nodeAddress } : {}),
		...(typeof published === "string" ? { publishCertificates: published } : {}),
		...(former.length > 0 ? { formerControlPlanes: former } : {}),
		...(prepare ? { prepare: true } : {}),
	};
	return {
		name: KUBERNETES_ROLE,
		version,
		parameters: parameters as Record<string, unknown>,
		secretName: joinSecretName(cluster.metadata.name),
	};
}

const isLeaving = ({ leavingControlPlanes }: RoleContext, name: string): boolean =>
	leavingControlPlanes.some(({ host }) => host === name);

/**
 * Control planes that stand in the load balancers: those that are up, or are about to be. One that leaves stays until those
 * that stay are all up; then it is not asked any more before it goes.
 */
function addressesOf({ observed, controlPlanes, first, leavingControlPlanes }: RoleContext): string[] {
	const up = controlPlanes.filter(
		({ member, host }) => member.host === first || isControlPlaneUp(host) || hasBeenUp(host),
	);
	const staying =
		up.length === controlPlanes.length ? [] : leavingControlPlanes.filter(({ isDeadMember }) => !isDeadMember);
	const leaving = observed.hosts.filter(
		(host) => staying.some((one) => one.host === host.metadata.name) && isControlPlaneUp(host),
	);
	return [...up.map(({ host }) => host), ...leaving]
		.map((host) => host.status?.facts?.primaryAddress)
		.filter((address): address is string => address !== undefined);
}

/** A control plane that is being changed stays in the list: every host would be asked anew twice otherwise. */
const hasBeenUp = (host: Known["host"]): boolean =>
	outputsOf(host)?.caCertHash !== undefined && roleOf(host)?.parameters.prepare !== true;

/** Members that a control plane takes out of etcd, whose hosts can't do it themselves any more. */
const formerFor = ({ remover, leavingControlPlanes }: RoleContext, name: string): string[] =>
	name === remover ? leavingControlPlanes.filter(({ isDeadMember }) => isDeadMember).map(({ host }) => host) : [];

/**
 * Who takes them out: the one that was asked before, or the first that is well. While none of those that stay has joined it is one
 * that leaves: it waits for them, and they wait for the dead one to be out.
 */
function removerOf(
	observed: Observed,
	controlPlanes: readonly Known[],
	leaving: Leaving["leaving"],
): string | undefined {
	if (!leaving.some(({ isDeadMember }) => isDeadMember)) return undefined;
	const going = goingOf(observed, leaving);
	const asked = [...controlPlanes.map(({ host }) => host), ...going].find(
		(host) => formerOf(host).length > 0 && !host.spec.maintenance,
	);
	const well =
		controlPlanes.find(({ healthy, host }) => healthy && doesAsTold(host))?.host ??
		going.find((host) => doesAsTold(host) && observed.workload?.apiServers.get(host.metadata.name)?.ready === true);
	return (asked ?? well)?.metadata.name;
}

const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value ?? null));
