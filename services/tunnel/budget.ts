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
