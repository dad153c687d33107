import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import {
	ALL,
	become,
	CONTROL_PLANES,
	cluster,
	expectWhole,
	leader,
	NEW,
	startWriting,
	timed,
	untilOn,
	want,
	withFiveHosts,
} from "./support/changes.ts";
import { demo, eventually } from "./support/demo.ts";

const MINUTE = 60_000;

/**
 * Three control planes and two workers are changed, and what can go wrong goes wrong in the middle. It takes twenty minutes and runs
 * when `GROUNDPLANE_CHANGES` is set. Each scenario begins by asking for the cluster that it needs, so each runs alone on a lab that is kept.
 */
describe("a cluster that is changed while things go wrong", { timeout: 25 * MINUTE }, () => {
	beforeAll(withFiveHosts, 25 * MINUTE);
	afterEach(async () => {
		for (const name of ALL) await demo.lab.start(name);
	}, 5 * MINUTE);

	it("keeps every write that it accepted while three control planes become one and three again, and the leader's host dies as the third joins", async () => {
		await become();
		const stop = await startWriting("host-5");
		expect(await become({ controlPlanes: ["host-1"] })).toBeLessThan(240);
		const took = await timed(async () => {
			await want();
			await untilOn("host-3", "test -d /var/lib/etcd/member");
			const name = await leader(["host-1", "host-2"]);
			await demo.lab.stop(name);
			await delay(15_000);
			await demo.lab.start(name);
			await expectWhole();
		}, "1 → 3 control planes, the leader's host dead for 15 s");
		expect(took).toBeLessThan(420);
		const { accepted, lost } = await stop();
		expect(lost).toEqual([]);
		expect(accepted).toBeGreaterThan(20);
	});

	it("exchanges a control plane for another although the leader's host is dead meanwhile", async () => {
		const wanted = { controlPlanes: ["host-1", "host-2", "host-4"], workers: ["host-5"] };
		await become({ workers: ["host-5"] });
		await want(wanted);
		await untilOn("host-4", "test -d /var/lib/etcd/member");
		const name = await leader(CONTROL_PLANES);
		await demo.lab.stop(name);
		await eventually(async () => {
			const { members = [] } = (await cluster())?.status ?? {};
			expect(members.find((member) => member.host === "host-4")?.phase).toBe("Ready");
		}, 5 * MINUTE);
		await demo.lab.start(name);
		await expectWhole(wanted);
	});

	it("runs the old version everywhere when it is set back after the first control plane has the new one", async () => {
		await become();
		await want({ version: NEW });
		await eventually(async () => expect(entryOf("host-1", await cluster())?.finished).toBeDefined(), 5 * MINUTE);
		expect(await timed(() => become(), "set back after the first control plane")).toBeLessThan(300);
	});
});

const entryOf = (name: string, found: Awaited<ReturnType<typeof cluster>>) =>
	found?.status?.upgrade?.hosts.find((entry) => entry.host === name);
