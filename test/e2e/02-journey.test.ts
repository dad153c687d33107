import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import type { Region } from "../../crds/region.ts";
import { tool } from "../../hack/builder/tools.ts";
import { DEMO_KUBERNETES } from "../../hack/demo/manifests.ts";
import { demo, eventually, HOSTS, withHosts, withRegion } from "./support/demo.ts";
import { portForward } from "./support/port-forward.ts";
import { saveSnapshots } from "./support/snapshots.ts";
import { fetchScript, importImage, turnMetricsServer, webManifests } from "./support/workload.ts";

/** What a user does, from an empty machine to kubectl through the tunnel. */
describe("the journey", () => {
	beforeAll(withRegion);

	it("a region is ready, with every component and the addresses that people and hosts need", async () => {
		const region = await demo.get<Region>("region", "demo");
		expect(region?.status?.phase).toBe("Ready");
		expect(region?.status?.components?.filter((component) => !component.ready)).toEqual([]);
		expect(region?.status?.components?.map((component) => component.name)).toEqual(
			expect.arrayContaining([
				"artifacts",
				"auth",
				"clusters",
				"front",
				"hosts",
				"nats",
				"postgresql",
				"prometheus",
				"tunnel",
			]),
		);
		expect(region?.status?.endpoints).toMatchObject({ console: `https://${demo.domain()}/` });
	});

	it("hosts enrol by one line, and show up ready, with their facts", async () => {
		await withHosts();
		for (const name of HOSTS) {
			const host = await demo.get<Host>("host", name, demo.namespace);
			expect(host?.status?.phase).toBe("Ready");
			expect(host?.status?.facts).toMatchObject({ hostname: name, primaryAddress: await demo.lab.address(name) });
		}
		// Each measures what etcd would have of it, once it has heard that there is nothing else to do.
		for (const name of HOSTS) {
			const measured = await eventually(async () => {
				const found = (await demo.get<Host>("host", name, demo.namespace))?.status?.facts?.measured;
				expect(found).toMatchObject({ fsync: expect.anything(), clock: expect.anything() });
				return found;
			});
			expect(measured?.fsync?.p99Ms).toBeGreaterThan(0);
			expect(measured?.clock?.uncertaintyMs).toBeGreaterThan(0);
		}
		const list = await demo.gp(["host", "list", "-o", "json"]);
		expect(JSON.parse(list.stdout).items).toHaveLength(HOSTS.length);
	});

	it("a cluster of one control plane and two workers becomes ready, and tells what it does on which host", async () => {
		await saveSnapshots(demo, HOSTS);
		const steps = new Set<string>();
		const watching = watchProgress(steps);
		await demo.makeCluster("demo", HOSTS);
		await demo.clusterKubeconfig("demo");
		(await watching).stop();
		const cluster = await demo.get<Cluster>("cluster", "demo", demo.namespace);
		expect(cluster?.status).toMatchObject({ phase: "Ready", ready: "3/3", version: DEMO_KUBERNETES });
		expect([...steps].join("\n")).toMatch(/Making the first control plane on host-1/);
		expect([...steps].join("\n")).toMatch(/on host-[23]/);
	});
});

describe("kubectl through the tunnel", () => {
	const kubectl = (args: readonly string[], input?: string) =>
		demo.clusterKubectl("demo", args, input === undefined ? {} : { input });
	let pods: { name: string; node: string }[] = [];

	it("shows the nodes", async () => {
		const { stdout } = await kubectl(["get", "nodes", "-o", "json"]);
		const { items } = JSON.parse(stdout) as { items: { metadata: { name: string } }[] };
		expect(items.map((node) => node.metadata.name).sort()).toEqual([...HOSTS]);
	});

	it("runs a workload on both workers", async () => {
		const version = await demo.version();
		for (const host of ["host-2", "host-3"]) await importImage(host, version);
		for (const manifest of webManifests(version, 2)) await kubectl(["apply", "-f", "-"], JSON.stringify(manifest));
		await kubectl(["rollout", "status", "deployment/web", "--timeout=90s"]);
		const { stdout } = await kubectl(["get", "pods", "-l", "app=web", "-o", "json"]);
		const { items } = JSON.parse(stdout) as { items: { metadata: { name: string }; spec: { nodeName: string } }[] };
		pods = items.map((pod) => ({ name: pod.metadata.name, node: pod.spec.nodeName }));
		expect(pods.map((pod) => pod.node).sort()).toEqual(["host-2", "host-3"]);
	});

	it("pods reach each other through the Service, by its name, across hosts", async () => {
		const answered = new Set<string>();
		await eventually(async () => {
			const { stdout } = await kubectl([
				"exec",
				pods[0]?.name ?? "",
				"--",
				"node",
				"-e",
				fetchScript,
				"http://web.default.svc.cluster.local/",
			]);
			answered.add(stdout.trim().split(" on ")[1] ?? "");
			expect([...answered].sort()).toEqual(["host-2", "host-3"]);
		});
		expect(await demo.lab.run("host-2", ["nft", "list", "tables"])).toContain("table ip kube-proxy");
	});

	it("exec carries standard input, output and the exit code", async () => {
		const echoed = await kubectl(["exec", "-i", pods[0]?.name ?? "", "--", "cat"], "through the tunnel\n");
		expect(echoed.stdout).toBe("through the tunnel\n");
		const failing = await demo.clusterKubectl("demo", ["exec", pods[0]?.name ?? "", "--", "sh", "-c", "exit 7"], {
			check: false,
		});
		expect(failing.code).toBe(7);
	});

	it("logs follow", async () => {
		const { stdout } = await kubectl(["logs", pods[0]?.name ?? "", "--tail=5"]);
		expect(stdout).toMatch(/request GET/);
	});

	it("cp carries a file there and back", async () => {
		const { stdout } = await kubectl(
			["exec", "-i", pods[0]?.name ?? "", "--", "sh", "-c", "cat > /tmp/big; wc -c < /tmp/big"],
			"x".repeat(5_000_000),
		);
		expect(stdout.trim()).toBe("5000000");
	});

	it("port-forward carries HTTP", async () => {
		const forward = await portForward(await demo.clusterKubeconfig("demo"), [`pod/${pods[0]?.name}`, ":8080"]);
		try {
			const answer = await (await fetch(`http://127.0.0.1:${forward.port}/`)).text();
			expect(answer.trim()).toBe(`${pods[0]?.name} on ${pods[0]?.node}`);
		} finally {
			forward.stop();
		}
	});

	it("a watch tells of a change at once", async () => {
		const child = spawn(
			await tool("kubectl"),
			["--kubeconfig", await demo.clusterKubeconfig("demo"), "get", "configmaps", "--watch", "-o", "name"],
			{
				env: demo.environment,
				stdio: ["ignore", "pipe", "inherit"],
			},
		);
		try {
			const seen: string[] = [];
			createInterface({ input: child.stdout }).on("line", (line) => seen.push(line));
			await eventually(async () => expect(seen).toContain("configmap/kube-root-ca.crt"));
			await kubectl(["create", "configmap", "watched"]);
			await eventually(async () => expect(seen).toContain("configmap/watched"), 5_000, 50);
		} finally {
			child.kill();
			await kubectl(["delete", "configmap", "watched", "--ignore-not-found"]);
		}
	});

	it("takes an add-on while it runs", async () => {
		await turnMetricsServer(true);
		// What it answers is asked for in 04-monitoring, when it has had its time.
		await eventually(() => kubectl(["get", "deployment", "metrics-server", "-n", "kube-system"]), 120_000);
	});
});

/** Collects the steps that the cluster's status names. */
async function watchProgress(steps: Set<string>): Promise<{ stop: () => void }> {
	const child = spawn(
		await tool("kubectl"),
		[
			"--kubeconfig",
			demo.kubeconfig,
			"get",
			"clusters",
			"-n",
			demo.namespace,
			"--watch",
			"-o",
			'jsonpath={.status.progress.step} on {.status.progress.host}{"\\n"}',
		],
		{ stdio: ["ignore", "pipe", "ignore"] },
	);
	createInterface({ input: child.stdout }).on("line", (line) => steps.add(line));
	return { stop: () => child.kill() };
}
