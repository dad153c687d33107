import { type Cluster, RETRY } from "../../crds/cluster.ts";
import { compareVersions } from "../../protocol/versions.ts";
import { drainAction, drainMessage } from "./drain.ts";
import { lacking } from "./extras.ts";
import { isConnected, isUpToDate, type Known, leavingVersions, reportOf } from "./members.ts";
import { notesOf, preflight } from "./preflight.ts";
import type { Action, Observed, Progress, UpgradeStatus } from "./state.ts";
import { usualSeconds } from "./usual.ts";

/** How a change of version goes on: pure, like {@link planRoll}. */
export interface Roll {
	readonly actions: readonly Action[];
	/** Version that each member is to be asked for, where it differs from what it is asked now. */
	readonly versions: ReadonlyMap<string, string>;
	/** Members whose turn it is: nothing else is taken out of the cluster meanwhile. */
	readonly inFlight: ReadonlySet<string>;
	readonly status: UpgradeStatus | undefined;
	readonly progress: Omit<Progress, "since"> | undefined;
	/** Why it does not go on, for the condition Ready. */
	readonly verdict:
		| { readonly reason: "UpgradeStopped" | "UpgradeBlocked" | "UpgradeWaiting"; readonly message: string }
		| undefined;
}

type Entry = UpgradeStatus["hosts"][number];

/** A step that failed may be a hiccup of the tunnel: the host tries again by itself for this long before it is put back. */
const FAILED_MS = 20_000;
/** A node that runs the version has this long to be ready, and its API server and etcd to be well. */
const CHECKS_MS = 120_000;
/** The longest that a host may take, from being asked to being done. */
const HOST_MS = 10 * 60_000;

/**
 * Rolls `spec.version` out: control planes one by one, then workers within the budget, each drained before and judged after.
 * On the way down workers go first, since a kubelet may be older than its API server, never newer (version skew policy of
 * Kubernetes). A host that fails returns to the version that worked there, and no other is taken.
 *
 * @param known Wanted members that have joined.
 * @param isScaling Members join or leave just now: the next host waits for that, one that is under way does not.
 * @param isEtcdShort etcd counts a member that is lost, or is about to get one: it can't spare another.
 */
export function planRoll(
	observed: Observed,
	known: readonly Known[],
	{ isScaling, isEtcdShort }: { readonly isScaling: boolean; readonly isEtcdShort: boolean },
): Roll {
	const { cluster, workload, now } = observed;
	const target = cluster.spec.version;
	const before = cluster.status?.upgrade;
	const byHost = new Map(known.map((each) => [each.member.host, each]));
	const behind = known.filter(({ asked }) => asked !== target);
	const old = new Map((before?.hosts ?? []).filter(({ host }) => byHost.has(host)).map((entry) => [entry.host, entry]));
	const active = [...old.values()].filter(({ finished }) => finished === undefined);
	const stillStopped =
		before?.stopped !== undefined && isStopped(cluster, before.stopped) && byHost.has(before.stopped.host);
	let stopped = stillStopped ? before.stopped : undefined;

	// What was lost with the status: a node that runs another version than it is asked for is under way.
	for (const { member, asked, node } of known) {
		if (old.get(member.host)?.finished === undefined && old.has(member.host)) continue;
		if (asked !== undefined && node?.version !== undefined && node.version !== asked)
			active.push({ host: member.host, from: node.version, to: asked, since: iso(now), applied: iso(now) });
	}
	const nothingToDo = behind.length === 0 && active.length === 0;
	if (nothingToDo) return idle(before, now);

	const actions: Action[] = [];
	const versions = new Map<string, string>();
	const entries = new Map<string, Entry>(startsAnew(before, target) ? [] : old);
	for (const entry of active) {
		const one = byHost.get(entry.host);
		if (one === undefined) continue;
		if (isTurnLost(known, one, entry, isEtcdShort)) {
			entries.delete(entry.host);
			continue;
		}
		const next = advance(observed, one, entry, stopped !== undefined && entry.to === entry.from);
		entries.set(entry.host, next.entry);
		actions.push(...next.actions);
		if (next.ask !== undefined) versions.set(entry.host, next.ask);
		if (next.failed !== undefined) stopped = { host: entry.host, to: target, at: iso(now), message: next.failed };
	}

	const underWay = () => [...entries.values()].filter(({ finished }) => finished === undefined);
	let blocked: string | undefined;
	let waits: string | undefined;
	const queue = order(behind, target).filter(({ member }) => !underWay().some(({ host }) => host === member.host));
	if (stopped === undefined && !isScaling && !isEtcdShort && workload !== undefined && queue.length > 0) {
		blocked = isUnderWay(before, target) ? undefined : findings(observed, known).join(" ") || undefined;
		if (blocked === undefined) {
			const chosen = choose(observed, known, queue, underWay());
			waits = chosen.waits;
			for (const { member, asked = target, node } of chosen.next) {
				const entry: Entry = { host: member.host, from: asked, to: target, since: iso(now) };
				entries.set(member.host, entry);
				const drain = drainOf(observed, member.host, node);
				if (drain !== undefined) actions.push(drain);
			}
		}
	}
	const inFlight = new Set(underWay().map(({ host }) => host));
	const began = entries.size > 0;
	const isAnew = before === undefined || startsAnew(before, target);
	const from = isAnew ? lowest(known) : before.from;
	const notes = isAnew
		? notesOf(cluster, { from, to: target, blocking: workload?.preflight?.blockedBudgets ?? [] })
		: (before.notes ?? []);
	const status: UpgradeStatus | undefined = began
		? {
				from,
				to: target,
				since: isAnew ? iso(now) : before.since,
				...(notes.length === 0 ? {} : { notes }),
				hosts: [...entries.values()],
				...(inFlight.size === 0 && queue.length === 0 ? { finished: iso(now) } : {}),
				...(stopped === undefined ? {} : { stopped }),
			}
		: // Whoever had a turn has left its place: it has none when it comes back to another.
			before?.finished === undefined && before !== undefined
			? { ...before, hosts: [] }
			: before;
	const left = queue.filter(({ member }) => !inFlight.has(member.host));
	return {
		actions,
		versions,
		inFlight,
		status,
		progress: progressOf(observed, byHost, underWay(), left, blocked ?? waits, entries),
		verdict:
			stopped !== undefined
				? {
						reason: "UpgradeStopped",
						message: `${stopped.host} failed to become ${stopped.to} and ${inFlight.has(stopped.host) ? "is being put back" : "was put back"} to ${entries.get(stopped.host)?.from ?? "the version that worked"}: ${stopped.message} No other host is taken. Set spec.version back, or try again: gp cluster upgrade ${cluster.metadata.name} ${target}.`,
					}
				: blocked !== undefined
					? { reason: "UpgradeBlocked", message: blocked }
					: waits !== undefined
						? { reason: "UpgradeWaiting", message: waits }
						: undefined,
	};
}

/** All members run what is wanted. */
const idle = (before: UpgradeStatus | undefined, now: number): Roll => {
	const status =
		before === undefined || before.finished !== undefined
			? before
			: {
					from: before.from,
					to: before.to,
					since: before.since,
					...(before.notes === undefined ? {} : { notes: before.notes }),
					// One that left the cluster in the middle of its turn has none when it comes back.
					hosts: before.hosts.filter(({ finished }) => finished !== undefined),
					finished: iso(now),
				};
	return { actions: [], versions: new Map(), inFlight: new Set(), status, progress: undefined, verdict: undefined };
};

/**
 * Whether a control plane that is still being drained gives its turn back, and its node into use: another one fell ill or was lost
 * meanwhile, and an etcd that lost one member can't spare another. Waiting with the turn in hand would keep the sick one from being exchanged.
 */
const isTurnLost = (
	known: readonly Known[],
	{ member, asked }: Known,
	{ applied, to }: Entry,
	isEtcdShort: boolean,
): boolean =>
	member.role === "control-plane" &&
	applied === undefined &&
	asked !== to &&
	(isEtcdShort ||
		known.some(
			(other) => other.member.role === "control-plane" && other.member.host !== member.host && !other.healthy,
		));

/** One look at a host whose turn it is. */
function advance(
	observed: Observed,
	one: Known,
	entry: Entry,
	isPutBack: boolean,
): { entry: Entry; actions: readonly Action[]; ask?: string; failed?: string } {
	const { cluster, workload, now } = observed;
	const { member, node, asked, healthy } = one;
	const to = isPutBack ? entry.from : cluster.spec.version;
	const base: Entry = { host: entry.host, from: entry.from, to, since: entry.since };

	if (asked !== to && entry.applied === undefined) {
		// Its pods can't be moved while nobody can be asked.
		if (workload === undefined) return { entry: base, actions: [] };
		const drain = drainOf(observed, member.host, node);
		if (drain !== undefined) return { entry: base, actions: [drain] };
		return { entry: { ...base, applied: iso(now) }, actions: [], ask: to };
	}
	// The person, or a failure, wants another version than the one it was asked for: that it is drained already.
	if (asked !== to) return { entry: { ...base, applied: iso(now) }, actions: [], ask: to };

	const waiting: Entry = { ...base, ...(entry.applied === undefined ? {} : { applied: entry.applied }) };
	if (healthy) {
		if (node?.drainStarted !== undefined) return { entry: waiting, actions: [{ type: "uncordon", host: member.host }] };
		return { entry: { ...waiting, finished: iso(now) }, actions: [] };
	}
	const failure = failureOf(observed, one);
	const failing = failure === undefined ? undefined : (entry.failing ?? iso(now));
	const kept: Entry = { ...waiting, ...(failing === undefined ? {} : { failing }) };
	const overdue = entry.applied !== undefined && now - Date.parse(entry.applied) >= HOST_MS;
	const isOver = overdue || (failing !== undefined && now - Date.parse(failing) >= (failure?.patienceMs ?? 0));
	// There is nothing to go back to: the agent goes on trying.
	if (!isOver || to === entry.from) return { entry: kept, actions: [] };
	return {
		entry: { ...base, to: entry.from, applied: iso(now) },
		actions: [],
		ask: entry.from,
		failed: failure?.message ?? `it was not done after ${HOST_MS / 60_000} minutes.`,
	};
}

/** What is wrong with a host that was asked for its version, and how long that is borne. */
function failureOf(
	{ workload, unreachable }: Observed,
	{ member, host, node, asked, applied, healthy }: Known,
): { message: string; patienceMs: number } | undefined {
	const report = reportOf(host);
	if (!isConnected(host) || !isUpToDate(host)) return undefined;
	if (report?.phase === "Failed")
		return {
			message: [report.step, report.reason, report.message].filter(Boolean).join(": "),
			patienceMs: FAILED_MS,
		};
	if (!applied || healthy) return undefined;
	const check =
		workload === undefined
			? `the API server does not answer: ${unreachable ?? "no control plane is connected"}.`
			: node === undefined
				? "its Node is gone."
				: !node.ready
					? `its Node is not ready: ${node.message ?? "no reason given"}.`
					: node.version !== asked
						? `its kubelet runs ${node.version ?? "an unknown version"}.`
						: `its API server is not ready: ${workload.apiServers.get(member.host)?.message ?? "it does not answer"}.`;
	return { message: `after the change ${check}`, patienceMs: CHECKS_MS };
}

/** The order of hosts: workers that would be newer than the control plane, the control planes, the other workers. */
export function order<T extends { member: { role: string }; asked: string | undefined }>(
	members: readonly T[],
	target: string,
): T[] {
	const rank = ({ member, asked }: T): number =>
		member.role === "control-plane" ? 1 : asked !== undefined && compareVersions(asked, target) > 0 ? 0 : 2;
	return members.filter(({ asked }) => asked !== target).toSorted((a, b) => rank(a) - rank(b));
}

/** Who is taken next, or why nobody is. */
function choose(
	observed: Observed,
	known: readonly Known[],
	queue: readonly Known[],
	underWay: readonly Entry[],
): { next: readonly Known[]; waits?: string } {
	const { cluster } = observed;
	const taken = new Set(underWay.map(({ host }) => host));
	const first = queue[0];
	if (first === undefined) return { next: [] };
	const sick = known.filter(({ member, healthy }) => !healthy && !taken.has(member.host));
	const sickControlPlane = sick.find(({ member }) => member.role === "control-plane");
	// An etcd that lost one member can't spare another.
	if (sickControlPlane !== undefined && first !== sickControlPlane)
		return {
			next: [],
			waits: `Control plane ${sickControlPlane.member.host} is not well; the change goes on when it is.`,
		};
	if (first.member.role === "control-plane") {
		if (taken.size > 0) return { next: [] };
		if (first.host.spec.maintenance) return { next: [], waits: maintenanceText([first]) };
		return first.healthy
			? { next: [first] }
			: { next: [], waits: `${first.member.host} is not well; the change goes on when it is.` };
	}
	if (underWay.some(({ host }) => known.some((one) => one.member.host === host && one.member.role === "control-plane")))
		return { next: [] };
	const [oldest] = leavingVersions(observed, known);
	if (oldest !== undefined && compareVersions(oldest, cluster.spec.version) < 0)
		return {
			next: [],
			waits: `A control plane that leaves is at ${oldest}; workers follow when it is gone, since no kubelet may be newer than an API server.`,
		};
	const sickWorkers = sick.filter(({ member }) => member.role === "worker").length;
	const room = cluster.spec.upgradePolicy.maxUnavailableWorkers - taken.size - sickWorkers;
	const above = compareVersions(first.asked ?? "", cluster.spec.version) > 0;
	const fit = queue.filter(
		({ member, asked, healthy }) =>
			healthy && member.role === "worker" && compareVersions(asked ?? "", cluster.spec.version) > 0 === above,
	);
	if (room <= 0 && taken.size === 0)
		return {
			next: [],
			waits: `${sick.map(({ member }) => member.host).join(", ")} not well, and no more than ${cluster.spec.upgradePolicy.maxUnavailableWorkers} may be missing (upgradePolicy.maxUnavailableWorkers). Mend it, or take it out of the cluster.`,
		};
	const able = fit.filter(({ host }) => !host.spec.maintenance);
	if (able.length === 0 && fit.length > 0 && taken.size === 0) return { next: [], waits: maintenanceText(fit) };
	return { next: able.slice(0, Math.max(0, room)) };
}

/** Nothing is changed on such a host: it would be drained for nothing, and count as failed ten minutes later. */
const maintenanceText = (those: readonly Known[]): string =>
	those
		.map(
			({ member: { host } }) => `${host} is in maintenance; the change goes on after gp host maintenance ${host} off.`,
		)
		.join(" ");

function progressOf(
	observed: Observed,
	byHost: ReadonlyMap<string, Known>,
	underWay: readonly Entry[],
	left: readonly Known[],
	blocked: string | undefined,
	entries: ReadonlyMap<string, Entry>,
): Roll["progress"] {
	const target = observed.cluster.spec.version;
	const then = left.find(({ member }) => !underWay.some(({ host }) => host === member.host));
	const next = then === undefined ? {} : { next: `${then.member.host} (${then.member.role})` };
	const [entry] = underWay;
	const one = byHost.get(entry?.host ?? "");
	if (entry === undefined || one === undefined) {
		if (blocked !== undefined) return { step: `Waiting to change to ${target}`, detail: blocked, ...next };
		return then === undefined ? undefined : { step: `Changing to ${target}`, ...next };
	}
	const usual = { usual: seconds(usualSeconds(`upgrade-${one.member.role}`, [...entries.values()], byHost)) };
	if (one.asked !== entry.to || entry.applied === undefined)
		return { step: "Draining", host: entry.host, detail: drainMessage(observed, one.node), ...usual, ...next };
	const failure = failureOf(observed, one);
	const report = reportOf(one.host);
	if (one.applied)
		return {
			step: `Checking ${entry.to}`,
			host: entry.host,
			detail: failure?.message ?? "All is well.",
			...usual,
			...next,
		};
	const detail = failure?.message ?? [report?.step, report?.progress].filter(Boolean).join(" ");
	const step = entry.to === entry.from ? `Putting back to ${entry.to}` : `Changing to ${entry.to}`;
	return { step, host: entry.host, detail: detail || "Waiting for the host to begin.", ...usual, ...next };
}

/** Whether another version is wanted than the cluster has, and none is being rolled out yet: what speaks against it is looked for. */
export const needsPreflight = ({ cluster }: Pick<Observed, "cluster">): boolean =>
	cluster.status?.controlPlaneInitialized === true &&
	cluster.status.version !== cluster.spec.version &&
	cluster.metadata.deletionTimestamp === undefined &&
	!isUnderWay(cluster.status.upgrade, cluster.spec.version);

/** What speaks against a version that has not begun to be rolled out. */
const findings = ({ cluster, versions, extras, workload }: Observed, known: readonly Known[]): string[] => [
	...lacking(cluster, extras, cluster.spec.version),
	...preflight(
		cluster,
		{ target: cluster.spec.version, versions, removedApis: workload?.preflight?.removedApis ?? [] },
		known.map(({ member, host, asked, node, healthy }) => ({
			host: member.host,
			versions: [asked, node?.version].filter((version) => version !== undefined),
			healthy,
			filesystems: host.status?.facts?.filesystems ?? [],
		})),
	),
];

/** A stop holds until another version is wanted, or a person says to try again. */
function isStopped({ metadata, spec }: Cluster, stopped: NonNullable<UpgradeStatus["stopped"]>): boolean {
	const retry = Date.parse(metadata.annotations?.[RETRY] ?? "");
	return stopped.to === spec.version && !(retry > Date.parse(stopped.at));
}

/** Whether the change has begun already, or is one that has begun taken back: then nothing keeps it from going on. */
const isUnderWay = (before: UpgradeStatus | undefined, target: string): boolean =>
	before !== undefined && before.finished === undefined && (before.to === target || before.from === target);

/** Whether what the status tells is of another, finished change. */
const startsAnew = (before: UpgradeStatus | undefined, target: string): boolean =>
	before === undefined || before.finished !== undefined || (before.to !== target && before.from !== target);

/** A node with nowhere to move its pods to is not drained. */
const drainOf = (observed: Observed, host: string, node: Known["node"]): Action | undefined =>
	(observed.workload?.nodes.length ?? 0) > 1 ? drainAction(observed, host, node) : undefined;

const lowest = (known: readonly Known[]): string =>
	known
		.map(({ asked }) => asked ?? "")
		.filter((version) => version !== "")
		.sort(compareVersions)[0] ?? "";

const iso = (at: number): string => new Date(at).toISOString();
const seconds = (count: number): string => `${Math.max(1, Math.round(count))}s`;
