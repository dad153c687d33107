/**
 * How much credit streams have: the windows of a session, within its budget.
 */

export interface WindowLimits {
	/** Credit a stream starts with, the least it gets when the budget is used up, and the most it grows to. */
	initialWindow: number;
	minWindow: number;
	maxWindow: number;
	/** All that the peer may make this end keep, in bytes. */
	budget: number;
	/** So many streams can always be opened with the least window. */
	maxStreams: number;
}

/** One whole window has been used up. */
export interface Round {
	window: number;
	bytes: number;
	elapsedMs: number;
	/** Bytes a millisecond when the window was last enlarged; 0 when it never was. */
	bestRate: number;
}

/** A window that takes longer than this to be used up, and than four round trips, is not what limits. */
const QUICK_MS = 0.5;
/** What stands in a line for no longer than this is in nobody's way. */
const SHORT_MS = 5;
/** A window that yields keeps this part of the initial one, should round trips have become longer than the best of late. */
const LEAST_PART = 1 / 8;
/** An enlarged window is worth it when it makes the stream this much faster. */
const GAIN = 1.2;
/** This part of the budget stays free for streams to come. */
const KEPT_FREE = 1 / 4;

/** The promises made to a peer. Everything that is granted is reserved until it is consumed or given up. */
export class WindowBudget {
	readonly #limits: WindowLimits;
	#reserved = 0;
	#streams = 0;

	constructor(limits: WindowLimits) {
		this.#limits = limits;
	}

	/** All that the peer may make this end keep now. */
	get reserved(): number {
		return this.#reserved;
	}

	/** What is left beside the least windows of all streams that may still come. */
	get room(): number {
		const { budget, minWindow, maxStreams } = this.#limits;
		return budget - this.#reserved - minWindow * Math.max(0, maxStreams - this.#streams);
	}

	/** Reserves the window of a new stream. */
	open(): number {
		const { initialWindow, minWindow } = this.#limits;
		const window = this.room - initialWindow + minWindow >= 0 ? initialWindow : minWindow;
		this.#streams++;
		this.#reserved += window;
		return window;
	}

	/** A stream that held this much has ended. */
	close(reserved: number): void {
		this.#streams--;
		this.#reserved -= reserved;
	}

	/** A stream holds more or less than before. */
	change(by: number): void {
		this.#reserved += by;
	}

	/**
	 * What a stream that sends keeps of its credit when the line has been let run dry, which took `elapsedMs` and brought it `bytes` of credit:
	 * two round trips of that. All, and undefined, when it took no longer than it takes over a line in which nothing stands.
	 */
	keep({ bytes, elapsedMs, rttMs }: { bytes: number; elapsedMs: number; rttMs: number }): number | undefined {
		if (elapsedMs <= Math.max(SHORT_MS, 3 * rttMs)) return undefined;
		return Math.max(this.#limits.initialWindow * LEAST_PART, Math.ceil((bytes / elapsedMs) * 2 * rttMs));
	}

	/**
	 * The window of a stream after a round. It doubles as long as that makes the stream faster, so it comes to hold about two
	 * bandwidth-delay products, and not more: what a line can't take would only stand in a queue before what is urgent. Over a short
	 * line that is the kernels' buffers, where all that a window holds makes everybody wait. It is halved when the budget runs out.
	 *
	 * One that `yields` to others holds two round trips of what it gets through, and no more: the line stays busy, and the queue short.
	 */
	tune(
		{ window, bytes, elapsedMs, bestRate }: Round,
		{ rttMs, yields }: { rttMs: number; yields: boolean },
	): Pick<Round, "window" | "bestRate"> {
		const { initialWindow, minWindow, maxWindow, budget } = this.#limits;
		const spare = this.room - budget * KEPT_FREE;
		if (this.room < 0) return { window: Math.max(minWindow, Math.floor(window / 2)), bestRate };
		if (spare < 0 && window > initialWindow) {
			return { window: Math.max(initialWindow, Math.floor(window / 2)), bestRate: 0 };
		}
		const rate = bytes / Math.max(elapsedMs, 0.001);
		if (elapsedMs > Math.max(QUICK_MS, 4 * rttMs)) {
			const enough = Math.max(initialWindow * LEAST_PART, Math.ceil(rate * Math.max(QUICK_MS, 2 * rttMs)));
			return yields && enough < window ? { window: enough, bestRate: rate } : { window, bestRate };
		}
		if (rate < GAIN * bestRate || (yields && elapsedMs > Math.max(QUICK_MS, 2 * rttMs))) return { window, bestRate };
		const larger = Math.min(maxWindow, 2 * window, window + Math.max(0, Math.floor(spare)));
		return larger > window ? { window: larger, bestRate: rate } : { window, bestRate };
	}
}
