import { Agent, request } from "node:https";
import type { Duplex } from "node:stream";
import { text } from "node:stream/consumers";
import { type ErrorCode, errorCodes, GroundplaneError } from "../protocol/errors.ts";

export interface Answer {
	readonly status: number;
	readonly headers: Readonly<Record<string, string | string[] | undefined>>;
	readonly text: string;
}

export interface RequestOptions {
	readonly method?: string;
	readonly headers?: Readonly<Record<string, string>>;
	readonly body?: string;
	readonly timeoutMs?: number;
}

/** Speaks HTTPS to one region: trusts its CA alone when there is one, goes through https_proxy when that is set. */
export class RegionHttp {
	readonly server: string;
	readonly #agent: Agent;

	constructor(server: string, tls: { ca?: string | undefined; insecure?: boolean } = {}) {
		this.server = server.replace(/\/+$/, "");
		this.#agent = new Agent({
			keepAlive: true,
			...(tls.ca && { ca: tls.ca }),
			...(tls.insecure && { rejectUnauthorized: false }),
			proxyEnv: process.env,
		});
	}

	/** One exchange; any status is an answer. Throws when there is none. */
	send(path: string, { method = "GET", headers = {}, body, timeoutMs = 30_000 }: RequestOptions = {}): Promise<Answer> {
		const url = new URL(path, `${this.server}/`);
		return new Promise((resolve, reject) => {
			const outgoing = request(url, {
				agent: this.#agent,
				method,
				signal: AbortSignal.timeout(timeoutMs),
				headers: {
					accept: "application/json",
					"user-agent": "gp",
					...(body !== undefined && { "content-length": String(Buffer.byteLength(body)) }),
					...headers,
				},
			});
			outgoing.on("error", (cause: NodeJS.ErrnoException) => reject(unreachable(url.host, cause)));
			outgoing.on("response", (incoming) => {
				const chunks: Buffer[] = [];
				incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
				incoming.on("error", (cause) => reject(unreachable(url.host, cause)));
				incoming.on("end", () =>
					resolve({
						status: incoming.statusCode ?? 0,
						headers: incoming.headers,
						text: Buffer.concat(chunks).toString("utf8"),
					}),
				);
			});
			outgoing.end(body);
		});
	}

	/** An HTTP upgrade (RFC 9110 §7.8): gives the stream, or throws what the region declined with. */
	upgrade(path: string, protocol: string, headers: Readonly<Record<string, string>>): Promise<Duplex> {
		const url = new URL(path, `${this.server}/`);
		const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
		const outgoing = request(url, {
			agent: this.#agent,
			headers: { ...headers, "user-agent": "gp", connection: "Upgrade", upgrade: protocol },
		});
		const timer = setTimeout(() => outgoing.destroy(new DOMException("", "TimeoutError")), 30_000);
		outgoing.on("error", (cause) => reject(unreachable(url.host, cause)));
		outgoing.on("upgrade", (_answer, stream, head) => {
			if (head.length > 0) stream.unshift(head);
			resolve(stream);
		});
		outgoing.on("response", (incoming) => {
			const { statusCode: status = 0, headers: got } = incoming;
			text(incoming).then(
				(body) => reject(errorOf({ status, headers: got, text: body })),
				(cause) => reject(unreachable(url.host, cause)),
			);
		});
		outgoing.end();
		return promise.finally(() => clearTimeout(timer));
	}

	close(): void {
		this.#agent.destroy();
	}
}

/** The code of a failed handshake when the certificate is not to be trusted. */
export const UNTRUSTED = new Set([
	"UNABLE_TO_VERIFY_LEAF_SIGNATURE",
	"SELF_SIGNED_CERT_IN_CHAIN",
	"DEPTH_ZERO_SELF_SIGNED_CERT",
	"UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
	"UNABLE_TO_GET_ISSUER_CERT",
	"CERT_SIGNATURE_FAILURE",
]);

export function unreachable(host: string, cause: NodeJS.ErrnoException): GroundplaneError {
	const { code = "", message } = cause;
	if (UNTRUSTED.has(code)) {
		return new GroundplaneError("CertificateInvalid", `The certificate of ${host} is not from the region's CA.`, {
			next: "If the region was made anew, sign in again: gp login --server … ; otherwise somebody stands in between.",
			cause,
		});
	}
	if (code === "ERR_TLS_CERT_ALTNAME_INVALID" || code === "CERT_HAS_EXPIRED" || code === "CERT_NOT_YET_VALID") {
		return new GroundplaneError("CertificateInvalid", `The certificate of ${host}: ${message}`, {
			next: "Check the address and this machine's clock.",
			cause,
		});
	}
	const isLate = cause.name === "TimeoutError" || cause.name === "AbortError";
	return new GroundplaneError(
		isLate ? "DeadlineExceeded" : "Unreachable",
		`${host} ${isLate ? "did not answer in time" : `can't be reached (${code || message})`}.`,
		{
			next: "Check the network and, if you need one, https_proxy.",
			cause,
		},
	);
}

/** The error in an answer of the region: problem details (RFC 9457) with our code, or whatever came. */
export function errorOf({ status, text }: Answer): GroundplaneError {
	try {
		const { code, detail, next } = JSON.parse(text) as { code?: string; detail?: string; next?: string };
		if (code && code in errorCodes && detail) {
			return new GroundplaneError(code as ErrorCode, detail, { next: next ?? "Look at the region's services." });
		}
	} catch {
		// Not ours: something in between answered.
	}
	return new GroundplaneError(
		status >= 500 ? "Overloaded" : "Internal",
		`The region answered ${status}: ${text.slice(0, 200) || "nothing"}`,
		{
			next: "Try again; if it stays, something between here and the region answers for it.",
		},
	);
}

/** The root that a region says is its own: not to be trusted before somebody has compared its digest. */
export async function fetchCa(server: string): Promise<{ ca: string; isTrusted: boolean }> {
	const trusting = new RegionHttp(server);
	try {
		await trusting.send("/artifacts/v1/ca.crt", { timeoutMs: 15_000 });
		return { ca: "", isTrusted: true };
	} catch (error) {
		const code = ((error as GroundplaneError).cause as NodeJS.ErrnoException | undefined)?.code ?? "";
		if (!UNTRUSTED.has(code)) throw error;
	} finally {
		trusting.close();
	}
	const blind = new RegionHttp(server, { insecure: true });
	try {
		const answer = await blind.send("/artifacts/v1/ca.crt", { timeoutMs: 15_000 });
		if (answer.status !== 200 || !answer.text.includes("BEGIN CERTIFICATE")) throw errorOf(answer);
		return { ca: answer.text, isTrusted: false };
	} finally {
		blind.close();
	}
}
