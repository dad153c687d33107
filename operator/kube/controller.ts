import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { asGroundplaneError } from "../../protocol/errors.ts";
import { isConflict } from "./client.ts";
import { activeWorkers, maxConcurrentReconciles, reconcileErrors, reconcileTime, reconcileTotal } from "./metrics.ts";
import type { Change, Reflector } from "./reflector.ts";
import { type KubeObject, keyOf } from "./resources.ts";
import { WorkQueue } from "./workqueue.ts";

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
	attach(enqueue: (key: string) => void): () => void;
}

/** A {@link Watch}, typed by its reflector. `keys` is asked for the new and for the previous state of an object. */
export function watch<T extends KubeObject>(
	reflector: Reflector<T>,
	keys: (object: T, change: Change<T>) => readonly string[],
): Watch {
	return {
		reflector: reflector as unknown as Reflector<KubeObject>,
		attach: (enqueue) =>
			reflector.onChange((change) => {
				const touched = new Set(keys(change.object, change));
				if (change.previous !== undefined) for (const key of keys(change.previous, change)) touched.add(key);
				for (const key of touched) enqueue(key);
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
	/** Deadline of one reconciliation, in milliseconds: its signal aborts then. */
	timeout?: number;
	/** Every object comes again after this long, in case an event was lost between systems; in milliseconds. */
	resync?: number;
	/** First and longest delay after a failure. */
	baseDelay?: number;
	maxDelay?: number;
	log: Logger;
	now?: () => number;
	random?: () => number;
}

/** Runs `reconcile` for every key that changed, as controller-runtime does. The reflectors are run by someone else. */
export class Controller<T extends KubeObject> implements Runnable {
	readonly name: string;
	readonly #options: ControllerOptions<T>;
	readonly #log: Logger;
	readonly #queue: WorkQueue;

	constructor(options: ControllerOptions<T>) {
		this.#options = options;
		this.name = options.name;
		this.#log = options.log.child({ controller: options.name });
		this.#queue = new WorkQueue({
			name: options.name,
			...(options.baseDelay === undefined ? {} : { baseDelay: options.baseDelay }),
			...(options.maxDelay === undefined ? {} : { maxDelay: options.maxDelay }),
			...(options.now === undefined ? {} : { now: options.now }),
			...(options.random === undefined ? {} : { random: options.random }),
		});
	}

	/** Has a key worked on, now or `delay` milliseconds from now. */
	enqueue(key: string, delay = 0): void {
		this.#queue.addAfter(key, delay);
	}

	/** Works until `signal` aborts, then waits for what is under way. */
	async run(signal: AbortSignal): Promise<void> {
		const { primary, watches = [], concurrency = 1, resync = 600_000 } = this.#options;
		const enqueue = (key: string) => this.#queue.add(key);
		const detach = [
			watch(primary, (_, { key }) => [key]).attach(enqueue),
			...watches.map((other) => other.attach(enqueue)),
		];
		try {
			// Not before everything is known: a plan on half the facts is a wrong plan.
			await Promise.all([
				primary.waitForSync(signal),
				...watches.map(({ reflector }) => reflector.waitForSync(signal)),
			]);
			for (const object of primary.list()) enqueue(keyOf(object));
			signal.addEventListener("abort", () => this.#queue.shutDown(), { once: true });
			if (signal.aborted) this.#queue.shutDown();
			maxConcurrentReconciles.set({ controller: this.name }, concurrency);
			await Promise.all([
				...Array.from({ length: concurrency }, () => this.#work(signal)),
				this.#resync(resync, signal),
			]);
		} catch (error) {
			if (!signal.aborted) throw error;
		} finally {
			for (const stop of detach) stop();
			this.#queue.shutDown();
		}
	}

	async #work(signal: AbortSignal): Promise<void> {
		for (let key = await this.#queue.get(); key !== undefined; key = await this.#queue.get()) {
			await this.#reconcile(key, signal);
			this.#queue.done(key);
		}
	}

	async #reconcile(key: string, signal: AbortSignal): Promise<void> {
		const { reconcile, timeout = 120_000 } = this.#options;
		const controller = this.name;
		const startedAt = performance.now();
		activeWorkers.inc({ controller });
		try {
			const result = await reconcile(key, AbortSignal.any([signal, AbortSignal.timeout(timeout)]));
			this.#queue.forget(key);
			const requeueAfter = result?.requeueAfter;
			if (requeueAfter !== undefined) this.#queue.addAfter(key, requeueAfter);
			reconcileTotal.inc({ controller, result: requeueAfter === undefined ? "success" : "requeue_after" });
		} catch (error) {
			if (signal.aborted) return;
			const retryIn = this.#queue.addRateLimited(key);
			const { code, message, next } = asGroundplaneError(error);
			reconcileTotal.inc({ controller, result: "error" });
			reconcileErrors.inc({ controller, code });
			const facts = { key, code, err: message, next, retryIn: Math.round(retryIn), retries: this.#queue.retries(key) };
			// A conflict is how optimistic locking says "read again": it is no news unless it lasts.
			if (isConflict(error) && this.#queue.retries(key) < 5) this.#log.debug(facts, "conflict, trying again");
			else if (code === "Internal")
				this.#log.error({ ...facts, stack: (error as Error).stack }, "reconciliation failed");
			else this.#log.warn(facts, "reconciliation failed");
		} finally {
			activeWorkers.dec({ controller });
			reconcileTime.observe({ controller }, (performance.now() - startedAt) / 1000);
		}
	}

	async #resync(interval: number, signal: AbortSignal): Promise<void> {
		const random = this.#options.random ?? Math.random;
		while (!signal.aborted) {
			await delay(interval * (0.9 + random() / 5), undefined, { signal }).catch(() => undefined);
			if (signal.aborted) return;
			for (const object of this.#options.primary.list()) this.#queue.add(keyOf(object));
		}
	}
}
