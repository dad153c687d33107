import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RETRY } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { compareVersions } from "../../protocol/versions.ts";
import { quorum } from "./members.ts";
import { cases, host, Site } from "./site.fixture.ts";
import { BUSY_MS } from "./state.ts";
import { order } from "./upgrade.ts";

const OLD = "v1.35.4";
const NEW = "v1.36.3";
const spec = (controlPlanes: string[], workers: string[], more = {}) => ({
	version: OLD,
	controlPlane: { hosts: controlPlanes },
	workers: [{ name: "w", hosts: workers }],
	...more,
});
const made = (controlPlanes: string[], workers: string[], more = {}) =>
	new Site(spec(controlPlanes, workers, more), [...controlPlanes, ...workers]).settle();
const threeAndTwo = (free: string[] = []) =>
	new Site(spec(["h1", "h2", "h3"], ["w1", "w2"]), ["h1", "h2", "h3", "w1", "w2", ...free]).settle();
/** In which order hosts were asked for a version. */
const asked = (site: Site, version: string) =>
	site.firsts
		.filter((entry) => entry.startsWith("applyRole") && entry.endsWith(version))
		.map((entry) => entry.slice(10, 12));
/** As the API server wants it: no host is named twice. */
const place = (site: Site, hosts: readonly string[], workers: readonly string[]) =>
	site.edit({
		controlPlane: { hosts },
		workers: [{ name: "w", hosts: workers.filter((name) => !hosts.includes(name)) }],
	});
const workersOf = (site: Site) => (site.cluster.spec.workers ?? []).flatMap((pool) => pool.hosts ?? []);
/** Whether etcd has a majority without a host: who loses more has to make his cluster anew. */
const mayBeLost = (site: Site, name: string): boolean =>
	!site.etcd.has(name) || site.etcdWell - 1 >= quorum(site.etcd.size);
/**
 * Whether etcd has two members and gets no third, for want of a Host or in the middle of a change of version, in which nobody joins:
 * neither can change then without a moment's loss.
 */
const isStuckAtTwo = (site: Site): boolean =>
	site.etcd.size === 2 &&
	((site.cluster.spec.controlPlane.hosts ?? []).some((name) => !site.has(name)) ||
		new Set([...site.etcd].map((name) => site.nodes.get(name)?.version)).size > 1);
const all = (site: Site) => [...new Set(Object.values(site.versionsOf()))];
const isKubeletNewer = (site: Site): boolean => {
	const nodes = [...site.nodes.values()];
	const oldest = nodes
		.filter(({ name }) => site.etcd.has(name))
		.map(({ version = "" }) => version)
		.sort(compareVersions)[0];
	// One that was reset has no kubelet any more, though its Node is still there; nor has one without power.
	const hasKubelet = ({ spec, status }: Host) => spec.roles.length > 0 && status?.connection?.state === "Connected";
	return nodes.some(
		({ name, version = "" }) =>
			!site.etcd.has(name) &&
			site.hosts.some((one) => one.metadata.name === name && hasKubelet(one)) &&
			compareVersions(version, oldest ?? version) > 0,
	);
};

describe("another version", () => {
	it("goes to the control planes one by one, then to the workers, each drained before and back in use after", () => {
		const site = threeAndTwo();
		site.history.length = 0;
		site.edit({ version: NEW }).settle();
		expect(all(site)).toEqual([NEW]);
		expect(site.firsts).toEqual(
			["h1", "h2", "h3", "w1", "w2"].flatMap((name) => [
				`drain ${name}`,
				`applyRole ${name}@${NEW}`,
				`uncordon ${name}`,
			]),
		);
		expect(site.cluster.status).toMatchObject({ phase: "Ready", version: NEW, upgrade: { from: OLD, to: NEW } });
		expect(site.cluster.status?.upgrade?.finished).toBeDefined();
		expect([...site.nodes.values()].some(({ unschedulable }) => unschedulable)).toBe(false);
	});

	it("takes workers together within the budget", () => {
		const site = made(["h1"], ["w1", "w2", "w3"], { upgradePolicy: { maxUnavailableWorkers: 2 } });
		site.edit({ version: NEW });
		let most = 0;
		for (let i = 0; i < 100; i++) {
			site.step();
			most = Math.max(
				most,
				[...site.nodes.values()].filter(({ name, unschedulable }) => name.startsWith("w") && unschedulable).length,
			);
		}
		expect(most).toBe(2);
		expect(all(site)).toEqual([NEW]);
	});

	it.each([
		["a worker more", ["w1", "w2", "h4"]],
		["another worker instead of one", ["w1", "h4"]],
		["a worker less and there again", ["w1", "w2"]],
	])("goes on when %s is wanted in the middle of it, which joins when the control planes are alike", (_name, hosts) => {
		const site = threeAndTwo(["h4"]).edit({ version: NEW });
		if (hosts.length === 2) site.edit({ workers: [{ name: "w", hosts: ["w1"] }] });
		site.run(7).edit({ workers: [{ name: "w", hosts }] });
		expect(all(site.settle())).toEqual([NEW]);
		expect(site.last?.status).toMatchObject({ phase: "Ready", ready: `${3 + hosts.length}/${3 + hosts.length}` });
	});

	it("goes to the workers first on the way down: a kubelet is never newer than its API server", () => {
		const site = made(["h1", "h2", "h3"], ["w1", "w2"], { version: NEW });
		site.history.length = 0;
		site.edit({ version: OLD }).settle();
		expect(asked(site, OLD)).toEqual(["w1", "w2", "h1", "h2", "h3"]);
	});

	it("says step, host, how long it usually takes and what is next", () => {
		const site = threeAndTwo().edit({ version: NEW }).run(1);
		expect(site.cluster.status?.progress).toMatchObject({
			step: "Draining",
			host: "h1",
			usual: "50s",
			next: "h2 (control-plane)",
		});
		site.run(3);
		expect(site.cluster.status?.progress).toMatchObject({ step: `Changing to ${NEW}`, host: "h1" });
		expect(site.cluster.status?.phase).toBe("Updating");
		site.run(12);
		// From then on as long as it took here.
		expect(site.cluster.status?.progress?.usual).not.toBe("50s");
	});

	it.each([0, 3, 6, 9, 14, 20, 26, 32, 38])(
		"set back after %i looks ends with a working cluster on the old one",
		(looks) => {
			const site = threeAndTwo().edit({ version: NEW }).run(looks);
			site.edit({ version: OLD }).settle();
			expect(all(site)).toEqual([OLD]);
			expect(site.cluster.status).toMatchObject({ phase: "Ready", ready: "5/5", version: OLD });
		},
	);
});

describe("a host that fails", () => {
	it.each([
		["h2", [NEW, OLD, OLD, OLD, OLD]],
		["w1", [NEW, NEW, NEW, OLD, OLD]],
	])("%s is put back, no other is taken, and the reason is said", (name, versions) => {
		const site = threeAndTwo();
		site.broken.add(`${name}@${NEW}`);
		site.edit({ version: NEW }).settle();
		expect(Object.values(site.versionsOf())).toEqual(versions);
		expect(site.reason).toBe("UpgradeStopped");
		expect(site.message).toContain(
			`${name} failed to become ${NEW} and was put back to ${OLD}: node: StepFailed: it does not come up.`,
		);
		expect(site.message).toContain(`gp cluster upgrade demo ${NEW}`);
		expect(site.cluster.status).toMatchObject({ phase: "Degraded", ready: "5/5" });
		expect(site.last?.actions).toEqual([]);
		expect(site.run(50).history.at(-1)).toBe(`uncordon ${name}`);
	});

	it("is tried again when a person says so, and the roll goes on", () => {
		const site = threeAndTwo();
		site.broken.add(`h2@${NEW}`);
		site.edit({ version: NEW }).settle();
		site.broken.clear();
		site.cluster.metadata.annotations = { [RETRY]: new Date(site.now).toISOString() };
		site.settle();
		expect(all(site)).toEqual([NEW]);
		expect(site.cluster.status?.upgrade?.stopped).toBeUndefined();
	});

	it("and a version set back afterwards give the old one everywhere", () => {
		const site = threeAndTwo();
		site.broken.add(`h3@${NEW}`);
		site.edit({ version: NEW }).settle();
		site.edit({ version: OLD }).settle();
		expect(all(site)).toEqual([OLD]);
		expect(site.reason).toBe("AllNodesReady");
	});

	it("within the tunnel's patience is not put back", () => {
		const site = threeAndTwo();
		site.broken.add(`h1@${NEW}`);
		site.edit({ version: NEW }).run(8);
		site.broken.clear();
		site.settle();
		expect(all(site)).toEqual([NEW]);
	});

	it("whose power goes in the middle goes on when it is back", () => {
		const site = threeAndTwo().edit({ version: NEW }).run(5);
		site.powerOff("h1");
		site.run(60);
		expect(site.etcdHasQuorum).toBe(true);
		site.powerOn("h1");
		site.settle();
		expect(all(site)).toEqual([NEW]);
	});

	it("while another control plane is drained keeps that one from changing, which takes pods again until all are well", () => {
		const site = threeAndTwo().edit({ version: NEW }).run(1);
		site.powerOff("h2");
		site.run(20);
		expect(asked(site, NEW)).toEqual([]);
		expect(site.nodes.get("h1")).toMatchObject({ unschedulable: false });
		expect(site.reason).toBe("UpgradeWaiting");
		site.powerOn("h2");
		expect(all(site.settle())).toEqual([NEW]);
	});

	it("waits while etcd counts a control plane whose Host was deleted, until it is enrolled anew", () => {
		const site = threeAndTwo();
		site.deleteHost("h2");
		site.edit({ version: NEW });
		for (let i = 0; i < 150; i++) {
			site.step();
			expect(site.etcdHasQuorum, `look ${i}: ${site.etcdWell} of ${site.etcd.size}`).toBe(true);
			if (i < 50) expect([site.reason, all(site)]).toEqual(["HostNotFound", [OLD]]);
			if (i === 50) site.enrol("h2");
		}
		expect([site.last?.status.phase, all(site)]).toEqual(["Ready", [NEW]]);
	});

	it.each(["h2", "w1"])("is not taken while it is in maintenance: %s", (name) => {
		const site = threeAndTwo();
		site.maintain(name, true);
		site.history.length = 0;
		site.edit({ version: NEW }).run(300);
		expect(site.history).not.toContain(`drain ${name}`);
		expect([site.reason, site.message]).toEqual([
			"UpgradeWaiting",
			expect.stringContaining(`gp host maintenance ${name} off`),
		]);
		site.maintain(name, false);
		site.settle();
		expect([site.last?.status.phase, all(site)]).toEqual(["Ready", [NEW]]);
	});

	it("alone in its cluster is put back although nobody can be asked", () => {
		const site = made(["h1"], []);
		site.broken.add(`h1@${NEW}`);
		site.edit({ version: NEW }).settle();
		expect(site.versionsOf()).toEqual({ h1: OLD });
		expect(site.reason).toBe("UpgradeStopped");
	});
});

describe("hosts that change places in the middle of a change of version", () => {
	/** Looks until the plan is at rest. What is expected at each of them comes first: a fault would be gone at the end. */
	const settle = (site: Site, check: () => void) => {
		for (let i = 0; i < 200 && (i === 0 || site.last?.status.phase !== "Ready"); i++) {
			site.step();
			check();
		}
		expect(site.last?.status.phase).toBe("Ready");
		expect(all(site)).toEqual([NEW]);
	};

	it("control planes go when the workers that take their place have turned, not before", () => {
		const site = threeAndTwo(["h4"]).edit({ version: NEW });
		place(site, ["h1", "w1", "w2"], ["h4"]);
		settle(site, () => expect(site.etcd.size).toBeGreaterThanOrEqual(3));
		expect([...site.etcd].toSorted()).toEqual(["h1", "w1", "w2"]);
	});

	it("a worker joins no cluster of which an API server, if only one that leaves, is older than itself", () => {
		const site = threeAndTwo(["h4", "h5"]).edit({ version: NEW }).run(1);
		place(site, ["h1", "w1", "w2"], ["h4", "h5"]);
		settle(site, () => expect(isKubeletNewer(site)).toBe(false));
	});

	it("workers wait for a control plane that leaves and is older, itself waiting for one whose Host is not there", () => {
		const site = threeAndTwo(["h4"]);
		place(site, ["h1", "h2", "h5"], ["w1", "w2"]).edit({ version: NEW });
		for (let i = 0; i < 60; i++) {
			site.step();
			expect(isKubeletNewer(site)).toBe(false);
		}
		expect(site.versionsOf()).toMatchObject({ h1: NEW, h2: NEW, h3: OLD, w1: OLD, w2: OLD });
		place(site, ["h1", "h2", "h4"], ["w1", "w2"]).settle();
		expect([site.last?.status.phase, all(site)]).toEqual(["Ready", [NEW]]);
	});

	it("control planes that come join with the version of the only one, which leaves and is further than the rest", () => {
		const site = made(["h0"], ["w1"]);
		site.hosts.push(
			...threeAndTwo()
				.hosts.filter(({ metadata }) => metadata.name.startsWith("h"))
				.map(({ metadata }, index) => host(metadata.name, index + 5)),
		);
		site.edit({ version: NEW }).run(6);
		place(site, ["h1", "h2", "h3"], ["w1"]);
		site.history.length = 0;
		settle(site, () => expect(isKubeletNewer(site)).toBe(false));
		expect(asked(site, OLD).filter((name) => name.startsWith("h"))).toEqual([]);
	});

	it("one that leaves in the middle of its turn has none when it is back in another place", () => {
		const site = threeAndTwo().edit({ version: NEW }).run(1);
		expect(site.cluster.status?.upgrade?.hosts).toMatchObject([{ host: "h1" }]);
		place(site, ["h2", "h3", "w1"], ["h1"]);
		settle(site, () => expect(isKubeletNewer(site)).toBe(false));
	});
});

describe("preflight", () => {
	it.each<[string, (site: Site) => void, RegExp]>([
		["a version that is not offered", (site) => site.versions.pop(), /not offered here. Offered: v1.35.4/],
		["a host that is not well", (site) => site.powerOff("w1"), /w1 is not well: mend it first/],
		[
			"an API that clients use and the version removes",
			(site) => site.removedApis.push("batch/v1beta1/cronjobs"),
			/cronjobs.*--force/,
		],
		[
			"too little room on a disk",
			(site) => {
				const { facts } = site.host("h2").status ?? {};
				Object.assign(facts as object, { filesystems: [{ path: "/", sizeBytes: 1e10, availableBytes: 1e9 }] });
			},
			/h2 has 0 GiB left on \/: a version needs 3 GiB/,
		],
	])("%s keeps it from beginning", (_name, spoil, message) => {
		const site = threeAndTwo();
		site.history.length = 0;
		spoil(site);
		site.edit({ version: NEW }).settle(10);
		expect(site.history).toEqual([]);
		expect(site.reason).toBe("UpgradeBlocked");
		expect(site.message).toMatch(message);
	});

	it("notes what keeps it from nothing: budgets that hold drains up, and what the way back will not restore", () => {
		const site = threeAndTwo();
		site.blockedBudgets = ["shop/never"];
		site.edit({ version: NEW }).run(1);
		const expected = [
			expect.stringContaining("shop/never"),
			expect.stringContaining("way back to v1.35"),
			expect.stringContaining("etcd"),
		];
		expect(site.cluster.status?.upgrade?.notes).toEqual(expected);
		site.blockedBudgets = [];
		expect(site.settle().cluster.status?.upgrade?.notes).toEqual(expected);
	});

	it("goes by once what stood in the way is gone", () => {
		const site = threeAndTwo();
		site.removedApis = ["batch/v1beta1/cronjobs"];
		site.edit({ version: NEW }).settle(10);
		site.removedApis = [];
		expect(all(site.settle())).toEqual([NEW]);
	});
});

it.each([
	[NEW, ["h1", "h2", "w1", "w2"]],
	["v1.34.9", ["w1", "w2", "h1", "h2"]],
])("order of hosts on the way to %s", (target, names) => {
	const hosts = ["w1", "h1", "w2", "h2"].map((host) => ({
		member: { host, role: host.startsWith("h") ? "control-plane" : "worker" },
		asked: OLD,
	}));
	expect(order(hosts, target).map(({ member }) => member.host)).toEqual(names);
});

/** What people, power and programs do at any moment. */
const deed = fc.oneof(
	fc.record({ kind: fc.constant("version" as const), version: fc.constantFrom(OLD, NEW) }),
	fc.record({
		kind: fc.constant("break" as const),
		host: fc.constantFrom("h1", "h2", "w1", "w2"),
		version: fc.constantFrom(OLD, NEW),
	}),
	fc.record({ kind: fc.constant("mend" as const) }),
	fc.record({
		kind: fc.constant("hosts" as const),
		hosts: fc.constantFrom(["h1", "h2", "h3"], ["h1"], ["h2", "h3", "h4"], ["h4"], ["h1", "h2", "h3", "h4", "h5"]),
	}),
	fc.record({ kind: fc.constant("workers" as const), hosts: fc.constantFrom(["w1"], ["w1", "w2"], ["w2"], []) }),
	// Workers become control planes, and the other way about.
	fc.record({
		kind: fc.constant("turn" as const),
		hosts: fc.constantFrom(["h1", "w1", "w2"], ["h2", "h3", "w1"], ["w2"]),
		workers: fc.constantFrom([], ["h4"], ["h4", "h5"]),
	}),
	fc.record({ kind: fc.constant("forget" as const) }),
	fc.record({ kind: fc.constantFrom("hold" as const), host: fc.constantFrom("h1", "h2", "w1", "w2") }),
	fc.record({
		kind: fc.constantFrom(
			"certificates" as const,
			"removed" as const,
			"allowed" as const,
			"retry" as const,
			"secret" as const,
		),
	}),
	fc.record({
		kind: fc.constantFrom("maintain" as const, "end maintenance" as const),
		host: fc.constantFrom("h1", "h2", "h3", "w1"),
	}),
	fc.record({
		kind: fc.constantFrom("delete" as const, "enrol" as const),
		host: fc.constantFrom("h1", "h2", "h3", "w1"),
	}),
	fc.record({
		kind: fc.constantFrom("power off" as const, "power on" as const),
		host: fc.constantFrom("h1", "h2", "h3", "w1", "w2"),
	}),
);

it("from every state that edits, failures and a lost status lead to, it reaches Ready or a named stop, and never breaks quorum or skew", () => {
	fc.assert(
		fc.property(
			fc.array(fc.tuple(deed, fc.integer({ min: 0, max: 30 })), { maxLength: 6 }),
			fc.integer({ min: 0, max: 60 }),
			(deeds, start) => {
				const site = new Site(spec(["h1", "h2", "h3"], ["w1", "w2"]), ["h1", "h2", "h3", "h4", "h5", "w1", "w2"]).run(
					start,
				);
				const look = () => {
					const { etcdHasQuorum } = site;
					site.step();
					// Power that goes is nobody's fault; what is decided after that is.
					if (etcdHasQuorum && site.etcd.size > 1 && !isStuckAtTwo(site))
						expect(site.etcdHasQuorum, `etcd: ${site.etcdWell} of ${site.etcd.size}`).toBe(true);
					expect(isKubeletNewer(site)).toBe(false);
				};
				const settle = (most: number) => {
					for (let i = 0; i < most; i++) {
						look();
						if (site.last?.requeueAfter !== BUSY_MS && site.last?.actions.length === 0) break;
					}
				};
				for (const [what, looks] of deeds) {
					if (what.kind === "version") site.edit({ version: what.version });
					if (what.kind === "break") site.broken.add(`${what.host}@${what.version}`);
					if (what.kind === "mend") site.broken.clear();
					if (what.kind === "hosts") place(site, what.hosts, workersOf(site));
					if (what.kind === "workers") place(site, site.cluster.spec.controlPlane.hosts ?? [], what.hosts);
					if (what.kind === "turn") place(site, what.hosts, ["h1", "w1", ...what.workers]);
					if (what.kind === "power off" && site.has(what.host)) site.powerOff(what.host);
					if (what.kind === "power on" && site.has(what.host)) site.powerOn(what.host);
					if (what.kind === "maintain" && site.has(what.host)) site.maintain(what.host, true);
					if (what.kind === "end maintenance" && site.has(what.host)) site.maintain(what.host, false);
					if (what.kind === "delete" && mayBeLost(site, what.host)) site.deleteHost(what.host);
					if (what.kind === "enrol") site.enrol(what.host);
					if (what.kind === "hold") site.held.add(what.host);
					if (what.kind === "certificates") site.certificates = false;
					if (what.kind === "removed") site.removedApis = ["batch/v1beta1/cronjobs"];
					if (what.kind === "allowed") site.removedApis = [];
					if (what.kind === "secret") site.joinSecret = false;
					if (what.kind === "retry") site.annotate({ [RETRY]: new Date(site.now).toISOString() });
					if (what.kind === "forget")
						site.cluster = { ...site.cluster, status: { ...site.cluster.status, upgrade: undefined } };
					for (let i = 0; i < looks; i++) look();
				}
				settle(900);
				for (const { metadata } of site.hosts) {
					site.powerOn(metadata.name);
					site.maintain(metadata.name, false);
				}
				for (const name of ["h1", "h2", "h3", "w1"]) site.enrol(name);
				settle(900);
				const { phase } = site.last?.status ?? {};
				if (phase === "Ready") expect(all(site)).toEqual([site.cluster.spec.version]);
				else expect(site.reason).toMatch(/^(UpgradeStopped|UpgradeBlocked|UpgradeWaiting|HostFailed)$/);
				// What is broken no more ends well, whatever came before; a stop needs a person's word.
				site.broken.clear();
				site.removedApis = [];
				site.cluster.metadata.annotations = { [RETRY]: new Date(site.now).toISOString() };
				settle(900);
				expect(site.last?.status.phase).toBe("Ready");
				expect(all(site)).toEqual([site.cluster.spec.version]);
			},
		),
		cases(75),
	);
}, 600_000);
