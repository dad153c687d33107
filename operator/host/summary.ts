import type { Host, HostStatus } from "../../crds/host.ts";
import { durationMs } from "../../protocol/duration.ts";
import { rolePhase } from "../../protocol/facts.ts";
import { getCondition, type NewCondition } from "../kube/conditions.ts";

/** What the host controller says of a host: the summary that people and the cluster controller go by. */
export interface Summary {
	readonly phase: NonNullable<HostStatus["phase"]>;
	readonly ready: NewCondition;
}

/** Sums up a host from what its agent and the hosts service reported. Pure. */
export function summarize(host: Host): Summary {
	const { name } = host.metadata;
	const say = (
		phase: Summary["phase"],
		status: "True" | "False" | "Unknown",
		reason: string,
		message: string,
	): Summary => ({
		phase,
		ready: { type: "Ready", status, reason, message, observedGeneration: host.metadata.generation ?? 0 },
	});
	const { status } = host;

	if (host.metadata.deletionTimestamp !== undefined) {
		return say(
			"Deleting",
			"False",
			"Deleting",
			"The host is being cleaned; its certificate is revoked when that is done.",
		);
	}
	if (status?.connection === undefined) {
		return say(
			"Pending",
			"Unknown",
			"NeverConnected",
			"The agent has not dialled in yet. On the host: systemctl status gp-agent.",
		);
	}
	if (!host.spec.approved) {
		return say(
			"AwaitingApproval",
			"False",
			"AwaitingApproval",
			`A person has to approve this host: gp host approve ${name}.`,
		);
	}
	if (status.connection.state !== "Connected") {
		const why = status.connection.reason === undefined ? "" : ` (${status.connection.reason})`;
		return say(
			"Disconnected",
			"False",
			"Disconnected",
			`The tunnel has been down since ${status.connection.since ?? "an unknown time"}${why}. The host keeps to its last desired state. On the host: systemctl status gp-agent.`,
		);
	}
	if (host.spec.maintenance) {
		return say(
			"Maintenance",
			"False",
			"Maintenance",
			`Nothing is changed on this host: gp host maintenance ${name} off ends that.`,
		);
	}
	const failed = status.roles?.find((role) => role.phase === "Failed");
	if (failed !== undefined) {
		return say(
			"Failed",
			"False",
			failed.reason ?? "StepFailed",
			`Role ${failed.name}: ${failed.step ?? "a step"}: ${failed.message ?? "failed"} It is tried again.`,
		);
	}
	const unmet = status.checks?.filter((check) => !check.ok && check.severity === "error") ?? [];
	if (unmet.length > 0) {
		const list = unmet.map((check) => [check.message, check.next].filter(Boolean).join(" ")).join("; ");
		return say("Failed", "False", "PrerequisiteNotMet", `The host does not meet the prerequisites: ${list}`);
	}
	const applied = getCondition(status.conditions, "RolesApplied");
	if (applied?.status === "False" && !(rolePhase.options as readonly string[]).includes(applied.reason)) {
		// The host refused its document, or it could not be signed: the reason is the error's code.
		return say("Failed", "False", applied.reason, applied.message);
	}
	const working = status.roles?.find((role) => role.phase !== "Applied");
	if (working !== undefined) {
		return say(
			"Working",
			"False",
			working.phase,
			`Role ${working.name}: ${working.step ?? "starting"} ${working.progress ?? ""}`.trim(),
		);
	}
	const waiting = host.spec.roles.find((role) => !status.roles?.some((entry) => entry.name === role.name));
	if (waiting !== undefined)
		return say("Working", "False", "Pending", `Role ${waiting.name}: waiting for the host to begin.`);
	return say(
		"Ready",
		"True",
		"Connected",
		host.spec.roles.length === 0 ? "The host is free for use." : "The host is what it should be.",
	);
}

type LeftBehind = NonNullable<HostStatus["leftBehind"]>;

/** Cluster that the host was taken out of last; the cluster controller writes it together with the roles. */
export const FORMER_CLUSTER = "groundplane.io/former-cluster";

/**
 * The ledger of a host: roles that are not wanted any more and still there, since the host is out of reach or can't be cleaned.
 * An entry goes when the host reports that its role is undone; nobody has to take it out. Pure.
 */
export function leftBehindOn({ metadata, spec, status }: Host, now: number): LeftBehind {
	const former = metadata.annotations?.[FORMER_CLUSTER];
	const isOut = status?.connection?.state !== "Connected";
	return (status?.roles ?? [])
		.filter(({ name }) => !spec.roles.some((role) => role.name === name))
		.flatMap(({ name, phase, message }): LeftBehind => {
			const known = status?.leftBehind?.find(({ role }) => role === name);
			if (!isOut && phase !== "Failed" && known === undefined) return [];
			const cluster = known?.cluster ?? (name === "kubernetes" ? former : undefined);
			return [
				{
					role: name,
					...(cluster === undefined ? {} : { cluster }),
					since: known?.since ?? new Date(now).toISOString().replace(/\.\d+Z$/, "Z"),
					message: isOut
						? "Everything that the role put there still is, and may run. It is undone as soon as the host is in contact again."
						: phase === "Failed"
							? `Being undone, and failing: ${message ?? "no reason given."} It is tried again.`
							: "Being undone.",
				},
			];
		});
}

/** What is said of a deleted host that can't be waited for any longer: with it goes its ledger, so all of that is in here. */
export function givenUp({ metadata, status }: Host): string {
	const roles = (status?.roles ?? []).map(({ name }) => {
		const cluster = name === "kubernetes" ? metadata.annotations?.[FORMER_CLUSTER] : undefined;
		return cluster === undefined ? name : `${name} of cluster ${cluster}`;
	});
	const left = roles.length === 0 ? "its roles were" : `its roles (${roles.join(", ")}) were`;
	return `Host ${metadata.name} could not be reached, so ${left} not undone and may still run there: join it to a region again, which undoes them, or install its system anew.`;
}

/**
 * Whether a deleted host may go: its roles are undone and the agent has confirmed the empty document, it never had a
 * tunnel, or it has been out of reach for `forceRemoveAfter` of the region.
 */
export function mayBeRemoved(host: Host, forceRemoveAfter: string, now: number): "no" | "clean" | "forced" {
	const { status } = host;
	if (status?.connection === undefined) return "clean";
	if (status.connection.state === "Connected") {
		// What the agent reported counts only if it was working on the document that takes everything away.
		const upToDate = (status.desiredState?.reportedGeneration ?? -1) >= (host.metadata.generation ?? 0);
		return upToDate && (status.roles ?? []).length === 0 ? "clean" : "no";
	}
	if ((status.roles ?? []).length === 0 && host.spec.roles.length === 0) return "clean";
	const since = Math.max(
		Date.parse(status.connection.since ?? "") || 0,
		Date.parse(host.metadata.deletionTimestamp ?? "") || 0,
	);
	return now - since >= durationMs(forceRemoveAfter) ? "forced" : "no";
}
