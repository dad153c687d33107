import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { clusterManifest } from "../../hack/demo/manifests.ts";
import { demo, eventually, withHosts } from "./support/demo.ts";

const OLD = "v1.35.4";
const NEW = "v1.36.3";
const SNAPSHOTS = "/var/lib/groundplane/kubernetes/etcd";
/** A patch of the site's own for kubeadm that fits the old version alone: the change to the new one fails. */
const TRAP = "/etc/groundplane/kubernetes/patches/kube-apiserver0+json.json";
const TRAPPED = JSON.stringify([
	{ op: "test", path: "/spec/containers/0/image", value: `registry.k8s.io/kube-apiserver:${OLD}` },
]);

/** A cluster changes its version, stops where a host fails, goes on, and ends although a host is dead. */
describe("a cluster's life", () => {
	beforeAll(async () => {
		await withHosts();
		const manifest = clusterManifest("demo", demo.namespace, ["host-1", "host-2"]);
		await demo.apply({ ...manifest, spec: { ...manifest.spec, version: OLD } });
		await demo.waitReady<Cluster>("cluster", "demo", demo.namespace, 400_000);
		await demo.clusterKubeconfig("demo");
	});
	afterAll(async () => {
		await demo.lab.exec("host-1", ["rm", "-f", TRAP]);
		await demo.lab.start("host-2").catch(() => undefined);
		await demo.kubectl(["delete", "cluster", "demo", "-n", demo.namespace, "--ignore-not-found", "--timeout=300s"]);
	});

	it("says what a change of version will do, host by host, and changes nothing", async () => {
		const { stdout } = await demo.gp(["cluster", "upgrade", "demo", NEW, "--dry-run", "-o", "json"]);
		expect(JSON.parse(stdout)).toMatchObject({
			from: OLD,
			to: NEW,
			steps: [
				{ hosts: ["host-1"], role: "control-plane" },
				{ hosts: ["host-2"], role: "worker" },
			],
			findings: [],
		});
		expect((await cluster())?.spec.version).toBe(OLD);
	});

	it("stops at a host that fails, which runs the old version again, and says why", async () => {
		await demo.lab.exec("host-1", ["tee", TRAP], { input: TRAPPED });
		const { code, stderr } = await demo.gp(["cluster", "upgrade", "demo", NEW, "--wait", "--timeout", "10m"], {
			check: false,
		});
		expect(code).not.toBe(0);
		expect(stderr).toMatch(/Draining on host-1.*usually 50s, next host-2 \(worker\)/);
		await eventually(async () => {
			const condition = (await cluster())?.status?.conditions?.find(({ type }) => type === "Ready");
			expect(condition).toMatchObject({ status: "False", reason: "UpgradeStopped" });
			expect(condition?.message).toContain(`host-1 failed to become ${NEW} and was put back to ${OLD}`);
			expect(condition?.message).toContain("gp cluster upgrade demo");
		}, 120_000);
		await eventually(async () => expect(await nodes()).toEqual(oldEverywhere), 60_000);
		await demo.lab.run("host-1", ["rm", TRAP]);
	});

	it("goes on when it is told to, drains each host and gives it back", async () => {
		await demo.gp(["cluster", "upgrade", "demo", NEW, "--wait", "--timeout", "10m"]);
		expect(await nodes()).toEqual({ "host-1": `${NEW} ready`, "host-2": `${NEW} ready` });
		const { stdout } = await demo.clusterKubectl("demo", ["version", "-o", "json"]);
		expect(JSON.parse(stdout).serverVersion.gitVersion).toBe(NEW);
		expect((await cluster())?.status?.version).toBe(NEW);
	});

	it("has kept a whole snapshot of etcd from before each try, and tells when the last was taken", async () => {
		const names = (await demo.lab.run("host-1", ["ls", SNAPSHOTS])).trim().split("\n");
		const tries = ["the one that failed", "the one that went well"];
		expect(names).toEqual(tries.map(() => expect.stringMatching(/^\d{4}-\d\d-\d\dT\d{6}Z-v1\.35\.4\.db$/)));
		const host = await demo.get<Host>("host", "host-1", demo.namespace);
		const taken = host?.status?.roles?.find(({ name }) => name === "kubernetes")?.outputs?.etcdSnapshot;
		expect(taken?.replaceAll(":", "")).toBe(names.at(-1)?.replace(`-${OLD}.db`, ""));
	});

	it("ends although a host is dead, tells what is left on it, and that goes when the host is back", async () => {
		await demo.lab.stop("host-2");
		await demo.kubectl(["delete", "cluster", "demo", "-n", demo.namespace, "--timeout=240s"]);
		await eventually(async () => {
			const host = await demo.get<Host>("host", "host-2", demo.namespace);
			expect(host?.status?.leftBehind).toMatchObject([{ role: "kubernetes", cluster: "demo" }]);
			expect(host?.spec.roles ?? []).toEqual([]);
		}, 30_000);
		await demo.lab.start("host-2");
		await eventually(async () => {
			const host = await demo.get<Host>("host", "host-2", demo.namespace);
			expect(host?.status?.phase).toBe("Ready");
			expect(host?.status?.leftBehind ?? []).toEqual([]);
			expect(host?.status?.roles ?? []).toEqual([]);
		}, 180_000);
	});
});

const oldEverywhere = { "host-1": `${OLD} ready`, "host-2": `${OLD} ready` };
const cluster = () => demo.get<Cluster>("cluster", "demo", demo.namespace);

/** Versions of the nodes, and whether each takes pods. */
async function nodes(): Promise<Record<string, string>> {
	const { stdout } = await demo.clusterKubectl("demo", ["get", "nodes", "-o", "json"]);
	const { items } = JSON.parse(stdout) as {
		items: {
			metadata: { name: string };
			spec: { unschedulable?: boolean };
			status: { nodeInfo: { kubeletVersion: string }; conditions: { type: string; status: string }[] };
		}[];
	};
	return Object.fromEntries(
		items.map(({ metadata, spec, status }) => {
			const isReady = status.conditions.some(({ type, status: value }) => type === "Ready" && value === "True");
			return [
				metadata.name,
				`${status.nodeInfo.kubeletVersion} ${isReady && !spec.unschedulable ? "ready" : "not ready"}`,
			];
		}),
	);
}
