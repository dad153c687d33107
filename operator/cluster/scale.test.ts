import { describe, expect, it } from "vitest";
import type { HostRole } from "../../crds/host.ts";
import { roleOf } from "./members.ts";
import { plan } from "./plan.ts";
import { HASH, host, Site } from "./site.fixture.ts";

const oneAndOne = {
	version: "v1.36.3",
	controlPlane: { hosts: ["h1"] },
	workers: [{ name: "w", hosts: ["h4"] }],
};
const made = (controlPlanes: string[], more: string[] = []) =>
	new Site({ ...oneAndOne, controlPlane: { hosts: controlPlanes } }, [...controlPlanes, "h4", ...more]).settle();

/** Steps until Ready, and holds on the way that etcd never loses its majority. */
function settleWell(site: Site): Site {
	for (let i = 0; i < 200; i++) {
		site.step();
		expect(site.etcdHasQuorum, `look ${i}: ${site.etcdWell} of ${site.etcd.size}`).toBe(true);
		if (site.last?.status.phase === "Ready" && site.last.actions.length === 0) return site;
	}
	expect(site.message).toBe("Ready");
	return site;
}

describe("control planes up and down", () => {
	it("one becomes three, one after the other, and one again", () => {
		const site = made(["h1"], ["h2", "h3"]);
		settleWell(site.edit({ controlPlane: { hosts: ["h1", "h2", "h3"] } }));
		expect([...site.etcd]).toEqual(["h1", "h2", "h3"]);
		expect(roleOf(site.host("h4"))?.parameters.controlPlaneAddresses).toEqual(["10.0.0.1", "10.0.0.3", "10.0.0.4"]);

		site.history.length = 0;
		settleWell(site.edit({ controlPlane: { hosts: ["h1"] } }));
		expect([...site.etcd]).toEqual(["h1"]);
		expect(
			site.history.filter((entry) => /^(removeRole|deleteNode)/.test(entry)).filter((e, i, a) => a.indexOf(e) === i),
		).toEqual(["removeRole h2", "deleteNode h2", "removeRole h3", "deleteNode h3"]);
		expect(roleOf(site.host("h4"))?.parameters.controlPlaneAddresses).toEqual(["10.0.0.1"]);
	});

	it("three become five, which live on with two of them dead, and three again", () => {
		const five = ["h1", "h2", "h3", "h5", "h6"];
		const site = made(["h1", "h2", "h3"], ["h5", "h6"]);
		settleWell(site.edit({ controlPlane: { hosts: five } }));
		expect([...site.etcd]).toEqual(five);

		site.powerOff("h2");
		site.powerOff("h5");
		site.run(10);
		expect(site.etcdHasQuorum).toBe(true);
		expect(site.observed.workload).toBeDefined();
		settleWell(site.edit({ controlPlane: { hosts: ["h1", "h3", "h6"] } }));
		expect([...site.etcd]).toEqual(["h1", "h3", "h6"]);
	});

	it("publishes the certificates again for one that comes after they expired", () => {
		const site = made(["h1"], ["h2", "h3"]);
		site.certificates = false;
		settleWell(site.edit({ controlPlane: { hosts: ["h1", "h2", "h3"] } }));
		expect(roleOf(site.host("h1"))?.parameters.publishCertificates).toMatch(/^2026-/);
		expect(site.firsts.indexOf("applyRole h2@v1.36.3")).toBeGreaterThan(0);
	});

	it.each([
		["one of three", ["h1", "h2", "h3"], ["h1", "h2", "h5"], "h3"],
		["the one that made the cluster", ["h1", "h2", "h3"], ["h2", "h3", "h5"], "h1"],
		["the only one", ["h1"], ["h5"], "h1"],
	])("replaces %s in one edit: the new one joins before the old one leaves", (_name, before, after, old) => {
		const site = made(before, ["h5"]);
		site.history.length = 0;
		settleWell(site.edit({ controlPlane: { hosts: after } }));
		expect([...site.etcd].sort()).toEqual(after.toSorted());
		const order = site.firsts;
		expect(order.indexOf("applyRole h5@v1.36.3")).toBeLessThan(order.indexOf(`removeRole ${old}`));
		expect(site.nodes.has(old)).toBe(false);
	});

	it.each([
		["the only one", ["h1"], ["h5"]],
		["three for three others", ["h1", "h2", "h3"], ["h5", "h6", "h7"]],
		["the only one for a worker", ["h1"], ["h4"]],
	])("exchanges all of them after the certificates expired: %s", (_name, before, after) => {
		const site = made(before, ["h5", "h6", "h7"]);
		site.certificates = false;
		settleWell(
			site.edit({
				controlPlane: { hosts: after },
				workers: [{ name: "w", hosts: after.includes("h4") ? [] : ["h4"] }],
			}),
		);
		expect([...site.etcd].toSorted()).toEqual(after);
	});

	it("has another publish the certificates when one that leaves fails at it, and says so of that one", () => {
		const site = made(["h1", "h2"], ["h5"]);
		site.certificates = false;
		site.edit({ controlPlane: { hosts: ["h5"] } });
		while (roleOf(site.host("h1"))?.parameters.publishCertificates === undefined) site.step();
		site.certificates = false;
		const { observed } = site;
		const roles = [{ name: "kubernetes", phase: "Failed" as const, step: "publish", message: "no room." }];
		Object.assign(site.host("h1"), { status: { ...site.host("h1").status, roles } });
		const { actions, status } = plan({ ...observed, hosts: site.hosts });
		expect(status.members?.find(({ host: name }) => name === "h1")?.message).toBe(
			"Waits until h5 has joined. It fails before: publish: no room.",
		);
		const told = actions.filter(({ type }) => type === "applyRole") as { host: string; role: HostRole }[];
		expect(told.filter(({ role }) => "publishCertificates" in role.parameters).map(({ host: name }) => name)).toEqual([
			"h2",
		]);
	});

	it("takes a dead one out of etcd before its successor joins", () => {
		const site = made(["h1", "h2", "h3"], ["h5"]);
		site.powerOff("h3");
		site.edit({ controlPlane: { hosts: ["h1", "h2", "h5"] } });
		site.now += 61_000;
		site.history.length = 0;
		settleWell(site);
		expect([...site.etcd].sort()).toEqual(["h1", "h2", "h5"]);
		expect(site.firsts.indexOf("removeRole h3")).toBeLessThan(site.firsts.indexOf("applyRole h5@v1.36.3"));
		expect(site.hosts.some((each) => roleOf(each)?.parameters.formerControlPlanes !== undefined)).toBe(false);
		expect(site.cluster.status?.members?.map(({ host: name }) => name)).not.toContain("h3");
	});

	it.each([
		["has lost its power", (site: Site) => site.powerOff("h2")],
		["has no Host any more", (site: Site) => site.deleteHost("h2")],
	])("exchanges all of them although one %s: one that leaves takes it out of etcd", (_name, kill) => {
		const site = made(["h1", "h2", "h3"], ["h5", "h6", "h7"]);
		kill(site);
		site.now += 61_000;
		settleWell(site.edit({ controlPlane: { hosts: ["h5", "h6", "h7"] } }));
		expect([...site.etcd].toSorted()).toEqual(["h5", "h6", "h7"]);
	});

	it.each([
		["before it is told to go", 0],
		["while it is drained", 2],
		["while it is cleaned", 3],
	])("takes one out of etcd that lost its power %s", (_moment, looks) => {
		const site = made(["h1", "h2", "h3"])
			.edit({ controlPlane: { hosts: ["h1", "h3"] } })
			.run(looks);
		if (looks === 3) {
			// The role is gone from the Host, and the host has not begun.
			expect(roleOf(site.host("h2"))).toBeUndefined();
			site.etcd.add("h2");
		}
		site.powerOff("h2");
		settleWell(site);
		expect([...site.etcd].toSorted()).toEqual(["h1", "h3"]);
		expect(site.nodes.has("h2")).toBe(false);
		site.powerOn("h2");
		site.run(10);
		expect(site.host("h2").status?.roles).toEqual([]);
		expect([...site.etcd].toSorted()).toEqual(["h1", "h3"]);
	});

	it("takes one out of etcd whose Host was deleted by force", () => {
		const site = made(["h1", "h2", "h3"], ["h5"]);
		site.deleteHost("h2");
		settleWell(site.edit({ controlPlane: { hosts: ["h1", "h3", "h5"] } }));
		expect([...site.etcd].sort()).toEqual(["h1", "h3", "h5"]);
		expect(site.nodes.has("h2")).toBe(false);
	});

	it.each([
		["takes a dead one out of etcd", (site: Site) => site.powerOff("h3")],
		["publishes the certificates", (site: Site) => Object.assign(site, { certificates: false })],
	])("has one that is not in maintenance do what others wait for: it %s", (_name, need) => {
		const site = made(["h1", "h2", "h3"], ["h5"]);
		site.maintain("h1", true);
		need(site);
		site.now += 61_000;
		site.edit({ controlPlane: { hosts: ["h1", "h2", "h5"] } }).run(100);
		expect([...site.etcd]).toContain("h5");
	});

	it("has nobody join by the CA of another cluster that has such a host meanwhile", () => {
		const site = made(["h1", "h2", "h3"], ["h5"]);
		site.deleteHost("h1");
		const taken = host("h1", 0);
		const outputs = { nodeName: "h1", caCertHash: `sha256:${"b".repeat(64)}` };
		taken.spec.roles = [{ name: "kubernetes", version: "v1.36.3", parameters: { cluster: "other", mode: "init" } }];
		taken.status = { ...taken.status, roles: [{ name: "kubernetes", phase: "Applied", outputs }] };
		site.hosts.unshift(taken);
		settleWell(site.edit({ controlPlane: { hosts: ["h2", "h3", "h5"] } }));
		expect([...site.etcd].toSorted()).toEqual(["h2", "h3", "h5"]);
		expect(site.pins).toEqual(new Set([HASH]));
	});

	it("takes one out of etcd that was forgotten while nobody could be asked", () => {
		const site = made(["h1", "h2", "h3"]);
		site.powerOff("h1");
		site.deleteHost("h2");
		site.run(3).edit({ controlPlane: { hosts: ["h1", "h3"] } });
		site.run(5).powerOn("h1");
		settleWell(site);
		expect([...site.etcd]).toEqual(["h1", "h3"]);
		expect(site.nodes.has("h2")).toBe(false);
	});

	it.each([
		["is named no longer", ["h1", "h3", "h5"]],
		["is enrolled anew under its name", ["h1", "h2", "h3"]],
	])("takes one out of etcd whose Host was deleted by force some time before it %s", (_name, after) => {
		const site = made(["h1", "h2", "h3"], ["h5"]);
		site.deleteHost("h2");
		site.run(10);
		expect(site.etcd.has("h2")).toBe(true);
		if (after.includes("h2")) site.hosts.push(host("h2", 8));
		site.edit({ controlPlane: { hosts: after } });
		site.history.length = 0;
		let wasTakenOut = false;
		for (let i = 0; i < 200 && (i === 0 || site.last?.status.phase !== "Ready"); i++) {
			site.step();
			wasTakenOut ||= !site.etcd.has("h2");
			// Beside its dead member the new one would be a fourth.
			if (site.history.includes("applyRole h2@v1.36.3")) expect(wasTakenOut).toBe(true);
			expect(site.etcdHasQuorum).toBe(true);
		}
		expect([...site.etcd].toSorted()).toEqual(after);
		expect(site.cluster.status).toMatchObject({ phase: "Ready", ready: "4/4" });
		expect(site.hosts.some((each) => roleOf(each)?.parameters.formerControlPlanes !== undefined)).toBe(false);
	});

	it("lets workers leave, drained, before they join again as control planes, one at a time", () => {
		const site = made(["h1"], ["h5"]);
		settleWell(site.edit({ workers: [{ name: "w", hosts: ["h4", "h5"] }] }));
		site.history.length = 0;
		site.edit({ controlPlane: { hosts: ["h1", "h4", "h5"] }, workers: [] });
		for (let i = 0; i < 100; i++) {
			const before = site.etcd.size;
			site.step();
			expect(site.etcd.size - before).toBeLessThanOrEqual(1);
			expect(site.etcdHasQuorum).toBe(true);
		}
		expect(site.last?.status.phase).toBe("Ready");
		expect([...site.etcd].sort()).toEqual(["h1", "h4", "h5"]);
		for (const name of ["h4", "h5"]) {
			const own = site.firsts.filter((entry) => entry.includes(` ${name}`));
			expect(own.slice(0, 3)).toEqual([`drain ${name}`, `removeRole ${name}`, `deleteNode ${name}`]);
			expect(own).toContain(`applyRole ${name}@v1.36.3`);
		}
	});

	it("lets a control plane leave etcd before it joins again as a worker, and only while the others are well", () => {
		const site = made(["h1", "h2", "h3"]);
		site.history.length = 0;
		site.powerOff("h3");
		site.edit({ controlPlane: { hosts: ["h1", "h3", "h4"] }, workers: [{ name: "w", hosts: ["h2"] }] }).run(30);
		expect(site.etcd.has("h2")).toBe(true);
		expect(site.last?.status.members).toContainEqual(
			expect.objectContaining({ host: "h2", role: "control-plane", phase: "Leaving" }),
		);
		site.powerOn("h3");
		settleWell(site);
		expect([...site.etcd].sort()).toEqual(["h1", "h3", "h4"]);
		const own = site.firsts.filter((entry) => entry.includes(" h2"));
		expect(own.indexOf("deleteNode h2")).toBeGreaterThan(own.indexOf("removeRole h2"));
		expect(own.indexOf("applyRole h2@v1.36.3")).toBeGreaterThan(own.indexOf("deleteNode h2"));
	});

	it("is made once when another first one is named while it is being made", () => {
		const site = new Site(oneAndOne, ["h1", "h2", "h4"]).run(2);
		expect(roleOf(site.host("h1"))?.parameters.mode).toBe("init");
		site.edit({ controlPlane: { hosts: ["h2"] } });
		for (let i = 0; i < 60; i++) {
			site.step();
			const making = site.hosts.filter((each) => roleOf(each)?.parameters.mode === "init");
			expect(making.length).toBeLessThanOrEqual(1);
		}
		expect(site.last?.status.phase).toBe("Ready");
		expect([...site.etcd]).toEqual(["h2"]);
		expect([...site.nodes.keys()].sort()).toEqual(["h2", "h4"]);
	});

	it("lets one go that never joined before the one that waits for etcd's majority", () => {
		const site = made(["h1"], ["h2", "h3", "h5"]);
		site.broken.add("h3@v1.36.3");
		site.edit({ controlPlane: { hosts: ["h1", "h2", "h3"] } }).run(30);
		expect([...site.etcd]).toEqual(["h1", "h2"]);
		settleWell(site.edit({ controlPlane: { hosts: ["h5"] } }));
		expect([...site.etcd]).toEqual(["h5"]);
	});

	it("does not let one go while another is not well, and says so", () => {
		const site = made(["h1", "h2", "h3"]);
		site.powerOff("h2");
		site.edit({ controlPlane: { hosts: ["h2"] } });
		site.run(30);
		expect([...site.etcd]).toEqual(["h1", "h2", "h3"]);
		expect(site.cluster.status?.members?.find(({ host: name }) => name === "h1")?.message).toMatch(/h2 is not well/);
	});
});

describe("workers", () => {
	it("are replaced in one edit: the new one joins first", () => {
		const site = made(["h1"], ["h5"]);
		site.history.length = 0;
		settleWell(site.edit({ workers: [{ name: "w", hosts: ["h5"] }] }));
		expect(site.firsts.indexOf("applyRole h5@v1.36.3")).toBeLessThan(site.firsts.indexOf("drain h4"));
		expect([...site.nodes.keys()].sort()).toEqual(["h1", "h5"]);
	});

	it("say which budget holds a drain up, since when, and what happens at the deadline", () => {
		const site = made(["h1"], ["h5"]);
		site.edit({ workers: [{ name: "w", hosts: ["h5"] }] });
		site.held.add("h4");
		site.run(20);
		const message = () => site.cluster.status?.members?.find(({ host: name }) => name === "h4")?.message;
		expect(message()).toMatch(
			/^Draining since \d\d:\d\d:\d\dZ: 2 pods left; PodDisruptionBudget shop\/never \(pod web-1\) allows no eviction. At \d\d:\d\d:\d\dZ the pods are deleted all the same.$/,
		);
		settleWell(site);
		expect(site.nodes.has("h4")).toBe(false);
	});

	it("take pods again when a person changes their mind", () => {
		const site = made(["h1"], ["h5"]);
		site.held.add("h4");
		site.edit({ workers: [{ name: "w", hosts: ["h5"] }] });
		site.run(20);
		expect(site.nodes.get("h4")?.unschedulable).toBe(true);
		settleWell(site.edit({ workers: [{ name: "w", hosts: ["h4", "h5"] }] }));
		expect(site.nodes.get("h4")?.unschedulable).toBe(false);
	});

	it("that are dead go without a drain, and nothing waits for them", () => {
		const site = made(["h1"]);
		site.powerOff("h4");
		site.now += 61_000;
		settleWell(site.edit({ workers: [] }));
		expect(site.cluster.status).toMatchObject({ phase: "Ready", ready: "1/1" });
		expect(site.nodes.has("h4")).toBe(false);
	});

	it("bear the labels and taints of their pool, also when those change", () => {
		const taint = { key: "gpu", value: "yes", effect: "NoSchedule" as const };
		const site = made(["h1"]);
		settleWell(site.edit({ workers: [{ name: "w", hosts: ["h4"], labels: { tier: "gold" }, taints: [taint] }] }));
		expect(site.nodes.get("h4")).toMatchObject({ labels: { tier: "gold" }, taints: [taint] });
		settleWell(site.edit({ workers: [{ name: "w", hosts: ["h4"] }] }));
		expect(site.nodes.get("h4")).toMatchObject({ labels: {}, taints: [] });
	});
});

describe("a host that joins", () => {
	it("takes the version of the control planes, not one that is still to be rolled out", () => {
		const site = made(["h1"]);
		site.removedApis = ["apps/v1beta1/deployments"];
		site.hosts.push(host("h5", 7));
		site.edit({ version: "v1.35.4", workers: [{ name: "w", hosts: ["h4", "h5"] }] });
		site.settle();
		expect(site.versionsOf()).toEqual({ h1: "v1.36.3", h4: "v1.36.3", h5: "v1.36.3" });
		expect(site.reason).toBe("UpgradeBlocked");
	});
});
