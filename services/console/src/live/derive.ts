import type { Cluster, ClusterPhase, Host, HostPhase } from "../api/types.ts";
import { duration } from "../ui/words.ts";

/** Something that does not go on, or not well, without a person. */
export interface Concern {
	readonly key: string;
	readonly tone: "danger" | "warning" | "info";
	readonly kind: "host" | "cluster";
	readonly name: string;
	readonly title: string;
	readonly message: string;
	readonly next?: string;
}

/** Something that the plane is doing now. */
export interface Work {
	readonly key: string;
	readonly kind: "host" | "cluster";
	readonly name: string;
	/** Host that it is done on. */
	readonly host?: string;
	readonly what: string;
	readonly detail?: string;
	/** Steps done and in all, such as `7/19`. */
	readonly progress?: string;
	readonly since?: string;
}

const toneRank = { danger: 0, warning: 1, info: 2 };

export const readyMessage = (object: Host | Cluster): string | undefined =>
	object.status?.conditions?.find(({ type }) => type === "Ready")?.message;

/** The host's phase; before the plane has looked at it, it is pending. */
export const hostPhase = (host: Host): HostPhase =>
	host.metadata.deletionTimestamp ? "Deleting" : (host.status?.phase ?? "Pending");

export const clusterPhase = (cluster: Cluster): ClusterPhase =>
	cluster.metadata.deletionTimestamp ? "Deleting" : (cluster.status?.phase ?? "Pending");

/** Checks that failed, the grave ones first. */
export const failedChecks = (host: Host) =>
	(host.status?.checks ?? []).filter(({ ok }) => !ok).sort((a, b) => a.severity.localeCompare(b.severity));

/** What is being done on a host, by the role that is at work. */
export function workOf(host: Host): Work | undefined {
	const role = host.status?.roles?.find(({ phase }) => phase !== "Applied" && phase !== "Failed");
	if (!role || host.status?.connection?.state !== "Connected") return undefined;
	const { name } = host.metadata;
	const verb = role.phase === "Removing" ? "Undoing" : role.phase === "Pending" ? "Waiting to apply" : "Applying";
	return {
		key: `host/${name}`,
		kind: "host",
		name,
		host: name,
		what: `${verb} ${role.name}`,
		...(role.step && { detail: role.step }),
		...(role.progress && { progress: role.progress }),
	};
}

/** All that is under way: per cluster what it is about, and each host that is at work. */
export function underWay(hosts: readonly Host[], clusters: readonly Cluster[]): Work[] {
	const work: Work[] = [];
	for (const cluster of clusters) {
		const { name } = cluster.metadata;
		const { progress } = cluster.status ?? {};
		// A cluster that failed or lacks a node is a matter for a person, although the plane goes on trying.
		if (!progress || ["Degraded", "Failed"].includes(clusterPhase(cluster))) continue;
		work.push({
			key: `cluster/${name}`,
			kind: "cluster",
			name,
			what: progress.step,
			...(progress.host && { host: progress.host }),
			...(progress.detail && { detail: progress.detail }),
			...(cluster.status?.ready && { progress: cluster.status.ready }),
			...(progress.since && { since: progress.since }),
		});
	}
	return [...work, ...hosts.map(workOf).filter((each) => each !== undefined)];
}

/** What needs a person, the grave things first. `now` in ms. */
export function concernsOf(hosts: readonly Host[], clusters: readonly Cluster[], now: number): Concern[] {
	const concerns = [
		...clusters.map((cluster) => clusterConcern(cluster)),
		...hosts.map((host) => hostConcern(host, now)),
	].filter((concern) => concern !== undefined);
	return concerns.sort((a, b) => toneRank[a.tone] - toneRank[b.tone]);
}

function clusterConcern(cluster: Cluster): Concern | undefined {
	const { name } = cluster.metadata;
	const message = readyMessage(cluster) ?? "";
	const concern = (tone: Concern["tone"], title: string): Concern => ({
		key: `cluster/${name}`,
		kind: "cluster",
		name,
		tone,
		title,
		message,
	});
	switch (clusterPhase(cluster)) {
		case "Failed":
			return concern("danger", "Cluster failed");
		case "Degraded":
			return concern("warning", "Cluster degraded");
		case "Pending":
			return message ? concern("warning", "Cluster can't be made yet") : undefined;
		default:
			return undefined;
	}
}

function hostConcern(host: Host, now: number): Concern | undefined {
	const { name } = host.metadata;
	const { connection, roles } = host.status ?? {};
	const concern = (tone: Concern["tone"], title: string, message: string, next?: string): Concern => ({
		key: `host/${name}`,
		kind: "host",
		name,
		tone,
		title,
		message,
		...(next && { next }),
	});
	switch (hostPhase(host)) {
		case "AwaitingApproval":
			return concern("info", "Host waits for approval", "Nothing is done on it until a person approves it.");
		case "Disconnected": {
			const since = connection?.since ? ` for ${duration(now - Date.parse(connection.since))}` : "";
			return concern(
				"danger",
				"Host is not connected",
				`The tunnel has been down${since}${connection?.reason ? ` (${connection.reason})` : ""}. The host keeps to its last desired state.`,
				"Check that it runs and reaches the region on port 443; on the host: systemctl status gp-agent.",
			);
		}
		case "Failed": {
			const role = roles?.find(({ phase }) => phase === "Failed");
			if (role) {
				const what = [role.step, role.message].filter(Boolean).join(": ");
				return concern("danger", `Role ${role.name} failed`, what || "It is tried again.");
			}
			const [check, ...more] = failedChecks(host).filter(({ severity }) => severity === "error");
			if (check) {
				const others = more.length > 0 ? ` And ${more.length} more.` : "";
				return concern("danger", "Prerequisite not met", check.message + others, check.next);
			}
			return concern("danger", "Host failed", readyMessage(host) ?? "");
		}
		default:
			return undefined;
	}
}
