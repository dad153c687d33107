import type { IncomingMessage } from "node:http";
import { Agent, request } from "node:https";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { TlsFiles } from "./tls.ts";

export interface InternalRequest {
	readonly method?: string;
	readonly headers?: Readonly<Record<string, string>>;
	/** Sent as JSON. */
	readonly json?: unknown;
	readonly signal?: AbortSignal;
	/** Milliseconds for the whole exchange; 10 s by default. */
	readonly timeoutMs?: number;
}

/** An answer, read to its end. */
export interface InternalResponse {
	readonly status: number;
	readonly headers: IncomingMessage["headers"];
	readonly body: Buffer;
	text(): string;
	json(): Promise<unknown>;
}

export type InternalFetch = (url: string, options?: InternalRequest) => Promise<InternalResponse>;

const MAX_BODY = 16 * 1024 * 1024;

/**
 * A client for the other services of the region: it trusts the region's CA alone and shows this service's certificate.
 * `node:https` and not `fetch`, which takes neither without another HTTP stack in memory.
 *
 * Its errors have the code DeadlineExceeded or Internal; any HTTP status is an answer, not an error.
 */
export function createInternalClient(tls: TlsFiles): InternalFetch {
	let agent = new Agent({ keepAlive: true, ...tls.current });
	tls.onChange((material) => {
		const old = agent;
		agent = new Agent({ keepAlive: true, ...material });
		old.destroy();
	});
	return (url, { method = "GET", headers = {}, json, signal, timeoutMs = 10_000 } = {}) =>
		new Promise((resolve, reject) => {
			const body = json === undefined ? undefined : Buffer.from(JSON.stringify(json));
			const deadline = AbortSignal.timeout(timeoutMs);
			const outgoing = request(url, {
				agent,
				method,
				signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
				headers: {
					accept: "application/json",
					...(body && { "content-type": "application/json", "content-length": String(body.length) }),
					...headers,
				},
			});
			const fail = (cause: unknown) =>
				reject(
					deadline.aborted
						? new GroundplaneError("DeadlineExceeded", `${new URL(url).host} did not answer in ${timeoutMs / 1000} s`, {
								next: "Look at that service's pod: it may be starting or overloaded.",
								cause,
							})
						: new GroundplaneError("Internal", `can't reach ${new URL(url).host}`, {
								next: "Look at that service's pod and its certificate.",
								cause,
							}),
				);
			outgoing.on("error", fail);
			outgoing.on("response", (incoming) => {
				const chunks: Buffer[] = [];
				let size = 0;
				incoming.on("data", (chunk: Buffer) => {
					size += chunk.length;
					if (size > MAX_BODY) incoming.destroy(new Error("the answer is larger than 16 MiB"));
					else chunks.push(chunk);
				});
				incoming.on("error", fail);
				incoming.on("end", () => {
					const content = Buffer.concat(chunks);
					const text = () => content.toString("utf8");
					resolve({
						status: incoming.statusCode ?? 0,
						headers: incoming.headers,
						body: content,
						text,
						json: async () => JSON.parse(text()) as unknown,
					});
				});
			});
			outgoing.end(body);
		});
}
