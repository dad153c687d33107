import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { asGroundplaneError } from "../../protocol/errors.ts";
import { isGone, type KubeClient } from "./client.ts";
import { reflectorFailures, reflectorLists, reflectorObjects, reflectorWatches } from "./metrics.ts";
import { type KubeObject, keyOf, type Resource } from "./resources.ts";

export interface ReflectorOptions<T extends KubeObject> {
	client: KubeClient;
	resource: Resource<T>;
	/** One namespace; all when empty. */
	namespace?: string;
	labelSelector?: string;
	fieldSelector?: string;
	/** Drops what is never read, before an object is kept. `managedFields` are always dropped. */
	transform?: (object: T) => T;
	log: Logger;
	/** Objects a page of a list. */
	pageSize?: number;
	random?: () => number;
	/** A watch is given up after this long without a byte, in milliseconds. Bookmarks come about every minute. */
	inactivityTimeout?: number;
}

export interface Change<T> {
	type: "added" | "updated" | "deleted";
	key: string;
	object: T;
	previous?: T;
}

const baseDelay = 500;
const maxDelay = 30_000;

/**
 * Keeps a copy of a kind's objects true, as client-go's reflector does: list in pages, watch from there with bookmarks and a
 * server timeout of 5 to 10 minutes, list again when the version is gone, back off with jitter, never give up.
 */
export class Reflector<T extends KubeObject> {
	readonly resource: Resource<T>;
	readonly #options: ReflectorOptions<T>;
	readonly #log: Logger;
	readonly #random: () => number;
	readonly #store = new Map<string, T>();
	readonly #handlers = new Set<(change: Change<T>) => void>();
	readonly #synced = Promise.withResolvers<void>();
	#hasSynced = false;
	#resourceVersion: string | undefined;

	constructor(options: ReflectorOptions<T>) {
		this.#options = options;
		this.resource = options.resource;
		this.#log = options.log.child({ reflector: options.resource.kind });
		this.#random = options.random ?? Math.random;
	}

	/** Whether the first list is complete. */
	get hasSynced(): boolean {
		return this.#hasSynced;
	}

	/** Resolves when the first list is complete; rejects when `signal` aborts before. */
	async waitForSync(signal?: AbortSignal): Promise<void> {
		if (signal === undefined) return this.#synced.promise;
		signal.throwIfAborted();
		const aborted = Promise.withResolvers<never>();
		const onAbort = () => aborted.reject(signal.reason);
		signal.addEventListener("abort", onAbort, { once: true });
		try {
			await Promise.race([this.#synced.promise, aborted.promise]);
		} finally {
			signal.removeEventListener("abort", onAbort);
		}
	}

	/** The object as last seen. Shared: never change it. */
	get(key: string): T | undefined {
		return this.#store.get(key);
	}

	/** All objects as last seen (those of a namespace, when one is given). Shared: never change them. */
	list({ namespace }: { namespace?: string } = {}): T[] {
		const all = [...this.#store.values()];
		return namespace === undefined ? all : all.filter((object) => object.metadata.namespace === namespace);
	}

	/** Calls `handler` for every change from now on (also for those of a later full list). Answers how to stop it. */
	onChange(handler: (change: Change<T>) => void): () => void {
		this.#handlers.add(handler);
		return () => this.#handlers.delete(handler);
	}

	/** Lists and watches until `signal` aborts. */
	async run(signal: AbortSignal): Promise<void> {
		const kind = this.resource.kind;
		let failures = 0;
		while (!signal.aborted) {
			try {
				if (this.#resourceVersion === undefined) await this.#list(signal);
				const startedAt = performance.now();
				await this.#watch(signal);
				// A server that ends watches at once must not be asked in a tight loop.
				failures = performance.now() - startedAt < 1000 ? failures + 1 : 0;
				if (failures === 0) continue;
			} catch (error) {
				if (signal.aborted) return;
				if (isGone(error)) {
					this.#log.info("version is gone, listing again");
					this.#resourceVersion = undefined;
				} else {
					const { code, message } = asGroundplaneError(error);
					reflectorFailures.inc({ kind, code });
					this.#log.warn({ code, err: message, failures }, "list or watch failed, trying again");
				}
				failures++;
			}
			const wait = Math.min(maxDelay, baseDelay * 2 ** Math.min(failures - 1, 10)) * (0.5 + this.#random());
			await delay(wait, undefined, { signal }).catch(() => undefined);
		}
	}

	async #list(signal: AbortSignal): Promise<void> {
		const { client, namespace, labelSelector, fieldSelector, pageSize = 500 } = this.#options;
		const filter = {
			...(namespace === undefined ? {} : { namespace }),
			...(labelSelector === undefined ? {} : { labelSelector }),
			...(fieldSelector === undefined ? {} : { fieldSelector }),
		};
		reflectorLists.inc({ kind: this.resource.kind });
		const { items, metadata } = await client.listAll(this.resource, { ...filter, limit: pageSize, signal });
		const seen = new Set<string>();
		for (const item of items) {
			const object = this.#keep(item);
			const key = keyOf(object);
			seen.add(key);
			this.#put(key, object);
		}
		for (const [key, object] of this.#store) if (!seen.has(key)) this.#remove(key, object);
		this.#resourceVersion = metadata.resourceVersion;
		reflectorObjects.set({ kind: this.resource.kind }, this.#store.size);
		if (!this.#hasSynced) {
			this.#hasSynced = true;
			this.#synced.resolve();
		}
	}

	async #watch(signal: AbortSignal): Promise<void> {
		const { client, namespace, labelSelector, fieldSelector, inactivityTimeout } = this.#options;
		reflectorWatches.inc({ kind: this.resource.kind });
		await client.watch(
			this.resource,
			{
				...(namespace === undefined ? {} : { namespace }),
				...(labelSelector === undefined ? {} : { labelSelector }),
				...(fieldSelector === undefined ? {} : { fieldSelector }),
				...(inactivityTimeout === undefined ? {} : { inactivityTimeout }),
				...(this.#resourceVersion === undefined ? {} : { resourceVersion: this.#resourceVersion }),
				timeoutSeconds: Math.round(300 * (1 + this.#random())),
			},
			({ type, object }) => {
				if (type === "ADDED" || type === "MODIFIED") {
					const kept = this.#keep(object);
					this.#put(keyOf(kept), kept);
				} else if (type === "DELETED") {
					this.#remove(keyOf(object), object);
				}
				reflectorObjects.set({ kind: this.resource.kind }, this.#store.size);
				this.#resourceVersion = object.metadata.resourceVersion ?? this.#resourceVersion;
			},
			signal,
		);
	}

	#keep(object: T): T {
		delete (object.metadata as { managedFields?: unknown }).managedFields;
		return this.#options.transform?.(object) ?? object;
	}

	#put(key: string, object: T): void {
		const previous = this.#store.get(key);
		if (previous !== undefined && previous.metadata.resourceVersion === object.metadata.resourceVersion) return;
		this.#store.set(key, object);
		this.#tell(previous === undefined ? { type: "added", key, object } : { type: "updated", key, object, previous });
	}

	#remove(key: string, object: T): void {
		const previous = this.#store.get(key);
		if (previous === undefined) return;
		this.#store.delete(key);
		this.#tell({ type: "deleted", key, object, previous });
	}

	#tell(change: Change<T>): void {
		for (const handler of this.#handlers) {
			try {
				handler(change);
			} catch (error) {
				// A handler's fault must not end the watch of the others.
				this.#log.error({ err: error, key: change.key }, "a change handler threw");
			}
		}
	}
}
