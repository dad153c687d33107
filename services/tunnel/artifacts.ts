import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { Agent, request as httpsRequest } from "node:https";
import type { Duplex } from "node:stream";
import { pipeline } from "node:stream";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { Log } from "../kit/log.ts";
import type { TlsFiles } from "../kit/tls.ts";

import { Line, type LineOptions } from "./line.ts";

const HOST = Symbol("host");

/** Says to the artifacts service which host is asking; what a host itself puts there is thrown away. */
const HOST_HEADER = "x-groundplane-host";
const FORWARDED = ["range", "if-range", "if-none-match", "accept", "accept-encoding", "user-agent"];

/** Serves the streams that hosts open to `artifacts`: HTTP requests are passed on over mTLS, with the host's name. */
export class ArtifactsBridge {
	readonly #server: Server;
	#agent: Agent;
	readonly #lineOf: (host: string) => LineOptions;
	/** Lines of hosts that are downloading. */
	readonly #lines = new Map<string, Line>();

	constructor({
		url,
		tls,
		log,
		lineOf,
	}: { url: string; tls: TlsFiles; log: Log; lineOf: (host: string) => LineOptions }) {
		this.#lineOf = lineOf;
		const newAgent = () => new Agent({ keepAlive: true, maxSockets: 64, timeout: 60_000, ...tls.current });
		this.#agent = newAgent();
		tls.onChange(() => {
			this.#agent = newAgent();
		});
		this.#server = createServer({ keepAliveTimeout: 60_000, requestTimeout: 0 }, (incoming, outgoing) => {
			this.#forward(url, incoming, outgoing, log);
		});
	}

	/** Serves a host's stream. */
	attach(host: string, stream: Duplex): void {
		Object.assign(stream, { [HOST]: host });
		this.#server.emit("connection", stream);
	}

	#line(host: string): Line {
		let line = this.#lines.get(host);
		if (line === undefined) {
			line = new Line(this.#lineOf(host), () => this.#lines.delete(host));
			this.#lines.set(host, line);
		}
		return line;
	}

	#forward(base: string, incoming: IncomingMessage, outgoing: ServerResponse, log: Log): void {
		const host = (incoming.socket as unknown as { [HOST]: string })[HOST];
		const { method = "GET", url = "/" } = incoming;
		if ((method !== "GET" && method !== "HEAD") || !url.startsWith("/artifacts/v1/")) {
			answer(
				outgoing,
				new GroundplaneError("Forbidden", `a host can't ask artifacts for ${method} ${url}`, {
					next: "Hosts read /artifacts/v1/ only.",
				}),
			);
			return;
		}
		const headers: Record<string, string> = { [HOST_HEADER]: host };
		for (const name of FORWARDED) {
			const value = incoming.headers[name];
			if (typeof value === "string") headers[name] = value;
		}
		const upstream = httpsRequest(new URL(url, base), { method, headers, agent: this.#agent }, (response) => {
			outgoing.writeHead(response.statusCode ?? 502, response.headers);
			pipeline(response, this.#line(host).download(), outgoing, () => {});
		});
		upstream.setTimeout(60_000, () => upstream.destroy(new Error("artifacts did not answer for 60 s")));
		upstream.on("error", (cause) => {
			if (outgoing.destroyed) return;
			const error = new GroundplaneError("Overloaded", "the artifacts service can't be reached", {
				next: "Nothing: the agent tries again. If it lasts, look at the pod artifacts of the region.",
				cause,
			});
			log.warn({ err: error, host }, "artifacts request failed");
			if (outgoing.headersSent) outgoing.destroy();
			else answer(outgoing, error);
		});
		outgoing.on("close", () => upstream.destroy());
		upstream.end();
	}
}

function answer(response: ServerResponse, error: unknown): void {
	const problem = asGroundplaneError(error);
	response
		.writeHead(problem.status, { "content-type": "application/problem+json" })
		.end(JSON.stringify(problem.toJSON()));
}
