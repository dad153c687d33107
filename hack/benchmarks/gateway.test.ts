import { expect, test } from "vitest";
import { crowding } from "./gateway.ts";

test.each([
	["even", [0, 500, 1_000, 1_500, 2_000, 2_500], 1],
	["all at once and one late", [0, 1, 2, 2_500], 2.25],
	["one", [5_000], 1],
])("the busiest second of dials: %s", (_what, times, expected) => expect(crowding(times)).toBeCloseTo(expected));
