import { once } from "node:events";
import { type ClientRequest, request as httpRequest, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer, request as httpsRequest, type Server } from "node:https";
import type { Socket } from "node:net";
import { type Duplex, pipeline } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { connectThrough, readText } from "../../protocol/connect.ts";
import { asGroundplaneError, GroundplaneError, problemOf } from "../../protocol/errors.ts";
import type { LinkFigures } from "../../protocol/link.ts";
import type { Lane } from "../../protocol/mux.ts";
import { splice } from "../../protocol/splice.ts";
import { serviceOf } from "../kit/auth.ts";
import type { Log } from "../kit/log.ts";
import type { TlsFiles } from "../kit/tls.ts";
import { type Gateway, notConnected } from "./gateway.ts";
import type { Route, Routes } from "./routes.ts";

/** Who may reach what on hosts, by the name in the client certificate. `tunnel` is another replica, which has checked already. */
const allowed: Readonly<Record<string, readonly string[]>> = {
	clusters: ["kube-apiserver", "shell"],
	operator: ["kube-apiserver"],
	prometheus: ["metrics", "kube-apiserver"],
	tunnel: ["metrics", "kube-apiserver", "shell"],
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
/** How often the way to a host is looked for anew while it is expected. */
const LOOK_AGAIN_MS = 500;
/** What is asked about a host's link; replicas ask each other the same. */
const LINKS = "/internal/v1/links/";

export interface ForwardProxyOptions {
	gateway: Gateway;
	/** Name of this gateway in routes. */
	name: string;
	/** Where hosts are that aren't here. */
	routes: Pick<Routes, "find" | "expected" | "onPut" | "lost">;
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
		// Whoever keeps connections is to find another gateway in time.
		if (this.#options.gateway.leaving) response.setHeader("connection", "close");
		if (request.url?.startsWith(LINKS)) {
			const figures = await this.#link(request, request.url.slice(LINKS.length));
			response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(figures));
			return;
		}
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
		// A replica asks this one because the host is here, or was: asking on would go in circles.
		const open = () => this.#open(host, service, authority, { onward: caller !== "tunnel", signal });
		return caller === "tunnel" ? open() : this.#patiently(host, open, signal);
	}

	async #open(
		host: string,
		service: string,
		authority: string,
		{ onward, signal }: { onward: boolean; signal: AbortSignal },
	): Promise<Duplex> {
		const { gateway, name, routes } = this.#options;
		if (gateway.has(host)) return gateway.open(host, service, { lane: laneOf(service), signal });
		const route = onward ? await routes.find(host) : undefined;
		if (route === undefined || route.gateway === name) throw notConnected(host);
		return this.#through(route, host, authority, signal);
	}

	/**
	 * Tries until it works while the host is on its way to another tunnel: a gateway that is replaced costs requests a moment,
	 * and none of them fails. Trying again is safe as long as no stream was open, since nothing was sent.
	 */
	async #patiently(host: string, open: () => Promise<Duplex>, signal: AbortSignal): Promise<Duplex> {
		const { gateway, routes } = this.#options;
		for (;;) {
			const arrival = this.#arrivalOf(host, signal);
			try {
				return await open();
			} catch (error) {
				const { code } = asGroundplaneError(error);
				const patience = Math.max(gateway.expected(host), routes.expected(host));
				if ((code !== "HostNotConnected" && code !== "TunnelClosed") || patience === 0 || signal.aborted) throw error;
				await Promise.race([arrival.promise, delay(Math.min(patience, LOOK_AGAIN_MS))]);
			} finally {
				arrival.forget();
			}
		}
	}

	/** Resolves when a tunnel of the host opens, here or elsewhere. */
	#arrivalOf(host: string, signal: AbortSignal): { promise: Promise<void>; forget: () => void } {
		const { promise, resolve } = Promise.withResolvers<void>();
		const arrived = (which: string) => {
			if (which === host) resolve();
		};
		const aborted = () => resolve();
		const { gateway, routes } = this.#options;
		const forgetting = [gateway.onArrival(arrived), routes.onPut(arrived)];
		signal.addEventListener("abort", aborted, { once: true });
		if (signal.aborted) aborted();
		return {
			promise,
			forget: () => {
				for (const one of forgetting) one();
				signal.removeEventListener("abort", aborted);
			},
		};
	}

	/** How a host's link is doing, from the gateway that holds it. */
	async #link(request: IncomingMessage, host: string): Promise<LinkFigures> {
		const caller = serviceOf(request, this.#options.tls);
		if (caller !== "clusters" && caller !== "tunnel") {
			throw new GroundplaneError("Forbidden", `${caller ?? "this caller"} may not ask about links of hosts`, {
				next: "Use the client certificate of a service that may.",
			});
		}
		const { gateway, name, routes } = this.#options;
		const figures = await gateway.figures(host);
		if (figures) return figures;
		const route = caller === "tunnel" ? undefined : await routes.find(host);
		if (route === undefined || route.gateway === name) throw notConnected(host);
		const { tls, ...address } = this.#replica(route);
		const asking = httpsRequest({
			...tls,
			...address,
			agent: false,
			path: `${LINKS}${host}`,
			signal: AbortSignal.timeout(5_000),
		});
		asking.end();
		const [answer] = (await once(asking, "response")) as [IncomingMessage];
		const body = await readText(answer);
		if (answer.statusCode !== 200) throw problemOf(body) ?? notConnected(host);
		return JSON.parse(body) as LinkFigures;
	}

	/** A stream through the replica of a route. */
	async #through(route: Route, host: string, authority: string, signal: AbortSignal): Promise<Duplex> {
		const deadline = AbortSignal.any([signal, AbortSignal.timeout(FORWARD_DEADLINE_MS)]);
		try {
			return await connectThrough({ ...this.#replica(route), authority, signal: deadline });
		} catch (cause) {
			// What the other replica says: the host's refusal, or that the host has left it meanwhile.
			const answer = cause instanceof GroundplaneError && !deadline.aborted ? cause : undefined;
			if (answer === undefined || answer.code === "HostNotConnected") this.#options.routes.lost(host, route);
			if (answer) throw answer;
			throw new GroundplaneError(
				"HostNotConnected",
				`gateway ${route.gateway}, which holds the host, can't be reached`,
				{
					next: "Nothing: the host connects to another gateway in a moment.",
					cause,
				},
			);
		}
	}

	/** How to dial the replica of a route. */
	#replica({ address }: Route) {
		const [, host = "", port] = /^\[?([^\]]+)\]?:(\d+)$/.exec(address) ?? [];
		return { host, port: Number(port), tls: { ...this.#options.tls.current, servername: "tunnel" } };
	}
}

function absoluteUrl(text = ""): URL {
	if (text.startsWith("http://") && URL.canParse(text)) return new URL(text);
	throw new GroundplaneError("InvalidInput", `"${text}" is not an absolute http:// URL`, {
		next: "This is a forward proxy: use CONNECT, or a request in absolute form.",
	});
}

const retryAfter = (problem: GroundplaneError) => (problem.status === 503 ? "retry-after: 1\r\n" : "");
