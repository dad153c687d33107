import { describe, expect, it } from "vitest";
import type { Entry, Journal } from "./journal.ts";
import type { RenderedRole, Step } from "./pack.ts";
import { type Action, plan, record } from "./plan.ts";

const step = (name: string, more: Partial<Step> = {}): Step => ({
	name,
	use: "file",
	want: {},
	key: `/${name}`,
	digest: `${name}-1`,
	timeout: 1000,
	recheck: undefined,
	...more,
});
const role = (...steps: Step[]): RenderedRole => ({ steps, identity: "one", secrets: [] });
const applied = (name: string, more: Partial<Entry> = {}): Entry => ({
	name,
	use: "file",
	key: `/${name}`,
	state: "applied",
	digest: `${name}-1`,
	memory: {},
	...more,
});
const journal = (...entries: Entry[]): Journal => ({
	schema: 1,
	role: "r",
	version: "v1",
	identity: "one",
	entries,
	outputs: {},
});
const seen = (ok: Record<string, boolean>) => new Map(Object.entries(ok).map(([name, is]) => [name, { ok: is }]));
const words = (actions: readonly Action[]) =>
	actions.map((action) =>
		action.do === "forget" ? "forget" : `${action.do} ${action.do === "undo" ? action.entry.name : action.step.name}`,
	);

describe("plan", () => {
	it.each<[string, RenderedRole | undefined, Journal | undefined, Record<string, boolean>, string[]]>([
		["nothing wanted, nothing done", undefined, undefined, {}, []],
		["a new role", role(step("a"), step("b")), undefined, {}, ["check a", "check b"]],
		["what is not as wanted", role(step("a"), step("b")), undefined, { a: false }, ["apply a", "check b"]],
		["what is as wanted", role(step("a")), journal(applied("a")), { a: true }, []],
		[
			"as wanted on the host, but started and not finished",
			role(step("a")),
			journal(applied("a", { state: "started" })),
			{ a: true },
			["apply a"],
		],
		["drift", role(step("a")), journal(applied("a")), { a: false }, ["apply a"]],
		["other wishes", role(step("a", { digest: "a-2" })), journal(applied("a")), { a: true }, ["apply a"]],
		["a role taken away", undefined, journal(applied("a"), applied("b")), {}, ["undo b", "undo a", "forget"]],
		["taken away before anything was done", undefined, journal(), {}, ["forget"]],
		[
			"a step gone from the pack",
			role(step("b")),
			journal(applied("a"), applied("b"), applied("c")),
			{ b: true },
			["undo c", "undo a"],
		],
		[
			"a step that is now about another thing",
			role(step("a", { key: "/elsewhere" })),
			journal(applied("a")),
			{ a: false },
			["undo a", "apply a"],
		],
		[
			"another identity",
			{ ...role(step("a")), identity: "two" },
			journal(applied("a"), applied("b")),
			{ a: true },
			["undo b", "undo a", "forget"],
		],
	])("%s", (_what, wanted, done, observed, expected) => {
		expect(words(plan(wanted, done, seen(observed)))).toEqual(expected);
	});
});

describe("record", () => {
	it("keeps the order of the role's steps, whenever a step comes to it", () => {
		const steps = [step("a"), step("b"), step("c")];
		const names = (entries: Entry[]) => entries.map(({ name }) => name);
		expect(names(record([applied("a"), applied("c")], applied("b"), steps))).toEqual(["a", "b", "c"]);
		expect(names(record([applied("b")], applied("a"), steps))).toEqual(["a", "b"]);
		expect(names(record([applied("old"), applied("a")], applied("c"), steps))).toEqual(["old", "a", "c"]);
		expect(record([applied("a", { state: "started" })], applied("a"), steps)).toEqual([applied("a")]);
	});
});
