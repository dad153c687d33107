import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { AgentUpdate, HostCheck, RoleStatus } from "../protocol/facts.ts";
import type { LinkState } from "./link/link.ts";

/** What `gp-agent run` says of itself in /run/groundplane/status.json, for `gp-agent status`. */
export interface AgentStatus {
	version: string;
	pid: number;
	at: string;
	region: string;
	host: string;
	enrolled: boolean;
	/** Why the agent can't go on, or what it waits for. */
	problem?: { code: string; detail: string; next: string };
	link?: LinkState;
	certificateNotAfter?: string;
	desiredState?: { epoch: number; generation: number; validUntil: string; paused: boolean };
	refusedDesiredState?: { reason: string; message: string };
	/** Where it stands with another version of itself. */
	update?: AgentUpdate;
	checks: HostCheck[];
	roles: RoleStatus[];
}

export function writeStatus(path: string, status: AgentStatus): void {
	mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
	writeFileSync(`${path}.new`, JSON.stringify(status), { mode: 0o644 });
	renameSync(`${path}.new`, path);
}

export function readStatus(path: string): AgentStatus | undefined {
	try {
		return JSON.parse(readFileSync(path, "utf8")) as AgentStatus;
	} catch {
		return undefined;
	}
}

/** The status for people. */
export function describeStatus(status: AgentStatus, running: boolean): string {
	const { link, desiredState, problem, update } = status;
	const lines = [
		`Agent     ${status.version}, ${running ? `running (process ${status.pid})` : "not running"}, as of ${status.at}`,
		`Host      ${status.host} of region ${status.region}${status.enrolled ? "" : ", not enrolled"}`,
	];
	if (update?.version) lines.push(`Update    ${update.version}: ${update.phase}`);
	if (update?.message) lines.push(`          ${update.reason ? `${update.reason}: ` : ""}${update.message}`);
	if (link) {
		const since = new Date(link.since).toISOString();
		lines.push(
			link.connected
				? `Tunnel    open since ${since} to ${link.gateway}${link.rttMs === undefined ? "" : `, round trip ${link.rttMs.toFixed(1)} ms`}`
				: `Tunnel    down since ${since}`,
		);
		if (link.spare !== undefined) lines.push(`          a second one stands ready at ${link.spare}`);
		if (link.connected && link.opened) {
			lines.push("          a proxy opens up its TLS, and can read and change what passes");
		}
		if (!link.connected && link.lastError) {
			lines.push(`          ${link.lastError.code}: ${link.lastError.detail}`, `          → ${link.lastError.next}`);
		}
	}
	if (status.certificateNotAfter) lines.push(`Identity  certificate good until ${status.certificateNotAfter}`);
	if (desiredState) {
		const { generation, validUntil, paused } = desiredState;
		lines.push(
			`Desired   generation ${generation}, valid until ${validUntil}${paused ? ", paused: nothing is changed" : ""}`,
		);
	}
	if (status.refusedDesiredState) {
		lines.push(`Refused   ${status.refusedDesiredState.reason}: ${status.refusedDesiredState.message}`);
	}
	for (const role of status.roles) {
		lines.push(
			`Role      ${role.name} ${role.version}: ${role.phase} ${role.done}/${role.total} ${role.step ?? ""}`.trimEnd(),
		);
		if (role.message) lines.push(`          ${role.reason ?? ""}: ${role.message}`);
	}
	for (const { ok, name, message, next, severity } of status.checks) {
		if (!ok) lines.push(`Check     ${name} (${severity}): ${message}`, ...(next ? [`          → ${next}`] : []));
	}
	if (problem) lines.push(`Problem   ${problem.code}: ${problem.detail}`, `          → ${problem.next}`);
	return lines.join("\n");
}
