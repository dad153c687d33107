import { X509Certificate } from "node:crypto";
import { type IncomingMessage, request } from "node:http";
import { text } from "node:stream/consumers";
import type { TLSSocket } from "node:tls";
import { asGroundplaneError, type ErrorCode, GroundplaneError } from "../protocol/errors.ts";
import { TUNNEL_PATH } from "../protocol/tunnel.ts";
import { type Config, loadConfig, type Paths, serviceEnvironment } from "./config.ts";
import { belongsTogether, type Identity, loadIdentity } from "./identity.ts";
import type { AddressBook } from "./link/addresses.ts";
import { type DialPhase, dialTls, refusal } from "./link/dial.ts";
import { type AgentStatus, readStatus } from "./status.ts";

/** What the doctor looks at, in this order. */
export type Examined = "configuration" | "identity" | DialPhase | "clock" | "agent";

/** What was found there. */
export interface Finding {
	name: Examined;
	ok: boolean;
	message: string;
	code?: ErrorCode;
	next?: string;
}

/** Everything that was found; `cause` is the first thing that keeps the host from its region. */
export interface Diagnosis {
	ok: boolean;
	cause?: Finding;
	findings: Finding[];
}

export interface DiagnosisOptions {
	paths: Paths;
	signal: AbortSignal;
	/** Environment of the shell: what is set there and not for the agent is worth a hint. */
	env?: Readonly<Record<string, string | undefined>>;
	isAlive: (pid: number) => boolean;
	/** Milliseconds since the epoch. */
	now?: () => number;
	/** Time for each phase of the dial. */
	phaseMs?: number;
	addresses?: AddressBook;
}

const ANSWER_MS = 10_000;
const CLOCK_ERROR_S = 300;

/** Exit codes of `gp-agent doctor`: all is well; the way to the region or the region itself; this host. */
export const exitCodes = { well: 0, region: 1, host: 2 } as const;

/**
 * Goes the way that the agent goes, step by step, up to the gateway's answer whether it would let this host in, without opening
 * a tunnel: that would push out the one that the agent may have. Changes nothing and never throws.
 */
export async function diagnose(options: DiagnosisOptions): Promise<Diagnosis> {
	const findings: Finding[] = [];
	const good = (name: Examined, message: string) => void findings.push({ name, ok: true, message });
	const bad = (name: Examined, error: unknown) => void findings.push(complaint(name, asGroundplaneError(error)));
	const { paths } = options;

	let config: Config;
	try {
		config = loadConfig(paths, serviceEnvironment(paths));
		const { region, address, tunnelServerName, proxy, proxyCa } = config;
		const through = proxy === undefined ? "" : `, through the proxy ${new URL(proxy).host}`;
		const opened = proxyCa === undefined ? "" : ", with a proxy's CA";
		good("configuration", `region ${region} at ${address}, server name ${tunnelServerName}${through}${opened}`);
	} catch (error) {
		bad("configuration", error);
		return conclude(findings);
	}

	let identity: Identity | undefined;
	try {
		identity = examineIdentity(config, loadIdentity(paths.state), (options.now ?? Date.now)());
		const notAfter = new X509Certificate(identity.certificate).validToDate.toISOString();
		good("identity", `${identity.host} of region ${identity.region}, certificate good until ${notAfter}`);
	} catch (error) {
		bad("identity", error);
	}

	const skew = await examineWay(config, identity, options, { good, bad });
	if (skew !== undefined && Math.abs(skew) > CLOCK_ERROR_S) bad("clock", clockError(skew));
	else if (skew !== undefined) good("clock", `${Math.abs(skew)} s ${skew < 0 ? "behind" : "ahead of"} the region's`);

	const reached = findings.some(({ name, ok }) => name === "tunnel" && ok);
	findings.push(examineAgent(readStatus(paths.status), reached, options.isAlive));
	return conclude(findings);
}

interface Notes {
	good: (name: Examined, message: string) => void;
	bad: (name: Examined, error: unknown) => void;
}

/** DNS, connection, proxy, TLS and the gateway's word. Gives how far the host's clock is ahead, in seconds, if that could be seen. */
async function examineWay(
	config: Config,
	identity: Identity | undefined,
	{ env = {}, signal, phaseMs, addresses, now = Date.now }: DiagnosisOptions,
	{ good, bad }: Notes,
): Promise<number | undefined> {
	const { address, proxy, proxyCa, tunnelServerName: serverName, enrollUrl, caBundle } = config;
	const order: DialPhase[] = ["dns", "connect", ...(proxy === undefined ? [] : ["proxy" as const]), "tls", "tunnel"];
	let passed = 0;
	const way = {
		address,
		proxy,
		...(phaseMs !== undefined && { phaseMs }),
		...(addresses && { addresses }),
	};
	const ca = identity?.caBundle ?? caBundle;
	try {
		const trace = (phase: DialPhase, detail: string) => {
			passed = order.indexOf(phase) + 1;
			good(phase, detail);
		};
		const shown = identity && { cert: identity.certificate, key: identity.key };
		const { socket, opened } = await dialTls(
			{ ...way, trace },
			{ serverName, ca, proxyCa, tls13: true, ...shown },
			signal,
		);
		const response = await ask(socket, serverName, config.tunnelPath ?? TUNNEL_PATH, signal);
		const said = await text(response);
		good("tunnel", judgeAnswer(response, said, opened, identity));
		return skewOf(response, now());
	} catch (error) {
		const failed = order[passed] as DialPhase;
		let problem = asGroundplaneError(error);
		if (failed === "tls" && ["TunnelClosed", "DeadlineExceeded"].includes(problem.code)) {
			const front = new URL(enrollUrl).hostname;
			const passes = await dialTls(way, { serverName: front, ca, proxyCa }, signal).then(
				({ socket }) => socket.destroy() !== undefined,
				() => false,
			);
			if (passes) problem = filteredByName(serverName, front, problem);
		}
		if (failed === "connect" && proxy === undefined && (env.https_proxy || env.HTTPS_PROXY)) {
			problem = forgottenProxy(problem);
		}
		bad(failed, problem);
		return undefined;
	}
}

/** One request to the gateway, which needs no tunnel. */
function ask(socket: TLSSocket, host: string, path: string, signal: AbortSignal): Promise<IncomingMessage> {
	const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
	const outgoing = request({ createConnection: () => socket, path, headers: { host, connection: "close" }, signal });
	const timer = setTimeout(() => outgoing.destroy(new Error(`no answer within ${ANSWER_MS / 1000} s`)), ANSWER_MS);
	outgoing.once("response", resolve);
	outgoing.once("error", (error) => {
		reject(
			new GroundplaneError("TunnelClosed", `TLS is fine, and then the gateway does not answer: ${error.message}`, {
				next: "Look at the pods tunnel of the region; a firewall on the way may also cut what it can't read.",
				cause: error,
			}),
		);
	});
	outgoing.once("close", () => clearTimeout(timer));
	outgoing.end();
	return promise;
}

/** What the gateway's answer means. Throws what would keep this host out. */
function judgeAnswer(
	{ statusCode = 0, headers }: IncomingMessage,
	body: string,
	opened: boolean,
	identity: Identity | undefined,
): string {
	const welcome = statusCode === 200 ? /"gateway":"([^"]*)"/.exec(body) : null;
	if (welcome) return `gateway ${welcome[1]} lets this host in`;
	// Gateways of before this question was known.
	if (statusCode === 426) return "the gateway answers";
	const problem = refusal(statusCode, body, headers["retry-after"]);
	if (problem.code === "CertificateInvalid") {
		// No certificate was shown here, so that is all that it can mean.
		if (opened) return "the gateway answers behind the proxy; who this host is gets proved in HELLO";
		if (identity === undefined) return "the gateway answers; it wants the certificate that this host lacks";
	}
	throw problem;
}

/** Throws what is wrong with the identity. */
function examineIdentity(config: Config, identity: Identity | undefined, now: number): Identity {
	const fail = (
		code: ErrorCode,
		message: string,
		next = "Enrol the host again: run the command of gp host join-command.",
	) => new GroundplaneError(code, message, { next });
	if (identity === undefined) throw fail("Unauthenticated", "this host is not enrolled");
	const { region, certificate, key } = identity;
	if (region !== config.region) {
		throw fail("Conflict", `this host is enrolled in region ${region}, its configuration is for ${config.region}`);
	}
	if (!belongsTogether(certificate, key)) throw fail("CertificateInvalid", "certificate and key don't belong together");
	const { validFromDate, validToDate } = new X509Certificate(certificate);
	const time = new Date(now).toISOString();
	if (validFromDate.getTime() > now) {
		throw fail(
			"ClockSkew",
			`the host's certificate is good from ${validFromDate.toISOString()}, and here it is ${time}`,
			"Set the clock: timedatectl set-ntp true.",
		);
	}
	if (validToDate.getTime() < now) {
		throw fail(
			"CertificateInvalid",
			`the host's certificate ended at ${validToDate.toISOString()}, and here it is ${time}`,
		);
	}
	return identity;
}

/** Whether the agent itself runs and is connected. */
function examineAgent(status: AgentStatus | undefined, reached: boolean, isAlive: (pid: number) => boolean): Finding {
	if (status === undefined || !isAlive(status.pid)) {
		return complaint(
			"agent",
			new GroundplaneError("HostNotConnected", "the agent does not run", {
				next: "systemctl start gp-agent; if it ends again: journalctl -u gp-agent.",
			}),
		);
	}
	const { link, problem } = status;
	if (link?.connected) return { name: "agent", ok: true, message: `the tunnel is open, to ${link.gateway}` };
	const last = problem ?? link?.lastError;
	return {
		name: "agent",
		ok: false,
		message: last ? `no tunnel: ${last.detail}` : "no tunnel yet",
		code: (last?.code ?? "HostNotConnected") as ErrorCode,
		next: reached
			? "The way is free: it connects within a minute, or at once with systemctl restart gp-agent."
			: (last?.next ?? "Wait a moment."),
	};
}

const complaint = (name: Examined, { code, message, next }: GroundplaneError): Finding => ({
	name,
	ok: false,
	message,
	code,
	next,
});

function conclude(findings: Finding[]): Diagnosis {
	const cause = findings.find(({ ok }) => !ok);
	return { ok: cause === undefined, ...(cause && { cause }), findings };
}

/** How far this host's clock is ahead of the region's, by the Date of its answer (RFC 9110 §6.6.1). */
function skewOf(response: IncomingMessage, now: number): number | undefined {
	const date = Date.parse(response.headers.date ?? "");
	return Number.isNaN(date) ? undefined : Math.round((now - date) / 1000);
}

const clockError = (skew: number) =>
	new GroundplaneError(
		"ClockSkew",
		`the clock is ${Math.abs(skew)} s ${skew < 0 ? "behind" : "ahead of"} the region's`,
		{
			next: "Switch time synchronisation on: timedatectl set-ntp true.",
		},
	);

const filteredByName = (serverName: string, front: string, { code, message, cause }: GroundplaneError) =>
	new GroundplaneError(code, `${message}; TLS for ${front} passes on the same way`, {
		next: `A firewall or proxy decides by server name: let ${serverName} through like ${front}. If there is none, check that name (tunnelServerName), and look at the pods tunnel of the region.`,
		cause,
	});

const forgottenProxy = ({ code, message, next, cause }: GroundplaneError) =>
	new GroundplaneError(code, message, {
		next: `This shell has a proxy in https_proxy, the agent has none: put it into /etc/default/groundplane-agent. Without one: ${next}`,
		cause,
	});

/** The diagnosis for people. */
export function describeDiagnosis({ cause, findings }: Diagnosis): string {
	const width = Math.max(...findings.map(({ name }) => name.length));
	const lines = findings.flatMap(({ name, ok, message, code, next }) => [
		`${ok ? "ok    " : "FAILED"}  ${name.padEnd(width)}  ${message}${code ? ` (${code})` : ""}`,
		...(next ? [`${" ".repeat(width + 10)}→ ${next}`] : []),
	]);
	return [...lines, "", cause ? `Cause: ${cause.name}: ${cause.message}` : "All is well: this host is connected."].join(
		"\n",
	);
}

/** Whose matter it is: 0 nobody's, 1 of the way or the region, 2 of this host. */
export function exitCodeOf({ cause }: Diagnosis): number {
	if (cause === undefined) return exitCodes.well;
	return ["configuration", "identity", "clock", "agent"].includes(cause.name) ? exitCodes.host : exitCodes.region;
}
