import { setTimeout as delay, setImmediate as nextTurn } from "node:timers/promises";
import type { Logger } from "pino";
import { asGroundplaneError } from "../../protocol/errors.ts";
import { isConflict, KubeError } from "./client.ts";
import {
	activeWorkers,
	maxConcurrentReconciles,
	reconcileErrors,
	reconcileTime,
	reconcileTimeouts,
	reconcileTotal,
} from "./metrics.ts";
import type { Change, Reflector } from "./reflector.ts";
import { type KubeObject, keyOf } from "./resources.ts";
import { type Priority, priorities, WorkQueue } from "./workqueue.ts";

/** What a reconciliation answers: when to come again although nothing changed, in milliseconds. */
export interface Result {
	requeueAfter?: number;
}

/** Brings the world one step nearer to the object of `key`. Runs at most once at a time for a key; must be idempotent. */
// biome-ignore lint/suspicious/noConfusingVoidType: most reconcilers have nothing to answer.
export type Reconcile = (key: string, signal: AbortSignal) => Promise<Result | void>;

/** Something that runs until its signal aborts. */
export interface Runnable {
	readonly name: string;
	run(signal: AbortSignal): Promise<void>;
}

/** Other objects whose changes concern this controller: a reflector and the keys that a change touches. */
export interface Watch {
	readonly reflector: Reflector<KubeObject>;
	attach(enqueue: (key: string, priority: Priority) => void): () => void;
}

/** How urgent a change is: what people can change (spec, deletion) before what machines report. */
export function priorityOf<T extends KubeObject>({ type, object, previous, initial }: Change<T>): Priority {
	if (initial) return priorityAtRest(object);
	const reported =
		type === "updated" &&
		previous?.metadata.generation === object.metadata.generation &&
		previous?.metadata.deletionTimestamp === object.metadata.deletionTimestamp;
	return reported ? priorities.status : priorities.intent;
}

/**
 * How urgent an object is that is looked at although nothing is told of it: what people changed while nobody watched (the operator
 * was away, or another one leads now) is theirs all the same, and must not wait until all that machines report is done.
 */
function priorityAtRest({ metadata, status }: KubeObject & { status?: { observedGeneration?: number } }): Priority {
	const isSeen = metadata.generation === undefined || metadata.generation === status?.observedGeneration;
	return isSeen && metadata.deletionTimestamp === undefined ? priorities.resync : priorities.intent;
}

/** A {@link Watch}, typed by its reflector. `keys` is asked for the new and for the previous state of an object. */
export function watch<T extends KubeObject>(reflector: Reflector<T>, keys: (object: T) => readonly string[]): Watch {
	return watchChanges(reflector, ({ object, previous }) =>
		previous === undefined ? keys(object) : [...keys(object), ...keys(previous)],
	);
}

/** The same for keys that the change itself decides: `keys` is asked once. */
export function watchChanges<T extends KubeObject>(
	reflector: Reflector<T>,
	keys: (change: Change<T>) => readonly string[],
): Watch {
	return {
		reflector: reflector as unknown as Reflector<KubeObject>,
		attach: (enqueue) =>
			reflector.onChange((change) => {
				const priority = priorityOf(change);
				for (const key of new Set(keys(change))) enqueue(key, priority);
			}),
	};
}

export interface ControllerOptions<T extends KubeObject> {
	name: string;
	/** The controller's own kind: every change enqueues the object's key. */
	primary: Reflector<T>;
	watches?: readonly Watch[];
	reconcile: Reconcile;
	/** Keys worked on at the same time. */
	concurrency?: number;
	/** How many of these may be of one namespace, so that no region's slow gateway takes all of them; all when empty. */
	perNamespace?: number;
	/** Deadline of one reconciliation, in milliseconds: its signal aborts then. */
	timeout?: number;
	/** Every object comes again after this long, in case an event was lost between systems; in milliseconds. */
	resync?: number;
	/** First and longest delay after a failure. */
	baseDelay?: number;
	maxDelay?: number;
	log: Logger;
	random?: () => number;
}

/** How long reconciliations that wait for nothing may keep the event loop, in milliseconds. */
const turnLength = 10;

/** Runs `reconcile` for every key that changed, as controller-runtime does. The reflectors are run by someone else. */
export class Controller<T extends KubeObject> implements Runnable {
	readonly name: string;
	readonly #options: ControllerOptions<T>;
	readonly #log: Logger;
	readonly #queue: WorkQueue;
	readonly #metrics: ReturnType<typeof metricsOf>;
	/** When the event loop last had a turn. */
	#turnAt = 0;

	constructor(options: ControllerOptions<T>) {
		this.#options = options;
		this.name = options.name;
		this.#log = options.log.child({ controller: options.name });
		this.#metrics = metricsOf(options.name);
		this.#queue = new WorkQueue({
			name: options.name,
			...(options.baseDelay === undefined ? {} : { baseDelay: options.baseDelay }),
			...(options.maxDelay === undefined ? {} : { maxDelay: options.maxDelay }),
			...(options.perNamespace === undefined ? {} : { groupLimit: options.perNamespace }),
			...(options.random === undefined ? {} : { random: options.random }),
		});
	}

	/** Has a key worked on, now or `delay` milliseconds from now. */
	enqueue(key: string, delay = 0): void {
		this.#queue.addAfter(key, delay);
	}

	/** Has every object looked at again, after all that is more urgent. */
	resync(): void {
		for (const object of this.#options.primary.list()) this.#queue.add(keyOf(object), priorityAtRest(object));
	}

	/** Whether nothing waits and nothing is under way. What comes later by the clock does not count. */
	get isIdle(): boolean {
		return this.#queue.length === 0 && this.#queue.active === 0;
	}

	/** Works until `signal` aborts, then waits for what is under way. */
	async run(signal: AbortSignal): Promise<void> {
		const { primary, watches = [], concurrency = 1, resync = 600_000 } = this.#options;
		const detach: (() => void)[] = [];
		try {
			// Not before everything is known: a plan on half the facts is a wrong plan.
			await Promise.all([
				primary.waitForSync(signal),
				...watches.map(({ reflector }) => reflector.waitForSync(signal)),
			]);
			// Changes count from here on, and all that is there is looked at: nothing can fall in between.
			detach.push(
				primary.onChange((change) => {
					// Deadlines of an object that is gone are nobody's any more.
					if (change.type === "deleted") this.#queue.drop(change.key);
					this.#queue.add(change.key, priorityOf(change));
				}),
				...watches.map((other) => other.attach((key, priority) => this.#queue.add(key, priority))),
			);
			this.resync();
			signal.addEventListener("abort", () => this.#queue.shutDown(), { once: true });
			if (signal.aborted) this.#queue.shutDown();
			maxConcurrentReconciles.set({ controller: this.name }, concurrency);
			await Promise.all([
				...Array.from({ length: concurrency }, () => this.#work(signal)),
				this.#resyncs(resync, signal),
			]);
		} catch (error) {
			if (!signal.aborted) throw error;
		} finally {
			for (const stop of detach) stop();
			this.#queue.shutDown();
		}
	}

	async #work(signal: AbortSignal): Promise<void> {
		const deadline = new Deadline(signal, this.#options.timeout ?? 120_000);
		try {
			for (let key = await this.#queue.get(); key !== undefined; key = await this.#queue.get()) {
				await this.#reconcile(key, signal, deadline);
				this.#queue.done(key);
				await this.#breathe();
			}
		} finally {
			deadline.end();
		}
	}

	async #reconcile(key: string, signal: AbortSignal, deadline: Deadline): Promise<void> {
		const { active, time, results } = this.#metrics;
		const startedAt = performance.now();
		active.inc();
		const within = deadline.start();
		try {
			const result = await this.#options.reconcile(key, within);
			this.#queue.forget(key);
			const requeueAfter = result?.requeueAfter;
			if (requeueAfter !== undefined) this.#queue.addAfter(key, requeueAfter);
			results[requeueAfter === undefined ? "success" : "requeue_after"].inc();
		} catch (error) {
			if (signal.aborted) return;
			if (within.aborted) reconcileTimeouts.inc({ controller: this.name });
			this.#failed(key, error);
		} finally {
			deadline.stop();
			active.dec();
			time.observe((performance.now() - startedAt) / 1000);
		}
	}

	#failed(key: string, error: unknown): void {
		const retryIn = this.#queue.addRateLimited(key, error instanceof KubeError ? error.retryAfter : undefined);
		const { code, message, next } = asGroundplaneError(error);
		this.#metrics.results.error.inc();
		reconcileErrors.inc({ controller: this.name });
		const facts = {
			object: key,
			code,
			err: message,
			next,
			retryIn: Math.round(retryIn),
			retries: this.#queue.retries(key),
		};
		// A conflict is how optimistic locking says "read again": it is no news unless it lasts.
		if (isConflict(error) && this.#queue.retries(key) < 5) this.#log.debug(facts, "conflict, trying again");
		else if (code === "Internal") this.#log.error({ ...facts, stack: (error as Error).stack }, "reconciliation failed");
		else this.#log.warn(facts, "reconciliation failed");
	}

	/** Reconciliations that wait for nothing follow each other without end: now and then the others get a turn (lease, probes). */
	async #breathe(): Promise<void> {
		if (performance.now() - this.#turnAt < turnLength) return;
		await nextTurn();
		this.#turnAt = performance.now();
	}

	async #resyncs(interval: number, signal: AbortSignal): Promise<void> {
		const random = this.#options.random ?? Math.random;
		while (!signal.aborted) {
			await delay(interval * (0.9 + random() / 5), undefined, { signal }).catch(() => undefined);
			if (!signal.aborted) this.resync();
		}
	}
}

/** A deadline for one thing after another: a signal of its own for each would cost more than most reconciliations. */
class Deadline {
	readonly #parent: AbortSignal;
	readonly #timer: NodeJS.Timeout;
	#own = new AbortController();
	#signal: AbortSignal;
	#isRunning = false;

	constructor(parent: AbortSignal, milliseconds: number) {
		this.#parent = parent;
		this.#signal = AbortSignal.any([parent, this.#own.signal]);
		this.#timer = setTimeout(() => {
			if (this.#isRunning) this.#own.abort(new DOMException("the reconciliation took too long", "TimeoutError"));
		}, milliseconds);
		this.#timer.unref();
	}

	/** The signal of what begins now. */
	start(): AbortSignal {
		if (this.#own.signal.aborted) {
			this.#own = new AbortController();
			this.#signal = AbortSignal.any([this.#parent, this.#own.signal]);
		}
		this.#isRunning = true;
		this.#timer.refresh();
		return this.#signal;
	}

	stop(): void {
		this.#isRunning = false;
	}

	end(): void {
		clearTimeout(this.#timer);
	}
}

function metricsOf(controller: string) {
	const results = {
		success: reconcileTotal.labels({ controller, result: "success" }),
		requeue_after: reconcileTotal.labels({ controller, result: "requeue_after" }),
		error: reconcileTotal.labels({ controller, result: "error" }),
	};
	// There from the beginning, so that the first increase is one.
	for (const result of Object.values(results)) result.inc(0);
	reconcileErrors.inc({ controller }, 0);
	reconcileTimeouts.inc({ controller }, 0);
	return { results, active: activeWorkers.labels({ controller }), time: reconcileTime.labels({ controller }) };
}
