import type { Cluster, ClusterStatus } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import type { NewCondition } from "../kube/conditions.ts";
import { clusterOf, type Member } from "./assign.ts";
import { awaitsNetwork, isConnected, modeOf, reportOf, roleOf } from "./members.ts";
import type { MemberStatus, NodeState, Observed, Plan, Progress } from "./state.ts";
import { USUAL_SECONDS, type Work } from "./usual.ts";

/** How a member is doing, for people. */
export function viewOf(
	{ cluster, workload }: Observed,
	member: Member,
	host: Host | undefined,
	node: NodeState | undefined,
	isChanging: boolean,
): MemberStatus {
	const base = {
		host: member.host,
		role: member.role,
		...(member.pool === undefined ? {} : { pool: member.pool }),
		...(node?.version === undefined ? {} : { version: node.version }),
	};
	const report = reportOf(host);
	const known = cluster.status?.members?.find((entry) => entry.host === member.host);
	if (host === undefined || clusterOf(host) !== cluster.metadata.name) return { ...base, phase: "Waiting" };
	if (report?.phase === "Failed") {
		return {
			...base,
			phase: "Failed",
			message: [report.step, report.reason, report.message].filter(Boolean).join(": "),
		};
	}
	const doing = [report?.step, report?.progress].filter(Boolean).join(" ");
	if (roleOf(host)?.parameters.prepare === true) {
		const isPrepared = report?.phase === "Applied";
		return {
			...base,
			phase: "Waiting",
			message: isPrepared ? "Prepared, waits for the control plane." : `Preparing${doing === "" ? "." : `: ${doing}`}`,
		};
	}
	if (!isConnected(host)) return { ...base, phase: "NotReady", message: "The host is not connected." };
	if (isChanging) return { ...base, phase: "Updating", ...(doing === "" ? {} : { message: doing }) };
	if (report?.phase !== "Applied" && node === undefined)
		return { ...base, phase: "Joining", message: doing || "Waiting for the host to begin." };
	if (workload === undefined && (known?.phase === "Ready" || known?.phase === "NotReady")) {
		return { ...known, phase: "NotReady", message: "The API server can't be asked how the node is." };
	}
	if (node === undefined) return { ...base, phase: "Joining", message: "Waiting for the node to register." };
	if (!node.ready) {
		// One that was never ready is on its way; one that was is missed.
		const phase =
			known === undefined || known.phase === "Waiting" || known.phase === "Joining" ? "Joining" : "NotReady";
		const why = awaitsNetwork(cluster, node) ? "Up, and waits for a network plugin." : node.message;
		return { ...base, phase, message: why ?? "The node is not ready yet." };
	}
	const server = workload?.apiServers.get(member.host);
	if (member.role === "control-plane" && server?.ready === false)
		return {
			...base,
			phase: "NotReady",
			message: `Its API server is not ready: ${server.message ?? "it does not answer"}.`,
		};
	return { ...base, phase: "Ready" };
}

/** The one step that people should hear of. */
export function progressOf(
	observed: Observed,
	members: readonly MemberStatus[],
	dnsMissing: boolean,
	roll: Omit<Progress, "since"> | undefined,
): Progress {
	const { cluster, hosts, now, workload, unreachable } = observed;
	const isCutOff = cluster.status?.controlPlaneInitialized === true && workload === undefined;
	const current = PRECEDENCE.map((phase) => members.find((member) => member.phase === phase)).find(
		(member) => member !== undefined,
	);
	if (roll !== undefined && (roll.host !== undefined || !isCutOff)) return stamp(cluster, roll, now);
	if (isCutOff || (current === undefined && !dnsMissing))
		return stamp(cluster, { step: "Waiting for the API server to answer", detail: unreachable ?? "" }, now);
	if (current === undefined) return stamp(cluster, { step: "Waiting for CoreDNS" }, now);
	if (lacksNetwork(observed, members)) {
		const detail = `nodes wait for it: install one in the cluster, for pods in ${cluster.spec.network.podSubnet}`;
		return stamp(cluster, { step: "Waiting for a network plugin", detail }, now);
	}
	const [step, work] = stepOf(
		current,
		hosts.find(({ metadata }) => metadata.name === current.host),
	);
	const next = members.find(({ phase, host }) => phase === "Waiting" && host !== current.host);
	return stamp(
		cluster,
		{
			step,
			host: current.host,
			...(current.message === undefined ? {} : { detail: current.message }),
			...(work === undefined ? {} : { usual: `${USUAL_SECONDS[work]}s` }),
			...(next === undefined ? {} : { next: `${next.host} (${next.role})` }),
		},
		now,
	);
}

/** Whether all that is missing is the network plugin that the cluster's people bring: a person's turn. */
export const lacksNetwork = ({ cluster, workload }: Observed, members: readonly MemberStatus[]): boolean =>
	members.length > 0 &&
	members.every(({ host }) =>
		awaitsNetwork(
			cluster,
			workload?.nodes.find(({ name }) => name === host),
		),
	);

const PRECEDENCE: readonly MemberStatus["phase"][] = [
	"Failed",
	"Updating",
	"Joining",
	"Leaving",
	"NotReady",
	"Waiting",
];

function stepOf(member: MemberStatus, host: Host | undefined): [string, Work?] {
	switch (member.phase) {
		case "Failed":
			return ["Failed, trying again"];
		case "Leaving":
			return ["Removing", `remove-${member.role}`];
		case "Joining":
			if (host !== undefined && modeOf(host) === "init") return ["Making the first control plane", "make"];
			return member.role === "control-plane"
				? ["Joining a control plane", "join-control-plane"]
				: ["Joining workers", "join-worker"];
		case "NotReady":
			return ["Waiting for the node to be ready"];
		default:
			return ["Waiting for its turn"];
	}
}

/** Keeps `since` while the step is the same, so that people see how long it has taken. */
export function stamp(cluster: Cluster, progress: Omit<Progress, "since">, now: number): Progress {
	const old = cluster.status?.progress;
	const same = old?.step === progress.step && old.host === progress.host;
	return {
		...progress,
		since: same && old.since !== undefined ? old.since : new Date(now).toISOString().replace(/\.\d+Z$/, "Z"),
	};
}

export const describe = (progress: Omit<Progress, "since"> | undefined): string | undefined =>
	progress === undefined
		? undefined
		: `${progress.step}${progress.host === undefined ? "" : ` on ${progress.host}`}${progress.detail ? `: ${progress.detail}` : ""}`;

/** What stays in the status whatever is going on. */
export const baseStatus = (
	cluster: Cluster,
): Pick<
	ClusterStatus,
	"observedGeneration" | "controlPlaneInitialized" | "version" | "endpoint" | "lastBackup" | "upgrade"
> => ({
	observedGeneration: cluster.metadata.generation ?? 0,
	...(cluster.status?.controlPlaneInitialized === undefined
		? {}
		: { controlPlaneInitialized: cluster.status.controlPlaneInitialized }),
	...(cluster.status?.version === undefined ? {} : { version: cluster.status.version }),
	...(cluster.status?.endpoint === undefined ? {} : { endpoint: cluster.status.endpoint }),
	...(cluster.status?.upgrade === undefined ? {} : { upgrade: cluster.status.upgrade }),
});

/** The status of a cluster that goes, or is let go. */
export const deletingStatus = (
	cluster: Cluster,
	members: MemberStatus[],
	progress: Omit<Progress, "since"> | undefined,
	now: number,
): Plan["status"] => ({
	...baseStatus(cluster),
	phase: "Deleting",
	members,
	ready: `0/${members.length}`,
	...(progress === undefined ? {} : { progress: stamp(cluster, progress, now) }),
});

export const ready = (cluster: Cluster, status: "True" | "False", reason: string, message: string): NewCondition => ({
	type: "Ready",
	status,
	reason,
	message,
	observedGeneration: cluster.metadata.generation ?? 0,
});

/** Whether the cluster's API server answers through the tunnel. */
export function reachableCondition({ workload, unreachable }: Observed, initialized: boolean): NewCondition {
	if (!initialized)
		return { type: "Reachable", status: "Unknown", reason: "Waiting", message: "There is no API server yet." };
	if (workload === undefined)
		return {
			type: "Reachable",
			status: "False",
			reason: "Unreachable",
			message: `The API server can't be reached through the tunnel: ${unreachable ?? "no control plane is connected"}.`,
		};
	return {
		type: "Reachable",
		status: "True",
		reason: "Answering",
		message: "The API server answers through the tunnel.",
	};
}
