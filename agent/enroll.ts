import { readFileSync, rmSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { text } from "node:stream/consumers";
import { type ErrorCode, GroundplaneError, problemOf } from "../protocol/errors.ts";
import type { HostCheck, HostFacts } from "../protocol/facts.ts";
import { type EnrollRequest, enrollResponse } from "../protocol/messages.ts";
import { VERSION } from "../protocol/version.ts";
import type { Config, Paths } from "./config.ts";
import { belongsTogether, certificateRequest, type Identity, newKey, saveIdentity } from "./identity.ts";
import { dialTls } from "./link/dial.ts";

const ANSWER_MS = 20_000;

/** What trying again may heal; everything else waits for a person. */
const passing: ReadonlySet<ErrorCode> = new Set([
	"TunnelClosed",
	"DeadlineExceeded",
	"Overloaded",
	"BusUnavailable",
	"DatabaseUnavailable",
	"KubernetesUnavailable",
	"ClockSkew",
	// Its Host is on its way out, or another try of this machine is under way.
	"Conflict",
	"Internal",
	"TunnelProtocolError",
]);

export const mayPass = (error: GroundplaneError): boolean => passing.has(error.code);

/** The join token, if there is one. */
export function readJoinToken(paths: Paths): string | undefined {
	try {
		return readFileSync(paths.joinToken, "utf8").trim() || undefined;
	} catch {
		return undefined;
	}
}

/**
 * Makes a key, has it certified by the region and keeps the identity; then the token, which is used, is removed.
 * The key never leaves the host. Throws what the region or the network said, with a next step.
 */
export async function enroll(options: {
	config: Config;
	paths: Paths;
	token: string;
	observed: { facts: HostFacts; checks: HostCheck[] };
	signal: AbortSignal;
	now?: () => number;
}): Promise<Identity & { approved: boolean }> {
	const { config, paths, token, observed, signal, now = Date.now } = options;
	const key = newKey();
	const body: EnrollRequest = {
		csr: certificateRequest(key, config.hostName),
		name: config.hostName,
		agentVersion: VERSION,
		time: now() / 1000,
		...observed,
	};
	const answer = await post(config, "/enroll/v1/hosts", token, body, signal);
	const parsed = enrollResponse.safeParse(answer);
	if (!parsed.success || !belongsTogether(parsed.data.certificate, key)) {
		throw new GroundplaneError("CertificateInvalid", "the region's answer to the enrolment can't be used", {
			next: "Check that the agent's version fits the region's.",
			cause: parsed.error,
		});
	}
	const { approved, ...rest } = parsed.data;
	const identity: Identity = { ...rest, key };
	await saveIdentity(paths.state, identity);
	rmSync(paths.joinToken, { force: true });
	return { ...identity, approved };
}

/** What is known of this host's clock: it minus the region's, and how far from that the truth may be. */
export interface ClockOffset {
	readonly offsetMs: number;
	readonly uncertaintyMs: number;
}

/** Compares this host's clock with the region's, by the Date header of an answer; undefined when it can't be had. */
export async function clockOffset(
	config: Config,
	signal: AbortSignal,
	now = Date.now,
): Promise<ClockOffset | undefined> {
	try {
		const before = now();
		const response = await exchange(config, { method: "GET", path: "/enroll/v1/time" }, undefined, signal);
		const after = now();
		response.resume();
		return offsetOf(response.headers.date, before, after);
	} catch {
		return undefined;
	}
}

/**
 * The answer was written some time between `before` and `after` of this host's clock, and some time in the second that its Date
 * names (RFC 9110 §6.6.1 has whole seconds): the middle of what is possible, and half of its width.
 */
export function offsetOf(date: string | undefined, before: number, after: number): ClockOffset | undefined {
	const second = Date.parse(date ?? "");
	if (Number.isNaN(second)) return undefined;
	return {
		offsetMs: Math.round((before + after) / 2 - second - 500),
		uncertaintyMs: Math.ceil(Math.abs(after - before) / 2 + 500),
	};
}

/** How far this host's clock is ahead of the region's in seconds; undefined when it can't be had. */
export async function clockSkewSeconds(config: Config, signal: AbortSignal): Promise<number | undefined> {
	const offset = await clockOffset(config, signal);
	return offset && Math.round(offset.offsetMs / 1000);
}

async function post(config: Config, path: string, token: string, body: unknown, signal: AbortSignal): Promise<unknown> {
	const content = JSON.stringify(body);
	const headers = {
		authorization: `Bearer ${token}`,
		"content-type": "application/json",
		"content-length": Buffer.byteLength(content),
	};
	const response = await exchange(config, { method: "POST", path, headers }, content, signal);
	const answer = await text(response);
	const status = response.statusCode ?? 0;
	let parsed: Record<string, unknown> | undefined;
	try {
		parsed = JSON.parse(answer) as Record<string, unknown>;
	} catch {
		// Not ours; said below.
	}
	if (status >= 200 && status < 300 && parsed) return parsed;
	const problem = problemOf(answer);
	if (problem) throw problem;
	throw new GroundplaneError(
		status >= 500 ? "Overloaded" : "TunnelProtocolError",
		`${config.address} answered HTTP ${status} to the enrolment`,
		{ next: "Check the address and the proxy; in the region look at the pods front and hosts." },
	);
}

/** One HTTP request to the region's front door, whose certificate must come from the region's own root. */
async function exchange(
	config: Config,
	options: { method: string; path: string; headers?: Record<string, string | number> },
	body: string | undefined,
	signal: AbortSignal,
): Promise<IncomingMessage> {
	const { hostname: serverName, host, pathname } = new URL(config.enrollUrl);
	const { socket } = await dialTls(config, { ca: config.caBundle, proxyCa: config.proxyCa, serverName }, signal);
	const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
	const outgoing = request({
		...options,
		path: `${pathname.replace(/\/$/, "")}${options.path}`,
		createConnection: () => socket,
		headers: { host, connection: "close", ...options.headers },
		signal,
	});
	const timer = setTimeout(
		() =>
			outgoing.destroy(
				new GroundplaneError("DeadlineExceeded", `no answer from ${config.address} within ${ANSWER_MS / 1000} s`, {
					next: "Nothing: it is tried again. If it lasts, look at the pod hosts of the region.",
				}),
			),
		ANSWER_MS,
	);
	outgoing.once("response", resolve);
	outgoing.once("error", (error: NodeJS.ErrnoException) =>
		reject(
			error instanceof GroundplaneError
				? error
				: new GroundplaneError("TunnelClosed", `the connection to ${config.address} broke: ${error.message}`, {
						next: "Nothing: it is tried again.",
						cause: error,
					}),
		),
	);
	outgoing.once("close", () => clearTimeout(timer));
	outgoing.end(body);
	return promise;
}
