import http from "node:http";
import https from "node:https";
import { StringDecoder } from "node:string_decoder";
import { setTimeout as delay } from "node:timers/promises";
import { type ErrorCode, GroundplaneError } from "../../protocol/errors.ts";
import type { KubeConfig } from "./config.ts";
import { restClientRequests } from "./metrics.ts";
import {
	apiVersionOf,
	collectionPath,
	type KubeObject,
	type ObjectRef,
	objectPath,
	type Resource,
} from "./resources.ts";

export { collectionPath, objectPath };

/** What an API server answers when it refuses (`metav1.Status`). */
interface Status {
	kind?: "Status";
	code?: number;
	reason?: string;
	message?: string;
	details?: { retryAfterSeconds?: number; causes?: { reason?: string; message?: string; field?: string }[] };
}

/** An API server said no, or could not be reached (`httpStatus` 0). */
export class KubeError extends GroundplaneError {
	readonly httpStatus: number;
	/** `metav1.Status.reason`, such as `NotFound` or `Conflict`. */
	readonly reason: string;
	/** Not to be asked again before this long, in milliseconds, if the server said so (Retry-After). */
	readonly retryAfter: number | undefined;

	constructor(
		code: ErrorCode,
		message: string,
		init: { httpStatus: number; reason: string; next: string; cause?: unknown; retryAfter?: number | undefined },
	) {
		super(code, message, { next: init.next, cause: init.cause });
		this.name = "KubeError";
		this.httpStatus = init.httpStatus;
		this.reason = init.reason;
		this.retryAfter = init.retryAfter;
	}
}

export const isNotFound = (error: unknown): boolean => error instanceof KubeError && error.httpStatus === 404;
export const isAlreadyExists = (error: unknown): boolean =>
	error instanceof KubeError && error.reason === "AlreadyExists";
export const isConflict = (error: unknown): boolean => error instanceof KubeError && error.reason === "Conflict";
/** The resourceVersion or continue token is too old: list again. */
export const isGone = (error: unknown): boolean =>
	error instanceof KubeError && (error.httpStatus === 410 || error.reason === "Expired");

export interface ListOptions {
	namespace?: string;
	labelSelector?: string;
	fieldSelector?: string;
	limit?: number;
	continue?: string;
	resourceVersion?: string;
	resourceVersionMatch?: "Exact" | "NotOlderThan";
	/** Media type to ask for, such as one with metadata only. */
	accept?: string;
	signal?: AbortSignal;
}
export interface KubeList<T> {
	metadata: { resourceVersion: string; continue?: string; remainingItemCount?: number };
	items: T[];
}
export interface WatchOptions {
	namespace?: string;
	labelSelector?: string;
	fieldSelector?: string;
	resourceVersion?: string;
	/** The server ends the watch after this long. */
	timeoutSeconds?: number;
	/** The watch is given up when not a byte came for this long, in milliseconds. */
	inactivityTimeout: number;
}
export interface WatchEvent<T> {
	type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK";
	object: T;
}
interface RequestOptions {
	query?: Record<string, string | number | boolean | undefined>;
	body?: unknown;
	contentType?: string;
	headers?: Record<string, string>;
	/** Whether 429 is retried here. Not where it has a meaning of its own: an eviction that a PodDisruptionBudget forbids. */
	retryThrottled?: boolean;
	signal?: AbortSignal | undefined;
}

const patchTypes = {
	json: "application/json-patch+json",
	merge: "application/merge-patch+json",
	strategic: "application/strategic-merge-patch+json",
} as const;

/** How often a request that the server turned away with 429 is sent again. */
const maxThrottledRetries = 4;
/** A server that asks for more than this is asked again by whoever asked for it, not here. */
const maxRetryAfter = 10_000;

/**
 * A thin Kubernetes client over node's own HTTP: typed by {@link Resource}, with every failure a {@link KubeError}.
 *
 * `agent` replaces the connection: a {@link ConnectAgent} reaches the API server of a workload cluster through a region's gateway.
 */
export class KubeClient {
	readonly config: KubeConfig;
	readonly #base: URL;
	readonly #agent: http.Agent;
	readonly #userAgent: string;
	readonly #timeout: number;
	readonly #permit: (() => void) | undefined;

	constructor(
		config: KubeConfig,
		options: {
			/** Shown in the API server's audit log. */
			userAgent?: string;
			agent?: http.Agent;
			/** Deadline of a request (not of a watch), in milliseconds. */
			timeout?: number;
			/** Asked before each request, which is not sent when it throws: whether this process may still act. */
			permit?: () => void;
		} = {},
	) {
		this.config = config;
		this.#base = new URL(config.server);
		this.#userAgent = options.userAgent ?? "groundplane";
		this.#timeout = options.timeout ?? 30_000;
		this.#permit = options.permit;
		this.#agent =
			options.agent ??
			(this.#base.protocol === "http:"
				? new http.Agent({ keepAlive: true })
				: // A session cache or connection pool of its own, so that credentials never mix.
					new https.Agent({ keepAlive: true, ...config.tls }));
	}

	/** Closes idle and busy connections. */
	close(): void {
		this.#agent.destroy();
	}

	async get<T extends KubeObject>(
		resource: Resource<T>,
		name: string,
		namespace?: string,
		{ signal }: { signal?: AbortSignal } = {},
	): Promise<T> {
		return this.request("GET", objectPath(resource, { name, namespace }), { signal });
	}

	/** Like {@link get}, with `undefined` when there is no such object. */
	async find<T extends KubeObject>(
		resource: Resource<T>,
		name: string,
		namespace?: string,
		options: { signal?: AbortSignal } = {},
	): Promise<T | undefined> {
		return this.get(resource, name, namespace, options).catch((error) => {
			if (isNotFound(error)) return undefined;
			throw error;
		});
	}

	/** One page (all of it without `limit`). */
	async list<T extends KubeObject>(resource: Resource<T>, options: ListOptions = {}): Promise<KubeList<T>> {
		const { namespace, signal, accept, ...query } = options;
		const list = await this.request<KubeList<T>>("GET", collectionPath(resource, namespace), {
			query,
			signal,
			...(accept === undefined ? {} : { headers: { accept } }),
		});
		// Go writes an empty list as null in places.
		return { ...list, items: list.items ?? [] };
	}

	/** All objects, read in pages. */
	async listAll<T extends KubeObject>(resource: Resource<T>, options: ListOptions = {}): Promise<KubeList<T>> {
		const first = await this.list(resource, { limit: 500, ...options });
		const items = first.items;
		for (let next = first.metadata.continue; next !== undefined && next !== ""; ) {
			const page = await this.list(resource, { limit: 500, ...options, continue: next });
			items.push(...page.items);
			next = page.metadata.continue;
		}
		return { metadata: { resourceVersion: first.metadata.resourceVersion }, items };
	}

	async create<T extends KubeObject>(
		resource: Resource<T>,
		object: T,
		{ manager, signal }: { manager?: string; signal?: AbortSignal } = {},
	): Promise<T> {
		return this.request("POST", collectionPath(resource, object.metadata.namespace), {
			query: { fieldManager: manager },
			body: withType(resource, object),
			signal,
		});
	}

	/** PUT: replaces the object; a stale `resourceVersion` is a conflict. */
	async replace<T extends KubeObject>(
		resource: Resource<T>,
		object: T,
		{ manager, subresource, signal }: { manager?: string; subresource?: string; signal?: AbortSignal } = {},
	): Promise<T> {
		return this.request("PUT", objectPath(resource, object.metadata, subresource), {
			query: { fieldManager: manager },
			body: withType(resource, object),
			signal,
		});
	}

	/** Sends a patch: a list of operations for `json` (RFC 6902), a partial object for `merge` (RFC 7386) and `strategic`. */
	async patch<T extends KubeObject>(
		resource: Resource<T>,
		ref: ObjectRef,
		body: unknown,
		{
			type = "merge",
			subresource,
			manager,
			signal,
		}: { type?: keyof typeof patchTypes; subresource?: string; manager?: string; signal?: AbortSignal } = {},
	): Promise<T> {
		return this.request("PATCH", objectPath(resource, ref, subresource), {
			query: { fieldManager: manager },
			body,
			contentType: patchTypes[type],
			signal,
		});
	}

	/**
	 * Server-side apply: `object` holds exactly the fields that `manager` wants to own. Without `force` a field that another
	 * manager owns with another value is a conflict.
	 */
	async apply<T extends KubeObject>(
		resource: Resource<T>,
		object: KubeObject & Record<string, unknown>,
		{
			manager,
			force = false,
			subresource,
			signal,
		}: { manager: string; force?: boolean; subresource?: string; signal?: AbortSignal },
	): Promise<T> {
		return this.request("PATCH", objectPath(resource, object.metadata, subresource), {
			query: { fieldManager: manager, force },
			body: withType(resource, object),
			// JSON is YAML; the API server knows no other name for an apply patch.
			contentType: "application/apply-patch+yaml",
			signal,
		});
	}

	/** Deletes an object. False when it was gone already (or when `uid` says that it is another one by now). */
	async delete(
		resource: Resource,
		ref: ObjectRef,
		options: {
			propagation?: "Background" | "Foreground" | "Orphan";
			uid?: string | undefined;
			gracePeriodSeconds?: number;
			signal?: AbortSignal;
		} = {},
	): Promise<boolean> {
		const { propagation = "Background", uid, gracePeriodSeconds, signal } = options;
		try {
			await this.request("DELETE", objectPath(resource, ref), {
				body: {
					kind: "DeleteOptions",
					apiVersion: "v1",
					propagationPolicy: propagation,
					...(gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
					...(uid === undefined ? {} : { preconditions: { uid } }),
				},
				signal,
			});
			return true;
		} catch (error) {
			if (isNotFound(error) || (uid !== undefined && isConflict(error))) return false;
			throw error;
		}
	}

	/**
	 * Watches until the server ends it (the promise resolves), `signal` aborts, or something fails (it rejects; a
	 * {@link isGone} error means that `resourceVersion` is too old). Events are handed over in order, in the read callback.
	 */
	async watch<T extends KubeObject>(
		resource: Resource<T>,
		options: WatchOptions,
		onEvent: (event: WatchEvent<T>) => void,
		signal: AbortSignal,
	): Promise<void> {
		const { namespace, inactivityTimeout, ...query } = options;
		const path = collectionPath(resource, namespace);
		const idle = new AbortController();
		const timer = setTimeout(() => idle.abort(), inactivityTimeout);
		const silence = () =>
			unavailable(`watch of ${resource.plural}: nothing was heard for ${inactivityTimeout / 1000} s`, undefined);
		try {
			const response = await this.#send("GET", path, {
				query: { ...query, watch: true, allowWatchBookmarks: true },
				signal: AbortSignal.any([signal, idle.signal]),
			});
			const decoder = new StringDecoder("utf8");
			let rest = "";
			for await (const chunk of response) {
				timer.refresh();
				rest += decoder.write(chunk as Buffer);
				let start = 0;
				for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n", start)) {
					const line = rest.slice(start, end);
					start = end + 1;
					if (line.trim() === "") continue;
					const event = JSON.parse(line) as { type: string; object: T & Status };
					if (event.type === "ERROR") throw fromStatus(event.object, `watch of ${resource.plural}`);
					onEvent(event as WatchEvent<T>);
				}
				rest = rest.slice(start);
			}
		} catch (error) {
			signal.throwIfAborted();
			if (idle.signal.aborted) throw silence();
			throw error instanceof GroundplaneError ? error : unavailable(`watch of ${resource.plural} broke off`, error);
		} finally {
			clearTimeout(timer);
			// Ends the request when the loop was left early.
			idle.abort();
		}
	}

	/** Any request, for what has no method of its own. Answers the parsed body (`undefined` when there is none). */
	async request<T>(method: string, path: string, options: RequestOptions = {}): Promise<T> {
		const text = await this.requestText(method, path, options);
		if (text === "") return undefined as T;
		try {
			return JSON.parse(text) as T;
		} catch (cause) {
			throw unavailable(`${method} ${path}: the answer is no JSON`, cause);
		}
	}

	/** Like {@link request}, with the body as it came. */
	async requestText(method: string, path: string, options: RequestOptions = {}): Promise<string> {
		const deadline = AbortSignal.timeout(this.#timeout);
		const endsAt = performance.now() + this.#timeout;
		const signal = options.signal === undefined ? deadline : AbortSignal.any([options.signal, deadline]);
		try {
			const response = await this.#send(method, path, { ...options, signal }, endsAt);
			return await textOf(response);
		} catch (error) {
			options.signal?.throwIfAborted();
			if (deadline.aborted) {
				throw unavailable(`${method} ${path}: no answer within ${this.#timeout / 1000} s`, error);
			}
			throw error instanceof GroundplaneError ? error : unavailable(`${method} ${path}`, error);
		}
	}

	/**
	 * Sends a request and gives the response once it is a success; 429 and 5xx are retried as the server asks, as often and long as
	 * is reasonable and not past `endsAt`.
	 */
	async #send(
		method: string,
		path: string,
		options: RequestOptions,
		endsAt = Number.POSITIVE_INFINITY,
	): Promise<http.IncomingMessage> {
		for (let attempt = 0; ; attempt++) {
			this.#permit?.();
			const response = await this.#once(method, path, options).catch((error) => {
				restClientRequests.inc({ code: "<error>", method, host: this.#base.host });
				// A kept-alive connection that the server closed in this moment (Node's http.ClientRequest#reusedSocket).
				const stale = error.code === "ECONNRESET" && error.reusedSocket === true && method !== "POST";
				if (stale && attempt < maxThrottledRetries) return undefined;
				throw error;
			});
			if (response === undefined) continue;
			const code = response.statusCode ?? 0;
			restClientRequests.inc({ code: String(code), method, host: this.#base.host });
			if (code >= 200 && code < 300) return response;
			const status = statusOf(await textOf(response), code);
			const seconds = Number(response.headers["retry-after"] ?? Number.NaN);
			const retryAfter = Number.isFinite(seconds) ? seconds * 1000 : undefined;
			// As client-go: 429, and what a server that is going down answers.
			const wait = retryAfter ?? (code === 429 ? 1000 : undefined);
			const throttled = code === 429 ? options.retryThrottled !== false : code >= 500;
			if (throttled && wait !== undefined && wait <= maxRetryAfter && attempt < maxThrottledRetries) {
				const pause = wait * (1 + Math.random() / 2);
				// Whoever asked learns how long to wait, not that no answer came.
				if (performance.now() + pause < endsAt) {
					await delay(pause, undefined, { signal: options.signal });
					continue;
				}
			}
			throw fromStatus(status, `${method} ${path}`, retryAfter);
		}
	}

	#once(method: string, path: string, options: RequestOptions): Promise<http.IncomingMessage> {
		const { query = {}, body, contentType = "application/json", headers = {}, signal } = options;
		const search = new URLSearchParams();
		for (const [name, value] of Object.entries(query)) if (value !== undefined) search.set(name, String(value));
		const payload = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
		const base = this.#base.pathname.replace(/\/$/, "");
		const token = this.config.token?.();
		return new Promise((resolve, reject) => {
			const send = this.#base.protocol === "http:" ? http.request : https.request;
			const request = send({
				host: this.#base.hostname.replace(/^\[|\]$/g, ""),
				port: this.#base.port,
				method,
				path: `${base}${path}${search.size > 0 ? `?${search}` : ""}`,
				agent: this.#agent,
				headers: {
					accept: "application/json",
					"user-agent": this.#userAgent,
					...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
					...(payload === undefined ? {} : { "content-type": contentType, "content-length": payload.length }),
					...headers,
				},
				...(signal === undefined ? {} : { signal }),
			});
			request.on("response", resolve);
			request.on("error", (error) => reject(Object.assign(error, { reusedSocket: request.reusedSocket })));
			request.end(payload);
		});
	}
}

async function textOf(response: http.IncomingMessage): Promise<string> {
	const chunks: Buffer[] = [];
	for await (const chunk of response) chunks.push(chunk as Buffer);
	return Buffer.concat(chunks).toString("utf8");
}

function statusOf(text: string, code: number): Status {
	try {
		const status = JSON.parse(text) as Status;
		if (status.kind === "Status") return { ...status, code };
	} catch {
		// A proxy on the way answered, in its own words: they are the message.
	}
	return { code, message: text.slice(0, 500).trim() || http.STATUS_CODES[code] || "no reason given" };
}

function fromStatus(status: Status, what: string, retryAfter?: number): KubeError {
	const httpStatus = status.code ?? 500;
	const reason = status.reason ?? "Unknown";
	const [code, next] = meaning(httpStatus, reason);
	return new KubeError(code, `${what}: ${status.message ?? reason}`, { httpStatus, reason, next, retryAfter });
}

function meaning(httpStatus: number, reason: string): [ErrorCode, string] {
	switch (httpStatus) {
		case 400:
		case 422:
			return ["InvalidInput", "Correct the object as the message says."];
		case 401:
			return ["Unauthenticated", "Check the service account's token or the kubeconfig's credentials."];
		case 403:
			return ["Forbidden", "Give the component's service account the missing permission."];
		case 404:
			return ["NotFound", "Check the name, and whether the custom resource definitions are installed."];
		case 409:
			return [reason === "AlreadyExists" ? "AlreadyExists" : "Conflict", "Read the object again and retry."];
		case 410:
			return ["Conflict", "List again: the version asked for is gone."];
		default:
			return ["KubernetesUnavailable", "The API server is retried; look at its health when this lasts."];
	}
}

const unavailable = (message: string, cause: unknown): KubeError =>
	new KubeError("KubernetesUnavailable", cause instanceof Error ? `${message}: ${cause.message}` : message, {
		httpStatus: 0,
		reason: "Unreachable",
		next: "The API server is retried; check that it runs and can be reached when this lasts.",
		cause,
	});

const withType = <T extends KubeObject>(resource: Resource, object: T): T => ({
	...object,
	apiVersion: apiVersionOf(resource),
	kind: resource.kind,
});
