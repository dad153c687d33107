import { request } from "node:https";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { regionQueries } from "../../charts/dashboards/region.ts";
import { tool } from "../../hack/builder/tools.ts";
import { run } from "../../hack/lib/exec.ts";
import { demo, eventually, HOSTS, withCluster } from "./support/demo.ts";
import { type Forward, portForward } from "./support/port-forward.ts";
import { turnMetricsServer } from "./support/workload.ts";

/** What the provider's operator sees in Grafana comes from these queries: each must have something to show. */
describe("the dashboard", () => {
	let forward: Forward | undefined;
	let query: (expr: string) => Promise<unknown[]>;

	beforeAll(async () => {
		await withCluster();
		forward = await portForward(demo.kubeconfig, ["-n", demo.namespace, "svc/prometheus", ":9090"]);
		const { port } = forward;
		const secret = await demo.kubectl(["get", "secret", "tls-clusters", "-n", demo.namespace, "-o", "json"]);
		const { data } = JSON.parse(secret.stdout) as { data: Record<string, string> };
		const pem = (name: string) => Buffer.from(data[name] ?? "", "base64");
		const identity = { ca: pem("ca.crt"), cert: pem("tls.crt"), key: pem("tls.key"), servername: "prometheus" };
		query = async (expr) => {
			const body = await get({ ...identity, port, path: `/api/v1/query?query=${encodeURIComponent(expr)}` });
			const answer = JSON.parse(body) as { status: string; error?: string; data?: { result: unknown[] } };
			expect(answer.error).toBeUndefined();
			return answer.data?.result ?? [];
		};
	});
	afterAll(() => forward?.stop());

	it.each(regionQueries.map(({ panel, expr }) => [panel, expr]))("%s: %s", async (_panel, expr) => {
		// A host is scraped every two minutes, and a rate needs two samples.
		await eventually(async () => expect(await query(expr)).not.toEqual([]), 300_000, 5_000);
	});

	it("Prometheus reaches everything that it should scrape", async () => {
		await eventually(async () => expect(await query("up == 0")).toEqual([]), 180_000, 5_000);
	});
});

describe("the add-on metrics-server", () => {
	const kubectl = (...args: string[]) => demo.clusterKubectl("demo", args);
	beforeAll(withCluster);

	it("is there when it is wanted, and trusts every kubelet by the cluster's CA", async () => {
		await turnMetricsServer(true);
		await eventually(
			async () => {
				const { stdout } = await kubectl("top", "nodes", "--no-headers");
				const names = stdout.trim().split("\n");
				expect(names.map((line) => line.split(/\s+/)[0]).sort()).toEqual([...HOSTS]);
			},
			180_000,
			2_000,
		);
		const { stdout } = await kubectl("get", "deployment", "metrics-server", "-n", "kube-system", "-o", "yaml");
		expect(stdout).toContain("--kubelet-certificate-authority=");
	});

	it("is gone when it is not wanted", async () => {
		await turnMetricsServer(false);
		await eventually(async () => {
			const kinds = "apiservices,deployments,services,clusterroles";
			const label = "groundplane.io/addon notin (coredns),groundplane.io/addon";
			const { stdout } = await kubectl("get", kinds, "-A", "-l", label, "-o", "name");
			expect(stdout.trim()).toBe("");
		}, 120_000);
	});
});

describe("helm test", () => {
	it.each([
		["groundplane", "groundplane-system"],
		["region", demo.namespace],
	])("%s passes its own test", async (release, namespace) => {
		const { stdout } = await run(await tool("helm"), [
			"test",
			release,
			"-n",
			namespace,
			"--kubeconfig",
			demo.kubeconfig,
			"--timeout",
			"2m",
		]);
		expect(stdout).toMatch(/Phase:\s+Succeeded/);
	});
});

function get(options: {
	port: number;
	path: string;
	servername: string;
	ca: Buffer;
	cert: Buffer;
	key: Buffer;
}): Promise<string> {
	return new Promise((resolve, reject) => {
		const asking = request({ host: "127.0.0.1", ...options }, (response) => {
			let body = "";
			response.setEncoding("utf8");
			response.on("data", (chunk: string) => {
				body += chunk;
			});
			response.on("end", () => resolve(body));
		});
		asking.on("error", reject);
		asking.end();
	});
}
