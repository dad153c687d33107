import { expect, it } from "vitest";
import { gapsOf } from "./lifecycle-changes.ts";

it.each([
	["none while answers come", [0, 0.1, 0.3, 0.6], { total: 0, longest: 0 }],
	["what is missing, in all and at the longest", [0, 0.1, 1.1, 1.2, 3.2], { total: 3, longest: 2 }],
	["no answers at all", [], { total: 0, longest: 0 }],
])("gaps: %s", (_name, times, expected) => {
	expect(gapsOf(times)).toEqual(expected);
});
