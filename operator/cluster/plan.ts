import type { ClusterStatus } from "../../crds/cluster.ts";
import { compareVersions } from "../../protocol/versions.ts";
import type { NewCondition } from "../kube/conditions.ts";
import { planAdoption } from "./adoption.ts";
import { assign, clusterOf, type Problem } from "./assign.ts";
import { planDeletion } from "./deletion.ts";
import { lacking } from "./extras.ts";
import { isInitialized, mayJoin, planJoining } from "./joining.ts";
import { type LeavingMember, lostIn, planLeaving } from "./leaving.ts";
import { isConnected, type Known, knownOf, leavesFirst } from "./members.ts";
import { placementCondition } from "./placement.ts";
import { poolPatch } from "./pools.ts";
import { planServing } from "./serving.ts";
import { type Action, BUSY_MS, type MemberStatus, type Observed, type Plan, STEADY_MS, WAITING_MS } from "./state.ts";
import { baseStatus, describe, lacksNetwork, progressOf, reachableCondition, ready, viewOf } from "./status.ts";
import { planRoll, type Roll } from "./upgrade.ts";

/** Decides what to do next for a cluster. Pure: the same observation always gives the same plan. */
export function plan(observed: Observed): Plan {
	const { cluster, hosts } = observed;
	if (cluster.spec.adopt) return planAdoption(observed);
	if (cluster.metadata.deletionTimestamp !== undefined) return planDeletion(observed);
	const assigned = assign(cluster, hosts, observed.others);
	const found = [...assigned.problems, ...missingParts(observed)];
	const isStarted = hosts.some((host) => clusterOf(host) === cluster.metadata.name);
	const refusal = isStarted ? undefined : refuse(observed, found);
	if (refusal !== undefined) return refusal;
	const turning = assigned.members.filter((member) => leavesFirst(observed, member));
	const members = assigned.members.filter((member) => !turning.includes(member));

	const known = members
		.filter((member) => !found.some((problem) => problem.host === member.host))
		.map((member) => knownOf(observed, member))
		.filter((one) => one !== undefined);
	const begun = known.filter((one) => one.begun);

	// Only one thing is taken out of a cluster at a time: a host that changes its version, or one that comes or goes.
	const initialized = isInitialized(cluster, known);
	const settled = planLeaving(observed, known, members, { isHeld: false, initialized, turning });
	const isScaling =
		settled.leaving.some(({ isWaiting }) => isWaiting !== true) ||
		// Its role is gone, its Node not yet: it is between its two places.
		turning.some((member) => !settled.leaving.some(({ host }) => host === member.host)) ||
		known.some(({ begun, applied }) => (begun ? !applied : mayJoin(observed, known)));
	const isEtcdShort =
		lostIn(observed, known).some((name) => !settled.leaving.some(({ host }) => host === name)) ||
		settled.leaving.some((one) => one.role === "control-plane" && isOutOfReach(observed, one)) ||
		known.some(({ member, begun }) => member.role === "control-plane" && !begun && mayJoin(observed, known));
	const roll = initialized ? planRoll(observed, begun, { isScaling, isEtcdShort }) : NO_ROLL;
	const leaving =
		roll.inFlight.size === 0 ? settled : planLeaving(observed, known, members, { isHeld: true, initialized, turning });
	const joining = planJoining(observed, known, leaving, roll);
	const leaves = (host: string | undefined) => leaving.leaving.some((one) => one.host === host);
	// That it is still being cleaned is no problem of a host that leaves.
	const problems = found.filter(({ host }) => !leaves(host));

	const serving = planServing(known, observed.workload?.servingRequests ?? []);
	const all = [
		...members.map((member): MemberStatus => {
			const host = hosts.find(({ metadata }) => metadata.name === member.host);
			const node = observed.workload?.nodes.find(({ name }) => name === member.host);
			const view = viewOf(observed, member, host, node, roll.inFlight.has(member.host));
			const refused = serving.refused.get(member.host);
			return refused === undefined || view.message !== undefined ? view : { ...view, message: refused };
		}),
		...turning.filter(({ host }) => !leaves(host)).map((member): MemberStatus => ({ ...member, phase: "Waiting" })),
		...leaving.leaving.map(({ host, role, message }): MemberStatus => ({ host, role, phase: "Leaving", message })),
	];
	const actions = [
		...joining,
		...roll.actions,
		...leaving.actions,
		...nodeActions(observed, begun, roll),
		...serving.actions,
	];
	return summarize(observed, { known, all, problems, roll, actions });
}

const NO_ROLL: Roll = {
	actions: [],
	versions: new Map(),
	inFlight: new Set(),
	status: undefined,
	progress: undefined,
	verdict: undefined,
};

/** A control plane that leaves and has no power, or none that we know of: the others take it out of etcd in a while. */
const isOutOfReach = ({ hosts }: Observed, { host, isDeadMember }: LeavingMember): boolean =>
	isDeadMember || !isConnected(hosts.find(({ metadata }) => metadata.name === host));

/** Nothing was begun, and something stands in the way: begin nothing at all, so that nothing half-made stays. */
function refuse({ cluster, versions }: Observed, problems: readonly Problem[]): Plan | undefined {
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

/** What the cluster asks for, and the release of the version that it has (or is to have) does not hold. */
const missingParts = ({ cluster, extras }: Observed): Problem[] =>
	lacking(cluster, extras, cluster.status?.version ?? cluster.spec.version).map((message) => ({
		reason: "NotInRelease",
		message,
	}));

/** Labels and taints of pools, and failure domains; and nodes that were to leave, or that a person took back, take pods again. */
function nodeActions({ cluster }: Observed, begun: readonly Known[], roll: Roll): Action[] {
	const actions: Action[] = [];
	for (const { member, host, node, healthy } of begun) {
		if (node === undefined) continue;
		const patch = poolPatch(cluster, member, node, host);
		if (patch !== undefined) actions.push({ type: "markNode", host: member.host, patch });
		if (node.drainStarted !== undefined && healthy && !roll.inFlight.has(member.host))
			actions.push({ type: "uncordon", host: member.host });
	}
	return actions;
}

/** The status that follows from what is, and from what is being done about it. */
function summarize(
	observed: Observed,
	found: {
		known: readonly Known[];
		all: readonly MemberStatus[];
		problems: readonly Problem[];
		roll: Roll;
		actions: readonly Action[];
	},
): Plan {
	const { cluster, workload } = observed;
	const { known, all, problems, roll } = found;
	const wanted = all.filter(({ phase }) => phase !== "Leaving");
	const readyCount = wanted.filter(({ phase }) => phase === "Ready").length;
	const isWhole = readyCount === all.length && all.length > 0 && problems.length === 0;
	const isCurrent = roll.inFlight.size === 0 && known.every(({ asked }) => asked === cluster.spec.version);
	const dnsMissing = isWhole && cluster.spec.addons.coredns && workload?.dnsReady === false;
	const networkMissing = lacksNetwork(observed, all);
	const done = isWhole && isCurrent && !dnsMissing && workload !== undefined;
	const initialized = isInitialized(cluster, known);
	const actions: Action[] = [...found.actions];
	if (isWhole && workload?.bootstrapToken) actions.push({ type: "deleteBootstrapToken" });

	const progress = done || isAtRest(isWhole, roll) ? undefined : progressOf(observed, all, dnsMissing, roll.progress);
	const failed = all.find((member) => member.phase === "Failed");
	const wasReady =
		cluster.status?.conditions?.some((c) => c.type === "Ready" && c.status === "True") ||
		["Ready", "Degraded", "Updating"].includes(cluster.status?.phase ?? "");
	const isGrowing =
		wasReady &&
		wanted.some(({ phase }) => phase === "Waiting" || phase === "Joining") &&
		!wanted.some(({ phase }) => phase === "NotReady" || phase === "Failed");
	const isChanging = roll.inFlight.size > 0 || all.length > wanted.length || isGrowing;
	const phase: ClusterStatus["phase"] = done
		? "Ready"
		: isChanging || (wasReady && isWhole && roll.verdict === undefined)
			? "Updating"
			: wasReady
				? "Degraded"
				: failed !== undefined
					? "Failed"
					: "Provisioning";
	const version = initialized ? (runningVersion(known) ?? cluster.status?.version ?? cluster.spec.version) : undefined;
	const [reason, message] = readyReason();
	return {
		actions,
		status: {
			...baseStatus(cluster),
			phase,
			members: [...all],
			ready: `${readyCount}/${wanted.length}`,
			...(initialized ? { controlPlaneInitialized: true } : {}),
			...(version === undefined ? {} : { version }),
			...(roll.status === undefined ? {} : { upgrade: roll.status }),
			...(progress === undefined ? {} : { progress }),
		},
		conditions: [
			ready(cluster, done ? "True" : "False", reason, message),
			initializedCondition(initialized),
			reachableCondition(observed, initialized),
			placementCondition(known.filter(({ member }) => member.role === "control-plane").map(({ host }) => host)),
		],
		requeueAfter: done ? STEADY_MS : isAtRest(isWhole, roll) || networkMissing ? WAITING_MS : BUSY_MS,
	};

	function readyReason(): [string, string] {
		if (done) return ["AllNodesReady", `All ${wanted.length} nodes are ready.`];
		const [problem] = problems;
		if (problem !== undefined) return [problem.reason, problems.map((one) => one.message).join(" ")];
		if (roll.verdict !== undefined) return [roll.verdict.reason, roll.verdict.message];
		if (failed !== undefined) return ["HostFailed", `${failed.host}: ${failed.message ?? "failed"}`];
		const words = describe(progress) ?? observed.unreachable ?? "Under way.";
		if (roll.progress !== undefined) return ["Upgrading", words];
		if (networkMissing) return ["NetworkPluginMissing", words];
		return [wasReady ? "NodesNotReady" : "Provisioning", words];
	}
}

/** A change of version that stopped, or can't begin, is a person's turn: the cluster itself is well. */
const isAtRest = (isWhole: boolean, roll: Roll): boolean =>
	isWhole && roll.verdict !== undefined && roll.inFlight.size === 0;

/** The oldest version that a control plane runs: what the cluster as a whole can be said to be. */
const runningVersion = (known: readonly Known[]): string | undefined =>
	known
		.filter(({ member }) => member.role === "control-plane")
		.map(({ node }) => node?.version)
		.filter((version) => version !== undefined)
		.sort(compareVersions)[0];

const initializedCondition = (initialized: boolean): NewCondition =>
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
			};
