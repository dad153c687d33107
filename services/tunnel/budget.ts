import { type Lane, lanes } from "../../protocol/mux.ts";

/** A token bucket: `perSecond` on average, `burst` at once. Holds two numbers, so that each of ten thousand hosts may have some. */
export class Bucket {
	readonly #perSecond: number;
	readonly #burst: number;
	readonly #now: () => number;
	#left: number;
	#at: number;

	/** `now`: milliseconds of a clock that never goes back. */
	constructor({ perSecond, burst }: { perSecond: number; burst: number }, now: () => number = () => performance.now()) {
		this.#perSecond = perSecond;
		this.#burst = burst;
		this.#now = now;
		this.#left = burst;
		this.#at = now();
	}

	/** Takes `amount` if it is there. */
	take(amount = 1): boolean {
		this.#refill();
		if (this.#left < amount) return false;
		this.#left -= amount;
		return true;
	}

	/** Takes `amount` in any case and tells for how many milliseconds to wait before going on. */
	owe(amount = 1): number {
		this.#refill();
		this.#left -= amount;
		return this.#left >= 0 ? 0 : (-this.#left / this.#perSecond) * 1000;
	}

	#refill(): void {
		const now = this.#now();
		this.#left = Math.min(this.#burst, this.#left + ((now - this.#at) / 1000) * this.#perSecond);
		this.#at = now;
	}
}

/** Bytes a second for the streams of one host, by lane; a lane that is not named has no bound. */
export type LaneRates = Readonly<Partial<Record<Lane, number>>>;

/** So many seconds' worth may be carried at once, by a host that carried little before. */
const BURST_SECONDS = 2;

/**
 * What the streams of one host may carry, in both directions together: one host that sends or takes as much as it can leaves the gateway,
 * whose hosts share one thread, to the others as well.
 */
export class HostBudget {
	readonly #buckets = new Map<Lane, Bucket>();

	constructor(rates: LaneRates, now?: () => number) {
		for (const lane of lanes) {
			const perSecond = rates[lane];
			if (perSecond === undefined) continue;
			this.#buckets.set(lane, new Bucket({ perSecond, burst: perSecond * BURST_SECONDS }, now));
		}
	}

	/** Notes that a lane has carried so much, and gives the milliseconds for which it is to rest. */
	spend(lane: Lane, bytes: number): number {
		return this.#buckets.get(lane)?.owe(bytes) ?? 0;
	}
}
