import type { Host } from "../../crds/host.ts";
import { FORMER_CLUSTER } from "../host/summary.ts";
import { clusterOf, type Member } from "./assign.ts";
import { drainAction, drainMessage } from "./drain.ts";
import {
	belongs,
	goneFor,
	isConnected,
	isControlPlaneUp,
	isRemovedFromEtcd,
	isUpToDate,
	type Known,
	quorum,
	reportOf,
	roleKind,
} from "./members.ts";
import type { Action, MemberStatus, Observed } from "./state.ts";

/** A host that is no longer named and has been out of reach for this long is not waited for: it cleans itself when it is back. */
const GONE_MS = 60_000;

/** kubeadm marks the Nodes of control planes with it. */
const CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane";

const TAKEN_OUT = "Not connected: another control plane takes it out of etcd.";

export interface Leaving {
	readonly actions: readonly Action[];
	readonly leaving: readonly LeavingMember[];
}

export interface LeavingMember {
	readonly host: string;
	readonly role: MemberStatus["role"];
	readonly message: string;
	/** A control plane that can't leave etcd by itself: one that lives has to take it out. */
	readonly isDeadMember: boolean;
	/** Nothing of it was begun: who takes its place joins first. */
	readonly isWaiting?: true;
}

interface Circumstances {
	/** Nobody may begin to leave now, since another host is taken out for something else. */
	readonly isHeld: boolean;
	/** There is a cluster already that could lose something. */
	readonly initialized: boolean;
	/** Members that leave their former place in the cluster before they take the one that they are named for. */
	readonly turning: readonly Member[];
}

/**
 * Hosts that carry this cluster's role and are no longer named: drained, then their role is taken away, then the Node. Who
 * takes their place joins first. Workers go within the budget; control planes one at a time, and only while etcd keeps its
 * majority without them.
 */
export function planLeaving(
	observed: Observed,
	known: readonly Known[],
	wanted: readonly Member[],
	{ isHeld, initialized, turning }: Circumstances,
): Leaving {
	const { cluster, workload, now } = observed;
	const names = new Set(wanted.map((member) => member.host));
	const isGone = (host: Host) => goneFor(host, now) >= GONE_MS;
	const isControlPlane = (host: Host) => roleKind(host, cluster) === "control-plane";
	// A control plane that lost its power while it was cleaned may not have left etcd yet: somebody else has to see to that.
	const isDone = (host: Host) =>
		isGone(host) &&
		clusterOf(host) === undefined &&
		(!isControlPlane(host) || !initialized || isRemovedFromEtcd(observed, host.metadata.name));
	const hosts = observed.hosts.filter(
		(host) => !names.has(host.metadata.name) && belongs(host, cluster) && !isDone(host),
	);
	const gone = ghosts(observed, known, names);
	const lost = new Set(
		[...gone.map(({ host }) => host), ...lostIn(observed, known)].filter(
			(name) => !hosts.some(({ metadata }) => metadata.name === name),
		),
	);
	const nodeOf = (host: Host) => workload?.nodes.find(({ name }) => name === host.metadata.name);
	const actions: Action[] = [];

	const isNew = ({ applied, node }: Known) => !applied && node === undefined;
	const workers = known.filter(
		(one) =>
			isNew(one) && isConnected(one.host) && reportOf(one.host)?.phase !== "Failed" && one.member.role === "worker",
	);
	// A worker that can't come is not waited for. A control plane is, for as long as it is named: etcd would be left with fewer
	// members than it is to have. One that is still a worker that leaves waits for nobody in turn.
	const turned = turning.filter(({ role }) => role === "control-plane");
	const controlPlanes = [...turned, ...wanted.filter(({ role }) => role === "control-plane")].filter(
		(member) => !known.some((one) => one.member.host === member.host && !isNew(one)),
	);
	const waitsFor = (host: Host): Member | undefined => {
		if (turned.some((member) => member.host === host.metadata.name)) return undefined;
		return isControlPlane(host) ? controlPlanes[0] : workers[0]?.member;
	};
	let room = cluster.spec.upgradePolicy.maxUnavailableWorkers;
	let mayLeaveEtcd = !hosts.some((host) => isControlPlane(host) && clusterOf(host) === undefined);
	const leaving = hosts.map((host): LeavingMember => {
		const name = host.metadata.name;
		const node = nodeOf(host);
		const role = roleKind(host, cluster);
		const isDeadMember = role === "control-plane" && isGone(host) && (clusterOf(host) === undefined || wasJoined(host));
		const say = (message: string): LeavingMember => ({ host: name, role, message, isDeadMember });
		if (clusterOf(host) === undefined) {
			if (role === "worker") room -= 1;
			return say(isDeadMember ? TAKEN_OUT : cleaningMessage(host));
		}
		const remove = (message: string) => {
			actions.push({ type: "removeRole", host: name });
			return say(message);
		};
		if (!wasJoined(host)) return remove("It had not joined yet.");
		if (!initialized) return remove("The cluster is not made yet.");
		if (isGone(host)) {
			if (role === "worker") return remove("Not connected: it cleans itself when it is back.");
			if (isRemovedFromEtcd(observed, name)) return remove("Taken out of etcd; it cleans itself when it is back.");
			return say(TAKEN_OUT);
		}
		// Its role would be gone from the Host, and its member would stay in etcd.
		if (role === "control-plane" && !isConnected(host))
			return say(`Not connected: if it is not back ${GONE_MS / 1000} s after it went, it is taken out of etcd.`);
		const newcomer = waitsFor(host);
		if (newcomer !== undefined)
			return { ...say(`Waits until ${newcomer.host} has joined.${failureText(host)}`), isWaiting: true };
		if (isHeld && node?.drainStarted === undefined) return say("Waits until the host that is under way is done.");
		if (role === "control-plane") {
			const why = mayLeaveEtcd
				? unsafeToLeave(observed, known, { leaving: hosts.filter(isControlPlane), lost: lost.size }, host)
				: "another one leaves";
			// One that can't go yet doesn't hold up one that can: that may be the sick one for which it waits.
			if (why !== undefined) return say(`Waits: ${why}.`);
			mayLeaveEtcd = false;
		} else if (room-- <= 0) return say("Waits for its turn.");
		const drain = drainAction(observed, name, node);
		if (drain === undefined) return remove(drainMessage(observed, node));
		actions.push(drain);
		return say(drainMessage(observed, node));
	});

	leaving.push(...gone);

	// The Node goes when its host has been cleaned: until then the kubelet would make it anew.
	for (const node of workload?.nodes ?? []) {
		const isLeft = leaving.some(({ host }) => host === node.name);
		if (!names.has(node.name) && !isLeft) actions.push({ type: "deleteNode", host: node.name });
	}
	return { actions, leaving };
}

/**
 * Control planes whose Host was deleted by force, and that are no longer named, or enrolled anew under their name: etcd still
 * counts them. The Node tells of one whose place in the status is already that of the host to come, or that was forgotten there
 * while nobody could be asked.
 */
const ghosts = (observed: Observed, known: readonly Known[], names: ReadonlySet<string>): readonly LeavingMember[] => {
	const { cluster, hosts } = observed;
	const members = cluster.status?.members ?? [];
	const lost = lostIn(observed, known);
	return [...new Set([...members.map(({ host }) => host), ...lost])]
		.filter((name) => !names.has(name) && !isRemovedFromEtcd(observed, name))
		.filter((name) => {
			const host = hosts.find(({ metadata }) => metadata.name === name);
			const hasNode = lost.includes(name);
			const place = members.find((member) => member.host === name);
			if (host === undefined) return hasNode || (place?.role === "control-plane" && place.phase !== "Waiting");
			// One whose role was taken away took itself out; one that is new never had it.
			const hasLeft = host.metadata.annotations?.[FORMER_CLUSTER] === cluster.metadata.name;
			return hasNode && !hasLeft && !belongs(host, cluster);
		})
		.map((host) => ({
			host,
			role: "control-plane",
			message: "Its Host is gone: another control plane takes it out of etcd.",
			isDeadMember: true,
		}));
};

/**
 * Control planes that are no members, as their Nodes tell: their Host is gone, or another cluster's, and etcd may count them. One that
 * leaves in the ordinary way is among them as long as its Node is there.
 */
export const lostIn = ({ workload }: Observed, known: readonly Known[]): string[] =>
	(workload?.nodes ?? [])
		.filter(({ labels }) => CONTROL_PLANE_LABEL in labels)
		.map(({ name }) => name)
		.filter((name) => !known.some(({ member, begun }) => begun && member.host === name));

/** Why taking a control plane out now could stop etcd; `undefined` when it keeps its majority. */
function unsafeToLeave(
	{ workload }: Observed,
	known: readonly Known[],
	{ leaving, lost }: { readonly leaving: readonly Host[]; readonly lost: number },
	host: Host,
): string | undefined {
	if (workload === undefined) return "the API server can't be asked whether etcd is well";
	const staying = known.filter(({ member, begun }) => member.role === "control-plane" && begun);
	const sick = staying.find(({ healthy }) => !healthy);
	if (sick !== undefined) return `control plane ${sick.member.host} is not well`;
	if (staying.length === 0) return "no other control plane is there";
	const others = leaving.filter((other) => other !== host && clusterOf(other) !== undefined);
	const well = others.filter(({ metadata }) => workload.apiServers.get(metadata.name)?.ready).length + staying.length;
	const members = others.length + staying.length + lost;
	return well >= quorum(members) ? undefined : `of ${members} etcd members only ${well} would be well`;
}

/** Whether kubeadm has begun on the host: one that only prepared has no node. */
const wasJoined = (host: Host): boolean =>
	host.status?.roles?.some(({ name, outputs }) => name === "kubernetes" && outputs?.nodeName !== undefined) === true ||
	isControlPlaneUp(host) ||
	host.spec.roles.some(({ name, parameters }) => name === "kubernetes" && parameters.prepare !== true);

/** What fails on one that has something to do before it goes: the newcomer may wait for that in turn. */
function failureText(host: Host): string {
	const { phase, step, message } = reportOf(host) ?? {};
	return phase === "Failed" ? ` It fails before: ${[step, message].filter(Boolean).join(": ")}` : "";
}

/** How the cleaning of a host is doing whose role was taken away. */
export function cleaningMessage(host: Host): string {
	const report = reportOf(host);
	if (!isConnected(host)) return "Not connected: it cleans itself when it is back.";
	if (host.spec.maintenance)
		return `In maintenance: it is cleaned after gp host maintenance ${host.metadata.name} off.`;
	if (isUpToDate(host) && report?.phase === "Failed") return `Cleaning failed: ${report.message ?? report.step ?? ""}`;
	return `Cleaning: ${report?.step ?? "waiting for the host"}.`;
}
