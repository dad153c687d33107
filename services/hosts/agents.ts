import type { Host } from "../../crds/host.ts";
import type { DesiredState } from "../../protocol/desired-state.ts";
import type { AgentUpdate } from "../../protocol/facts.ts";

/** Annotation of a Host: with another value than before, a version that failed there is tried again. */
export const RETRY = "groundplane.io/agent-update-retry";

/** The version that a host was told to run, kept from then on. */
export interface AgentOffer {
	readonly version: string;
	readonly retry?: string | undefined;
	/** RFC 3339. */
	readonly at: string;
}

/** What counts of a host whose agent has another version than the region's, or is trying that one. */
export interface OutdatedAgent {
	readonly name: string;
	readonly version: string;
	/** Absent when the agent can't change its version by itself. */
	readonly update?: AgentUpdate | undefined;
	readonly offer?: AgentOffer | undefined;
	readonly connected: boolean;
}

export interface AgentsPlan {
	/** Hosts to be told now, and with which word. */
	readonly tell: readonly { readonly name: string; readonly retry?: string | undefined }[];
	/** Hosts that were told and are not there yet. */
	readonly underWay: number;
	/** Hosts on which the version failed, or which have not come back. */
	readonly failed: readonly string[];
	/** No further host is told, because of those that failed. */
	readonly stopped: boolean;
}

/** A host that has not come to the version for this long counts as failed. */
const OVERDUE_MS = 30 * 60_000;
/** With so many failed, no further host is told; while none has succeeded, one is enough. */
const TOO_MANY = 3;

/**
 * Which hosts are told next to take the region's version: the first one alone, then one in twenty at a time, two at least and
 * twenty at most. It stops when the first one fails, or three do. A host that a person wants tried again goes first, and
 * whatever has failed. Pure.
 *
 * @param succeeded How many hosts have come to this version because they were told to.
 */
export function planAgents({
	target,
	outdated,
	succeeded,
	total,
	hostOf,
	now,
}: {
	target: string;
	outdated: readonly OutdatedAgent[];
	succeeded: number;
	total: number;
	hostOf: (name: string) => Host | undefined;
	now: number;
}): AgentsPlan {
	const told = outdated.filter(({ name, offer }) => {
		const host = hostOf(name);
		return isTold(offer, target) && offer?.retry === retryOf(host) && mayChange(host);
	});
	const failed = told.filter((agent) => hasFailed(agent, target) || isOverdue(agent, now)).map(({ name }) => name);
	const underWay = told.length - failed.length;
	const stopped = failed.length >= (succeeded === 0 ? 1 : TOO_MANY);
	const limit = succeeded === 0 ? 1 : Math.min(20, Math.max(2, Math.ceil(total / 20)));
	const ready = outdated
		.filter((agent) => !told.includes(agent) && agent.update !== undefined && agent.connected)
		.map(({ name, offer }) => ({ name, again: isTold(offer, target), retry: retryOf(hostOf(name)) }))
		.filter(({ name, again }) => mayChange(hostOf(name)) && (again || !stopped))
		.sort((a, b) => Number(b.again) - Number(a.again) || (a.name < b.name ? -1 : 1));
	const tell = ready.slice(0, Math.max(0, limit - underWay)).map(({ name, retry }) => ({ name, retry }));
	return { tell, underWay, failed, stopped };
}

const isTold = (offer: AgentOffer | undefined, target: string) => offer?.version === target;
const hasFailed = ({ update }: OutdatedAgent, target: string) =>
	update?.phase === "Failed" && update.version === target;
const isOverdue = ({ offer }: OutdatedAgent, now: number) => now - Date.parse(offer?.at ?? "") > OVERDUE_MS;
const retryOf = (host: Host | undefined) => host?.metadata.annotations?.[RETRY];

/** Whether the region may change the agent of this host. */
export function mayChange(host: Host | undefined): boolean {
	return (
		host?.spec.approved === true &&
		!host.spec.maintenance &&
		host.spec.agentUpdates !== "Manual" &&
		host.metadata.deletionTimestamp === undefined
	);
}

/** What a host's document says of the agent's version: what it was told, as long as that is still the region's version. */
export function agentOf(host: Host, offer: AgentOffer | undefined, target: string): DesiredState["agent"] {
	if (!offer || offer.version !== target || !mayChange(host)) return undefined;
	return { version: target, ...(offer.retry !== undefined && { retry: offer.retry }) };
}

/**
 * Condition `AgentUpToDate`. It is there from the first time that the region has another version than the host: the fleet has
 * nothing to write while all is as it was.
 */
export function agentUpToDate(
	host: Host,
	machine: { readonly agentVersion: string; readonly agentUpdate?: AgentUpdate; readonly agentOffer?: AgentOffer },
	{ target, failed, stopped }: { target: string } & Pick<AgentsPlan, "failed" | "stopped">,
): { type: string; status: "True" | "False"; reason: string; message: string } | undefined {
	const type = "AgentUpToDate";
	const { agentVersion, agentUpdate, agentOffer } = machine;
	const no = (reason: string, message: string) => ({ type, status: "False" as const, reason, message });
	if (agentVersion === target && agentUpdate?.phase === "Trying") {
		return no("Updating", `The agent tries version ${target}, which has not proved itself yet.`);
	}
	if (agentVersion === target) {
		const isNews = host.status?.conditions?.some((condition) => condition.type === type);
		if (!isNews && agentOffer?.version !== target) return undefined;
		return { type, status: "True", reason: "UpToDate", message: `The agent has version ${target}, the region's.` };
	}
	const change = `The agent has version ${agentVersion}, the region ${target}`;
	if (!agentUpdate) {
		return no("NotSupported", `${change}. It can't change its version by itself: install the package of ${target}.`);
	}
	if (host.spec.agentUpdates === "Manual") {
		return no("Manual", `${change}, and spec.agentUpdates is Manual: install the package of ${target}.`);
	}
	if (agentUpdate.phase === "Failed" && agentUpdate.version === target) {
		const why = agentUpdate.message ?? "no reason given";
		const { name, namespace } = host.metadata;
		const again = `to try it again: kubectl annotate host ${name} -n ${namespace} --overwrite ${RETRY}=$(date +%s)`;
		return no("AgentUpdateFailed", `Version ${target} failed here, and ${agentVersion} runs again: ${why}; ${again}`);
	}
	if (agentOf(host, agentOffer, target)) {
		const why = agentUpdate.message ? `: ${agentUpdate.message}` : ".";
		return no(agentUpdate.reason ?? "Updating", `${change}; it is on its way there (${agentUpdate.phase})${why}`);
	}
	if (stopped)
		return no("Stopped", `${change}. It waits, since the version failed on ${failed.slice(0, 5).join(", ")}.`);
	return no("Waiting", `${change}; it is told when its turn comes.`);
}
