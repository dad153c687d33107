import type { Cluster, Host } from "../api/types.ts";
import { phaseWords } from "../ui/words.ts";

/** One line of what happened. */
export interface Activity {
	readonly id: string;
	readonly at: number;
	readonly kind: "host" | "cluster";
	readonly name: string;
	/** Host that it was about, when that is not `name` itself. */
	readonly host?: string;
	readonly tone: "info" | "success" | "warning" | "danger";
	readonly what: string;
	readonly detail?: string;
}

const isHost = (object: Host | Cluster): object is Host => "approved" in object.spec;

let count = 0;

/** What is different between two states of an object, in words. `undefined` stands for "not there". */
export function changesOf(
	before: Host | Cluster | undefined,
	after: Host | Cluster | undefined,
	at: number,
): Activity[] {
	const object = after ?? before;
	if (!object) return [];
	const kind = isHost(object) ? "host" : "cluster";
	const { name } = object.metadata;
	const line = (tone: Activity["tone"], what: string, more: Pick<Activity, "host" | "detail"> = {}): Activity => ({
		id: String(++count),
		at,
		kind,
		name,
		tone,
		what,
		...more,
	});
	if (!after) return [line("info", kind === "host" ? "Removed from the region" : "Deleted")];
	if (!before) return [line("info", kind === "host" ? "Joined the region" : "Created")];

	const lines: Activity[] = [];
	if (before.status?.phase !== after.status?.phase && after.status?.phase) {
		const detail = after.status.conditions?.find(({ type }) => type === "Ready")?.message;
		lines.push(line(toneOf(after.status.phase), phaseWords(after.status.phase), detail ? { detail } : {}));
	}
	if (isHost(after) && isHost(before)) {
		for (const role of after.status?.roles ?? []) {
			const old = before.status?.roles?.find((other) => other.name === role.name);
			if (old?.phase === role.phase) continue;
			if (role.phase === "Failed") {
				lines.push(
					line("danger", `Role ${role.name} failed`, { detail: [role.step, role.message].filter(Boolean).join(": ") }),
				);
			} else if (role.phase === "Applied" && old) lines.push(line("success", `Role ${role.name} is applied`));
		}
		for (const old of before.status?.roles ?? []) {
			if (!after.status?.roles?.some((role) => role.name === old.name))
				lines.push(line("info", `Role ${old.name} is undone`));
		}
	} else if (!isHost(after) && !isHost(before)) {
		const [then, now] = [before.status?.progress, after.status?.progress];
		if (now && (now.step !== then?.step || now.host !== then.host)) {
			lines.push(line("info", now.step, now.host ? { host: now.host } : {}));
		}
		for (const member of after.status?.members ?? []) {
			const old = before.status?.members?.find(({ host }) => host === member.host);
			if (old?.phase === member.phase || (member.phase !== "Ready" && member.phase !== "Failed")) continue;
			lines.push(
				member.phase === "Ready"
					? line("success", "Node is ready", { host: member.host })
					: line("danger", "Node failed", { host: member.host, ...(member.message && { detail: member.message }) }),
			);
		}
	}
	return lines;
}

function toneOf(phase: string): Activity["tone"] {
	if (phase === "Ready") return "success";
	if (phase === "Failed") return "danger";
	if (phase === "Degraded" || phase === "Disconnected" || phase === "AwaitingApproval") return "warning";
	return "info";
}
