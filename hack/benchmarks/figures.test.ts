import { expect, it } from "vitest";
import { atMost, table } from "./figures.ts";

it("says which figure missed its target", () => {
	const figures = [atMost("agent RSS", 61.234, "MB", 70), atMost("hack/up, warm", 5, "min", 4)];
	expect(figures.map(({ value, ok }) => [value, ok])).toEqual([
		[61.23, true],
		[5, false],
	]);
	expect(table(figures).split("\n")[2]).toMatch(/^hack\/up, warm +5 min +≤ 4 min +MISSED$/);
});
