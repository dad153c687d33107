import { describe, expect, it } from "vitest";
import { labelChanges } from "./host.ts";

describe("gp host label", () => {
	it("sets with = and takes away with -", () => {
		expect(labelChanges(["rack=a", "empty=", "old-", "example.com/tier=front"])).toEqual({
			rack: "a",
			empty: "",
			old: null,
			"example.com/tier": "front",
		});
	});

	it.each(["rack", "=a", "-", ""])("%j is refused", (label) =>
		expect(() => labelChanges([label])).toThrow(/KEY=VALUE/),
	);
});
