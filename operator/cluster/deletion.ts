import { FORCE_DELETE } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { durationMs } from "../../protocol/duration.ts";
import { clusterOf } from "./assign.ts";
import { drainAction, drainMessage } from "./drain.ts";
import { cleaningMessage } from "./leaving.ts";
import { belongs, goneFor, isConnected, modeOf, roleKind } from "./members.ts";
import { type Action, BUSY_MS, type MemberStatus, type Observed, type Plan } from "./state.ts";
import { deletingStatus, describe, ready } from "./status.ts";
import { USUAL_SECONDS } from "./usual.ts";

/** A host that is out of reach for this long is not waited for: it cleans itself when it is back. */
const GONE_MS = 30_000;
/** One that is out of reach for this long lets those after it go first: it is a moment of the tunnel, or a host that is gone. */
const AWAY_MS = 5_000;
/** What a host can't clean in this time (beyond the drain) does not hold the deletion up; it goes on trying. */
const CLEANING_MS = 15 * 60_000;

/**
 * The whole cluster goes: workers are drained, then control planes, the one made first last. It always ends: a host out
 * of reach, or one that can't be cleaned, stays behind with what it holds (Host.status.leftBehind), and cleans itself later.
 */
export function planDeletion(observed: Observed): Plan {
	const { cluster, workload, now } = observed;
	const mine = observed.hosts.filter((host) => belongs(host, cluster));
	const isForced = cluster.metadata.annotations?.[FORCE_DELETE] === "true";
	const since = Date.parse(cluster.metadata.deletionTimestamp ?? "") || now;
	const isOverdue = now - since >= durationMs(cluster.spec.upgradePolicy.drainTimeout) + CLEANING_MS;
	const isLeft = (host: Host) => isForced || isOverdue || goneFor(host, now) >= GONE_MS;
	const nodeOf = (host: Host) => workload?.nodes.find((node) => node.name === host.metadata.name);

	const actions: Action[] = [];
	for (const host of mine.filter((candidate) => isLeft(candidate) && clusterOf(candidate) !== undefined))
		actions.push({ type: "removeRole", host: host.metadata.name });
	const group = nextToGo(
		observed,
		mine.filter((host) => !isLeft(host) && goneFor(host, now) < AWAY_MS),
	);
	for (const host of group) {
		if (clusterOf(host) === undefined) continue;
		const isWorker = roleKind(host, cluster) === "worker";
		const drain = isWorker ? drainAction(observed, host.metadata.name, nodeOf(host)) : undefined;
		actions.push(drain ?? { type: "removeRole", host: host.metadata.name });
	}
	if (group.length === 0 && mine.every((host) => isLeft(host) && (isForced || clusterOf(host) === undefined))) {
		if (observed.joinSecret) actions.push({ type: "deleteJoinSecret" });
		actions.push({ type: "removeFinalizer", leftBehind: mine.map((host) => host.metadata.name) });
	}

	const members = mine.map((host): MemberStatus => {
		const isOnItsOwn = clusterOf(host) === undefined || !isConnected(host);
		const message = isOnItsOwn ? cleaningMessage(host) : drainMessage(observed, nodeOf(host));
		return { host: host.metadata.name, role: roleKind(host, cluster), phase: "Leaving", message };
	});
	const [current = mine.find((host) => !isLeft(host)), ...rest] = group;
	const kind = current === undefined ? "worker" : roleKind(current, cluster);
	const after = mine.find((host) => !isLeft(host) && host !== current && !rest.includes(host));
	const progress =
		current === undefined
			? undefined
			: {
					step: "Removing",
					host: current.metadata.name,
					detail: members.find((member) => member.host === current.metadata.name)?.message ?? "",
					usual: `${USUAL_SECONDS[`remove-${kind}`]}s`,
					...(after === undefined ? {} : { next: `${after.metadata.name} (${roleKind(after, cluster)})` }),
				};
	return {
		actions,
		status: deletingStatus(cluster, members, progress, now),
		conditions: [ready(cluster, "False", "Deleting", describe(progress) ?? "Removing the last traces.")],
		requeueAfter: BUSY_MS,
	};
}

/**
 * Who goes now: all workers at once, then the control planes one by one, while the workers clean themselves: only a drain needs
 * an API server.
 */
function nextToGo({ cluster }: Observed, hosts: readonly Host[]): readonly Host[] {
	const isWorker = (host: Host) => roleKind(host, cluster) === "worker";
	const workers = hosts.filter(isWorker);
	if (workers.some((host) => clusterOf(host) !== undefined)) return workers;
	const controlPlanes = hosts.filter((host) => !isWorker(host));
	const first = controlPlanes.find((host) => modeOf(host) === "init");
	const others = controlPlanes.filter((host) => host !== first);
	return [...workers, ...(others.length > 0 ? others.slice(-1) : controlPlanes)];
}
