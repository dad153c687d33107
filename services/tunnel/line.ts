import { Transform, type TransformCallback } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { Bucket } from "./budget.ts";

/** How often the line is looked at while something is downloaded. */
const LOOK_MS = 250;
/** A round trip that is this much longer than at its best says that downloads stand in the way of others. */
const IN_THE_WAY_MS = 100;
const LESS = 0.7;
const MORE = 1.2;
/** Downloads never get less than this share of what they were lately seen to get: a slow host is no full line. */
const LEAST_SHARE = 0.25;
const LEAST_RATE = 64 * 1024;
/** What was seen counts less with each look; half of it is left after half a minute. */
const FADES = 0.995;
/** The best round trip is that of the last minute: a line that has become longer is not taken for a full one for ever. */
const ROUND_TRIPS = 240;

/** A host's line as downloads see it. Rates in bytes a second. */
export interface LineState {
	rate: number;
	/** The most that was lately carried while the line was full: how wide it is. 0 as long as it never was. */
	best: number;
	/** The last round trips, in milliseconds. */
	rtts: readonly number[];
}

export const unknownLine: LineState = { rate: Number.POSITIVE_INFINITY, best: 0, rtts: [] };

/**
 * How fast downloads may go on: less as soon as the round trip grows, more while it doesn't. The idea is LEDBAT's (RFC 6817): what
 * nobody waits for gives way to what somebody waits for, without knowing how wide the line is.
 */
export function nextLine(
	{ rate, best, rtts }: LineState,
	{ bytes, ms, rttMs }: { bytes: number; ms: number; rttMs: number },
): LineState {
	const carried = (bytes * 1000) / Math.max(1, ms);
	const trips = [...rtts, rttMs].slice(-ROUND_TRIPS);
	const quick = Math.min(...trips) + IN_THE_WAY_MS;
	if (rttMs <= quick) {
		const faded = best * FADES;
		return {
			best: faded,
			rtts: trips,
			rate: Math.max(LEAST_RATE, MORE * Math.min(rate, 2 * Math.max(faded, carried))),
		};
	}
	// What is taken while buffers fill up says nothing of the line.
	const wasFull = (rtts.at(-1) ?? 0) > quick;
	const width = Math.max(best * FADES, wasFull ? carried : 0);
	return { best: width, rtts: trips, rate: Math.max(LEAST_RATE, LEAST_SHARE * width, LESS * Math.min(rate, carried)) };
}

export interface LineOptions {
	/** Measures the round trip to the host, in milliseconds; rejects when its tunnel is gone. */
	ping: () => Promise<number>;
	/** Somebody works on the host through the tunnel: only then is there anybody to give way to. */
	shared: () => boolean;
}

/** Paces the downloads of one host, all of them together. Looks at the line as long as there is one. */
export class Line {
	readonly #options: LineOptions;
	readonly #gone: () => void;
	#downloads = 0;
	#bytes = 0;
	#bucket: Bucket | undefined;

	/** `gone` is called when the last download has ended. */
	constructor(options: LineOptions, gone: () => void) {
		this.#options = options;
		this.#gone = gone;
	}

	/** A stage for one download. */
	download(): Transform {
		if (this.#downloads++ === 0) void this.#look();
		const pass = (chunk: Buffer, done: TransformCallback) => {
			this.#bytes += chunk.length;
			const wait = this.#bucket?.owe(chunk.length) ?? 0;
			if (wait < 1) done(null, chunk);
			else setTimeout(() => done(null, chunk), wait);
		};
		const stage = new Transform({ transform: (chunk: Buffer, _encoding, done) => pass(chunk, done) });
		stage.once("close", () => {
			if (--this.#downloads === 0) this.#gone();
		});
		return stage;
	}

	async #look(): Promise<void> {
		const { ping, shared } = this.#options;
		let line = unknownLine;
		while (this.#downloads > 0) {
			const [bytes, since] = [this.#bytes, performance.now()];
			const [rttMs] = await Promise.all([ping().catch(() => undefined), delay(LOOK_MS)]);
			if (rttMs === undefined) {
				this.#bucket = undefined;
				return;
			}
			line = nextLine(line, { bytes: this.#bytes - bytes, ms: performance.now() - since, rttMs });
			const limited = shared();
			this.#bucket = limited ? new Bucket({ perSecond: line.rate, burst: (line.rate * LOOK_MS) / 1000 }) : undefined;
		}
	}
}
