import { expect, test } from "vitest";
import { type LineState, nextLine, unknownLine } from "./line.ts";

const MB = 1_000_000;

test.each([
	["nothing in the way: more", { rate: 2 * MB, best: 2 * MB }, { bytes: MB / 2, rttMs: 30 }, 2.4 * MB],
	["in the way: less than what was carried", { rate: 4 * MB, best: 2 * MB }, { bytes: MB / 2, rttMs: 200 }, 1.4 * MB],
	["a slow host is no full line: a quarter at least", { rate: MB, best: 8 * MB }, { bytes: 0, rttMs: 900 }, 1.99 * MB],
	["not much more than twice what it can use", { rate: 99 * MB, best: MB }, { bytes: MB / 2, rttMs: 20 }, 4.8 * MB],
	["nothing is known yet", { rate: Number.POSITIVE_INFINITY, best: 0 }, { bytes: MB / 2, rttMs: 20 }, 4.8 * MB],
] as [string, Omit<LineState, "rtts">, { bytes: number; rttMs: number }, number][])("%s", (_what, line, look, rate) => {
	expect(nextLine({ ...line, rtts: [20] }, { ...look, ms: 250 }).rate).toBeCloseTo(rate);
});

test("a line that has become longer is not taken for a full one for ever", () => {
	let line: LineState = { ...unknownLine, rtts: [20] };
	const rates = Array.from({ length: 320 }, () => {
		line = nextLine(line, { bytes: Math.min(MB, line.rate / 4), ms: 250, rttMs: 200 });
		return line.rate;
	});
	expect(Math.min(...rates)).toBeLessThan(2 * MB);
	expect(rates.at(-1)).toBeGreaterThan(4 * MB);
});

/** A line with deep buffers before it, which the download fills first. */
test.each([0.5, 2, 20])("on a line of %d MB/s others wait briefly, and the download has most of it", (width) => {
	const perLook = (width * MB) / 4;
	const deep = 4 * MB;
	let line: LineState = { ...unknownLine, rtts: [20] };
	let queue = 0;
	let carried = 0;
	const waits: number[] = [];
	for (let look = 0; look < 600; look++) {
		const bytes = Math.min(line.rate / 4, deep - queue + perLook);
		const out = Math.min(queue + bytes, perLook);
		queue += bytes - out;
		const waitMs = (queue / perLook) * 250;
		if (look >= 200) {
			carried += out;
			waits.push(waitMs);
		}
		line = nextLine(line, { bytes, ms: 250, rttMs: 20 + waitMs });
	}
	const mean = waits.reduce((sum, wait) => sum + wait, 0) / waits.length;
	// Without pacing the buffers are always full.
	expect(mean).toBeLessThan((0.4 * deep * 1000) / (width * MB));
	expect(mean).toBeLessThan(500);
	expect(carried).toBeGreaterThan(0.6 * perLook * 400);
});
