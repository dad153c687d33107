import { expect, it } from "vitest";
import { patienceOf } from "./proxy.ts";

it.each([
	["a stream that does not open, with another to try", { hasAnother: true, isReused: undefined, isRead: false }, 3_000],
	["the last one", { hasAnother: false, isReused: undefined, isRead: true }, undefined],
	[
		"a read on a stream that was there: its host may be gone",
		{ hasAnother: true, isReused: true, isRead: true },
		5_000,
	],
	["a write there: it may have been done", { hasAnother: true, isReused: true, isRead: false }, undefined],
	["a slow answer on a stream that has just opened", { hasAnother: true, isReused: false, isRead: true }, undefined],
])("patience with %s", (_name, circumstances, expected) => {
	expect(patienceOf(circumstances)).toBe(expected);
});
