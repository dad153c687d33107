import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { asGroundplaneError } from "../../protocol/errors.ts";
import { isGone, type KubeClient, KubeError, type KubeList, type ListOptions } from "./client.ts";
import {
	cacheSources,
	reflectorAudits,
	reflectorFailures,
	reflectorLists,
	reflectorMissed,
	reflectorWatches,
} from "./metrics.ts";
import { type KubeObject, keyOf, type Resource } from "./resources.ts";
import { type Indexer, Store } from "./store.ts";

export interface ReflectorOptions<T extends KubeObject> {
	client: KubeClient;
	resource: Resource<T>;
	/** One namespace; all when empty. */
	namespace?: string;
	labelSelector?: string;
	fieldSelector?: string;
	/** Drops what is never read, before an object is kept. `managedFields` are always dropped. */
	transform?: (object: T) => T;
	/** What {@link Reflector.byIndex} finds objects by. */
	indexers?: Readonly<Record<string, Indexer<T>>>;
	log: Logger;
	/** Objects a page of a list. */
	pageSize?: number;
	random?: () => number;
	/** Milliseconds on a clock that only goes forward. */
	now?: () => number;
	/** A watch is given up after this long without a byte, in milliseconds. Bookmarks come about every minute. */
	inactivityTimeout?: number;
	/** Longest delay after a failure, in milliseconds. */
	maxDelay?: number;
	/** How often the copy is compared with the API server's objects, in milliseconds. */
	auditInterval?: number;
}

export interface Change<T> {
	type: "added" | "updated" | "deleted";
	key: string;
	object: T;
	previous?: T;
	/** Of the first list: it was there before, nothing has happened to it. */
	initial: boolean;
}

const baseDelay = 500;
/** A watch that lasted this long was a good one: what ends it is the first failure of a new row. */
const healthyWatch = 10_000;
/** How long a watch may be silent, in milliseconds: two bookmarks. */
const silentAfter = 150_000;
/** What a server answers that is too busy, or comes up: no word on our version. */
const passing = [0, 429, 503];
/** With three bookmarks missing nobody should go by the copy any more. */
const staleAfter = 180_000;
const NAMESPACE = "namespace";
/** Names and versions only: a hundredth of the objects. */
const metadataOnly = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";

/**
 * Keeps a copy of a kind's objects true, as client-go's reflector does: list in pages, watch from there with bookmarks and a
 * server timeout of 5 to 10 minutes, list again when the version is gone, back off with jitter, never give up. Every hour it
 * compares the copy with the server's objects, counts what the watch has missed and lists again if it has.
 */
export class Reflector<T extends KubeObject> {
	readonly resource: Resource<T>;
	readonly #options: ReflectorOptions<T>;
	readonly #log: Logger;
	readonly #random: () => number;
	readonly #now: () => number;
	readonly #store: Store<T>;
	readonly #handlers = new Set<(change: Change<T>) => void>();
	readonly #synced = Promise.withResolvers<void>();
	#hasSynced = false;
	/** Up to here the copy is what the server had; unknown while a list is under way. */
	#resourceVersion: string | undefined;
	#heardAt: number;
	/** Ends the watch that is under way, to list again. */
	#relist = new AbortController();

	constructor(options: ReflectorOptions<T>) {
		this.#options = options;
		this.resource = options.resource;
		this.#log = options.log.child({ reflector: options.resource.kind });
		this.#random = options.random ?? Math.random;
		this.#now = options.now ?? (() => performance.now());
		this.#heardAt = this.#now();
		this.#store = new Store({
			[NAMESPACE]: ({ metadata }) => (metadata.namespace === undefined ? [] : [metadata.namespace]),
			...options.indexers,
		});
	}

	/** Whether the first list is complete. */
	get hasSynced(): boolean {
		return this.#hasSynced;
	}

	/** Objects held. */
	get size(): number {
		return this.#store.size;
	}

	/** Milliseconds since a list, an event or a bookmark came. */
	get age(): number {
		return this.#now() - this.#heardAt;
	}

	/** Whether the copy can be gone by: it is complete, and the server was heard of lately. */
	get isFresh(): boolean {
		return this.#hasSynced && this.age < staleAfter;
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
		return namespace === undefined ? this.#store.values() : this.#store.byIndex(NAMESPACE, namespace);
	}

	/** Objects for which the indexer of that name answered `value`. Shared: never change them. */
	byIndex(index: string, value: string): T[] {
		return this.#store.byIndex(index, value);
	}

	/** Calls `handler` for every change from now on (also for those of a later full list). Answers how to stop it. */
	onChange(handler: (change: Change<T>) => void): () => void {
		this.#handlers.add(handler);
		return () => this.#handlers.delete(handler);
	}

	/** Lists and watches until `signal` aborts. */
	async run(signal: AbortSignal): Promise<void> {
		this.#heardAt = this.#now();
		// There from the beginning, so that the first increase is one.
		reflectorMissed.inc({ kind: this.resource.kind }, 0);
		cacheSources.add(this);
		try {
			await Promise.all([this.#follow(signal), this.#audits(signal)]);
		} finally {
			cacheSources.delete(this);
		}
	}

	async #follow(signal: AbortSignal): Promise<void> {
		const { maxDelay = 30_000, inactivityTimeout = silentAfter } = this.#options;
		const kind = this.resource.kind;
		let failures = 0;
		while (!signal.aborted) {
			let startedAt: number | undefined;
			let least = 0;
			// A server that was restored from a backup is behind our version, and tells nothing before it has caught up.
			if (this.age > inactivityTimeout) this.#resourceVersion = undefined;
			try {
				if (this.#resourceVersion === undefined) await this.#list(signal);
				startedAt = this.#now();
				await this.#watch(signal, inactivityTimeout);
				// A server that ends watches at once must not be asked in a tight loop.
				failures = this.#now() - startedAt < 1000 ? failures + 1 : 0;
				if (failures === 0) continue;
			} catch (error) {
				if (signal.aborted) return;
				if (startedAt !== undefined && this.#now() - startedAt > healthyWatch) failures = 0;
				if (this.#relist.signal.aborted) {
					this.#relist = new AbortController();
					this.#resourceVersion = undefined;
				} else if (isGone(error)) {
					this.#log.info("version is gone, listing again");
					this.#resourceVersion = undefined;
				} else {
					const { code, message } = asGroundplaneError(error);
					if (error instanceof KubeError) {
						least = error.retryAfter ?? 0;
						// It would say the same of this version again, as of an event that it can't read any more.
						if (!passing.includes(error.httpStatus)) this.#resourceVersion = undefined;
					}
					reflectorFailures.inc({ kind, code });
					this.#log.warn({ code, err: message, failures }, "list or watch failed, trying again");
				}
				failures++;
			}
			const backoff = Math.min(maxDelay, baseDelay * 2 ** Math.min(failures - 1, 10)) * (0.5 + this.#random());
			await delay(Math.max(backoff, least), undefined, { signal }).catch(() => undefined);
		}
	}

	async #list(signal: AbortSignal): Promise<void> {
		reflectorLists.inc({ kind: this.resource.kind });
		const seen = new Set<string>();
		// Page by page, so that no more than one is ever held untrimmed.
		const take = (item: T) => {
			const object = this.#keep(item);
			const key = keyOf(object);
			seen.add(key);
			this.#put(key, object);
		};
		const list = (options: ListOptions) => this.#options.client.list(this.resource, options);
		const version = await this.#pages(list, signal, take).catch(async (error) => {
			if (!isGone(error)) throw error;
			// Compacted between two pages (a slow list of many objects): all at once, as client-go's pager does.
			const { items, metadata } = await list({ ...this.#filter(), signal });
			// What was on a page may be gone by now.
			seen.clear();
			for (const item of items) take(item);
			return metadata.resourceVersion;
		});
		for (const [key, object] of [...this.#store.entries()]) if (!seen.has(key)) this.#remove(key, object);
		this.#resourceVersion = version;
		this.#heardAt = this.#now();
		if (!this.#hasSynced) {
			this.#hasSynced = true;
			this.#synced.resolve();
		}
	}

	/** Hands over all objects of a list, page by page. Answers the version of the list. */
	async #pages<I>(
		list: (options: ListOptions) => Promise<KubeList<I>>,
		signal: AbortSignal,
		each: (item: I) => void,
	): Promise<string> {
		const options = { ...this.#filter(), limit: this.#options.pageSize ?? 500, signal };
		let page = await list(options);
		const version = page.metadata.resourceVersion;
		for (;;) {
			for (const item of page.items) each(item);
			const next = page.metadata.continue;
			if (next === undefined || next === "") return version;
			page = await list({ ...options, continue: next });
		}
	}

	async #watch(signal: AbortSignal, inactivityTimeout: number): Promise<void> {
		const { client } = this.#options;
		reflectorWatches.inc({ kind: this.resource.kind });
		await client.watch(
			this.resource,
			{
				...this.#filter(),
				inactivityTimeout,
				...(this.#resourceVersion === undefined ? {} : { resourceVersion: this.#resourceVersion }),
				timeoutSeconds: Math.round(300 * (1 + this.#random())),
			},
			({ type, object }) => {
				this.#heardAt = this.#now();
				const { resourceVersion } = object.metadata;
				if (isOlder(resourceVersion, this.#resourceVersion)) {
					this.#outOfOrder(object);
					return;
				}
				if (type === "DELETED") this.#remove(keyOf(object), object);
				else if (type !== "BOOKMARK") {
					const kept = this.#keep(object);
					this.#put(keyOf(kept), kept);
				}
				this.#resourceVersion = resourceVersion;
			},
			AbortSignal.any([signal, this.#relist.signal]),
		);
	}

	/**
	 * An event with an older version than the one before (KEP-5504: they can be compared). One that was told twice is no news; in
	 * any other case only a list can tell what is true.
	 */
	#outOfOrder(object: T): void {
		const held = this.#store.get(keyOf(object))?.metadata.resourceVersion;
		if (held !== undefined && !isOlder(held, object.metadata.resourceVersion)) return;
		this.#log.warn({ object: keyOf(object) }, "an event came out of order, listing again");
		this.#relist.abort();
	}

	async #audits(signal: AbortSignal): Promise<void> {
		const { auditInterval = 3_600_000 } = this.#options;
		while (!signal.aborted) {
			await delay(auditInterval * (0.75 + this.#random() / 2), undefined, { signal }).catch(() => undefined);
			if (signal.aborted) return;
			try {
				await this.#audit(signal);
			} catch (error) {
				if (signal.aborted) return;
				const { code, message } = asGroundplaneError(error);
				this.#log.info({ code, err: message }, "the audit could not be made, it is made the next time");
			}
		}
	}

	/** Asks for what there was at exactly the version of the copy, so that nothing under way counts as missed. */
	async #audit(signal: AbortSignal): Promise<void> {
		const version = this.#resourceVersion;
		if (version === undefined) return;
		const kind = this.resource.kind;
		const copy = new Map<string, string | undefined>();
		for (const [key, { metadata }] of this.#store.entries()) copy.set(key, metadata.resourceVersion);
		let missed = 0;
		const exact = { resourceVersion: version, resourceVersionMatch: "Exact" } as const;
		await this.#pages(
			({ continue: next, ...options }) =>
				this.#options.client.list<KubeObject>(this.resource, {
					...options,
					...(next === undefined ? exact : { continue: next }),
					accept: metadataOnly,
				}),
			signal,
			(item) => {
				const key = keyOf(item);
				if (copy.get(key) !== item.metadata.resourceVersion) missed++;
				copy.delete(key);
			},
		);
		missed += copy.size;
		reflectorAudits.inc({ kind });
		reflectorMissed.inc({ kind }, missed);
		if (missed === 0) return;
		this.#log.error({ missed }, "the watch has missed changes, listing again");
		this.#relist.abort();
	}

	#filter(): { namespace?: string; labelSelector?: string; fieldSelector?: string } {
		const { namespace, labelSelector, fieldSelector } = this.#options;
		return {
			...(namespace === undefined ? {} : { namespace }),
			...(labelSelector === undefined ? {} : { labelSelector }),
			...(fieldSelector === undefined ? {} : { fieldSelector }),
		};
	}

	/** What is kept of an object. A copy, because `delete` would make a slow and large dictionary of it. */
	#keep(object: T): T {
		const { managedFields: _, ...metadata } = object.metadata as T["metadata"] & { managedFields?: unknown };
		const kept = { ...object, metadata };
		return this.#options.transform?.(kept) ?? kept;
	}

	#put(key: string, object: T): void {
		const initial = !this.#hasSynced;
		const previous = this.#store.get(key);
		if (previous !== undefined && previous.metadata.resourceVersion === object.metadata.resourceVersion) return;
		this.#store.put(key, object);
		this.#tell(
			previous === undefined
				? { type: "added", key, object, initial }
				: { type: "updated", key, object, previous, initial },
		);
	}

	#remove(key: string, object: T): void {
		const previous = this.#store.delete(key);
		if (previous === undefined) return;
		this.#tell({ type: "deleted", key, object, previous, initial: false });
	}

	#tell(change: Change<T>): void {
		for (const handler of this.#handlers) {
			try {
				handler(change);
			} catch (error) {
				// A handler's fault must not end the watch of the others.
				this.#log.error({ err: error, object: change.key }, "a change handler threw");
			}
		}
	}
}

/** Whether a resourceVersion comes before another: both are decimal numbers of any length. Unknown ones do not. */
export function isOlder(version: string | undefined, than: string | undefined): boolean {
	if (version === undefined || than === undefined) return false;
	return version.length === than.length ? version < than : version.length < than.length;
}
