import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import type { Region } from "../../crds/region.ts";
import { clusterManifest, regionManifest } from "../../hack/demo/manifests.ts";
import { demo, eventually, HOSTS, withHosts } from "./support/demo.ts";

/** Whatever is killed, cut or restarted while something is being made: it converges with no hand on it, and nothing is made twice. */
describe("faults while a cluster is made", () => {
	beforeAll(async () => {
		await withHosts();
		await removeCluster();
	});
	afterEach(async () => {
		await demo.lab.heal().catch(() => undefined);
		await removeCluster();
	});

	it("the operator is killed again and again, the control plane loses power in the middle of kubeadm init, an agent is killed and a host loses power in the middle of a join, gateway, database and bus are restarted, and the site is cut off for a minute", async () => {
		await demo.apply(clusterManifest("demo", demo.namespace, HOSTS));
		const stop = new AbortController();
		const killing = killOperator(stop.signal);
		await untilStep("host-1", /kubeadm/i);
		await delay(3_000);
		await demo.lab.stop("host-1");
		await demo.lab.start("host-1");
		await untilStep("host-2", /./);
		stop.abort();
		await killing;
		await demo.lab.exec("host-2", ["systemctl", "kill", "-s", "KILL", "gp-agent"]);
		await demo.lab.stop("host-3");
		const parts = "app.kubernetes.io/name in (tunnel,postgresql,nats)";
		await demo.kubectl(["delete", "pod", "-n", demo.namespace, "-l", parts, "--wait=false"]);
		await demo.lab.start("host-3");
		await delay(10_000);
		await demo.lab.cut();
		await delay(60_000);
		await demo.lab.heal();
		await expectWhole();
	});
});

describe("faults while a region is made", () => {
	it("the operator is killed again and again: one region, one CA, all ready, and then gone without a trace", async () => {
		const name = "second";
		await demo.machines(HOSTS.length, ["demo", name]);
		await demo.apply(regionManifest(name, demo.domain(name)));
		const stop = new AbortController();
		const killing = killOperator(stop.signal);
		const digest = await eventually(async () => {
			const region = await demo.get<Region>("region", name);
			expect(region?.status?.caDigest).toBeTruthy();
			return region?.status?.caDigest;
		}, 120_000);
		await delay(20_000);
		stop.abort();
		await killing;
		const region = await demo.waitReady<Region>("region", name, undefined, 300_000);
		expect(region.status?.caDigest).toBe(digest);
		await demo.kubectl(["delete", "region", name, "--timeout=300s"]);
		expect(await demo.get("namespace", `region-${name}`)).toBeUndefined();
	});
});

/** Kills the operator's process every few seconds, without warning it. */
async function killOperator(signal: AbortSignal): Promise<void> {
	while (!signal.aborted) {
		await demo.kubectl(
			[
				"delete",
				"pod",
				"-n",
				"groundplane-system",
				"-l",
				"app.kubernetes.io/name=operator",
				"--grace-period=0",
				"--force",
			],
			{ check: false },
		);
		await delay(4_000, undefined, { signal }).catch(() => undefined);
	}
}

/** Waits until a host is at a step of its kubernetes role. */
async function untilStep(name: string, step: RegExp): Promise<void> {
	await eventually(
		async () => {
			const host = await demo.get<Host>("host", name, demo.namespace);
			expect(host?.status?.roles?.find((role) => role.name === "kubernetes")?.step ?? "").toMatch(step);
		},
		180_000,
		250,
	);
}

/** The cluster is whole: every host is a node once, and it was made once. */
async function expectWhole(): Promise<void> {
	const cluster = await demo.waitReady<Cluster>("cluster", "demo", demo.namespace, 400_000);
	expect(cluster.status?.ready).toBe("3/3");
	await demo.clusterKubeconfig("demo");
	const { stdout } = await demo.clusterKubectl("demo", ["get", "nodes", "-o", "json"]);
	const { items } = JSON.parse(stdout) as { items: { metadata: { name: string } }[] };
	expect(items.map((node) => node.metadata.name).sort()).toEqual([...HOSTS]);
	const modes: unknown[] = [];
	for (const name of HOSTS)
		modes.push((await demo.get<Host>("host", name, demo.namespace))?.spec.roles[0]?.parameters.mode);
	expect(modes).toEqual(["init", "join-worker", "join-worker"]);
}

async function removeCluster(): Promise<void> {
	await demo.kubectl(["delete", "cluster", "demo", "-n", demo.namespace, "--ignore-not-found", "--timeout=300s"]);
	for (const name of HOSTS) await demo.waitReady("host", name, demo.namespace, 180_000);
}
