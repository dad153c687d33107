import { queueAdds, queueDepth, queueDuration, queueRetries } from "./metrics.ts";

export interface WorkQueueOptions {
	name: string;
	/** First delay after a failure, in milliseconds; doubled for each further one up to `maxDelay`, with ±25 % jitter. */
	baseDelay?: number;
	maxDelay?: number;
	now?: () => number;
	random?: () => number;
}

/**
 * Keys to be worked on, as client-go's workqueue has them: a key waits at most once, is never worked on twice at the same time,
 * and one added while it is worked on comes again afterwards.
 */
export class WorkQueue {
	readonly name: string;
	readonly #baseDelay: number;
	readonly #maxDelay: number;
	readonly #now: () => number;
	readonly #random: () => number;
	/** Waiting, in order, with the time at which each was added. */
	readonly #waiting = new Map<string, number>();
	readonly #processing = new Set<string>();
	/** Added while being worked on. */
	readonly #dirty = new Set<string>();
	readonly #delayed = new Map<string, { timer: NodeJS.Timeout; at: number }>();
	readonly #failures = new Map<string, number>();
	readonly #takers = new Set<() => void>();
	#shut = false;

	constructor({ name, baseDelay = 200, maxDelay = 300_000, now = Date.now, random = Math.random }: WorkQueueOptions) {
		this.name = name;
		this.#baseDelay = baseDelay;
		this.#maxDelay = maxDelay;
		this.#now = now;
		this.#random = random;
	}

	/** Keys that wait (not those that are delayed or worked on). */
	get length(): number {
		return this.#waiting.size;
	}

	/** Adds a key now. A delayed entry of the same key is kept: it may be a deadline. */
	add(key: string): void {
		if (this.#shut || this.#waiting.has(key) || this.#dirty.has(key)) return;
		queueAdds.inc({ name: this.name });
		if (this.#processing.has(key)) {
			this.#dirty.add(key);
			return;
		}
		this.#push(key);
	}

	/** Adds a key in `delay` milliseconds; of several delays the earliest counts. */
	addAfter(key: string, delay: number): void {
		if (this.#shut) return;
		if (delay <= 0) {
			this.add(key);
			return;
		}
		const at = this.#now() + delay;
		const pending = this.#delayed.get(key);
		if (pending !== undefined) {
			if (pending.at <= at) return;
			clearTimeout(pending.timer);
		}
		// Timers hold 31 bits of milliseconds: a later deadline (certificate renewal) comes early, which does no harm.
		const timer = setTimeout(
			() => {
				this.#delayed.delete(key);
				this.add(key);
			},
			Math.min(delay, 2 ** 31 - 1),
		);
		this.#delayed.set(key, { timer, at });
	}

	/** Adds a key that failed, after a delay that doubles with each failure. Answers the delay. */
	addRateLimited(key: string): number {
		const failures = this.#failures.get(key) ?? 0;
		this.#failures.set(key, failures + 1);
		queueRetries.inc({ name: this.name });
		const delay = Math.min(this.#maxDelay, this.#baseDelay * 2 ** Math.min(failures, 30));
		const jittered = delay * (0.75 + this.#random() / 2);
		this.addAfter(key, jittered);
		return jittered;
	}

	/** The key succeeded: its next failure starts with the first delay. */
	forget(key: string): void {
		this.#failures.delete(key);
	}

	/** Failures in a row. */
	retries(key: string): number {
		return this.#failures.get(key) ?? 0;
	}

	/** The next key, which must be given back with {@link done}; `undefined` once the queue is shut down. */
	async get(): Promise<string | undefined> {
		while (!this.#shut) {
			const next = this.#waiting.entries().next();
			if (!next.done) {
				const [key, since] = next.value;
				this.#waiting.delete(key);
				this.#processing.add(key);
				queueDepth.set({ name: this.name }, this.#waiting.size);
				queueDuration.observe({ name: this.name }, (this.#now() - since) / 1000);
				return key;
			}
			await new Promise<void>((resolve) => this.#takers.add(resolve));
		}
		return undefined;
	}

	/** Work on the key is over. */
	done(key: string): void {
		this.#processing.delete(key);
		if (this.#dirty.delete(key)) this.#push(key);
	}

	/** Ends all waiting: {@link get} answers `undefined`, nothing is added any more. */
	shutDown(): void {
		this.#shut = true;
		for (const { timer } of this.#delayed.values()) clearTimeout(timer);
		this.#delayed.clear();
		this.#waiting.clear();
		this.#dirty.clear();
		for (const wake of this.#takers) wake();
		this.#takers.clear();
	}

	#push(key: string): void {
		if (this.#shut) return;
		this.#waiting.set(key, this.#now());
		queueDepth.set({ name: this.name }, this.#waiting.size);
		const [taker] = this.#takers;
		if (taker !== undefined) {
			this.#takers.delete(taker);
			taker();
		}
	}
}
