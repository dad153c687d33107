import { type ClientRequest, request as httpRequest, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer, request as httpsRequest, type Server } from "node:https";
import type { Socket } from "node:net";
import { type Duplex, pipeline } from "node:stream";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { Lane } from "../../protocol/mux.ts";
import { splice } from "../../protocol/splice.ts";
import { serviceOf } from "../kit/auth.ts";
import type { Log } from "../kit/log.ts";
import type { TlsFiles } from "../kit/tls.ts";
import { type Gateway, notConnected } from "./gateway.ts";
import type { Route } from "./routes.ts";

/** Who may reach what on hosts, by the name in the client certificate. `tunnel` is another replica, which has checked already. */
const allowed: Readonly<Record<string, readonly string[]>> = {
	clusters: ["kube-apiserver"],
	operator: ["kube-apiserver"],
	prometheus: ["metrics", "kube-apiserver"],
	tunnel: ["metrics", "kube-apiserver"],
};

const laneOf = (service: string): Lane => (service === "metrics" ? "bulk" : "interactive");

/** For `metrics` only this much of the request goes over the wire: an idle host's line costs its owner money. */
const METRICS_HEADERS = ["accept-encoding"];
const HOP_BY_HOP = new Set([
	"connection",
	"proxy-connection",
	"proxy-authorization",
	"keep-alive",
	"te",
	"trailer",
	"transfer-encoding",
	"upgrade",
]);

const FORWARD_DEADLINE_MS = 15_000;

export interface ForwardProxyOptions {
	gateway: Gateway;
	/** Where a host is that isn't here. */
	find: (host: string) => Promise<Route | undefined>;
	tls: TlsFiles;
	log: Log;
}

/**
 * The way from the region's services to hosts: an HTTP forward proxy (RFC 9110 §7.6 and §9.3.6) whose destinations are
 * `SERVICE.HOST`. `CONNECT` gives the raw stream, an absolute-form request is passed on.
 */
export class ForwardProxy {
	readonly server: Server;
	readonly #options: ForwardProxyOptions;

	constructor(options: ForwardProxyOptions) {
		this.#options = options;
		const { tls, log } = options;
		const secure = () => ({
			...tls.current,
			minVersion: "TLSv1.2" as const,
			requestCert: true,
			rejectUnauthorized: true,
		});
		// A client that has said all (`kubectl exec` with its input at an end) still wants the answer.
		this.server = createServer({
			...secure(),
			allowHalfOpen: true,
			requestTimeout: 0,
			headersTimeout: 20_000,
			keepAliveTimeout: 75_000,
		});
		const forget = tls.onChange(() => this.server.setSecureContext(secure()));
		this.server.once("close", forget);
		this.server.on("connect", (request: IncomingMessage, socket: Socket, head: Buffer) => {
			socket.on("error", () => {});
			void this.#connect(request, socket, head).catch((error: unknown) => {
				const problem = asGroundplaneError(error);
				log.debug({ err: problem, target: request.url }, "CONNECT refused");
				const body = JSON.stringify(problem.toJSON());
				socket.end(
					`HTTP/1.1 ${problem.status} ${problem.code}\r\ncontent-type: application/problem+json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n${retryAfter(problem)}connection: close\r\n\r\n${body}`,
				);
			});
		});
		this.server.on("request", (request, response) => {
			void this.#forward(request, response).catch((error: unknown) => {
				const problem = asGroundplaneError(error);
				log.debug({ err: problem, target: request.url }, "request refused");
				if (response.headersSent) response.destroy();
				else
					response
						.writeHead(problem.status, {
							"content-type": "application/problem+json",
							...(problem.status === 503 && { "retry-after": "1" }),
						})
						.end(JSON.stringify(problem.toJSON()));
			});
		});
	}

	async #connect(request: IncomingMessage, socket: Socket, head: Buffer): Promise<void> {
		const stream = await this.#reach(request, request.url ?? "", AbortSignal.timeout(FORWARD_DEADLINE_MS));
		if (socket.destroyed) {
			stream.destroy();
			return;
		}
		socket.setNoDelay(true);
		socket.setTimeout(0);
		socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
		if (head.length > 0) stream.write(head);
		splice(socket, stream);
	}

	async #forward(request: IncomingMessage, response: ServerResponse): Promise<void> {
		const target = absoluteUrl(request.url);
		const gone = new AbortController();
		response.once("close", () => gone.abort());
		const stream = await this.#reach(request, target.host, gone.signal);
		const metrics = target.hostname.startsWith("metrics.");
		const headers = Object.fromEntries(
			Object.entries(request.headers).filter(([name]) =>
				metrics ? METRICS_HEADERS.includes(name) : !HOP_BY_HOP.has(name),
			),
		);
		await new Promise<void>((resolve, reject) => {
			const upstream: ClientRequest = httpRequest({
				createConnection: () => stream,
				method: request.method,
				path: target.pathname + target.search,
				headers: { ...headers, host: metrics ? "m" : target.host, connection: "close" },
				signal: gone.signal,
			});
			upstream.on("response", (incoming) => {
				const { connection: _, "transfer-encoding": __, ...rest } = incoming.headers;
				response.writeHead(incoming.statusCode ?? 502, rest);
				pipeline(incoming, response, () => {
					stream.destroy();
					resolve();
				});
			});
			upstream.on("error", (error) => {
				stream.destroy();
				reject(error);
			});
			pipeline(request, upstream, () => {});
		});
	}

	/** A stream to `SERVICE.HOST`, here or through the replica that holds the host. Throws Forbidden, HostNotConnected, … */
	async #reach(request: IncomingMessage, authority: string, signal: AbortSignal): Promise<Duplex> {
		const match = /^([a-z][a-z-]*)\.([a-z0-9]([-a-z0-9]*[a-z0-9])?)(:\d+)?$/.exec(authority);
		const [, service, host] = match ?? [];
		if (service === undefined || host === undefined) {
			throw new GroundplaneError("InvalidInput", `"${authority}" is not SERVICE.HOST`, {
				next: "Ask for a destination such as kube-apiserver.host-1:80.",
			});
		}
		const caller = serviceOf(request, this.#options.tls);
		if (caller === undefined || !allowed[caller]?.includes(service)) {
			throw new GroundplaneError("Forbidden", `${caller ?? "this caller"} may not reach ${service} on hosts`, {
				next: "Use the client certificate of a service that may.",
			});
		}
		const { gateway, find } = this.#options;
		if (gateway.has(host)) return gateway.open(host, service, { lane: laneOf(service), signal });
		// A replica asks this one because the host is here, or was: asking on would go in circles.
		const route = caller === "tunnel" ? undefined : await find(host);
		if (route === undefined) throw notConnected(host);
		return this.#through(route, authority, signal);
	}

	/** CONNECT to the replica of a route. */
	async #through({ address, gateway }: Route, authority: string, signal: AbortSignal): Promise<Duplex> {
		const [, host, port] = /^\[?([^\]]+)\]?:(\d+)$/.exec(address) ?? [];
		const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
		const connect = httpsRequest({
			...this.#options.tls.current,
			host,
			port,
			servername: "tunnel",
			method: "CONNECT",
			path: authority,
			agent: false,
			signal: AbortSignal.any([signal, AbortSignal.timeout(FORWARD_DEADLINE_MS)]),
		});
		connect.on("connect", (response, socket, head) => {
			if (response.statusCode === 200) {
				if (head.length > 0) socket.unshift(head);
				socket.setNoDelay(true);
				resolve(socket);
				return;
			}
			socket.destroy();
			reject(notConnected(authority.replace(/^[^.]+\.|:\d+$/g, "")));
		});
		connect.on("error", (cause) =>
			reject(
				new GroundplaneError("HostNotConnected", `gateway ${gateway}, which holds the host, can't be reached`, {
					next: "Nothing: the host connects to another gateway in a moment.",
					cause,
				}),
			),
		);
		connect.end();
		return promise;
	}
}

function absoluteUrl(text = ""): URL {
	if (text.startsWith("http://") && URL.canParse(text)) return new URL(text);
	throw new GroundplaneError("InvalidInput", `"${text}" is not an absolute http:// URL`, {
		next: "This is a forward proxy: use CONNECT, or a request in absolute form.",
	});
}

const retryAfter = (problem: GroundplaneError) => (problem.status === 503 ? "retry-after: 1\r\n" : "");
