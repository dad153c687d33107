import { expect, test } from "vitest";
import type { ErrorCode } from "../../protocol/errors.ts";
import { pauseBefore } from "./backoff.ts";

test.each<[string, Parameters<typeof pauseBefore>[0], least: number, most: number]>([
	["the first try", { attempt: 0, outageMs: 0 }, 0, 300],
	["the third try is quick, however long the first two took", { attempt: 2, outageMs: 60_000 }, 0, 300],
	["3 s in", { attempt: 9, outageMs: 3_000 }, 0, 300],
	["30 s in", { attempt: 40, outageMs: 30_000 }, 0, 1_200],
	["5 min in", { attempt: 90, outageMs: 300_000 }, 0, 12_000],
	["a day in", { attempt: 5_000, outageMs: 86_400_000 }, 0, 30_000],
	["a hint is never undercut", { attempt: 0, outageMs: 0, hintMs: 2_000 }, 2_000, 2_500],
	["a hint counts before the reason", { attempt: 0, outageMs: 0, hintMs: 100, code: "Conflict" }, 100, 125],
	["no hint lets a host sleep for ever", { attempt: 0, outageMs: 0, hintMs: 2 ** 40 }, 300_000, 375_000],
	["a matter for people, at first", { attempt: 0, outageMs: 0, code: "CertificateRevoked" }, 2_500, 5_000],
	["a matter for people, after a minute", { attempt: 9, outageMs: 60_000, code: "Forbidden" }, 7_500, 15_000],
	["a matter for people, next day", { attempt: 99, outageMs: 86_400_000, code: "Conflict" }, 30_000, 60_000],
	["what passes by itself", { attempt: 9, outageMs: 0, code: "Overloaded" }, 0, 300],
])("pause: %s", (_what, outage, least, most) => {
	expect(pauseBefore(outage, () => 0)).toBe(least);
	expect(pauseBefore(outage, () => 1)).toBe(most);
	expect(pauseBefore(outage, () => 0.5)).toBe((least + most) / 2);
});

/** Numbers in [0, 1) that are the same each time (mulberry32). */
function randomFrom(seed: number): () => number {
	let state = seed;
	return () => {
		state = (state + 0x6d2b79f5) | 0;
		let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
		mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
	};
}

/** When hosts dial, and when they are back, counted from the moment at which the gateway went away for `outageMs`. */
function comeBack({ hosts, outageMs, seed }: { hosts: number; outageMs: number; seed: number }) {
	/** Time until a dial is answered, and for which a handshake keeps a gateway busy: next to nothing, so that pauses alone are judged. */
	const [ANSWER_MS, HANDSHAKE_MS] = [2, 0.25];
	const random = randomFrom(seed);
	const dials: number[] = [];
	const arrivals: number[] = [];
	for (let host = 0; host < hosts; host++) {
		let at = 0;
		for (let attempt = 0; ; attempt++) {
			at += pauseBefore({ attempt, outageMs: at, code: "TunnelClosed" as ErrorCode }, random);
			dials.push(at);
			if (at >= outageMs) break;
			at += ANSWER_MS;
		}
		arrivals.push(at);
	}
	let free = 0;
	const back = arrivals
		.sort((a, b) => a - b)
		.map((at) => {
			free = Math.max(free, at) + HANDSHAKE_MS;
			return free + ANSWER_MS - outageMs;
		});
	return { dials, back };
}

test.each([
	{ outageMs: 3_000, withinMs: 500 },
	{ outageMs: 30_000, withinMs: 1_500 },
])("by their pauses 1,000 hosts are back within $withinMs ms after $outageMs ms, and never all at once", (figures) => {
	for (const seed of [1, 2, 3, 4, 5]) {
		const { dials, back } = comeBack({ hosts: 1_000, outageMs: figures.outageMs, seed });
		expect(back[989], "p99").toBeLessThan(figures.withinMs);
		const seconds = Array.from({ length: figures.outageMs / 1_000 }, (_, second) => {
			return dials.filter((at) => at >= second * 1_000 && at < (second + 1) * 1_000).length;
		});
		const mean = seconds.reduce((sum, count) => sum + count, 0) / seconds.length;
		expect(Math.max(...seconds) / mean, "busiest second over the mean").toBeLessThan(2);
		const returning = Array.from({ length: Math.ceil((back.at(-1) as number) / 100) }, (_, tenth) => {
			return back.filter((at) => at >= tenth * 100 && at < (tenth + 1) * 100).length;
		});
		// Never all at once: the busiest tenth of a second takes less than half of them.
		expect(Math.max(...returning)).toBeLessThan(500);
	}
});

test("an outage of a day costs a host two to six tries a minute in its last hour", () => {
	const { dials } = comeBack({ hosts: 20, outageMs: 86_400_000, seed: 1 });
	const lastHour = dials.filter((at) => at > 82_800_000).length / 20 / 60;
	expect(lastHour).toBeGreaterThan(2);
	expect(lastHour).toBeLessThan(6);
});
