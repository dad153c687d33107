import { expect, test } from "vitest";
import { type Attempt, judge, tryIn } from "./decide.ts";

const now = 1_800_000_000_000;
const minutes = (n: number) => n * 60_000;
const attempt = (change: Partial<Attempt> = {}): Attempt => ({
	version: "2.0.0",
	outcome: "trying",
	inconclusive: 0,
	notBefore: 0,
	...change,
});

test.each<[string, Parameters<typeof tryIn>[0]["wanted"], Attempt | undefined, number | undefined]>([
	["nothing is wanted", undefined, undefined, undefined],
	["it runs already", { version: "1.0.0" }, undefined, undefined],
	["it runs already, and another one failed", { version: "1.0.0" }, attempt({ outcome: "failed" }), undefined],
	["another is wanted", { version: "2.0.0" }, undefined, 0],
	["an older one is wanted", { version: "0.9.0" }, undefined, 0],
	["it failed", { version: "2.0.0" }, attempt({ outcome: "failed" }), undefined],
	["it failed, and a person asks again", { version: "2.0.0", retry: "x" }, attempt({ outcome: "failed" }), 0],
	["that has failed as well", { version: "2.0.0", retry: "x" }, attempt({ outcome: "failed", retry: "x" }), undefined],
	["one that failed is followed by another", { version: "2.0.1" }, attempt({ outcome: "failed" }), 0],
	["it waits", { version: "2.0.0" }, attempt({ outcome: "waiting", notBefore: now + 5_000 }), 5_000],
	["it has waited", { version: "2.0.0" }, attempt({ outcome: "waiting", notBefore: now - 1 }), 0],
	[
		"the clock was set back by years",
		{ version: "2.0.0" },
		attempt({ outcome: "waiting", notBefore: 2 * now }),
		minutes(1440),
	],
])("%s", (_what, wanted, last, expected) => {
	expect(tryIn({ wanted, running: "1.0.0", attempt: last, now })).toBe(expected);
});

test.each<[string, Parameters<typeof judge>[1], boolean, Attempt["outcome"], RegExp]>([
	["it crashed", "ended", false, "failed", /ended before it had spoken/],
	["it found no way where the one before does", "deadline", true, "failed", /in time \(Unreachable: no route\)/],
	["nobody finds a way", "deadline", false, "waiting", /region was out of reach/],
	["the power was cut", "lost", false, "waiting", /machine or the service was stopped/],
	["the power was cut, and the region is there", "lost", true, "waiting", /tried again/],
])("a try that ended: %s", (_what, ending, reached, outcome, message) => {
	const verdict = judge(attempt({ retry: "x" }), ending, {
		reached,
		lastError: "Unreachable: no route",
		now,
		random: 1,
	});
	expect(verdict).toMatchObject({ version: "2.0.0", retry: "x", outcome, message: expect.stringMatching(message) });
});

test("tries that say nothing of the version come ever more seldom, and never stop", () => {
	let last = attempt();
	const pauses: number[] = [];
	for (let i = 0; i < 12; i++) {
		last = judge(last, "lost", { reached: false, now, random: 1 });
		pauses.push((last.notBefore - now) / minutes(1));
	}
	expect(pauses.slice(0, 4)).toEqual([10, 20, 40, 80]);
	expect(pauses.at(-1)).toBe(1440);
	expect(judge(attempt(), "lost", { reached: false, now, random: 0 }).notBefore - now).toBe(minutes(5));
});
