import { describe, expect, it } from "vitest";
import { roleOf } from "./members.ts";
import { plan } from "./plan.ts";
import { HASH, host, report, Site } from "./site.fixture.ts";
import { WAITING_MS } from "./state.ts";

const oneAndTwo = {
	version: "v1.36.3",
	controlPlane: { hosts: ["h1"] },
	workers: [{ name: "w", hosts: ["h2", "h3"] }],
};

describe("making a cluster", () => {
	it("makes the first control plane, then lets the workers join, and takes the token away", () => {
		const site = new Site(oneAndTwo, ["h1", "h2", "h3"]).run(20);
		expect(site.cluster.status).toMatchObject({
			phase: "Ready",
			ready: "3/3",
			version: "v1.36.3",
			controlPlaneInitialized: true,
		});
		expect(site.cluster.status?.progress).toBeUndefined();
		expect(site.history.filter((entry) => entry.startsWith("applyRole"))).toEqual([
			"applyRole h1@v1.36.3",
			"applyRole h2@v1.36.3",
			"applyRole h3@v1.36.3",
		]);
		expect(site.host("h1").spec.roles[0]?.parameters).toMatchObject({ mode: "init", clusterId: "u1" });
		expect(site.host("h2").spec.roles[0]).toMatchObject({
			secretName: "cluster-demo-join",
			parameters: { mode: "join-worker", caCertHashes: [HASH], controlPlaneAddresses: ["10.0.0.1"] },
		});
		expect(site.token).toBe(false);
		expect(JSON.stringify(site.hosts)).not.toContain("bootstrapToken");
	});

	it.each([true, false])("is Ready with CoreDNS %s, and when that is changed later", (coredns) => {
		const site = new Site({ ...oneAndTwo, addons: { coredns } }, ["h1", "h2", "h3"]).settle();
		expect(site.reason).toBe("AllNodesReady");
		site.edit({ addons: { coredns: !coredns } }).settle();
		expect(site.reason).toBe("AllNodesReady");
		expect(site.host("h1").spec.roles[0]?.parameters).toMatchObject({ addons: { coredns: !coredns } });
	});

	it("has nothing to do once it is done", () => {
		const site = new Site(oneAndTwo, ["h1", "h2", "h3"]).run(20);
		expect(plan(site.observed).actions).toEqual([]);
	});

	it("lets control planes join one at a time, and workers after them", () => {
		const site = new Site({ ...oneAndTwo, controlPlane: { hosts: ["h1", "h4", "h5"] } }, [
			"h1",
			"h2",
			"h3",
			"h4",
			"h5",
		]);
		const joiningAtOnce: number[] = [];
		for (let i = 0; i < 40; i++) {
			site.step();
			joiningAtOnce.push(
				["h1", "h4", "h5"].filter(
					(name) =>
						roleOf(site.host(name))?.parameters.prepare === undefined &&
						roleOf(site.host(name)) !== undefined &&
						report(site.host(name))?.outputs === undefined,
				).length,
			);
		}
		expect(Math.max(...joiningAtOnce)).toBe(1);
		expect(site.cluster.status?.phase).toBe("Ready");
		expect(site.firsts.filter((entry) => entry.startsWith("applyRole"))).toEqual(
			["h1", "h4", "h5", "h2", "h3"].map((name) => `applyRole ${name}@v1.36.3`),
		);
		expect(site.history.slice(0, 8)).toEqual(
			expect.arrayContaining(["h2", "h3", "h4", "h5"].map((name) => `prepare ${name}@v1.36.3`)),
		);
		expect(site.hosts.filter((h) => h.spec.roles[0]?.parameters.mode === "init")).toHaveLength(1);
	});

	it("waits for the network plugin that people bring, says so, and lets all hosts join meanwhile", () => {
		const spec = { ...oneAndTwo, controlPlane: { hosts: ["h1", "h4", "h5"] }, network: { cni: "none" } };
		const site = new Site(spec, ["h1", "h2", "h3", "h4", "h5"]);
		site.plugin = false;
		site.run(60);
		expect(site.nodes.size).toBe(5);
		expect(site.cluster.status).toMatchObject({
			phase: "Provisioning",
			ready: "0/5",
			progress: { step: "Waiting for a network plugin", detail: expect.stringContaining("10.244.0.0/16") },
		});
		expect(site.reason).toBe("NetworkPluginMissing");
		expect(site.message).toMatch(/Waiting for a network plugin: nodes wait for it: install one/);
		expect(site.last).toMatchObject({ actions: [], requeueAfter: WAITING_MS });
		site.plugin = true;
		site.run(5);
		expect(site.cluster.status).toMatchObject({ phase: "Ready", ready: "5/5" });
	});

	it("does not take a node without its network for well where the plugin is ours", () => {
		const site = new Site({ ...oneAndTwo, controlPlane: { hosts: ["h1", "h4", "h5"] } }, [
			"h1",
			"h2",
			"h3",
			"h4",
			"h5",
		]);
		site.plugin = false;
		site.run(60);
		expect([...site.nodes.keys()]).toEqual(["h1"]);
		expect(site.reason).toBe("Provisioning");
	});

	it("never makes a second cluster when the first control plane is lost from sight", () => {
		const site = new Site({ ...oneAndTwo, controlPlane: { hosts: ["h1", "h4", "h5"] } }, [
			"h1",
			"h2",
			"h3",
			"h4",
			"h5",
		]).run(40);
		site.cluster.spec.controlPlane.hosts = ["h4", "h5", "h6"];
		site.hosts.push(host("h6", 6));
		site.run(40);
		expect(site.hosts.filter((h) => h.spec.roles[0]?.parameters.mode === "init")).toHaveLength(0);
	});

	it("says on which host it works, and that the site is out of reach", () => {
		const site = new Site(oneAndTwo, ["h1", "h2", "h3"]).run(3);
		expect(site.cluster.status?.progress).toMatchObject({
			step: "Making the first control plane",
			host: "h1",
			detail: "containerd 3/19",
		});
		site.run(20);
		for (const each of site.hosts) each.status = { ...each.status, connection: { state: "Disconnected" } };
		site.step();
		expect(site.cluster.status?.phase).toBe("Degraded");
		expect(site.cluster.status?.conditions?.find((c) => c.type === "Reachable")).toMatchObject({ status: "False" });
	});
});

describe("what stands in the way keeps everything from beginning", () => {
	it.each([
		["an unknown version", { ...oneAndTwo, version: "v1.30.0" }, "VersionNotOffered", "v1.36.3"],
		[
			"a host that does not exist",
			{ ...oneAndTwo, controlPlane: { hosts: ["h9"] } },
			"HostNotFound",
			"gp host join-command",
		],
		[
			"too few hosts with the labels",
			{ version: "v1.36.3", controlPlane: { selector: { matchLabels: { rack: "a" } }, count: 3 } },
			"NotEnoughHosts",
			"2 are free",
		],
	])("%s", (_name, spec, reason, text) => {
		const site = new Site(spec, ["h1", "h2", "h3"]);
		const result = plan(site.observed);
		expect(result.actions).toEqual([]);
		expect(result.conditions[0]).toMatchObject({ type: "Ready", status: "False", reason });
		expect(result.conditions[0]?.message).toContain(text);
	});

	it("a host that another cluster has", () => {
		const site = new Site(oneAndTwo, ["h1", "h2", "h3"]);
		site.host("h3").spec.roles = [{ name: "kubernetes", version: "v1.36.3", parameters: { cluster: "other" } }];
		const result = plan(site.observed);
		expect(result.actions).toEqual([]);
		expect(result.conditions[0]).toMatchObject({
			reason: "HostTaken",
			message: expect.stringContaining("belongs to cluster other"),
		});
	});

	it("a host that waits for approval", () => {
		const site = new Site(oneAndTwo, ["h1", "h2", "h3"]);
		site.host("h2").spec.approved = false;
		expect(plan(site.observed).conditions[0]).toMatchObject({
			reason: "HostNotReady",
			message: expect.stringContaining("gp host approve h2"),
		});
	});
});

describe("selectors", () => {
	it("keeps the hosts it has, although others come first in the alphabet", () => {
		const spec = { version: "v1.36.3", controlPlane: { selector: { matchLabels: { rack: "a" } }, count: 1 } };
		const site = new Site(spec, ["m1"]).run(10);
		site.hosts.push(host("a1", 0));
		site.run(10);
		expect(site.cluster.status?.members?.map((member) => member.host)).toEqual(["m1"]);
		expect(site.host("a1").spec.roles).toEqual([]);
	});
});

describe("taking hosts out", () => {
	it("drains a worker, cleans it, and only then deletes its node", () => {
		const site = new Site(oneAndTwo, ["h1", "h2", "h3"]).run(20);
		site.history.length = 0;
		site.cluster.spec.workers[0]?.hosts.pop();
		site.run(20);
		const order = site.history.filter((entry, index, all) => all.indexOf(entry) === index);
		expect(order).toEqual(["drain h3", "removeRole h3", "deleteNode h3"]);
		expect(site.cluster.status).toMatchObject({ phase: "Ready", ready: "2/2" });
	});
});

describe("deleting a cluster", () => {
	const made = () => {
		const site = new Site({ ...oneAndTwo, controlPlane: { hosts: ["h1", "h4", "h5"] } }, [
			"h1",
			"h2",
			"h3",
			"h4",
			"h5",
		]).run(40);
		site.history.length = 0;
		site.cluster.metadata.deletionTimestamp = "2026-01-01T01:00:00Z";
		return site;
	};

	it("drains and resets workers first, control planes after them, the first one last; then nothing is left", () => {
		const site = made().run(60);
		expect(site.finished).toEqual([]);
		const removed = site.history.filter((entry) => entry.startsWith("removeRole"));
		expect(removed.slice(0, 2).sort()).toEqual(["removeRole h2", "removeRole h3"]);
		expect(removed.at(-1)).toBe("removeRole h1");
		expect(site.hosts.every((h) => h.spec.roles.length === 0 && h.status?.roles?.length === 0)).toBe(true);
		expect(site.joinSecret).toBe(false);
	});

	it("lets control planes go when workers have drained, and does not wait until these are clean", () => {
		const site = made();
		const cleaning = site.host("h2");
		while (cleaning.spec.roles.length > 0) site.step();
		const { now } = site;
		while (!site.history.includes("removeRole h1")) {
			// It cleans itself all the while.
			cleaning.status = { ...cleaning.status, roles: [{ name: "kubernetes", version: "v1.36.3", phase: "Removing" }] };
			site.step();
			expect(site.now - now).toBeLessThan(60_000);
		}
		expect(site.finished).toBeUndefined();
		expect(site.run(20).finished).toEqual([]);
	});

	it("does not wait for ever for a pod that its budget holds", () => {
		const site = made();
		const node = site.nodes.get("h2");
		if (node) site.nodes.set("h2", { ...node, pods: 1_000_000 });
		site.run(200);
		expect(site.history).toContain("removeRole h2");
		expect(site.finished).toEqual([]);
	});

	it("finishes without a host that is gone, and says so", () => {
		const site = made();
		site.host("h3").status = {
			...site.host("h3").status,
			connection: { state: "Disconnected", since: "2026-01-01T00:00:00Z" },
		};
		site.run(400);
		expect(site.finished).toEqual(["h3"]);
		expect(site.host("h3").spec.roles).toEqual([]);
	});

	it("takes those away that it can while it waits for a host that is out of reach", () => {
		const site = made();
		site.powerOff("h3");
		const off = site.now;
		while (site.hosts.some((each) => each.metadata.name !== "h3" && each.spec.roles.length > 0)) site.step();
		expect(site.now - off).toBeLessThan(30_000);
		expect(site.finished).toBeUndefined();
		expect(site.history.filter((entry) => entry.startsWith("removeRole")).at(-1)).toBe("removeRole h1");
		expect(site.run(60).finished).toEqual(["h3"]);
	});

	it("says for whom it waits, and does so for half a minute at most, also when all hosts are out of reach", () => {
		const site = made();
		const off = site.now;
		for (const each of site.hosts) site.powerOff(each.metadata.name);
		expect(site.run(3).message).toBe("Removing on h1: Not connected: it cleans itself when it is back.");
		expect(site.run(60).finished).toEqual(["h1", "h2", "h3", "h4", "h5"]);
		expect(site.now - off).toBeLessThan(60_000);
	});

	it("goes on where it was when a host was out of reach for a moment only", () => {
		const site = made();
		site.powerOff("h3");
		site.run(1);
		site.powerOn("h3");
		expect(site.run(60).finished).toEqual([]);
		expect(site.host("h3").spec.roles).toEqual([]);
	});

	it("finishes when it never began", () => {
		const site = new Site(oneAndTwo, []);
		site.cluster.metadata.deletionTimestamp = "2026-01-01T01:00:00Z";
		expect(site.run(3).finished).toEqual([]);
	});
});
