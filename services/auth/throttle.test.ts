import { expect, test } from "vitest";
import { Throttle } from "./throttle.ts";

test("refuses over the limit, for that key alone, until the window is over", () => {
	let now = 0;
	const throttle = new Throttle({ limit: 2, windowMs: 1000, now: () => now });
	throttle.failed("a");
	throttle.failed("a");
	expect(() => throttle.check("a")).toThrow("too many failed attempts");
	expect(() => throttle.check("b")).not.toThrow();
	now = 1000;
	expect(() => throttle.check("a")).not.toThrow();
	throttle.failed("a");
	throttle.succeeded("a");
	throttle.failed("a");
	expect(() => throttle.check("a")).not.toThrow();
});

test("keeps no more than so many keys", () => {
	const throttle = new Throttle({ limit: 1, windowMs: 1000, now: () => 0, maxKeys: 2 });
	for (const key of ["a", "b", "c"]) throttle.failed(key);
	expect(() => throttle.check("a")).not.toThrow();
	expect(() => throttle.check("c")).toThrow();
});
