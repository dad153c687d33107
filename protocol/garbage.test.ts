import { setImmediate as turn } from "node:timers/promises";
import { expect, test } from "vitest";
import { passedOn } from "./garbage.ts";

const MIB = 1024 * 1024;

test("memory that was passed on does not pile up", async () => {
	const before = process.memoryUsage().arrayBuffers;
	let most = 0;
	for (let count = 0; count < 2_000; count++) {
		passedOn(Buffer.allocUnsafeSlow(64 * 1024).length);
		if (count % 16 === 0) await turn();
		most = Math.max(most, process.memoryUsage().arrayBuffers - before);
	}
	// 125 MiB in all. V8 alone would let 32 MiB and more come together.
	expect(most).toBeLessThan(20 * MIB);
});
