import type { KubeObject } from "./resources.ts";

/** Values under which an object is found again, such as the names of the hosts that a cluster asks for. */
export type Indexer<T> = (object: T) => readonly string[];

/** Objects by key, and by what indexers say of them (client-go's thread-safe store). */
export class Store<T extends KubeObject> {
	readonly #objects = new Map<string, T>();
	readonly #indexers: ReadonlyMap<string, Indexer<T>>;
	/** By indexer and value: the objects, by key. */
	readonly #indices: ReadonlyMap<string, Map<string, Map<string, T>>>;

	constructor(indexers: Readonly<Record<string, Indexer<T>>> = {}) {
		this.#indexers = new Map(Object.entries(indexers));
		this.#indices = new Map(Object.keys(indexers).map((name) => [name, new Map()]));
	}

	get size(): number {
		return this.#objects.size;
	}

	get(key: string): T | undefined {
		return this.#objects.get(key);
	}

	values(): T[] {
		return [...this.#objects.values()];
	}

	entries(): MapIterator<[string, T]> {
		return this.#objects.entries();
	}

	/** Objects for which the indexer answered `value`. */
	byIndex(index: string, value: string): T[] {
		const found = this.#indices.get(index);
		if (found === undefined) throw new TypeError(`there is no index ${index}`);
		return [...(found.get(value)?.values() ?? [])];
	}

	/** Puts an object in. Answers the one that it replaces. */
	put(key: string, object: T): T | undefined {
		const previous = this.#objects.get(key);
		if (previous !== undefined) this.#unindex(key, previous);
		this.#objects.set(key, object);
		for (const [name, indexer] of this.#indexers) {
			const index = this.#indices.get(name) as Map<string, Map<string, T>>;
			for (const value of indexer(object)) {
				const found = index.get(value);
				if (found === undefined) index.set(value, new Map([[key, object]]));
				else found.set(key, object);
			}
		}
		return previous;
	}

	/** Takes an object out. Answers it, if it was there. */
	delete(key: string): T | undefined {
		const previous = this.#objects.get(key);
		if (previous === undefined) return undefined;
		this.#unindex(key, previous);
		this.#objects.delete(key);
		return previous;
	}

	#unindex(key: string, object: T): void {
		for (const [name, indexer] of this.#indexers) {
			const index = this.#indices.get(name) as Map<string, Map<string, T>>;
			for (const value of indexer(object)) {
				const found = index.get(value);
				found?.delete(key);
				if (found?.size === 0) index.delete(value);
			}
		}
	}
}
