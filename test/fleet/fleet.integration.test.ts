import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Fleet } from "./fleet.ts";
import { hostName } from "./host.ts";
import { type Plane, startPlane, versions } from "./plane.ts";
import {
	blackout,
	broken,
	changeAndAcknowledge,
	costOf,
	deleteClusters,
	flapping,
	idle,
	join,
	makeClusters,
	ready,
	settled,
	upgradeClusters,
	uplinkLost,
} from "./scenarios.ts";

const HOSTS = 45;

/** The fleet in small: that the storms end as they should. How fast they do is what `hack/bench fleet` measures. */
describe("a fleet of simulated hosts", () => {
	let plane: Plane;
	let fleet: Fleet;

	beforeAll(async () => {
		plane = await startPlane();
		fleet = await Fleet.make(plane, { size: HOSTS, pace: { factor: 0.01, failures: 0.05 } });
	}, 120_000);
	afterAll(async () => {
		await fleet?.close();
		await plane?.close();
	});

	test("all hosts join at once with one token; who is sent away because of the crowd comes in, too", async () => {
		const { writes } = await costOf(plane, () => join(plane, fleet, { ms: 120_000 }));
		await settled(plane, fleet, HOSTS, 60_000);
		const crowd = ["Overloaded", "DeadlineExceeded"];
		expect(Object.keys((await fleet.summary()).refused).filter((code) => !crowd.includes(code))).toEqual([]);
		expect(writes / HOSTS, "writes to etcd for each join").toBeLessThan(12);
		expect(await broken(plane, fleet, HOSTS)).toEqual([]);
	}, 200_000);

	test("idle hosts cost etcd nothing", async () => {
		// What the joins still had to write is over when nothing was written for a while.
		for (let writes = 1; writes > 0; ) writes = (await idle(plane, 3)).writesPerMinute;
		expect((await idle(plane, 5)).writesPerMinute).toBe(0);
	}, 120_000);

	test("a change reaches its host", async () => {
		const names = [0, 7, 21].map(hostName);
		expect(await changeAndAcknowledge(plane, fleet, names)).toHaveLength(2 * names.length);
		await ready(plane, HOSTS, 60_000);
	}, 120_000);

	test("clusters are made and upgraded side by side with steps that fail now and then, and go without a trace", async () => {
		await makeClusters(plane, { count: 5, ms: 150_000 });
		await upgradeClusters(plane, versions[1], { ms: 150_000 });
		const { clusters, madeTwice } = await fleet.summary();
		expect({ clusters, madeTwice }).toEqual({ clusters: 5, madeTwice: 0 });
		await deleteClusters(plane, { ms: 150_000 });
		await ready(plane, HOSTS, 60_000);
	}, 500_000);

	test("a restart of the hosts service sends nothing again", async () => {
		await settled(plane, fleet, HOSTS, 60_000);
		await plane.kill(["hosts"]);
		await plane.start(["hosts"]);
		await idle(plane, 3);
		expect(await plane.metric("hosts", "groundplane_host_reports_total", 'type="acknowledgement"')).toBe(0);
	}, 120_000);

	test("tunnels that come and go, and a line that is lost, show in no Host for longer than they last", async () => {
		const { writes } = await costOf(plane, () => flapping(fleet, { share: 0.3, rounds: 3, everyMs: 1_000 }));
		await settled(plane, fleet, HOSTS, 60_000);
		expect(writes).toBeLessThan(4 * HOSTS);
		await uplinkLost(plane, fleet, { darkMs: 2_000, ms: 120_000 });
		await ready(plane, HOSTS, 120_000);
		expect(await broken(plane, fleet, HOSTS)).toEqual([]);
	}, 300_000);

	test("the power goes off under the whole plane, and nobody is lost", async () => {
		const before = await fleet.summary();
		await blackout(plane, fleet, { ms: 150_000 });
		await ready(plane, HOSTS, 120_000);
		expect(await broken(plane, fleet, HOSTS)).toEqual([]);
		expect((await fleet.summary()).maxEpoch).toBeGreaterThanOrEqual(before.maxEpoch);
	}, 300_000);
});
