import { GroundplaneError } from "../../protocol/errors.ts";

/** Counts failures by key in a window of time and refuses when there are too many. Memory is bounded: oldest keys go first. */
export class Throttle {
	readonly #entries = new Map<string, { failures: number; until: number }>();
	readonly #limit: number;
	readonly #windowMs: number;
	readonly #now: () => number;
	readonly #maxKeys: number;

	constructor(options: { limit: number; windowMs: number; now?: () => number; maxKeys?: number }) {
		this.#limit = options.limit;
		this.#windowMs = options.windowMs;
		this.#now = options.now ?? Date.now;
		this.#maxKeys = options.maxKeys ?? 10_000;
	}

	/** @throws GroundplaneError Overloaded while the key is over its limit. */
	check(key: string): void {
		const entry = this.#current(key);
		if (!entry || entry.failures < this.#limit) return;
		const seconds = Math.ceil((entry.until - this.#now()) / 1000);
		throw new GroundplaneError("Overloaded", "There were too many failed attempts to sign in.", {
			next: `Wait ${seconds} s, then try again; an administrator can set a new password.`,
		});
	}

	failed(key: string): void {
		const entry = this.#current(key) ?? { failures: 0, until: this.#now() + this.#windowMs };
		entry.failures++;
		this.#entries.delete(key);
		this.#entries.set(key, entry);
		const oldest = this.#entries.keys().next().value;
		if (this.#entries.size > this.#maxKeys && oldest !== undefined) this.#entries.delete(oldest);
	}

	succeeded(key: string): void {
		this.#entries.delete(key);
	}

	#current(key: string) {
		const entry = this.#entries.get(key);
		if (entry && entry.until <= this.#now()) {
			this.#entries.delete(key);
			return undefined;
		}
		return entry;
	}
}
