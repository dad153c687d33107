import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { type Cluster, clusterSpec } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { assign } from "./assign.ts";
import { chooseControlPlanes, findingsOn, placementCondition, ZONE, zoneOf } from "./placement.ts";
import { host as plainHost, Site } from "./site.fixture.ts";

interface Figures {
	zone?: string;
	p99Ms?: number;
	offsetMs?: number;
	uncertaintyMs?: number;
	/** Round trips by the last number of an address 10.0.0.N; null is no answer. */
	peers?: Record<number, number | null>;
}

const at = "2026-01-01T00:00:00Z";
/** A free host with label `rack=a`; its address is 10.0.0. and the number in its name. */
function host(name: string, { zone, p99Ms, offsetMs, uncertaintyMs = 500, peers }: Figures = {}): Host {
	const plain = plainHost(name, 0);
	const roundTrips = Object.entries(peers ?? {}).map(([number, ms]) => ({
		address: `10.0.0.${number}`,
		...(ms !== null && { ms }),
	}));
	return {
		...plain,
		metadata: { ...plain.metadata, labels: { rack: "a", ...(zone !== undefined && { [ZONE]: zone }) } },
		status: {
			...plain.status,
			facts: {
				primaryAddress: `10.0.0.${/\d+$/.exec(name)?.[0]}`,
				measured: {
					...(p99Ms !== undefined && { fsync: { at, writes: 200, p50Ms: p99Ms / 2, p99Ms } }),
					...(offsetMs !== undefined && { clock: { at, offsetMs, uncertaintyMs } }),
					...(peers && { peers: { at, roundTrips } }),
				},
			} as never,
		},
	};
}

const cluster = (count: number, members: NonNullable<Cluster["status"]>["members"] = []): Cluster => ({
	apiVersion: "groundplane.io/v1alpha1",
	kind: "Cluster",
	metadata: { name: "demo", namespace: "region-r" },
	spec: clusterSpec.parse({
		version: "v1.36.3",
		controlPlane: { selector: { matchLabels: { rack: "a" } }, count },
	}),
	status: { members },
});
const member = (name: string, phase: "Ready" | "Leaving" = "Ready") =>
	({ host: name, role: "control-plane", phase }) as const;
const names = (of: Cluster, hosts: readonly Host[]) => assign(of, hosts, []).members.map((one) => one.host);

describe("control planes by selector", () => {
	test.each<[string, number, Host[], string[]]>([
		["by name when nothing is known", 3, [host("h4"), host("h2"), host("h3"), host("h1")], ["h1", "h2", "h3"]],
		[
			"the fast disks",
			3,
			[host("h1", { p99Ms: 38 }), host("h2", { p99Ms: 9 }), host("h3", { p99Ms: 2 }), host("h4", { p99Ms: 4 })],
			["h2", "h3", "h4"],
		],
		["classes, not milliseconds", 1, [host("h1", { p99Ms: 8 }), host("h2", { p99Ms: 0.5 })], ["h1"]],
		["slow rather than very slow", 1, [host("h1", { p99Ms: 300 }), host("h2", { p99Ms: 12 })], ["h2"]],
		["a disk that is not known rather than a slow one", 1, [host("h1", { p99Ms: 12 }), host("h2")], ["h2"]],
		["a disk that is good rather than one not known", 1, [host("h1"), host("h2", { p99Ms: 1 })], ["h2"]],
		[
			"a clock that is right",
			1,
			[host("h1", { p99Ms: 1, offsetMs: 2_000 }), host("h2", { p99Ms: 1, offsetMs: 3 })],
			["h2"],
		],
		[
			"a clock that may be right is not held against a host",
			1,
			[host("h1", { p99Ms: 1, offsetMs: -2_000, uncertaintyMs: 1_500 }), host("h2", { p99Ms: 1, offsetMs: 3 })],
			["h1"],
		],
		["the disk before the clock", 1, [host("h1", { p99Ms: 80 }), host("h2", { p99Ms: 1, offsetMs: 9_000 })], ["h2"]],
		[
			"one failure domain each, even with a slow disk",
			3,
			[
				host("h1", { zone: "a", p99Ms: 1 }),
				host("h2", { zone: "a", p99Ms: 1 }),
				host("h3", { zone: "b", p99Ms: 1 }),
				host("h4", { zone: "c", p99Ms: 80 }),
			],
			["h1", "h3", "h4"],
		],
		[
			"the best of each failure domain",
			2,
			[
				host("h1", { zone: "a", p99Ms: 20 }),
				host("h2", { zone: "a", p99Ms: 1 }),
				host("h3", { zone: "b", p99Ms: 20 }),
				host("h4", { zone: "b", p99Ms: 1 }),
			],
			["h2", "h4"],
		],
		[
			"hosts near each other, as the one that came later has measured it",
			3,
			[
				host("h1", { peers: { 2: 80, 3: 0.4, 4: 0.4 } }),
				host("h2", { peers: { 3: 80 } }),
				host("h3"),
				host("h4", { peers: { 2: 80 } }),
			],
			["h1", "h3", "h4"],
		],
		[
			"not to begin with the one that is far from all others",
			3,
			[
				host("h1", { peers: { 2: 80, 3: 80, 4: null } }),
				host("h2", { peers: { 3: 0.4, 4: 0.4 } }),
				host("h3", { peers: { 4: 0.4, 1: 80 } }),
				host("h4"),
			],
			["h2", "h3", "h4"],
		],
		[
			"one that did not answer is the furthest",
			2,
			[host("h1", { peers: { 2: null, 3: 0.4 } }), host("h2"), host("h3")],
			["h1", "h3"],
		],
	])("%s", (_what, count, hosts, expected) => {
		expect(names(cluster(count), hosts).sort()).toEqual(expected);
		expect(names(cluster(count), hosts.toReversed())).toEqual(names(cluster(count), hosts));
	});

	it("stay where they are, whatever is measured later, and take only what is missing", () => {
		const hosts = [
			host("h1", { p99Ms: 1 }),
			host("h2", { p99Ms: 1 }),
			host("h7", { p99Ms: 300, offsetMs: 60_000 }),
			host("h8", { p99Ms: 300 }),
		];
		expect(names(cluster(1, [member("h7")]), hosts)).toEqual(["h7"]);
		expect(names(cluster(3, [member("h7")]), hosts)).toEqual(["h7", "h1", "h2"]);
	});

	it("are those that were asked already, also when the status does not tell yet", () => {
		const asked = host("h7", { p99Ms: 300 });
		asked.spec.roles = [{ name: "kubernetes", version: "v1.36.3", parameters: { cluster: "demo", mode: "init" } }];
		expect(names(cluster(1), [host("h1", { p99Ms: 1 }), asked])).toEqual(["h7"]);
	});

	it("go on leaving once they leave", () => {
		const members = [member("h1", "Leaving"), member("h2"), member("h3", "Leaving")];
		expect(names(cluster(1, members), [host("h1"), host("h2"), host("h3")])).toEqual(["h2"]);
		expect(names(cluster(3, members), [host("h0"), host("h1"), host("h2"), host("h3")])).toEqual(["h1", "h2", "h3"]);
	});

	it("are not taken from the cluster's own workers while others are free", () => {
		const worker = { host: "h1", role: "worker", pool: "w", phase: "Ready" } as const;
		const hosts = [host("h1", { zone: "b" }), host("h2", { zone: "a" }), host("h3", { zone: "a" })];
		expect(names(cluster(1, [worker]), hosts)).toEqual(["h2"]);
	});

	const anyHost = fc.record({
		zone: fc.constantFrom(undefined, "a", "b", "c"),
		p99Ms: fc.constantFrom(undefined, 1, 20, 90),
		offsetMs: fc.constantFrom(undefined, 0, 5_000),
		peers: fc.dictionary(fc.integer({ min: 0, max: 12 }).map(String), fc.constantFrom(0.3, 30, 200, null)),
		isMember: fc.boolean(),
	});
	it("decide alike in any order of hosts, keep those present, and spread as evenly as can be", () => {
		fc.assert(
			fc.property(
				fc.array(anyHost, { minLength: 1, maxLength: 12 }),
				fc.constantFrom(1, 3, 5),
				fc.integer({ min: 0, max: 20 }),
				(figures, count, turn) => {
					const hosts = figures.map(({ isMember: _, ...rest }, index) => host(`h${index}`, rest as Figures));
					const present = hosts.filter((_, index) => figures[index]?.isMember);
					const candidates = hosts.filter((_, index) => !figures[index]?.isMember);
					const choose = (some: Host[], more: Host[]) =>
						chooseControlPlanes({}, { present: some, candidates: more, count });
					const chosen = choose(present, candidates);
					const rotated = (list: Host[]) => [...list.slice(turn % 5), ...list.slice(0, turn % 5)];
					expect(choose(rotated(present), rotated(candidates))).toEqual(chosen);

					expect(chosen).toHaveLength(Math.min(count, hosts.length));
					expect(new Set(chosen).size).toBe(chosen.length);
					const kept = chosen.filter((one) => present.includes(one));
					expect(kept).toHaveLength(Math.min(count, present.length));
					// Once they are members they are chosen again, whatever else there is.
					expect(
						choose(
							chosen,
							hosts.filter((one) => !chosen.includes(one)),
						).toSorted(byName),
					).toEqual(chosen.toSorted(byName));

					// Nobody that was added, or that was kept of too many, could be swapped for another of a domain that has less.
					const sizeOf = (zone: string) => chosen.filter((one) => zoneOf(one) === zone).length;
					const movable = present.length > count ? chosen : chosen.filter((one) => !present.includes(one));
					const others = (present.length > count ? present : candidates).filter((one) => !chosen.includes(one));
					for (const one of movable)
						for (const other of others)
							expect(sizeOf(zoneOf(one))).toBeLessThanOrEqual(
								sizeOf(zoneOf(other)) + (zoneOf(one) === zoneOf(other) ? 0 : 1),
							);
				},
			),
		);
	});
});
const byName = (a: Host, b: Host) => (a.metadata.name < b.metadata.name ? -1 : 1);

describe("what people are told", () => {
	test.each<[string, Host[], RegExp[]]>([
		["nothing of good hosts", [host("h1", { p99Ms: 4, offsetMs: 400, peers: { 2: 0.4 } }), host("h2")], []],
		["a slow disk", [host("h3", { p99Ms: 38 })], [/^h3: fdatasync p99 38 ms; etcd wants under 10 ms\.$/]],
		[
			"a wrong clock",
			[host("h3", { offsetMs: -2_310, uncertaintyMs: 540 })],
			[/^h3: its clock is 2\.3 s behind the region's \(± 0\.54 s\); etcd wants its members within 1 s\.$/],
		],
		["a clock that may be right", [host("h3", { offsetMs: 1_400, uncertaintyMs: 540 })], []],
		[
			"two that are far apart, once",
			[host("h1", { peers: { 2: 72 } }), host("h2", { peers: { 1: 75 } })],
			[/^h1 and h2: a round trip of 72 ms; etcd's heartbeat suits up to 50 ms\.$/],
		],
		["not one that was silent when it was measured", [host("h1", { peers: { 2: null } }), host("h2")], []],
		["not a host of others", [host("h1", { peers: { 9: 900 } }), host("h2")], []],
	])("%s", (_what, hosts, expected) => {
		const found = findingsOn(hosts);
		expect(found).toHaveLength(expected.length);
		for (const [index, pattern] of expected.entries()) expect(found[index]).toMatch(pattern);
	});

	test.each<[string, Host[], string, string]>([
		["slow", [host("h1", { p99Ms: 38 }), host("h2")], "False", "BelowAdvice"],
		["not measured", [host("h1", { p99Ms: 1 }), host("h2")], "Unknown", "NotMeasured"],
		["good", [host("h1", { p99Ms: 1 }), host("h2", { p99Ms: 2 })], "True", "AsAdvised"],
	])("the condition of hosts that are %s", (_what, hosts, status, reason) => {
		expect(placementCondition(hosts)).toMatchObject({ type: "Placement", status, reason });
	});

	it("hosts that were named are warned of, and taken all the same", () => {
		const site = new Site({ version: "v1.36.3", controlPlane: { hosts: ["h1"] }, workers: [] }, ["h1", "h2"]);
		site.hosts = [host("h1", { p99Ms: 38 }), host("h2", { p99Ms: 1 })];
		site.settle();
		expect(site.cluster.status?.phase).toBe("Ready");
		expect(site.last?.conditions.find(({ type }) => type === "Placement")).toMatchObject({
			status: "False",
			message: expect.stringContaining("h1: fdatasync p99 38 ms; etcd wants under 10 ms."),
		});
	});
});

describe("the failure domain", () => {
	it("is on the Node, too, and follows the Host's label", () => {
		const site = new Site(
			{
				version: "v1.36.3",
				controlPlane: { hosts: ["h1"] },
				workers: [{ name: "w", hosts: ["h2"], labels: { t: "x" } }],
			},
			["h1", "h2"],
		);
		site.hosts = [host("h1", { zone: "a" }), host("h2", { zone: "b" })];
		site.settle();
		expect(site.nodes.get("h1")?.labels).toMatchObject({ [ZONE]: "a" });
		expect(site.nodes.get("h2")?.labels).toEqual({ [ZONE]: "b", t: "x" });
		site.host("h2").metadata.labels = { [ZONE]: "c" };
		site.settle();
		expect(site.nodes.get("h2")?.labels).toEqual({ [ZONE]: "c", t: "x" });
		site.host("h2").metadata.labels = {};
		site.settle();
		expect(site.nodes.get("h2")?.labels).toEqual({ t: "x" });
		expect(site.last?.actions).toEqual([]);
	});
});
