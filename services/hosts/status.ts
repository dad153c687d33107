import type { Condition } from "../../crds/common.ts";
import type { Host, HostStatus } from "../../crds/host.ts";
import { type NewCondition, setConditions } from "../../operator/kube/conditions.ts";
import type { GroundplaneError } from "../../protocol/errors.ts";
import type { RoleStatus } from "../../protocol/facts.ts";
import { type AgentsPlan, agentUpToDate } from "./agents.ts";
import type { HostRecord } from "./inventory.ts";

/** The part of a Host's status that this service writes. */
export type OwnStatus = Pick<
	HostStatus,
	"facts" | "checks" | "agent" | "connection" | "desiredState" | "cluster" | "roles" | "conditions"
>;

const OWN_CONDITIONS = ["Connected", "Prerequisites", "RolesApplied", "AgentUpToDate"];
const OWN_FIELDS = ["facts", "checks", "agent", "connection", "desiredState", "cluster", "roles"] as const;

/** RFC 3339 to the second, as Kubernetes writes times. */
const time = (date: Date) => date.toISOString().replace(/\.\d+Z$/, "Z");

export interface StatusContext {
	/** What keeps the desired state from being signed. */
	readonly problem?: GroundplaneError | undefined;
	/** The region's version of the agent, and how far its hosts have come. */
	readonly agents?: ({ readonly target: string } & Pick<AgentsPlan, "failed" | "stopped">) | undefined;
	readonly now: () => number;
}

/**
 * What is known of a machine, as the status of its Host. Pure: the same knowledge gives the same status, so that nothing is
 * written unless something changed.
 */
export function statusOf(
	host: Host,
	machine: HostRecord | undefined,
	{ problem, agents, now }: StatusContext,
): OwnStatus {
	const upToDate = machine && agents && agentUpToDate(host, machine, agents);

	const conditions = setConditions(
		ownConditions(host.status?.conditions),
		[
			connected(machine),
			prerequisites(machine),
			rolesApplied(host, machine, problem),
			...(upToDate ? [upToDate] : []),
		].map((condition) => ({
			...condition,
			...(host.metadata.generation !== undefined && { observedGeneration: host.metadata.generation }),
		})),
		now,
	);
	const cluster = clusterOf(host);
	return {
		...(machine && {
			facts: machine.facts,
			checks: [...machine.checks],
			agent: {
				version: machine.agentVersion,
				certificateNotAfter: time(machine.certificateNotAfter),
				...(machine.agentUpdate && { update: machine.agentUpdate }),
			},
			...connection(machine),
			...desiredState(machine),
			...(machine.roles && { roles: machine.roles.list.map(role) }),
		}),
		...(cluster && { cluster }),
		conditions: [...conditions],
	};
}

/** The cluster that a host belongs to: by its label, else by what its role says. */
export function clusterOf(host: Host): string | undefined {
	const parameter = host.spec.roles.find(({ name }) => name === "kubernetes")?.parameters.cluster;
	return host.metadata.labels?.["groundplane.io/cluster"] ?? (typeof parameter === "string" ? parameter : undefined);
}

/** Our part of a status as it stands, to compare with. */
export function ownPart(status: HostStatus | undefined): OwnStatus {
	const fields = OWN_FIELDS.filter((field) => status?.[field] !== undefined).map((field) => [field, status?.[field]]);
	return { ...Object.fromEntries(fields), conditions: ownConditions(status?.conditions) };
}

const ownConditions = (conditions: readonly Condition[] = []) =>
	conditions.filter(({ type }) => OWN_CONDITIONS.includes(type));

function connection({ link }: HostRecord): Pick<OwnStatus, "connection"> {
	if (!link) return {};
	return {
		connection: {
			state: link.state === "connected" ? "Connected" : "Disconnected",
			...(link.gateway && { gateway: link.gateway }),
			...(link.address && { address: link.address }),
			since: time(new Date(link.at)),
			...(link.state === "disconnected" && link.reason && { reason: link.reason }),
		},
	};
}

/** Translates the generations of documents into the generations of the Host that they were made from. */
function desiredState({ documents, accepted, roles }: HostRecord): Pick<OwnStatus, "desiredState"> {
	const [last] = documents;
	if (!last) return {};
	const objectGeneration = (generation: number | undefined) =>
		documents.find((document) => document.generation === generation)?.objectGeneration;
	const acknowledged = objectGeneration(accepted);
	const reported = objectGeneration(roles?.generation);
	return {
		desiredState: {
			generation: last.objectGeneration,
			...(acknowledged !== undefined && { acknowledgedGeneration: acknowledged }),
			...(reported !== undefined && { reportedGeneration: reported }),
			validUntil: time(last.validUntil),
		},
	};
}

function role({ name, version, phase, done, total, step, reason, message, outputs }: RoleStatus) {
	return {
		name,
		version,
		phase,
		...(step !== undefined && { step }),
		progress: `${done}/${total}`,
		...(reason !== undefined && { reason }),
		...(message !== undefined && { message }),
		...(outputs !== undefined && { outputs }),
	};
}

type Verdict = Omit<NewCondition, "observedGeneration">;

function connected(machine: HostRecord | undefined): Verdict {
	const type = "Connected";
	if (!machine) {
		const message =
			"No machine has enrolled under this name: run the command that `gp host join-command` prints on it.";
		return { type, status: "False", reason: "NotEnrolled", message };
	}
	const { link } = machine;
	if (!link)
		return { type, status: "False", reason: "NeverConnected", message: "It has enrolled; its tunnel is not up yet." };
	if (link.state === "connected") {
		return { type, status: "True", reason: "Connected", message: "Its tunnel is up." };
	}
	const reason = /^[A-Za-z]\w*$/.test(link.reason ?? "") ? (link.reason as string) : "TunnelClosed";
	return {
		type,
		status: "False",
		reason,
		message: `Its tunnel is down (${link.reason ?? "no reason given"}). The agent dials again by itself; on the host: systemctl status gp-agent`,
	};
}

function prerequisites(machine: HostRecord | undefined): Verdict {
	const type = "Prerequisites";
	if (!machine) return { type, status: "Unknown", reason: "NotReported", message: "Nothing was reported yet." };
	const failed = machine.checks.filter(({ ok, severity }) => !ok && severity === "error");
	const warnings = machine.checks.filter(({ ok, severity }) => !ok && severity === "warning");
	const tell = (checks: typeof failed) =>
		checks.map(({ name, message, next }) => `${name}: ${message}${next ? ` → ${next}` : ""}`).join("; ");
	if (failed.length > 0) return { type, status: "False", reason: "PrerequisiteNotMet", message: tell(failed) };
	const message = warnings.length > 0 ? `Met, with warnings: ${tell(warnings)}` : "All checks passed.";
	return { type, status: "True", reason: "Met", message };
}

function rolesApplied(host: Host, machine: HostRecord | undefined, problem: GroundplaneError | undefined): Verdict {
	const type = "RolesApplied";
	const no = (reason: string, message: string): Verdict => ({ type, status: "False", reason, message });
	if (!machine) return { type, status: "Unknown", reason: "NotReported", message: "Nothing was reported yet." };
	if (problem) return no(problem.code, `${problem.message} ${problem.next}`);
	const [last] = machine.documents;
	if (!last) return no("Pending", "Its desired state is not signed yet.");
	const { refusal, roles } = machine;
	if (refusal?.generation === last.generation) {
		const why = refusal.message ?? "no reason given";
		return no(refusal.reason ?? "Refused", `The host refused its desired state: ${why}`);
	}
	const list = roles?.list ?? [];
	const failed = list.find(({ phase }) => phase === "Failed");
	if (failed) return no(failed.reason ?? "StepFailed", `${where(failed)}: ${failed.message ?? "failed"}`);
	const busy = list.find(({ phase }) => phase !== "Applied");
	if (busy) return no(busy.phase, where(busy));
	if (roles?.generation !== last.generation) {
		return host.spec.roles.length === 0 && list.length === 0
			? { type, status: "True", reason: "NoRoles", message: "It has no role." }
			: no("Pending", "The host has not yet reported on its latest desired state.");
	}
	if (list.length === 0) return { type, status: "True", reason: "NoRoles", message: "It has no role." };
	return {
		type,
		status: "True",
		reason: "Applied",
		message: list.map(({ name, version }) => `${name} ${version}`).join(", "),
	};
}

const where = ({ name, step, done, total, phase }: RoleStatus) =>
	`${name} ${phase === "Removing" ? "is being removed" : phase.toLowerCase()}, step ${done}/${total}${step ? ` (${step})` : ""}`;
