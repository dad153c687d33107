import { beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../../crds/host.ts";
import { RELEASE_IN_HOST } from "../../hack/demo/demo.ts";
import { demo, eventually, withHosts } from "./support/demo.ts";
import { differencesSince } from "./support/snapshots.ts";

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

describe("the management server", () => {
	const gp = (...args: string[]) =>
		demo.lab.exec("mgmt", [`${RELEASE_IN_HOST}/bin/gp`, "server", ...args], { timeoutMs: 300_000 });

	it("says that all of it is there", async () => {
		const { code, stdout, stderr } = await gp("status");
		expect(stderr).toBe("");
		expect(code).toBe(0);
		expect(stdout).toMatch(/groundplane-system\/edge +\S+ +yes +1\/1/);
	});

	it("names what somebody took away, and init again puts it back", async () => {
		await demo.kubectl(["delete", "deployment", "edge", "-n", "groundplane-system"]);
		await demo.kubectl(["delete", "deployment", "coredns", "-n", "kube-system"]);
		await demo.lab.run("mgmt", ["rm", "/etc/kubernetes/manifests/kube-scheduler.yaml"]);
		await eventually(() => expect(demo.get("pod", "kube-scheduler-mgmt", "kube-system")).resolves.toBeUndefined());
		await demo.lab.run("mgmt", ["systemctl", "stop", "kubelet"]);
		const broken = await gp("status");
		expect(broken.code).toBe(1);
		for (const name of [
			"kubelet.service",
			"groundplane-system/edge",
			"kube-system/coredns",
			"kube-system/kube-scheduler",
		])
			expect(broken.stderr).toContain(name);
		const repaired = await gp("init", "--release", RELEASE_IN_HOST);
		expect(repaired.stderr).toContain("Done.");
		expect(repaired.code).toBe(0);
		await eventually(async () => expect(await gp("status")).toMatchObject({ code: 0 }));
	});

	it("leaves the machine as it was found when it is reset, and asks first", async () => {
		expect((await gp("reset")).stderr).toContain("--yes");
		const { code, stderr } = await gp("reset", "--yes");
		expect(stderr).not.toMatch(/error/i);
		expect(code).toBe(0);
		expect(await differencesSince(demo, "mgmt")).toEqual([]);
		expect((await gp("status")).stderr).toContain("gp server init");
	});
});
