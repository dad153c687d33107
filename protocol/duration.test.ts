import { expect, it } from "vitest";
import { durationMs } from "./duration.ts";

it.each([
	["90s", 90_000],
	["10m", 600_000],
	["1h30m", 5_400_000],
	["720h", 2_592_000_000],
])("%s is %d ms", (text, ms) => expect(durationMs(text)).toBe(ms));

it.each(["", "10", "m", "1d", "-1s", "1s1h"])("%j is refused", (text) =>
	expect(() => durationMs(text)).toThrow(/not a duration/),
);
