import { expect, it } from "vitest";
import { atLeast, atMost, table } from "./figures.ts";

it("says which figure missed its target", () => {
	const figures = [
		atMost("agent RSS", 61.234, "MB", 70),
		atMost("hack/up, warm", 5, "min", 4),
		atLeast("one stream", 1.1, "× TLS", 1, "831 and 755 MB/s"),
	];
	expect(figures.map(({ value, ok }) => [value, ok])).toEqual([
		[61.23, true],
		[5, false],
		[1.1, true],
	]);
	expect(table(figures).split("\n")[2]).toMatch(/^hack\/up, warm +5 min +≤ 4 min +MISSED$/);
	expect(table(figures).split("\n")[3]).toMatch(/^one stream +1.1 × TLS +≥ 1 × TLS +ok +831 and 755 MB\/s$/);
});
