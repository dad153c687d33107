import { queueAdds, queueDuration, queueRetries, queueSources, queueWorkDuration } from "./metrics.ts";

/** How urgent a key is: what people want comes before what machines report, and both before what is only looked at again. */
export const priorities = { resync: 0, status: 1, intent: 2 } as const;
export type Priority = (typeof priorities)[keyof typeof priorities];

export interface WorkQueueOptions {
	name: string;
	/** First delay after a failure, in milliseconds; doubled for each further one up to `maxDelay`, with ±25 % jitter. */
	baseDelay?: number;
	maxDelay?: number;
	/** Retries a second of all keys together once `retryBurst` are used up: what a failed API server has to bear. */
	retryRate?: number;
	retryBurst?: number;
	/** Keys of one group (see {@link groupOf}) that may be worked on at the same time. */
	groupLimit?: number;
	/** Milliseconds on a clock that only goes forward. */
	now?: () => number;
	random?: () => number;
}

/** Keys that are served in turns: those of one namespace, which is one region. */
export const groupOf = (key: string): string => {
	const slash = key.indexOf("/");
	return slash < 0 ? key : key.slice(0, slash);
};

/**
 * Keys to be worked on, as client-go's workqueue and controller-runtime's priority queue have them: a key waits at most once,
 * is never worked on twice at the same time, and one added while it is worked on comes again afterwards. The most urgent comes
 * first; among equals the namespaces take turns, and none may hold all workers.
 */
export class WorkQueue {
	readonly name: string;
	readonly #baseDelay: number;
	readonly #maxDelay: number;
	readonly #retries: TokenBucket;
	readonly #groupLimit: number;
	readonly #now: () => number;
	readonly #random: () => number;
	readonly #waiting = new Map<string, { priority: Priority; since: number }>();
	/** By priority: the groups in the order of their turns, each with its waiting keys in theirs. */
	readonly #turns = [new Map<string, Set<string>>(), new Map<string, Set<string>>(), new Map<string, Set<string>>()];
	/** What is worked on, with how urgent it was and the time of its start; and how much of each group. */
	readonly #processing = new Map<string, { priority: Priority; since: number }>();
	readonly #busy = new Map<string, number>();
	/** Added while being worked on. */
	readonly #dirty = new Map<string, { priority: Priority; since: number }>();
	readonly #delayed = new Map<string, { timer: NodeJS.Timeout; at: number; priority: Priority }>();
	readonly #failures = new Map<string, number>();
	readonly #takers = new Set<() => void>();
	readonly #metrics: ReturnType<typeof metricsOf>;
	#shut = false;

	constructor(options: WorkQueueOptions) {
		const { name, baseDelay = 200, maxDelay = 300_000, retryRate = 100, retryBurst = 500 } = options;
		this.name = name;
		this.#baseDelay = baseDelay;
		this.#maxDelay = maxDelay;
		this.#groupLimit = options.groupLimit ?? Number.POSITIVE_INFINITY;
		this.#now = options.now ?? (() => performance.now());
		this.#random = options.random ?? Math.random;
		this.#retries = new TokenBucket(retryRate, retryBurst, this.#now);
		this.#metrics = metricsOf(name);
		queueSources.add(this);
	}

	/** Keys that wait (not those that are delayed or worked on). */
	get length(): number {
		return this.#waiting.size;
	}

	/** Keys that are worked on. */
	get active(): number {
		return this.#processing.size;
	}

	/** Adds a key now, or makes a waiting one more urgent. A delayed entry of the same key is kept: it may be a deadline. */
	add(key: string, priority: Priority = priorities.status): void {
		if (this.#shut) return;
		if (!this.#processing.has(key)) {
			this.#push(key, priority);
			return;
		}
		const dirty = this.#dirty.get(key);
		if (dirty === undefined) {
			this.#metrics.adds.inc();
			this.#dirty.set(key, { priority, since: this.#now() });
		} else if (dirty.priority < priority) dirty.priority = priority;
	}

	/** Adds a key in `delay` milliseconds; of several delays the earliest counts. */
	addAfter(key: string, delay: number, priority: Priority = priorities.status): void {
		if (this.#shut) return;
		if (delay <= 0) {
			this.add(key, priority);
			return;
		}
		this.#metrics.retries.inc();
		const at = this.#now() + delay;
		const pending = this.#delayed.get(key);
		if (pending !== undefined) {
			if (pending.priority < priority) pending.priority = priority;
			if (pending.at <= at) return;
			clearTimeout(pending.timer);
		}
		const entry = { at, priority: pending?.priority ?? priority, timer: undefined as unknown as NodeJS.Timeout };
		// Timers hold 31 bits of milliseconds: a later deadline (certificate renewal) comes early, which does no harm.
		entry.timer = setTimeout(
			() => {
				this.#delayed.delete(key);
				this.add(key, entry.priority);
			},
			Math.min(delay, 2 ** 31 - 1),
		);
		this.#delayed.set(key, entry);
	}

	/**
	 * Adds a key that failed: after a delay that doubles with each failure, and not before `least` milliseconds (what a server
	 * asked for) nor before the token bucket of all retries has one for it. It stays as urgent as it was. Answers the delay.
	 */
	addRateLimited(key: string, least = 0): number {
		const failures = this.#failures.get(key) ?? 0;
		this.#failures.set(key, failures + 1);
		const backoff = Math.min(this.#maxDelay, this.#baseDelay * 2 ** Math.min(failures, 30));
		const delay = Math.max(backoff * (0.75 + this.#random() / 2), least, this.#retries.reserve());
		this.addAfter(key, delay, this.#processing.get(key)?.priority);
		return delay;
	}

	/** The key succeeded: its next failure starts with the first delay. */
	forget(key: string): void {
		this.#failures.delete(key);
	}

	/** The object is gone: nothing is kept of its key, and nothing that waits for it comes. */
	drop(key: string): void {
		this.#failures.delete(key);
		this.#dirty.delete(key);
		const delayed = this.#delayed.get(key);
		if (delayed !== undefined) clearTimeout(delayed.timer);
		this.#delayed.delete(key);
		const waiting = this.#waiting.get(key);
		if (waiting !== undefined) this.#unqueue(key, waiting.priority);
		this.#waiting.delete(key);
	}

	/** Failures in a row. */
	retries(key: string): number {
		return this.#failures.get(key) ?? 0;
	}

	/** The next key, which must be given back with {@link done}; `undefined` once the queue is shut down. */
	async get(): Promise<string | undefined> {
		while (!this.#shut) {
			const key = this.#next();
			if (key !== undefined) return key;
			await new Promise<void>((resolve) => this.#takers.add(resolve));
		}
		return undefined;
	}

	/** Work on the key is over. */
	done(key: string): void {
		const work = this.#processing.get(key);
		if (work === undefined) return;
		this.#processing.delete(key);
		this.#metrics.workDuration.observe((this.#now() - work.since) / 1000);
		const group = groupOf(key);
		const busy = (this.#busy.get(group) ?? 1) - 1;
		if (busy === 0) this.#busy.delete(group);
		else this.#busy.set(group, busy);
		const dirty = this.#dirty.get(key);
		if (dirty !== undefined) {
			this.#dirty.delete(key);
			this.#push(key, dirty.priority, dirty.since);
		}
		// A key of its group may have waited for this.
		if (busy + 1 >= this.#groupLimit) this.#wake();
	}

	/** Ends all waiting: {@link get} answers `undefined`, nothing is added any more. What is worked on goes on. */
	shutDown(): void {
		this.#shut = true;
		for (const { timer } of this.#delayed.values()) clearTimeout(timer);
		this.#delayed.clear();
		this.#waiting.clear();
		for (const groups of this.#turns) groups.clear();
		this.#dirty.clear();
		for (const wake of this.#takers) wake();
		this.#takers.clear();
		queueSources.delete(this);
	}

	/** Number of waiting keys by priority (with those that come again), and how long (seconds) what is worked on has taken: in all, and the longest. */
	snapshot(): { depth: number[]; unfinished: number; longest: number } {
		const depth = this.#turns.map((groups) => {
			let sum = 0;
			for (const keys of groups.values()) sum += keys.size;
			return sum;
		});
		for (const { priority } of this.#dirty.values()) depth[priority] = (depth[priority] ?? 0) + 1;
		const now = this.#now();
		const ages = [...this.#processing.values()].map(({ since }) => (now - since) / 1000);
		return { depth, unfinished: ages.reduce((sum, age) => sum + age, 0), longest: Math.max(0, ...ages) };
	}

	/** `since` when it has waited already, and was counted. */
	#push(key: string, priority: Priority, since?: number): void {
		if (this.#shut) return;
		const waiting = this.#waiting.get(key);
		if (waiting !== undefined) {
			if (waiting.priority >= priority) return;
			this.#unqueue(key, waiting.priority);
			waiting.priority = priority;
		} else {
			this.#waiting.set(key, { priority, since: since ?? this.#now() });
			if (since === undefined) this.#metrics.adds.inc();
		}
		const groups = this.#turns[priority] as Map<string, Set<string>>;
		const group = groupOf(key);
		const keys = groups.get(group);
		if (keys === undefined) groups.set(group, new Set([key]));
		else keys.add(key);
		this.#wake();
	}

	#unqueue(key: string, priority: Priority): void {
		const groups = this.#turns[priority] as Map<string, Set<string>>;
		const group = groupOf(key);
		const keys = groups.get(group);
		keys?.delete(key);
		if (keys?.size === 0) groups.delete(group);
	}

	/** Takes the most urgent key of the group whose turn it is; `undefined` when nothing may be begun. */
	#next(): string | undefined {
		for (const priority of [priorities.intent, priorities.status, priorities.resync]) {
			const groups = this.#turns[priority] as Map<string, Set<string>>;
			for (const [group, keys] of groups) {
				const busy = this.#busy.get(group) ?? 0;
				if (busy >= this.#groupLimit) continue;
				const [key] = keys as unknown as [string];
				keys.delete(key);
				// To the end of the line, if it has more.
				groups.delete(group);
				if (keys.size > 0) groups.set(group, keys);
				const since = this.#waiting.get(key)?.since ?? 0;
				this.#waiting.delete(key);
				const now = this.#now();
				this.#processing.set(key, { priority, since: now });
				this.#busy.set(group, busy + 1);
				this.#metrics.duration.observe((now - since) / 1000);
				return key;
			}
		}
		return undefined;
	}

	#wake(): void {
		const [taker] = this.#takers;
		if (taker === undefined) return;
		this.#takers.delete(taker);
		taker();
	}
}

/** Tokens that come in at `rate` a second, up to `burst`; each reservation takes one, if need be of the future. */
export class TokenBucket {
	readonly #rate: number;
	readonly #burst: number;
	readonly #now: () => number;
	#tokens: number;
	#at: number;

	constructor(rate: number, burst: number, now: () => number) {
		this.#rate = rate;
		this.#burst = burst;
		this.#now = now;
		this.#tokens = burst;
		this.#at = now();
	}

	/** Takes a token. Answers in how many milliseconds it is there. */
	reserve(): number {
		const now = this.#now();
		this.#tokens = Math.min(this.#burst, this.#tokens + (Math.max(0, now - this.#at) * this.#rate) / 1000);
		this.#at = now;
		this.#tokens--;
		return this.#tokens >= 0 ? 0 : (-this.#tokens * 1000) / this.#rate;
	}
}

/** Children of the metrics: looking their labels up costs more than a key's whole way through the queue. */
const metricsOf = (name: string) => {
	const labels = { name, controller: name };
	// There from the beginning, so that the first increase is one.
	queueAdds.inc(labels, 0);
	queueRetries.inc(labels, 0);
	return {
		adds: queueAdds.labels(labels),
		retries: queueRetries.labels(labels),
		duration: queueDuration.labels(labels),
		workDuration: queueWorkDuration.labels(labels),
	};
};
