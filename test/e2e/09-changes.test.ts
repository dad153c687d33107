import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import {
	ALL,
	applyInside,
	become,
	CONTROL_PLANES,
	cluster,
	expectWhole,
	idleContainer,
	kubectl,
	leader,
	manifest,
	on,
	readyOf,
	startWriting,
	timed,
	untilLearner,
	untilOn,
	untilWritten,
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
			await untilLearner("host-2", "host-1");
			await untilLearner("host-3", "host-1");
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

	it("grows to five control planes, takes writes while two of them have no power, and becomes three again", async () => {
		const five = { controlPlanes: ALL, workers: [] };
		await become();
		expect(await timed(() => become(five), "3 + 2 → 5 control planes")).toBeLessThan(300);
		const leads = await leader(ALL);
		const [from = "", dark = ""] = CONTROL_PLANES.filter((name) => name !== leads);
		const stop = await startWriting(from);
		await untilWritten(from, MINUTE);
		for (const name of [leads, dark]) await demo.lab.stop(name);
		const gap = await timed(
			() => untilWritten(from, 2 * MINUTE),
			"a write accepted without two of five control planes",
		);
		expect(gap).toBeLessThan(30);
		await eventually(async () => expect((await cluster())?.status?.ready).toBe("3/5"), 2 * MINUTE);
		await untilWritten(from, MINUTE);
		for (const name of [leads, dark]) await demo.lab.start(name);
		expect(await timed(() => expectWhole(five), "the two were back")).toBeLessThan(120);
		expect(await timed(() => become({ workers: ["host-5"] }), "5 → 3 + 1")).toBeLessThan(240);
		expect((await stop()).lost).toEqual([]);
	});

	it("exchanges a control plane for another although the leader's host is dead meanwhile", async () => {
		const wanted = { controlPlanes: ["host-1", "host-2", "host-4"], workers: ["host-5"] };
		await become({ workers: ["host-5"] });
		const took = await timed(async () => {
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
		}, "a control plane exchanged, the leader's host dead until the new one was ready");
		expect(took).toBeLessThan(420);
	});

	it("says which budget holds a drain up, since when and until when, and takes the host all the same", async () => {
		const before = { controlPlanes: ["host-1"], workers: ["host-4", "host-5"], drainTimeout: "40s" };
		await become(before);
		await applyInside(await neverBudget("host-5"));
		await on("host-1", kubectl("rollout status deployment/never --timeout=120s"));
		const wanted = { ...before, workers: ["host-4"] };
		const took = await timed(async () => {
			await want(wanted);
			await eventually(async () => {
				const { members = [] } = (await cluster())?.status ?? {};
				expect(members.find((member) => member.host === "host-5")?.message).toMatch(
					/Draining since .*Z: 2 pods left; PodDisruptionBudget default\/never \(pod never-\S+\) allows no eviction\. At .*Z the pods are deleted all the same\./,
				);
			}, MINUTE);
			await expectWhole(wanted);
		}, "a worker removed whose pods a budget holds for 40 s");
		expect(took).toBeGreaterThan(40);
		expect(took).toBeLessThan(240);
		await on("host-1", kubectl("delete deployment/never poddisruptionbudget/never"));
	});

	it("gives a host that two Clusters want to one of them, and to the other when that one goes", async () => {
		const small = { controlPlanes: ["host-1"], workers: ["host-4"] };
		await become(small);
		const wants = (name: string, host: string) => manifest({ controlPlanes: [host], workers: [] }, name);
		const items = [wants("one", "host-5"), wants("two", "host-5"), wants("three", "host-4")];
		await demo.apply({ apiVersion: "v1", kind: "List", items });
		const refusalOf = async (name: string) => {
			const ready = readyOf(await demo.get<Cluster>("cluster", name, demo.namespace));
			return ready?.reason === "HostTaken" ? ready.message : ready?.reason;
		};
		const [first, second] = await eventually(async () => {
			expect(await refusalOf("three")).toMatch(/^Host host-4 belongs to cluster changes\./);
			const said = [await refusalOf("one"), await refusalOf("two")];
			expect(said).not.toContain(undefined);
			const taken = said.filter((text) => /^Host host-5 belongs to cluster (one|two)\./.test(text ?? ""));
			expect(taken).toHaveLength(1);
			return said[0] === taken[0] ? ["two", "one"] : ["one", "two"];
		}, 2 * MINUTE);
		const took = await timed(async () => {
			await demo.kubectl(["delete", "cluster", first, "three", "-n", demo.namespace, "--timeout=240s"]);
			await demo.waitReady("cluster", second, demo.namespace, 8 * MINUTE);
		}, "a host that two Clusters want: the first deleted, the second ready");
		expect(took).toBeLessThan(180);
		await demo.kubectl(["delete", "cluster", second, "-n", demo.namespace, "--timeout=240s"]);
		await expectWhole(small);
	});
});

/** Two pods on a host, and a budget that lets none of them go. */
async function neverBudget(name: string) {
	const labels = { app: "never" };
	const pods = { nodeSelector: { "kubernetes.io/hostname": name }, containers: [await idleContainer(name)] };
	const metadata = { name: "never", namespace: "default" };
	const selector = { matchLabels: labels };
	return [
		{
			apiVersion: "apps/v1",
			kind: "Deployment",
			metadata,
			spec: { replicas: 2, selector, template: { metadata: { labels }, spec: pods } },
		},
		{ apiVersion: "policy/v1", kind: "PodDisruptionBudget", metadata, spec: { maxUnavailable: 0, selector } },
	];
}
