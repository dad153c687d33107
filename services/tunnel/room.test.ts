import { expect, test } from "vitest";
import { hasRoom, hostsIn, memoryLimit } from "./room.ts";

const MIB = 2 ** 20;

test.each([
	[64, 0],
	[128, 163],
	[288, 1_597],
	[448, 3_031],
	[4_096, 35_717],
	[Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY],
])("in %s MiB there is room for %s hosts", (mib, hosts) => {
	expect(hostsIn(mib * MIB)).toBe(hosts);
});

const bounds = { maxHosts: 1_000, limit: 320 * MIB };
test.each([
	["the first host", { tunnels: 0, peak: 0, resident: 90 }, true],
	["the last that there is room for", { tunnels: 999, peak: 999, resident: 200 }, true],
	["one more", { tunnels: 1_000, peak: 1_000, resident: 200 }, false],
	["one more, though the process is small", { tunnels: 1_000, peak: 1_000, resident: 100 }, false],
	["one that would be a new peak while memory runs short", { tunnels: 500, peak: 500, resident: 300 }, false],
	["one of those who were here before: their memory is there still", { tunnels: 499, peak: 500, resident: 310 }, true],
	["the first to come back after all were lost", { tunnels: 0, peak: 1_000, resident: 310 }, true],
	["one more when memory is there again", { tunnels: 500, peak: 500, resident: 299 }, true],
])("whether there is room for %s", (_what, { resident, ...load }, room) => {
	expect(hasRoom({ ...load, resident: resident * MIB }, bounds)).toBe(room);
});

test("without a limit everybody is let in", () => {
	const load = { tunnels: 100_000, peak: 100_000, resident: 32 * 1_024 * MIB };
	expect(hasRoom(load, { maxHosts: Number.POSITIVE_INFINITY, limit: Number.POSITIVE_INFINITY })).toBe(true);
});

test("the kernel's limit is known, or infinite", () => {
	expect(memoryLimit()).toBeGreaterThan(process.memoryUsage.rss());
});
