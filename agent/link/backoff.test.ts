import { expect, test } from "vitest";
import type { ErrorCode } from "../../protocol/errors.ts";
import { pauseBefore, pauseBeforeSpare } from "./backoff.ts";

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
	["what passes by itself", { attempt: 9, outageMs: 0, code: "TunnelClosed" }, 0, 300],
	["a gateway without time", { attempt: 0, outageMs: 0, turnedAway: 1 }, 0, 2_000],
	["one that still has none, however long the outage", { attempt: 9, outageMs: 3_600_000, turnedAway: 3 }, 0, 8_000],
	["one that never has any", { attempt: 99, outageMs: 3_600_000, turnedAway: 2_000 }, 0, 30_000],
	["a gateway without time that says when", { attempt: 9, outageMs: 0, hintMs: 1_000, turnedAway: 3 }, 1_000, 1_250],
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

/**
 * When hosts dial, and when they are back, counted from the moment at which the gateway went away for `outageMs`. `handshakeMs`: for which
 * a handshake keeps it busy; next to nothing, so that pauses alone are judged, when it is not named.
 */
function comeBack({
	hosts,
	outageMs,
	seed,
	handshakeMs = 0.25,
}: {
	hosts: number;
	outageMs: number;
	seed: number;
	handshakeMs?: number;
}) {
	/** Time until a dial is answered, and after which who waits is turned away (services/tunnel/handshakes.ts). */
	const [ANSWER_MS, WAIT_MS] = [2, 5_000];
	const random = randomFrom(seed);
	const dials: number[] = [];
	const coming: { at: number; attempt: number; turnedAway: number }[] = [];
	for (let host = 0; host < hosts; host++) {
		let at = 0;
		for (let attempt = 0; ; attempt++) {
			at += pauseBefore({ attempt, outageMs: at, code: "TunnelClosed" as ErrorCode }, random);
			dials.push(at);
			if (at >= outageMs) {
				coming.push({ at, attempt, turnedAway: 0 });
				break;
			}
			at += ANSWER_MS;
		}
	}
	let free = outageMs;
	const back: number[] = [];
	coming.sort((a, b) => a.at - b.at);
	for (const { at, attempt, turnedAway } of coming) {
		const turn = Math.max(free, at);
		if (turn - at <= WAIT_MS) {
			free = turn + handshakeMs;
			back.push(free + ANSWER_MS - outageMs);
			continue;
		}
		const outage = { attempt: attempt + 1, outageMs: turn, turnedAway: turnedAway + 1 };
		const again = turn + pauseBefore(outage, random);
		dials.push(again);
		const next = coming.findIndex((other) => other.at > again);
		coming.splice(next === -1 ? coming.length : next, 0, { ...outage, at: again });
	}
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

test.each([
	{ hosts: 1_000, outageMs: 3_000, handshakeMs: 8 },
	{ hosts: 1_000, outageMs: 30_000, handshakeMs: 12 },
	{ hosts: 2_000, outageMs: 30_000, handshakeMs: 6 },
])("who is turned away is in as soon as handshakes allow: %o", (storm) => {
	for (const seed of [1, 2, 3]) {
		const { back } = comeBack({ ...storm, seed });
		const least = storm.hosts * storm.handshakeMs;
		expect(back[Math.floor(0.99 * storm.hosts)], "p99").toBeLessThan(1.2 * least);
	}
});

test("an outage of a day costs a host two to six tries a minute in its last hour", () => {
	const { dials } = comeBack({ hosts: 20, outageMs: 86_400_000, seed: 1 });
	const lastHour = dials.filter((at) => at > 82_800_000).length / 20 / 60;
	expect(lastHour).toBeGreaterThan(2);
	expect(lastHour).toBeLessThan(6);
});

test.each([
	{ attempt: 0, random: 0, ms: 0 },
	{ attempt: 0, random: 1, ms: 20_000 },
	// Of two gateways every other try ends at the wrong one, which is no reason to leave a host without for minutes.
	{ attempt: 4, random: 1, ms: 21_000 },
	{ attempt: 7, random: 0.5, ms: 81_000 },
	{ attempt: 40, random: 1, ms: 1_201_000 },
	{ attempt: 0, hintMs: 600_000, random: 0.5, ms: 610_000 },
	{ attempt: 0, hintMs: 1e12, random: 0, ms: 1_200_000 },
])("a spare tunnel is nobody's hurry: $attempt tries, hint $hintMs → $ms ms", ({ random, ms, ...tries }) => {
	expect(pauseBeforeSpare(tries, () => random)).toBe(ms);
});
