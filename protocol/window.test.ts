import fc from "fast-check";
import { expect, test } from "vitest";
import { WindowBudget, type WindowLimits } from "./window.ts";

const KB = 1024;
const limits: WindowLimits = {
	initialWindow: 256 * KB,
	minWindow: 16 * KB,
	maxWindow: 4096 * KB,
	budget: 64 * 1024 * KB,
	maxStreams: 1024,
};

/** A stream over a line: how its window comes out after some rounds. */
function settle(
	{ rate, rttMs, yields = false }: { rate: number; rttMs: number; yields?: boolean },
	budget = new WindowBudget(limits),
	window = budget.open(),
): number {
	let state = { window, bestRate: 0 };
	for (let round = 0; round < 20; round++) {
		const { window } = state;
		const next = budget.tune({ ...state, bytes: window, elapsedMs: Math.max(rttMs, window / rate) }, { rttMs, yields });
		budget.change(next.window - window);
		state = next;
	}
	return state.window / KB;
}

test.each([
	["a local line, 800 MB/s", { rate: 800_000, rttMs: 0.2 }, 512],
	["a fast processor far away: 100 ms, 1 Gbit/s", { rate: 125_000, rttMs: 100 }, 4096],
	["20 ms, 1 Gbit/s: 2.5 MB on the line", { rate: 125_000, rttMs: 20 }, 4096],
	["10 ms, 400 Mbit/s: 500 KB on the line", { rate: 50_000, rttMs: 10 }, 1024],
	["a thin line, 10 Mbit/s and 30 ms", { rate: 1_250, rttMs: 30 }, 256],
	["a stream that has little to say", { rate: 10, rttMs: 5 }, 256],
])("%s", (_name, line, window) => {
	expect(settle(line)).toBe(window);
});

test.each([
	["half a millisecond of a local line", 4096, { rate: 800_000, rttMs: 0.06 }, 400_000],
	["two round trips of what it gets through", 4096, { rate: 12_500, rttMs: 20 }, 500_000],
	[
		"but an eighth of what it began with, should the line be slower than it seems",
		256,
		{ rate: 10, rttMs: 20 },
		32_768,
	],
	["more when that makes it faster", 256, { rate: 12_500, rttMs: 20 }, 512 * KB],
])("a window that yields holds %s", (_name, window, line, expected) => {
	expect(settle({ ...line, yields: true }, new WindowBudget(limits), window * KB) * KB).toBe(expected);
});

test("a window that yields does not grow any more as soon as something stands in the line before it", () => {
	const tuned = (elapsedMs: number, yields: boolean) =>
		new WindowBudget(limits).tune({ window: 256 * KB, bytes: 256 * KB, elapsedMs, bestRate: 0 }, { rttMs: 20, yields })
			.window / KB;
	expect([tuned(40, true), tuned(41, true), tuned(41, false), tuned(80, false)]).toEqual([512, 256, 512, 512]);
});

test.each([
	["all, when the line was dry before", { bytes: 200_000, elapsedMs: 60, rttMs: 20 }, undefined],
	["all, when it took no time that anybody would notice", { bytes: 200_000, elapsedMs: 5, rttMs: 0.1 }, undefined],
	["two round trips of what came through", { bytes: 1_000_000, elapsedMs: 200, rttMs: 20 }, 200_000],
	["an eighth of what it began with, when that is nothing", { bytes: 0, elapsedMs: 1_000, rttMs: 20 }, 32_768],
])("a sender keeps %s", (_name, drained, kept) => {
	expect(new WindowBudget(limits).keep(drained)).toBe(kept);
});

test("what may be kept is never more than the budget, whatever streams come and go", () => {
	const act = fc.oneof(
		fc.constant({ kind: "open" as const }),
		fc.record({ kind: fc.constant("close" as const), which: fc.nat() }),
		fc.record({ kind: fc.constant("round" as const), which: fc.nat(), ms: fc.nat(500), yields: fc.boolean() }),
	);
	fc.assert(
		fc.property(fc.array(act, { maxLength: 400 }), fc.constantFrom(64, 300, 5_000), (acts, budgetKb) => {
			const few = { ...limits, minWindow: 4 * KB, maxStreams: 16, budget: budgetKb * KB };
			const budget = new WindowBudget(few);
			const streams: { window: number; bestRate: number }[] = [];
			for (const act of acts) {
				if (act.kind === "open" && streams.length < few.maxStreams)
					streams.push({ window: budget.open(), bestRate: 0 });
				if (streams.length === 0) continue;
				if (act.kind === "close")
					budget.close((streams.splice(act.which % streams.length, 1)[0] as { window: number }).window);
				if (act.kind === "round") {
					const index = act.which % streams.length;
					const stream = streams[index] as { window: number; bestRate: number };
					const next = budget.tune(
						{ ...stream, bytes: stream.window, elapsedMs: act.ms },
						{ rttMs: 50, yields: act.yields },
					);
					budget.change(next.window - stream.window);
					streams[index] = next;
				}
				expect(budget.reserved).toBe(streams.reduce((sum, { window }) => sum + window, 0));
				expect(budget.reserved).toBeLessThanOrEqual(few.budget);
				for (const { window } of streams) expect(window).toBeGreaterThanOrEqual(few.minWindow);
			}
		}),
	);
});

test("a large window makes way when the budget gets short", () => {
	const budget = new WindowBudget({ ...limits, budget: 8 * 1024 * KB, maxStreams: 32 });
	const grown = settle({ rate: 125_000, rttMs: 100 }, budget);
	expect(grown).toBe(4096);
	for (let count = 0; count < 8; count++) budget.open();
	const after = budget.tune(
		{ window: grown * KB, bytes: grown * KB, elapsedMs: 100, bestRate: 1 },
		{ rttMs: 100, yields: false },
	);
	expect(after.window).toBe(2048 * KB);
});
