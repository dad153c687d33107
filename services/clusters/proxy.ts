import {
	type ClientRequest,
	request as httpRequest,
	type IncomingHttpHeaders,
	type IncomingMessage,
	type OutgoingHttpHeaders,
	type ServerResponse,
	STATUS_CODES,
} from "node:http";
import type { Duplex } from "node:stream";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { ConnectAgent } from "../../operator/kube/proxy.ts";
import type { Reflector } from "../../operator/kube/reflector.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { splice } from "../../protocol/splice.ts";
import { type Auth, mayDo, type User } from "../kit/auth.ts";
import { publicError, requestId } from "../kit/http.ts";
import type { Log } from "../kit/log.ts";
import { Counter, Gauge, type Metrics } from "../kit/metrics.ts";
import type { TlsFiles } from "../kit/tls.ts";

export interface KubeProxyOptions {
	readonly auth: Pick<Auth, "verify">;
	readonly reflectors: { readonly hosts: Reflector<Host>; readonly clusters: Reflector<Cluster> };
	readonly namespace: string;
	readonly tunnelUrl: string;
	readonly tls: TlsFiles;
	readonly log: Log;
	readonly metrics: Metrics;
	readonly signal: AbortSignal;
}

/** A request that passed: who, where to, and what it asks there. */
interface Call {
	readonly user: User;
	readonly cluster: string;
	/** Path and query at the API server. */
	readonly path: string;
	readonly headers: OutgoingHttpHeaders;
	/** Control planes to try, best first. */
	readonly hosts: readonly string[];
}

type Kind = "request" | "watch" | "upgrade";

const PREFIX = "/k8s/clusters/";
/** How many control planes are tried. */
const MAX_TRIES = 2;
/** How long a stream to one of them may take to open while there is another to try: a host's power may have gone just now. */
const OPEN_MS = 3_000;
/** How long one that was open already may take to answer what can be asked elsewhere: its host may be gone all the same. */
const ANSWER_MS = 5_000;

/** For how long one control plane is tried before the next one is, in milliseconds; undefined when it is the last. */
export function patienceOf({
	hasAnother,
	isReused,
	isRead,
}: {
	readonly hasAnother: boolean;
	/** Whether the stream was there already; undefined before there is one. */
	readonly isReused: boolean | undefined;
	/** Whether it may be sent twice. */
	readonly isRead: boolean;
}): number | undefined {
	if (!hasAnother) return undefined;
	if (isReused === undefined) return OPEN_MS;
	return isReused && isRead ? ANSWER_MS : undefined;
}

/**
 * The way into the region's clusters: `/k8s/clusters/NAME/...` goes to a live API server of the cluster through the tunnel, on
 * behalf of the person (Kubernetes impersonation: user NAME, groups `groundplane:ROLE`). Nothing is buffered: watches, logs,
 * exec and port-forward work, and either side's end is the other's. Errors of our own are Kubernetes `Status` objects.
 */
export class KubeProxy {
	readonly #options: KubeProxyOptions;
	readonly #tunnel: URL;
	readonly #agents = new Map<string, ConnectAgent>();
	readonly #requests: Counter<"kind" | "code">;
	readonly #open: Gauge<"kind">;
	/** Watches: ended when the service stops, so that clients come back to another pod at once. */
	readonly #watches = new Set<() => void>();

	constructor(options: KubeProxyOptions) {
		this.#options = options;
		this.#tunnel = new URL(options.tunnelUrl);
		const registers = [options.metrics.registry];
		this.#requests = new Counter({
			name: "groundplane_kube_proxy_requests_total",
			help: "Requests to clusters by kind (request, watch, upgrade) and HTTP status.",
			labelNames: ["kind", "code"],
			registers,
		});
		this.#open = new Gauge({
			name: "groundplane_kube_proxy_open",
			help: "Requests to clusters that are under way.",
			labelNames: ["kind"],
			registers,
		});
		options.reflectors.hosts.onChange(({ type, object }) => {
			if (type === "deleted") this.#forget(object.metadata.name);
		});
		options.signal.addEventListener(
			"abort",
			() => {
				for (const end of this.#watches) end();
			},
			{ once: true },
		);
	}

	close(): void {
		for (const name of [...this.#agents.keys()]) this.#forget(name);
	}

	/** Serves a request under `/k8s/clusters/`; false when it is another one. */
	request(request: IncomingMessage, response: ServerResponse): boolean {
		if (!request.url?.startsWith(PREFIX)) return false;
		const kind: Kind = isWatch(request.url) ? "watch" : "request";
		this.#count(kind, response, () => response.statusCode);
		this.#forward(request, response, kind).catch((error: unknown) => {
			if (response.headersSent) {
				response.destroy();
				return;
			}
			const { status, headers, body } = this.#failure(request, error);
			response.writeHead(status, headers).end(body);
		});
		return true;
	}

	/** Serves an upgrade (SPDY or WebSocket: exec, attach, port-forward). */
	upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
		let status = 101;
		this.#count("upgrade", socket, () => status);
		// Until the streams are joined nobody else listens.
		socket.on("error", () => socket.destroy());
		this.#forwardUpgrade(request, socket, head).catch((error: unknown) => {
			const failure = this.#failure(request, error);
			status = failure.status;
			writeHead(socket, status, { ...failure.headers, connection: "close" });
			socket.end(failure.body);
		});
	}

	async #forward(request: IncomingMessage, response: ServerResponse, kind: Kind): Promise<void> {
		const call = await this.#admit(request);
		const { upstream, answer } = await this.#send(call, request, (outgoing) => request.pipe(outgoing));
		response.once("close", () => upstream.destroy());
		// Headers and each piece go out as they come: a watch may be silent for minutes after its headers.
		response.writeHead(answer.statusCode ?? 502, answerHeaders(answer.headers));
		response.flushHeaders();
		answer.pipe(response);
		answer.on("error", () => response.destroy());
		answer.once("close", () => {
			// Cut off: the client must not take half an answer for a whole one.
			if (!answer.complete) response.destroy();
		});
		if (kind === "watch") {
			const end = () => {
				answer.unpipe(response);
				response.end();
			};
			this.#watches.add(end);
			response.once("close", () => this.#watches.delete(end));
		}
		this.#audit(request, call, answer.statusCode ?? 0);
	}

	async #forwardUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
		if (!request.url?.startsWith(PREFIX)) {
			throw new GroundplaneError("NotFound", "Nothing can be upgraded here.", { next: `Use a path under ${PREFIX}.` });
		}
		const call = await this.#admit(request);
		const { answer, stream, streamHead } = await this.#send(call, request, (outgoing) => outgoing.end());
		this.#audit(request, call, answer.statusCode ?? 0);
		if (!stream) {
			// The API server declined: its words, then the end.
			writeHead(socket, answer.statusCode ?? 502, { ...answerHeaders(answer.headers), connection: "close" });
			answer.pipe(socket);
			return;
		}
		writeHead(socket, 101, answer.headers);
		if (streamHead?.length) socket.write(streamHead);
		if (head.length > 0) stream.write(head);
		splice(socket, stream);
	}

	/** Who asks, whether they may, which cluster, and where it can be reached. */
	async #admit(request: IncomingMessage): Promise<Call> {
		const user = await this.#options.auth.verify(request.headers.authorization);
		const [, name = "", path = ""] = /^\/k8s\/clusters\/([^/?]*)(.*)$/s.exec(request.url ?? "") ?? [];
		if (!mayDo(user, [])) {
			throw new GroundplaneError("Forbidden", `${user.name} has no role in this region.`, {
				next: "Ask an administrator of the region for a role.",
			});
		}
		const cluster = this.#options.reflectors.clusters.get(`${this.#options.namespace}/${name}`);
		if (!cluster) {
			throw new GroundplaneError("NotFound", `There is no cluster ${name} in this region.`, {
				next: "List the clusters with gp cluster list.",
			});
		}
		const headers = requestHeaders(request.headers, user, requestId(request));
		return {
			user,
			cluster: name,
			path: path.startsWith("/") ? path : `/${path}`,
			headers,
			hosts: this.#controlPlanes(cluster),
		};
	}

	/** The cluster's control planes, best first: those that are connected and Ready, in random order, then the others. */
	#controlPlanes({ metadata, status }: Cluster): string[] {
		const { hosts } = this.#options.reflectors;
		const ranked = (status?.members ?? [])
			.filter(({ role, phase }) => role === "control-plane" && phase !== "Leaving")
			.map(({ host, phase }) => {
				const connected = hosts.get(`${this.#options.namespace}/${host}`)?.status?.connection?.state === "Connected";
				return { host, rank: (connected ? 2 : 0) + (phase === "Ready" ? 1 : 0) + Math.random() / 2 };
			})
			.sort((a, b) => b.rank - a.rank);
		if (ranked.length > 0) return ranked.map(({ host }) => host);
		throw new GroundplaneError("HostNotConnected", `The cluster ${metadata.name} has no control plane yet.`, {
			next: "Wait until it is Ready: gp cluster list says what is being done.",
		});
	}

	/**
	 * Sends the request to the first control plane whose stream opens. Trying the next one is safe for any method as long as the
	 * stream did not open, because nothing was sent. `begin` sends the body once the stream is there.
	 */
	async #send(
		call: Call,
		request: IncomingMessage,
		begin: (outgoing: ClientRequest) => void,
	): Promise<{ upstream: ClientRequest; answer: IncomingMessage; stream?: Duplex; streamHead?: Buffer }> {
		let failure: unknown;
		const tries = call.hosts.slice(0, MAX_TRIES);
		const isRead = request.method === "GET" && call.headers.upgrade === undefined;
		for (const [index, host] of tries.entries()) {
			const outgoing = httpRequest({
				agent: this.#agent(host),
				method: request.method ?? "GET",
				path: call.path,
				headers: call.headers,
				setDefaultHeaders: true,
			});
			const gone = () => outgoing.destroy(new Error("the client went away"));
			request.socket.once("close", gone);
			let opened = false;
			const hasAnother = index < tries.length - 1;
			let timer: NodeJS.Timeout | undefined;
			const limit = (isReused?: boolean) => {
				clearTimeout(timer);
				const patience = patienceOf({ hasAnother, isReused, isRead });
				if (patience !== undefined)
					timer = setTimeout(() => outgoing.destroy(new Error("it does not answer in time")), patience);
			};
			limit();
			try {
				return await new Promise((resolve, reject) => {
					outgoing.once("socket", () => {
						opened = true;
						limit(outgoing.reusedSocket);
						begin(outgoing);
					});
					outgoing.once("response", (answer) => resolve({ upstream: outgoing, answer }));
					outgoing.once("upgrade", (answer, stream, streamHead) =>
						resolve({ upstream: outgoing, answer, stream, streamHead }),
					);
					outgoing.on("error", reject);
				});
			} catch (error) {
				failure = error;
				if (request.socket.destroyed) break;
				if (opened) {
					// A kept connection that the other side had closed: only what reads may be sent twice.
					if (!outgoing.reusedSocket || request.method !== "GET" || tries.length > MAX_TRIES) break;
					tries.push(host);
				}
				this.#options.log.warn(
					{ err: error, host, cluster: call.cluster },
					"no stream to this control plane; trying another",
				);
			} finally {
				clearTimeout(timer);
				request.socket.off("close", gone);
			}
		}
		if (failure instanceof GroundplaneError) throw failure;
		throw new GroundplaneError("TunnelClosed", `The connection to the cluster ${call.cluster} broke.`, {
			next: "Try again; if it lasts, look at its hosts with gp host list.",
			cause: failure,
		});
	}

	#agent(host: string): ConnectAgent {
		let agent = this.#agents.get(host);
		if (!agent) {
			agent = new ConnectAgent({
				proxyHost: this.#tunnel.hostname,
				proxyPort: Number(this.#tunnel.port || 443),
				// Node would take the name of the Host header for the certificate's.
				tls: () => ({ ...this.#options.tls.current, servername: this.#tunnel.hostname }),
				authority: `kube-apiserver.${host}:80`,
			});
			this.#agents.set(host, agent);
		}
		return agent;
	}

	#forget(host: string): void {
		this.#agents.get(host)?.destroy();
		this.#agents.delete(host);
	}

	#count(kind: Kind, stream: Duplex | ServerResponse, status: () => number): void {
		this.#open.inc({ kind });
		stream.once("close", () => {
			this.#open.dec({ kind });
			this.#requests.inc({ kind, code: String(status()) });
		});
	}

	/** What changes something in a cluster, or opens a way into a container, leaves a line: who, what, where. Never a body or a query. */
	#audit(request: IncomingMessage, { user, cluster, path }: Call, code: number): void {
		const upgrade = request.headers.upgrade !== undefined;
		if (!upgrade && ["GET", "HEAD", "OPTIONS"].includes(request.method ?? "")) return;
		this.#options.log.info(
			{
				audit: true,
				event: "kube",
				by: user.name,
				cluster,
				verb: upgrade ? "CONNECT" : request.method,
				path: path.split("?", 1)[0],
				code,
				requestId: requestId(request),
			},
			"kube",
		);
	}

	#failure(request: IncomingMessage, error: unknown): { status: number; headers: OutgoingHttpHeaders; body: string } {
		const shown = publicError(error);
		const id = requestId(request);
		if (shown.status >= 500)
			this.#options.log.warn({ err: error, requestId: id, method: request.method }, "can't reach a cluster");
		const message = `${shown.message} ${shown.next}`;
		// kubectl shows the words of a failed discovery only when they are plain text and the status is a rare one.
		const discovery = /^\/k8s\/clusters\/[^/]*\/apis?(\?|$)/.test(request.url ?? "") && shown.status !== 401;
		const status = discovery && shown.status !== 403 ? 502 : shown.status;
		const body = discovery
			? message
			: JSON.stringify({
					kind: "Status",
					apiVersion: "v1",
					metadata: {},
					status: "Failure",
					message,
					reason: reasons[status] ?? "InternalError",
					details: { causes: [{ reason: shown.code, message: `request ${id}` }] },
					code: status,
				});
		return {
			status,
			headers: {
				"content-type": discovery ? "text/plain; charset=utf-8" : "application/json",
				"content-length": Buffer.byteLength(body),
				...(status === 401 && { "www-authenticate": "Bearer" }),
			},
			body,
		};
	}
}

/** `metav1.StatusReason` by HTTP status. */
const reasons: Readonly<Record<number, string>> = {
	400: "BadRequest",
	401: "Unauthorized",
	403: "Forbidden",
	404: "NotFound",
	502: "ServiceUnavailable",
	503: "ServiceUnavailable",
	504: "Timeout",
};

const isWatch = (url: string): boolean => /[?&](watch=(1|true)|follow=(1|true))(&|$)/i.test(url);

/** RFC 9110 section 7.6.1: these belong to one connection. */
const HOP_BY_HOP = new Set([
	"connection",
	"keep-alive",
	"proxy-authenticate",
	"proxy-authorization",
	"proxy-connection",
	"te",
	"trailer",
	"transfer-encoding",
	"upgrade",
	// Answered by our own HTTP server already.
	"expect",
]);

/** Identity as an API server would believe it, and secrets of the region: neither may pass. */
const forbidden = (name: string): boolean =>
	name === "authorization" ||
	name === "cookie" ||
	name === "host" ||
	name.startsWith("impersonate-") ||
	name.startsWith("x-remote-") ||
	name.startsWith("x-groundplane-");

/**
 * Headers for the API server: the client's, without those of the connection, without any claim of identity, with the
 * impersonation of the user. Node has lower-cased the names; what `Connection` lists goes as well, so that nobody can have our
 * own headers taken out further on.
 */
export function requestHeaders(headers: IncomingHttpHeaders, user: User, id: string): OutgoingHttpHeaders {
	const listed = new Set(
		(headers.connection ?? "")
			.toLowerCase()
			.split(",")
			.map((name) => name.trim()),
	);
	const passed = Object.entries(headers).filter(
		([name, value]) => value !== undefined && !HOP_BY_HOP.has(name) && !listed.has(name) && !forbidden(name),
	);
	const result: OutgoingHttpHeaders = {
		...Object.fromEntries(passed),
		host: "kubernetes",
		"audit-id": id,
		"impersonate-user": user.name,
		"impersonate-group": user.roles.map((name) => `groundplane:${name}`),
		// The key `groundplane.io/user-id`, as percent-encoding has it in a header's name.
		"impersonate-extra-groundplane.io%2fuser-id": user.id,
	};
	// A token may hide among the WebSocket protocols (browsers can't set Authorization).
	if (headers["sec-websocket-protocol"]) {
		result["sec-websocket-protocol"] = headers["sec-websocket-protocol"]
			.split(",")
			.map((protocol) => protocol.trim())
			.filter((protocol) => !protocol.startsWith("base64url.bearer.authorization.k8s.io."))
			.join(", ");
	}
	if (headers.upgrade) {
		result.connection = "Upgrade";
		result.upgrade = headers.upgrade;
	}
	if (headers["transfer-encoding"]) result["transfer-encoding"] = "chunked";
	return result;
}

/** Headers for the client: a page that a workload serves through the API server must not act with the rights of the console. */
function answerHeaders(headers: IncomingHttpHeaders): OutgoingHttpHeaders {
	const passed = Object.entries(headers).filter(
		([name, value]) => value !== undefined && !HOP_BY_HOP.has(name) && name !== "set-cookie",
	);
	return { ...Object.fromEntries(passed), "content-security-policy": "sandbox", "x-content-type-options": "nosniff" };
}

/** The head of an answer to an upgrade, for which there is no ServerResponse. */
export function writeHead(socket: Duplex, status: number, headers: OutgoingHttpHeaders): void {
	const lines = Object.entries(headers).flatMap(([name, value]) =>
		(Array.isArray(value) ? value : [value]).filter((one) => one !== undefined).map((one) => `${name}: ${one}`),
	);
	socket.write(`HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ""}\r\n${lines.join("\r\n")}\r\n\r\n`);
}
