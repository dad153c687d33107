import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import {
	ALL,
	become,
	CONTROL_PLANES,
	cluster,
	expectClean,
	expectWhole,
	host,
	kubectl,
	leader,
	NAME,
	NEW,
	on,
	startWriting,
	timed,
	untilOn,
	want,
	withFiveHosts,
} from "./support/changes.ts";
import { demo, eventually } from "./support/demo.ts";

const MINUTE = 60_000;

/**
 * Three control planes and two workers are changed, and what can go wrong goes wrong in the middle. All of this file takes half an hour and runs
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

/** Whatever is dead or stuck: a deletion ends, says what it could not clean, and that is cleaned on the next contact. */
describe("deleting a cluster", { timeout: 15 * MINUTE }, () => {
	beforeAll(withFiveHosts, 25 * MINUTE);
	afterEach(async () => {
		await demo.lab.heal();
		for (const name of ALL) await demo.lab.start(name);
	}, 5 * MINUTE);

	it("ends with a worker that lost its power without a word, and with finalizers inside that nobody serves", async () => {
		const small = { controlPlanes: ["host-1"], workers: ["host-4", "host-5"], drainTimeout: "20s" };
		await become(small);
		const stuck = { name: "stuck", finalizers: ["example.test/nobody"] };
		const image = (await on("host-5", "ctr -n k8s.io images ls -q | grep -m1 /pause:")).trim();
		const pod = (metadata: object, nodeName: string) => ({
			apiVersion: "v1",
			kind: "Pod",
			metadata: { ...metadata, namespace: "default" },
			spec: { nodeName, containers: [{ name: "pause", image, imagePullPolicy: "Never" }] },
		});
		await applyInside([
			{ apiVersion: "v1", kind: "Namespace", metadata: { name: "stuck" } },
			{ apiVersion: "v1", kind: "ConfigMap", metadata: { ...stuck, namespace: "stuck" } },
			pod(stuck, "host-4"),
			pod({ name: "lost" }, "host-5"),
		]);
		await on("host-1", kubectl("wait --for=condition=Ready pod/stuck pod/lost --timeout=60s"));
		await on("host-1", kubectl("delete namespace stuck --wait=false"));
		await demo.lab.cut("host-5");
		await demo.lab.stop("host-5");
		const noticed = timed(
			() =>
				eventually(async () => expect((await host("host-5"))?.status?.connection?.state).toBe("Disconnected"), MINUTE),
			"a host without power noticed while it drains",
		);
		expect(await deletion("one host without power, finalizers stuck")).toBeLessThan(240);
		await noticed;
		await eventually(async () => expect(await leftOn("host-5")).toEqual(["kubernetes of changes"]));
		await expectClean(["host-1", "host-4"]);
		await demo.lab.heal("host-5");
		await demo.lab.start("host-5");
		await expectClean();
	});

	it("ends with all control planes dead", async () => {
		await become({ controlPlanes: ["host-1"], workers: ["host-4"] });
		await demo.lab.stop("host-1");
		expect(await deletion("its control plane dead")).toBeLessThan(240);
		await expectClean(["host-4"]);
		await eventually(async () => expect(await leftOn("host-1")).toEqual(["kubernetes of changes"]));
		await demo.lab.start("host-1");
		await expectClean();
	});
});

const deletion = (what: string) =>
	timed(
		() => demo.kubectl(["delete", "cluster", NAME, "-n", demo.namespace, "--timeout=600s"]),
		`a cluster deleted, ${what}`,
	);

/** The ledger of a host. */
async function leftOn(name: string): Promise<string[]> {
	const { leftBehind = [] } = (await host(name))?.status ?? {};
	return leftBehind.map(({ role, cluster: of }) => `${role} of ${of}`);
}

const applyInside = (items: readonly object[]) => {
	const list = JSON.stringify({ apiVersion: "v1", kind: "List", items });
	return on("host-1", `cat <<'END' | ${kubectl("apply -f -")}\n${list}\nEND`);
};

const entryOf = (name: string, found: Awaited<ReturnType<typeof cluster>>) =>
	found?.status?.upgrade?.hosts.find((entry) => entry.host === name);
