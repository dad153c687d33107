import { describe, expect, test } from "vitest";
import type { Host } from "../../crds/host.ts";
import type { AgentUpdate } from "../../protocol/facts.ts";
import { type AgentOffer, agentOf, agentUpToDate, type OutdatedAgent, planAgents, RETRY } from "./agents.ts";

const now = Date.parse("2026-01-01T12:00:00Z");
const ago = (minutes: number) => new Date(now - minutes * 60_000).toISOString();
const offer = (minutes = 1, change: Partial<AgentOffer> = {}): AgentOffer => ({
	version: "2",
	at: ago(minutes),
	...change,
});
const agent = (name: string, change: Partial<OutdatedAgent> = {}): OutdatedAgent => ({
	name,
	version: "1",
	update: { phase: "Idle" },
	connected: true,
	...change,
});
const failed: AgentUpdate = { phase: "Failed", version: "2", message: "it crashed" };

function host(name: string, spec: Partial<Host["spec"]> = {}, metadata: Partial<Host["metadata"]> = {}): Host {
	return {
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Host",
		metadata: { name, namespace: "region-demo", ...metadata },
		spec: { approved: true, maintenance: false, roles: [], ...spec },
	};
}

const plan = (
	outdated: OutdatedAgent[],
	{ succeeded = 0, total = 3, of = {} }: { succeeded?: number; total?: number; of?: Record<string, Host> } = {},
) => planAgents({ target: "2", outdated, succeeded, total, hostOf: (name) => of[name] ?? host(name), now });

const names = (outdated: OutdatedAgent[], options: Parameters<typeof plan>[1] = {}) =>
	plan(outdated, options).tell.map(({ name }) => name);
const many = (count: number, change: Partial<OutdatedAgent> = {}) =>
	Array.from({ length: count }, (_, i) => agent(`h${String(i).padStart(4, "0")}`, change));

describe("who is told next", () => {
	test.each<[string, string[], OutdatedAgent[], Parameters<typeof plan>[1]?]>([
		["nobody when all are there", [], []],
		["the first one alone", ["a"], [agent("b"), agent("a")]],
		["nobody while the first one is under way", [], [agent("a", { offer: offer() }), agent("b")]],
		["two at a time from then on", ["b"], [agent("a", { offer: offer() }), agent("b"), agent("c")], { succeeded: 1 }],
		["one in twenty of many", ["h0000", "h0001", "h0002", "h0003", "h0004"], many(90), { succeeded: 1, total: 100 }],
		["not who is out of reach", ["b"], [agent("a", { connected: false }), agent("b")]],
		["not who can't change its version", ["b"], [agent("a", { update: undefined }), agent("b")]],
		["not who is in maintenance", ["b"], [agent("a"), agent("b")], { of: { a: host("a", { maintenance: true }) } }],
		["not who is not approved", ["b"], [agent("a"), agent("b")], { of: { a: host("a", { approved: false }) } }],
		["not who wants none", ["b"], [agent("a"), agent("b")], { of: { a: host("a", { agentUpdates: "Manual" }) } }],
		["who was told of an older version", ["a"], [agent("a", { offer: offer(1, { version: "1.5" }) })]],
		["nobody when the first one failed", [], [agent("a", { offer: offer(), update: failed }), agent("b")]],
		["nobody when the first one is overdue", [], [agent("a", { offer: offer(31) }), agent("b")]],
		[
			"the next ones although one in a row of good ones failed",
			["b", "c"],
			[agent("a", { offer: offer(), update: failed }), agent("b"), agent("c")],
			{ succeeded: 1 },
		],
		[
			"who failed and is asked to try again, before all others",
			["b"],
			[agent("a"), agent("b", { offer: offer(), update: failed })],
			{ of: { b: host("b", {}, { annotations: { [RETRY]: "once more" } }) } },
		],
		[
			"the others when who failed is put into maintenance",
			["b"],
			[agent("a", { offer: offer(), update: failed }), agent("b")],
			{ of: { a: host("a", { maintenance: true }) } },
		],
	])("%s", (_what, expected, outdated, options) => {
		expect(names(outdated, options)).toEqual(expected);
	});

	test("at most twenty at once, and none when three have failed", () => {
		expect(names(many(1000), { succeeded: 1, total: 10_000 })).toHaveLength(20);
		const three = many(3, { offer: offer(), update: failed });
		expect(plan([...three, agent("z")], { succeeded: 50, total: 100 })).toMatchObject({
			tell: [],
			underWay: 0,
			stopped: true,
			failed: three.map(({ name }) => name),
		});
	});

	test("a region of any size comes to the version, and one where it fails loses a single host", () => {
		for (const isGood of [true, false]) {
			let outdated = many(200);
			let succeeded = 0;
			let most = 0;
			for (let round = 0; round < 100; round++) {
				const { tell, underWay } = plan(outdated, { succeeded, total: 200 });
				most = Math.max(most, tell.length + underWay);
				for (const one of outdated.filter(({ offer }) => offer)) {
					if (isGood) succeeded += 1;
					else outdated = outdated.map((other) => (other === one ? { ...one, update: failed } : other));
				}
				if (isGood) outdated = outdated.filter(({ offer }) => !offer);
				outdated = outdated.map((one) =>
					tell.some(({ name }) => name === one.name) ? { ...one, offer: offer() } : one,
				);
			}
			expect(most).toBe(isGood ? 10 : 1);
			expect(outdated.filter(({ update }) => update?.phase === "Failed")).toHaveLength(isGood ? 0 : 1);
			expect(outdated).toHaveLength(isGood ? 0 : 200);
		}
	});
});

test("a document names the version while it is the region's, with the word to try it again", () => {
	expect(agentOf(host("a"), undefined, "2")).toBeUndefined();
	expect(agentOf(host("a"), offer(), "2")).toEqual({ version: "2" });
	expect(agentOf(host("a"), offer(1, { retry: "x" }), "2")).toEqual({ version: "2", retry: "x" });
	expect(agentOf(host("a"), offer(), "3")).toBeUndefined();
	expect(agentOf(host("a", { agentUpdates: "Manual" }), offer(), "2")).toBeUndefined();
	expect(agentOf(host("a", { maintenance: true }), offer(), "2")).toBeUndefined();
});

describe("condition AgentUpToDate", () => {
	const all = { target: "2", failed: [] as string[], stopped: false };
	const idle = { agentVersion: "1", agentUpdate: { phase: "Idle" as const } };
	test.each<[string, Host, Parameters<typeof agentUpToDate>[1], Partial<typeof all>, string]>([
		["never changed", host("a"), { agentVersion: "2" }, {}, "none"],
		[
			"tries it",
			host("a"),
			{ agentVersion: "2", agentUpdate: { phase: "Trying", version: "2" }, agentOffer: offer() },
			{},
			"False Updating",
		],
		["has come to it", host("a"), { agentVersion: "2", agentOffer: offer() }, {}, "True UpToDate"],
		["an agent that knows nothing of it", host("a"), { agentVersion: "1" }, {}, "False NotSupported"],
		["by hand", host("a", { agentUpdates: "Manual" }), idle, {}, "False Manual"],
		["waits for its turn", host("a"), idle, {}, "False Waiting"],
		["waits since others failed", host("a"), idle, { stopped: true, failed: ["b"] }, "False Stopped"],
		["under way", host("a"), { ...idle, agentOffer: offer() }, {}, "False Updating"],
		[
			"can't fetch it",
			host("a"),
			{ ...idle, agentUpdate: { phase: "Fetching", version: "2", reason: "BundleNotFound" }, agentOffer: offer() },
			{},
			"False BundleNotFound",
		],
		[
			"failed",
			host("a"),
			{ agentVersion: "1", agentUpdate: failed, agentOffer: offer() },
			{},
			"False AgentUpdateFailed",
		],
		[
			"another version failed",
			host("a"),
			{ agentVersion: "1", agentUpdate: { ...failed, version: "1.5" } },
			{},
			"False Waiting",
		],
	])("%s", (_what, subject, machine, change, expected) => {
		const condition = agentUpToDate(subject, machine, { ...all, ...change });
		expect(condition ? `${condition.status} ${condition.reason}` : "none").toBe(expected);
	});

	test("that an update failed is said with its cause and what to do", () => {
		const machine = { agentVersion: "1", agentUpdate: failed, agentOffer: offer() };
		expect(agentUpToDate(host("a"), machine, all)?.message).toMatch(
			/^Version 2 failed here, and 1 runs again: it crashed; .*kubectl annotate host a -n region-demo --overwrite/,
		);
	});
});
