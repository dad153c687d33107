import { beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../../crds/host.ts";
import { demo, eventually, withHosts } from "./support/demo.ts";

/** The way out: a host leaves its region, and a region leaves the provider. */
describe("deleting a host", () => {
	beforeAll(withHosts);

	it("revokes its certificate: the agent is told why it can't connect any more", async () => {
		await demo.kubectl(["delete", "host", "host-3", "-n", demo.namespace, "--timeout=120s"]);
		await eventually(async () => {
			const { stdout } = await demo.lab.exec("host-3", ["journalctl", "-u", "gp-agent", "--no-pager", "-n", "50"]);
			expect(stdout).toMatch(/CertificateRevoked/);
		}, 60_000);
	});
});

describe("a host behind a proxy", () => {
	it("joins again by a new line, through the only way out that its site has", async () => {
		const proxy = await demo.lab.proxy(["host-3"]);
		const { stdout } = await demo.gp(["host", "join-command", "--name", "host-3"]);
		const script = `export https_proxy=${proxy}; ${stdout.trim()}`;
		const joined = await demo.lab.exec("host-3", ["sh", "-c", script], { timeoutMs: 120_000 });
		expect(joined.stderr + joined.stdout).not.toMatch(/error/i);
		expect(joined.code).toBe(0);
		await eventually(async () => {
			const host = await demo.get<Host>("host", "host-3", demo.namespace);
			expect(host?.status?.connection?.state).toBe("Connected");
		});
	});
});

describe("deleting a region", () => {
	it("leaves nothing of it", async () => {
		await demo.kubectl(["delete", "region", "demo", "--timeout=300s"]);
		expect(await demo.get("namespace", demo.namespace)).toBeUndefined();
		const core = await demo.kubectl(["get", "secrets,services,configmaps", "-n", "groundplane-system", "-o", "name"]);
		expect(core.stdout.split("\n").filter((line) => line.includes("region-demo"))).toEqual([]);
		const labelled = await demo.kubectl([
			"get",
			"services,secrets",
			"-A",
			"-l",
			"groundplane.io/region=demo",
			"-o",
			"name",
		]);
		expect(labelled.stdout.trim()).toBe("");
		const volumes = await demo.kubectl(["get", "pv", "-o", "name"]);
		expect(volumes.stdout.trim()).toBe("");
	});
});
