import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { register } from "prom-client";
import { afterEach, describe, expect, it, vi } from "vitest";
import { setCondition } from "./conditions.ts";
import { parseKubeConfig } from "./config.ts";
import "./metrics.ts";

afterEach(() => vi.useRealTimers());

describe("setCondition", () => {
	const at = (seconds: number) => () => seconds * 1000;
	const ready = { type: "Ready", status: "True", reason: "Ready", message: "" } as const;

	it("moves the time only when the status flips", () => {
		const first = setCondition([], ready, at(1));
		expect(first[0]?.lastTransitionTime).toBe("1970-01-01T00:00:01Z");
		const reworded = setCondition(first, { ...ready, message: "better" }, at(2));
		expect(reworded[0]).toMatchObject({ message: "better", lastTransitionTime: "1970-01-01T00:00:01Z" });
		const flipped = setCondition(reworded, { ...ready, status: "False", reason: "Broken" }, at(3));
		expect(flipped[0]).toMatchObject({ status: "False", lastTransitionTime: "1970-01-01T00:00:03Z" });
	});
	it("gives the same list back when nothing changed, and puts Ready first", () => {
		const list = setCondition(setCondition([], { ...ready, type: "Installed" }, at(1)), ready, at(1));
		expect(list.map(({ type }) => type)).toEqual(["Ready", "Installed"]);
		expect(setCondition(list, ready, at(9))).toBe(list);
	});
});

describe("parseKubeConfig", () => {
	const config = (user: string, cluster = "") => `
current-context: a
contexts: [{ name: a, context: { cluster: c, user: u, namespace: n } }]
clusters: [{ name: c, cluster: { server: "https://192.0.2.1:6443/", certificate-authority-data: ${btoa("CA")} ${cluster} } }]
users: [{ name: u, user: { ${user} } }]`;
	const parse = (text: string) => parseKubeConfig(text, { directory: "/" });

	it("takes client certificates and tokens", async () => {
		const pair = `client-certificate-data: ${btoa("CERT")}, client-key-data: ${btoa("KEY")}`;
		expect(await parse(config(pair))).toEqual({
			server: "https://192.0.2.1:6443",
			namespace: "n",
			tls: { ca: "CA", cert: "CERT", key: "KEY" },
		});
		expect((await parse(config("token: secret"))).token?.()).toBe("secret");
	});
	it("refuses what it can't do, and what is not safe, with a way out", async () => {
		await expect(parse(config("exec: { command: x }"))).rejects.toMatchObject({ code: "InvalidConfiguration" });
		await expect(parse(config("token: t", ", insecure-skip-tls-verify: true"))).rejects.toThrow("verification");
		await expect(parse("current-context: none")).rejects.toThrow('no usable context "none"');
	});
	it("follows a token that is rotated, also when the clock is set back", async () => {
		const directory = await mkdtemp(join(tmpdir(), "gp-token-"));
		await writeFile(join(directory, "token"), "old");
		vi.useFakeTimers({ toFake: ["Date", "performance"] });
		const { token } = await parseKubeConfig(config("tokenFile: token"), { directory });
		expect(token?.()).toBe("old");
		await writeFile(join(directory, "token"), "new");
		vi.setSystemTime(Date.now() - 3_600_000);
		vi.advanceTimersByTime(61_000);
		expect(token?.()).toBe("new");
		await rm(directory, { recursive: true });
	});
});

// People's dashboards and alerts go by these (controller-runtime v0.25: pkg/internal/controller/metrics, pkg/internal/metrics).
describe("metrics", () => {
	it.each([
		["controller_runtime_reconcile_total", "controller result"],
		["controller_runtime_reconcile_errors_total", "controller"],
		["controller_runtime_reconcile_timeouts_total", "controller"],
		["controller_runtime_reconcile_time_seconds", "controller"],
		["controller_runtime_max_concurrent_reconciles", "controller"],
		["controller_runtime_active_workers", "controller"],
		["workqueue_depth", "name controller priority"],
		["workqueue_adds_total", "name controller"],
		["workqueue_queue_duration_seconds", "name controller"],
		["workqueue_work_duration_seconds", "name controller"],
		["workqueue_unfinished_work_seconds", "name controller"],
		["workqueue_longest_running_processor_seconds", "name controller"],
		["workqueue_retries_total", "name controller"],
		["rest_client_requests_total", "code method host"],
		["leader_election_master_status", "name"],
	])("%s has the labels %s, as controller-runtime's", (name, labels) => {
		const metric = register.getSingleMetric(name) as unknown as { labelNames: string[] };
		expect(metric.labelNames.join(" ")).toBe(labels);
	});
});
