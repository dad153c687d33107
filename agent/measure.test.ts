import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test, vi } from "vitest";
import type { DesiredState } from "../protocol/desired-state.ts";
import type { HostMeasurements, RoleStatus } from "../protocol/facts.ts";
import { patience } from "../test/support/patience.ts";
import { offsetOf } from "./enroll.ts";
import {
	directoryOn,
	dueOf,
	isAtWork,
	Measurer,
	measureFsync,
	measurePeers,
	peersOf,
	percentile,
	readMeasured,
	roundTrip,
} from "./measure.ts";

const directory = mkdtempSync(join(tmpdir(), "gp-measure-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const HOUR = 3_600_000;
const NOW = Date.parse("2026-01-01T00:00:00Z");
const at = (hoursAgo: number) => new Date(NOW - hoursAgo * HOUR).toISOString();
const role = (phase: RoleStatus["phase"], version = "v1"): RoleStatus => ({
	name: "kubernetes",
	version,
	phase,
	done: 1,
	total: 2,
});
const wanted = { name: "kubernetes", version: "v1", parameters: {} };

test.each<[string, Pick<DesiredState, "roles">, RoleStatus[], boolean]>([
	["a free host", { roles: [] }, [], false],
	["a role that is applied", { roles: [wanted] }, [role("Applied")], false],
	["a role that is not begun", { roles: [wanted] }, [], true],
	["a role that is being applied", { roles: [wanted] }, [role("Applying")], true],
	["a role that fails and is tried again", { roles: [wanted] }, [role("Failed")], true],
	["another version of it", { roles: [{ ...wanted, version: "v2" }] }, [role("Applied")], true],
	["a role that is being undone", { roles: [] }, [role("Removing")], true],
])("%s: at work %#", (_what, desired, status, expected) => {
	expect(isAtWork(desired, status)).toBe(expected);
});

describe("when to measure", () => {
	const never = Number.NEGATIVE_INFINITY;
	const fsync = (hoursAgo: number): HostMeasurements["fsync"] => ({ at: at(hoursAgo), writes: 9, p50Ms: 1, p99Ms: 1 });
	const peers: HostMeasurements["peers"] = { at: at(1), roundTrips: [{ address: "10.0.0.2" }] };
	test.each<[string, HostMeasurements, string[], { all: number; peers: number }, { all: boolean; peers: boolean }]>([
		["never measured", {}, [], { all: never, peers: never }, { all: true, peers: false }],
		["failed a moment ago", {}, [], { all: NOW - 1, peers: never }, { all: false, peers: false }],
		["failed long ago", {}, [], { all: NOW - HOUR, peers: never }, { all: true, peers: false }],
		["measured today", { fsync: fsync(23) }, [], { all: never, peers: never }, { all: false, peers: false }],
		["measured yesterday", { fsync: fsync(25) }, [], { all: never, peers: never }, { all: true, peers: false }],
		["a clock that went back", { fsync: fsync(-30) }, [], { all: never, peers: never }, { all: true, peers: false }],
		[
			"peers that are known, answered or not",
			{ fsync: fsync(1), peers },
			["10.0.0.2"],
			{ all: never, peers: never },
			{ all: false, peers: false },
		],
		[
			"another peer",
			{ fsync: fsync(1), peers },
			["10.0.0.2", "10.0.0.3"],
			{ all: never, peers: never },
			{ all: false, peers: true },
		],
		[
			"another peer a moment after",
			{ fsync: fsync(1), peers },
			["10.0.0.3"],
			{ all: never, peers: NOW - 1 },
			{ all: false, peers: false },
		],
	])("%s", (_what, measured, addresses, triedAt, expected) => {
		expect(dueOf(measured, addresses, { now: NOW, triedAt, intervalMs: 24 * HOUR })).toEqual(expected);
	});
});

test("peers are addresses of others that the signed document names, control planes first, sixteen at most", () => {
	const many = Array.from({ length: 30 }, (_, index) => `10.0.1.${index}`);
	const desired = {
		roles: [{ ...wanted, parameters: { controlPlaneAddresses: ["10.0.0.1", "10.0.0.2", 7, "name.example.com"] } }],
		peers: ["10.0.0.2", "10.0.0.9", ...many],
	};
	const found = peersOf(desired, new Set(["10.0.0.9"]));
	expect(found.slice(0, 3)).toEqual(["10.0.0.1", "10.0.0.2", "10.0.1.0"]);
	expect(found).toHaveLength(16);
	expect(peersOf({ roles: [] }, new Set())).toEqual([]);
});

test.each([
	[[5], 50, 5],
	[[4, 1, 3, 2], 50, 2],
	[Array.from({ length: 200 }, (_, index) => index + 1), 99, 198],
	[[1.23456], 99, 1.23],
	[[0.000_1], 50, 0.01],
])("percentile of %j at %i", (values, percent, expected) => {
	expect(percentile(values, percent)).toBe(expected);
});

test.each([
	// Host and region agree: the answer was written in the first half of the second that its Date names, or in the second.
	[1_000, 1_000, { offsetMs: -500, uncertaintyMs: 500 }],
	[1_400, 1_600, { offsetMs: 0, uncertaintyMs: 600 }],
	[61_400, 61_600, { offsetMs: 60_000, uncertaintyMs: 600 }],
])("a clock's offset and how sure it is: asked at %i, answered at %i", (before, after, expected) => {
	expect(offsetOf(new Date(1_000).toUTCString(), before, after)).toEqual(expected);
});

test("an answer without a Date tells nothing of the clock", () => {
	expect(offsetOf(undefined, 0, 1)).toBeUndefined();
	expect(offsetOf("soon", 0, 1)).toBeUndefined();
});

test("the truth is always within the uncertainty", () => {
	for (const [ahead, there, back] of [
		[0, 5, 5],
		[-3_000, 1, 400],
		[90_000, 700, 0],
	] as const)
		for (let region = 10_000; region < 12_000; region += 77) {
			const date = new Date(Math.floor(region / 1000) * 1000).toUTCString();
			const found = offsetOf(date, region - there + ahead, region + back + ahead);
			expect(Math.abs((found?.offsetMs ?? 0) - ahead)).toBeLessThanOrEqual(found?.uncertaintyMs ?? 0);
		}
});

describe("the disk", () => {
	test("is measured by some hundred writes, of which nothing is left", async () => {
		const found = await measureFsync(directory);
		expect(found?.writes).toBeGreaterThanOrEqual(10);
		expect(found?.writes).toBeLessThanOrEqual(200);
		expect(found?.p50Ms).toBeGreaterThan(0);
		expect(found?.p99Ms).toBeGreaterThanOrEqual(found?.p50Ms ?? Number.POSITIVE_INFINITY);
		expect(readdirSync(directory)).toEqual([]);
	});

	test("that is slow is measured by fewer", async () => {
		let now = 0;
		const found = await measureFsync(directory, { now: () => (now += 100) });
		expect(found?.writes).toBeLessThan(20);
		expect(found?.p99Ms).toBe(100);
	});

	test("is left alone at once when there is work to do", async () => {
		expect(await measureFsync(directory, { stop: () => true })).toBeUndefined();
		expect(readdirSync(directory)).toEqual([]);
	});

	test("is the one that etcd's directory is on, or would be, without touching that directory", async () => {
		expect(await directoryOn(join(directory, "etcd"), [directory])).toBe(directory);
		expect(await directoryOn("/proc/etcd", [directory, "/proc/self"])).not.toBe(directory);
		expect(await directoryOn("/proc", [directory])).toBe("/proc");
	});
});

describe("peers", () => {
	test("answer by a reset as well as by taking the connection; one that is not there does not", async () => {
		const server = createServer().listen(0, "127.0.0.1");
		await new Promise((resolve) => server.once("listening", resolve));
		const { port } = server.address() as { port: number };
		expect(await roundTrip("127.0.0.1", { port })).toBeGreaterThan(0);
		await new Promise((resolve) => server.close(resolve));
		expect(await roundTrip("127.0.0.1", { port })).toBeGreaterThan(0);
		// The kernel refuses this itself: an error that is no answer of a peer.
		expect(await roundTrip("255.255.255.255", { port })).toBeUndefined();
	});

	test("give the middle of some tries; a silent one is tried once", async () => {
		const answers: Record<string, (number | undefined)[]> = { a: [9, 1, 2], b: [undefined, 1, 1], c: [4, 4, 4] };
		const trip = vi.fn(async (address: string) => answers[address]?.shift());
		expect(await measurePeers(["a", "b", "c"], trip)).toEqual({
			medianMs: 2,
			roundTrips: [{ address: "a", ms: 2 }, { address: "b" }, { address: "c", ms: 4 }],
		});
		expect(trip).toHaveBeenCalledTimes(7);
		expect(await measurePeers(["b"], async () => undefined)).toEqual({ roundTrips: [{ address: "b" }] });
	});
});

describe("the measurer", () => {
	function setUp() {
		const stateDir = mkdtempSync(join(directory, "state-"));
		const world = {
			now: NOW,
			desired: { roles: [], peers: ["192.0.2.7"] } as unknown as DesiredState | undefined,
			roles: [] as RoleStatus[],
		};
		const fsync = vi.fn(async () => ({ writes: 200, p50Ms: 1, p99Ms: 2 }));
		const make = () => {
			const told: HostMeasurements[] = [];
			const measurer = new Measurer({
				stateDir,
				etcdDir: join(directory, "etcd"),
				desired: () => world.desired,
				roles: () => world.roles,
				clock: async () => ({ offsetMs: 3, uncertaintyMs: 501 }),
				onMeasured: (measured) => told.push(measured),
				log: { info: () => {}, warn: () => {} } as never,
				now: () => world.now,
				random: () => 0,
				fsync,
				peers: async (addresses) => ({ medianMs: 1, roundTrips: addresses.map((address) => ({ address, ms: 1 })) }),
			});
			return { measurer, told };
		};
		return { stateDir, world, fsync, make };
	}

	test("measures once, keeps it over a restart of the agent, and again a day later", async () => {
		const { stateDir, world, fsync, make } = setUp();
		const first = make();
		first.measurer.look();
		first.measurer.look();
		await vi.waitFor(() => expect(first.told).toHaveLength(1), patience);
		expect(first.told[0]).toMatchObject({
			fsync: { at: "2026-01-01T00:00:00Z", writes: 200, p99Ms: 2 },
			clock: { offsetMs: 3, uncertaintyMs: 501 },
			peers: { roundTrips: [{ address: "192.0.2.7", ms: 1 }] },
		});
		expect(readMeasured(stateDir)).toEqual(first.told[0]);

		const second = make();
		second.measurer.look();
		await new Promise((resolve) => setImmediate(resolve));
		expect(fsync).toHaveBeenCalledTimes(1);
		world.now += 25 * HOUR;
		second.measurer.look();
		await vi.waitFor(() => expect(second.told).toHaveLength(1), patience);
		expect(fsync).toHaveBeenCalledTimes(2);
	});

	test("gives way to a role that comes meanwhile, and goes on as soon as that is applied", async () => {
		const { world, fsync, make } = setUp();
		const { measurer, told } = make();
		fsync.mockImplementationOnce(async () => {
			world.roles = [role("Applying")];
			return undefined as never;
		});
		measurer.look();
		await vi.waitFor(() => expect(world.roles).toHaveLength(1), patience);
		await new Promise((resolve) => setImmediate(resolve));
		expect(told).toEqual([]);
		world.roles = [];
		await vi.waitFor(() => {
			measurer.look();
			expect(told).toHaveLength(1);
		}, patience);
		expect(fsync).toHaveBeenCalledTimes(2);
	});

	test("waits for the first document, and until no role is being applied; then other peers alone are measured", async () => {
		const { world, fsync, make } = setUp();
		const { measurer, told } = make();
		const desired = world.desired;
		world.desired = undefined;
		measurer.look();
		world.desired = desired;
		world.roles = [role("Applying")];
		await new Promise((resolve) => setImmediate(resolve));
		measurer.look();
		await new Promise((resolve) => setImmediate(resolve));
		expect(fsync).not.toHaveBeenCalled();
		world.roles = [];
		measurer.look();
		await vi.waitFor(() => expect(told).toHaveLength(1), patience);

		world.now += 2 * HOUR;
		world.desired = { roles: [], peers: ["192.0.2.8"] } as unknown as DesiredState;
		measurer.look();
		await vi.waitFor(() => expect(told).toHaveLength(2), patience);
		expect(told[1]?.peers).toMatchObject({ at: "2026-01-01T02:00:00Z", roundTrips: [{ address: "192.0.2.8" }] });
		expect(told[1]?.fsync).toEqual(told[0]?.fsync);
		expect(fsync).toHaveBeenCalledTimes(1);
	});
});
