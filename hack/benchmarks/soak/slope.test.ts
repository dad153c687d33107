import { expect, test } from "vitest";
import { growth, type Point } from "./slope.ts";

const points = (values: number[]): Point[] => values.map((value, at) => [at, value]);

test.each<[string, number[], number]>([
	["flat", [5, 5, 5, 5, 5, 5], 0],
	["what is made once doesn't count", [0, 3, 9, 10, 10, 10, 10, 10], 0],
	["a leak of 2 at each step", [0, 2, 4, 6, 8, 10, 12, 14], 6],
	["noise around nothing", [0, 0, 0, 0, 0, 0, 1, -1, 1, -1, 0, 0], 0],
	["one far off", [0, 0, 0, 0, 0, 0, 0, 90, 0, 0], 0],
	["too few to say", [1], 0],
])("growth over the second half: %s", (_what, values, expected) => {
	expect(growth(points(values))).toBeCloseTo(expected, 10);
});
