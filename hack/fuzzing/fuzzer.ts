import { Session } from "node:inspector";

/**
 * A coverage-guided fuzzer: inputs that take a new path through the code under test are kept and bred further.
 * Coverage is V8's own, by block (Profiler.takePreciseCoverage), so nothing has to be instrumented.
 */

/** Random numbers that can be had again: 0 ≤ x < 1 (mulberry32). */
export function randomOf(seed: number): () => number {
	let state = seed >>> 0;
	return () => {
		state = (state + 0x6d2b79f5) >>> 0;
		let mixed = Math.imul(state ^ (state >>> 15), state | 1);
		mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
	};
}

export interface FuzzTarget {
	/** Rejects, or throws later, when a promise is broken. */
	run(input: Buffer): Promise<void>;
	/** What inputs are made of, beside random bytes. */
	readonly dictionary: readonly Buffer[];
	readonly seeds: readonly Buffer[];
	/** Scripts whose coverage counts: a part of their URL. */
	readonly covers: string;
}

export interface FuzzResult {
	executions: number;
	/** The seeds, and inputs that took a path that was new. */
	corpus: Buffer[];
	/** Characters of the code that ran. */
	covered: number;
	/** The input that broke a promise, and how. */
	failure?: { input: Buffer; error: unknown };
}

const LONGEST = 16 * 1024;
const BATCH = 16;

/** Runs until `done` says so, or a promise is broken. */
export async function fuzz(
	target: FuzzTarget,
	{ seed, done }: { seed: number; done: (executions: number) => boolean },
): Promise<FuzzResult> {
	const random = randomOf(seed);
	const coverage = new Coverage(target.covers);
	const result: FuzzResult = { executions: 0, corpus: [...target.seeds], covered: 0 };
	let late: unknown;
	const onLate = (error: unknown) => {
		late ??= error;
	};
	process.on("uncaughtException", onLate);
	process.on("unhandledRejection", onLate);
	try {
		const queue = [...target.seeds];
		const attempt = async (input: Buffer): Promise<FuzzResult["failure"]> => {
			try {
				await target.run(input);
				if (late !== undefined) throw late;
			} catch (error) {
				return { input, error };
			}
		};
		while (!done(result.executions)) {
			// Reading the coverage costs more than a run, and most runs bring nothing new: several are looked at together,
			// and one by one only when there was something.
			const batch: Buffer[] = [];
			for (let count = 0; count < BATCH; count++) {
				batch.push(queue.shift() ?? mutate(result.corpus, target.dictionary, random));
			}
			for (const input of batch) {
				result.executions++;
				const failure = await attempt(input);
				if (failure) return { ...result, failure };
			}
			if (coverage.take(false) === 0) continue;
			for (const input of batch) {
				const failure = await attempt(input);
				if (failure) return { ...result, failure };
				const found = coverage.take(true);
				result.covered += found;
				if (found > 0 && !target.seeds.includes(input)) result.corpus.push(input);
			}
		}
		return result;
	} finally {
		coverage.stop();
		process.removeListener("uncaughtException", onLate);
		process.removeListener("unhandledRejection", onLate);
	}
}

class Coverage {
	readonly #session = new Session();
	readonly #covers: string;
	/** For each script, its characters that have run. */
	readonly #ran = new Map<string, Uint8Array>();

	constructor(covers: string) {
		this.#covers = covers;
		this.#session.connect();
		this.#session.post("Profiler.enable");
		this.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
	}

	/** How many characters ran since the last call and never before; with `keep` they count as known from now on. */
	take(keep: boolean): number {
		let found = 0;
		// In the same process the answer comes before post() returns.
		this.#session.post("Profiler.takePreciseCoverage", (_error, { result }) => {
			for (const { url, functions } of result) {
				if (!url.includes(this.#covers)) continue;
				const ranges = functions.flatMap((one) => one.ranges);
				const now = new Uint8Array(Math.max(...ranges.map(({ endOffset }) => endOffset)));
				// Inner ones come after those around them, and say it better.
				for (const { startOffset, endOffset, count } of ranges) now.fill(count > 0 ? 1 : 0, startOffset, endOffset);
				let known = this.#ran.get(url);
				if (known === undefined || known.length < now.length) {
					const longer = new Uint8Array(now.length);
					longer.set(known ?? []);
					known = longer;
					this.#ran.set(url, known);
				}
				for (let at = 0; at < now.length; at++) {
					if (now[at] === 0 || known[at] === 1) continue;
					found++;
					if (keep) known[at] = 1;
				}
			}
		});
		return found;
	}

	stop(): void {
		this.#session.disconnect();
	}
}

function mutate(corpus: readonly Buffer[], dictionary: readonly Buffer[], random: () => number): Buffer {
	const below = (limit: number) => Math.floor(random() * limit);
	const pick = <Item>(items: readonly Item[]) => items[below(items.length)] as Item;
	// What was found last leads on most often.
	let input = Buffer.from(
		random() < 0.5 ? (corpus.at(-1 - below(Math.min(8, corpus.length))) as Buffer) : pick(corpus),
	);
	for (let times = 1 + below(5); times > 0; times--) {
		const at = below(input.length + 1);
		switch (below(10)) {
			case 0:
				if (at < input.length) input[at] = (input[at] as number) ^ (1 << below(8));
				break;
			case 1:
				if (at < input.length) input[at] = pick([0, 1, 2, 127, 128, 255, below(256)]);
				break;
			case 2:
				input = Buffer.concat([input.subarray(0, at), pick(dictionary), input.subarray(at)]);
				break;
			// What comes in order leads deepest.
			case 3:
			case 4:
			case 5:
			case 6:
				input = Buffer.concat([input, pick(dictionary)]);
				break;
			case 7:
				input = Buffer.concat([input.subarray(0, at), input.subarray(at + 1 + below(16))]);
				break;
			case 8: {
				const other = pick(corpus);
				input = Buffer.concat([input.subarray(0, at), other.subarray(below(other.length))]);
				break;
			}
			default: {
				const from = below(input.length + 1);
				input = Buffer.concat([input.subarray(0, at), input.subarray(from, from + below(64)), input.subarray(at)]);
			}
		}
	}
	return input.subarray(0, LONGEST);
}
