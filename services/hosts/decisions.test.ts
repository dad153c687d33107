import { describe, expect, test } from "vitest";
import type { Host } from "../../crds/host.ts";
import type { GroundplaneError } from "../../protocol/errors.ts";
import { arrival } from "./controller.ts";
import { contentOf, digestOf, isAsked, nextDocument, renewAt } from "./desired-state.ts";
import { checkIdentity, checkRequest } from "./enrolment.ts";
import { type Document, type HostRecord, isSameTunnel, isStale } from "./inventory.ts";
import { newsOf, writtenOf } from "./news.ts";
import { areReturning, inBatches } from "./reports.ts";
import { statusOf } from "./status.ts";

const codeOf = (work: () => unknown): string => {
	try {
		work();
		return "ok";
	} catch (error) {
		return (error as GroundplaneError).code;
	}
};

function host(change: { metadata?: Partial<Host["metadata"]>; spec?: Partial<Host["spec"]> } = {}): Host {
	return {
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Host",
		metadata: { name: "a", generation: 3, uid: "u", ...change.metadata },
		spec: { approved: true, maintenance: false, roles: [], ...change.spec },
	};
}

test("a host is asked whether it is there, once on each account, and not on old ones", () => {
	const now = Date.parse("2026-01-01T00:01:00Z");
	const asked = (at: string) => host({ metadata: { annotations: { "groundplane.io/asked": at } } });
	expect(isAsked(host(), undefined, now)).toBe(false);
	expect(isAsked(asked("2026-01-01T00:00:59Z"), undefined, now)).toBe(true);
	expect(isAsked(asked("2026-01-01T00:00:59Z"), "2026-01-01T00:00:30Z", now)).toBe(true);
	expect(isAsked(asked("2026-01-01T00:00:59Z"), "2026-01-01T00:00:59Z", now)).toBe(false);
	expect(isAsked(asked("2026-01-01T00:00:00Z"), undefined, now)).toBe(false);
	expect(isAsked(asked("tomorrow"), undefined, now)).toBe(false);
});

describe("enrolment", () => {
	const now = 1_800_000_000_000;
	const csr = { name: "a", digest: "", publicKey: undefined as never };
	test.each([
		["as it should be", { name: "a", time: now / 1000 }, "ok"],
		["five minutes off", { name: "a", time: now / 1000 - 300 }, "ok"],
		["more than five minutes behind", { name: "a", time: now / 1000 - 302 }, "ClockSkew"],
		["more than five minutes ahead", { name: "a", time: now / 1000 + 302 }, "ClockSkew"],
		["another name than its certificate request", { name: "b", time: now / 1000 }, "HostNameMismatch"],
		["a name with a dot", { name: "a.b", time: now / 1000 }, "InvalidInput"],
		["a name in capitals", { name: "A", time: now / 1000 }, "InvalidInput"],
	])("a request: %s → %s", (_what, body, code) => {
		expect(codeOf(() => checkRequest(body, csr, now))).toBe(code);
	});

	test.each([
		["new", null, {}, "ok"],
		["again", null, { byName: { machine_id: "m" }, byMachine: { name: "a" } }, "ok"],
		["with a token for it", "a", {}, "ok"],
		["with a token for another", "b", {}, "HostNameMismatch"],
		["under a name that another machine holds", null, { byName: { machine_id: "other" } }, "HostAlreadyEnrolled"],
		["under a second name", null, { byMachine: { name: "b" } }, "HostAlreadyEnrolled"],
	])("a machine: %s → %s", (_what, tokenName, known, code) => {
		expect(codeOf(() => checkIdentity("a", "m", tokenName, known))).toBe(code);
	});
});

describe("desired state", () => {
	const role = { name: "kubernetes", version: "v1", parameters: { a: 1 }, secretName: "s" };
	const secrets = new Map([["s", { token: "t" }]]);

	test("says what the Host says, with the Secret's content, and nothing to a host that isn't approved", () => {
		const merged = [{ name: "kubernetes", version: "v1", parameters: { a: 1, token: "t" } }];
		const spec = { roles: [role] };
		expect(contentOf(host({ spec }), secrets)).toEqual({ epoch: 0, paused: false, roles: merged });
		expect(contentOf(host({ spec: { ...spec, maintenance: true } }), secrets)).toEqual({
			epoch: 0,
			paused: true,
			roles: merged,
		});
		expect(contentOf(host({ spec: { ...spec, approved: false } }), secrets)).toEqual({
			epoch: 0,
			paused: true,
			roles: [],
		});
		expect(codeOf(() => contentOf(host({ spec }), new Map()))).toBe("NotFound");
	});

	test("of a host that is being deleted takes everything away, even in maintenance or without its Secret", () => {
		const metadata = { deletionTimestamp: "2026-01-01T00:00:00Z", annotations: { "groundplane.io/epoch": "4" } };
		const deleted = host({ metadata, spec: { maintenance: true, approved: false, roles: [role] } });
		expect(contentOf(deleted, new Map())).toEqual({ epoch: 4, paused: false, roles: [] });
	});

	test("an epoch that is no number counts as none", () => {
		expect(contentOf(host({ metadata: { annotations: { "groundplane.io/epoch": "x" } } }), secrets).epoch).toBe(0);
	});

	test("its digest does not depend on the order of keys", () => {
		const of = (parameters: Record<string, unknown>) =>
			digestOf({ epoch: 0, paused: false, roles: [{ name: "r", version: "1", parameters }] });
		expect(of({ a: 1, b: { c: 2, d: 3 } })).toBe(of({ b: { d: 3, c: 2 }, a: 1 }));
		expect(of({ a: [1, 2] })).not.toBe(of({ a: [2, 1] }));
	});

	const content = { epoch: 0, paused: false, roles: [] };
	const lifetimeMs = 3_600_000;
	const now = 1_800_000_000_000;
	const next = (last: Document | undefined, change: { objectGeneration?: number; now?: number } = {}) =>
		nextDocument(last, { content, objectGeneration: 1, now, lifetimeMs, ...change });

	test("is signed anew when it says something else or half of its life is over, and keeps its number otherwise", () => {
		const first = next(undefined);
		expect(first).toMatchObject({ generation: now / 1000, objectGeneration: 1 });
		expect(next(first, { now: now + 1000 })).toEqual(first);
		expect(next(first, { objectGeneration: 2 })).toEqual({ ...first, objectGeneration: 2 });
		expect(next({ ...first, digest: "other" }).generation).toBe(first.generation + 1);
		const renewed = next(first, { now: renewAt(first) });
		expect(renewed.generation).toBeGreaterThan(first.generation);
		expect(renewed.validUntil.getTime()).toBe(renewAt(first) + lifetimeMs);
	});

	test("its number never falls: not with a clock that went back, not with a database that was lost", () => {
		const first = next(undefined);
		expect(next({ ...first, digest: "other" }, { now: now - 86_400_000 }).generation).toBe(first.generation + 1);
		expect(next(undefined, { now: now + 60_000 }).generation).toBeGreaterThan(first.generation);
	});
});

describe("tunnels", () => {
	const at = (second: number) => new Date(1_800_000_000_000 + second * 1000).toISOString();
	const known = { state: "connected", epoch: 5, at: at(10) } as const;
	test.each([
		["the first", null, { state: "connected", epoch: 1, at: at(0) }, false],
		["a newer one", known, { state: "connected", epoch: 6, at: at(11) }, false],
		["the end of this one", known, { state: "disconnected", epoch: 5, at: at(12) }, false],
		["the late end of an older one", known, { state: "disconnected", epoch: 4, at: at(12) }, true],
		["an older one, late", known, { state: "connected", epoch: 4, at: at(9) }, true],
		["one after the bus had lost its count", known, { state: "connected", epoch: 1, at: at(20) }, false],
	] as const)("%s → stale: %s", (_what, before, link, stale) => {
		expect(isStale(before, link)).toBe(stale);
	});
});

const newest: Document = {
	generation: 1000,
	epoch: 0,
	objectGeneration: 3,
	digest: "d",
	issuedAt: new Date(0),
	validUntil: new Date(1000),
};
const machine = (change: Partial<HostRecord> = {}): HostRecord => ({
	name: "a",
	machineId: "m",
	enrolledAt: new Date(0),
	uid: "u",
	agentVersion: "1",
	facts: {} as never,
	checks: [],
	certificateNotAfter: new Date(0),
	documents: [newest, { ...newest, generation: 900, objectGeneration: 2 }],
	...change,
});

describe("status", () => {
	const role = { name: "kubernetes", version: "v1", done: 2, total: 5, phase: "Applied" as const };
	const verdict = (record: HostRecord | undefined, type: string) => {
		const { conditions } = statusOf(host(), record, { now: () => 0 });
		const found = conditions?.find((condition) => condition.type === type);
		return `${found?.status} ${found?.reason}`;
	};

	test("speaks of metadata.generation, whatever the documents are numbered", () => {
		const { desiredState } = statusOf(host(), machine({ accepted: 1000, roles: { generation: 900, list: [] } }), {
			now: () => 0,
		});
		expect(desiredState).toMatchObject({ generation: 3, acknowledgedGeneration: 3, reportedGeneration: 2 });
	});

	test.each([
		["nobody enrolled", undefined, "Unknown NotReported"],
		["roles of an older document", machine({ roles: { generation: 900, list: [role] } }), "False Pending"],
		["all applied", machine({ roles: { generation: 1000, list: [role] } }), "True Applied"],
		["none", machine({ roles: { generation: 1000, list: [] } }), "True NoRoles"],
		["one at work", machine({ roles: { generation: 1000, list: [{ ...role, phase: "Applying" }] } }), "False Applying"],
		[
			"one failed",
			machine({ roles: { generation: 1000, list: [{ ...role, phase: "Failed", reason: "CommandFailed" }] } }),
			"False CommandFailed",
		],
		["refused", machine({ refusal: { generation: 1000, reason: "DesiredStateExpired" } }), "False DesiredStateExpired"],
		[
			"an older document refused",
			machine({ refusal: { generation: 900 }, roles: { generation: 1000, list: [] } }),
			"True NoRoles",
		],
	])("RolesApplied with %s is %s", (_what, record, expected) => {
		expect(verdict(record, "RolesApplied")).toBe(expected);
	});

	test("Prerequisites fail on errors only, and say what to do", () => {
		const check = { name: "swap", ok: false, severity: "warning" as const, message: "Swap is on.", next: "swapoff -a" };
		expect(verdict(machine({ checks: [check] }), "Prerequisites")).toBe("True Met");
		expect(verdict(machine({ checks: [{ ...check, severity: "error" }] }), "Prerequisites")).toBe(
			"False PrerequisiteNotMet",
		);
	});

	test("the same knowledge gives the same status, transition times included", () => {
		const first = statusOf(host(), machine(), { now: () => 1000 });
		const again = statusOf({ ...host(), status: first as never }, machine(), { now: () => 2000 });
		expect(again).toEqual(first);
	});
});

describe("what is new in a status", () => {
	const link = { state: "connected", gateway: "tunnel-0", epoch: 7, address: "a", at: "2026-01-01T00:00:00Z" } as const;
	const gone = { ...link, state: "disconnected", reason: "TunnelClosed" } as const;
	const back = { ...link, gateway: "tunnel-1", epoch: 8, at: "2026-01-01T00:01:00Z" };
	const applied = { generation: 1000, list: [{ name: "r", version: "1", phase: "Applied", done: 2, total: 2 }] };
	const at = (done: number, reason?: string) =>
		({
			generation: 1000,
			list: [{ name: "r", version: "1", phase: "Applying", step: `step-${done}`, done, total: 2, reason }],
		}) as never;
	test.each([
		["as before", { link }, { link }, "none"],
		["the same host by another tunnel", { link }, { link: back }, "minor"],
		["its tunnel is gone", { link }, { link: gone }, "flip"],
		["it is back", { link: gone }, { link: back }, "flip"],
		["it is gone for another reason", { link: gone }, { link: { ...gone, reason: "TunnelLost" } }, "flip"],
		["its first tunnel", {}, { link }, "major"],
		["the next step of a role", { link, roles: at(1) }, { link, roles: at(2) }, "progress"],
		["a role that is applied", { link, roles: at(2) }, { link, roles: applied as never }, "major"],
		["a role that fails", { link, roles: at(2) }, { link, roles: at(2, "StepFailed") }, "major"],
		["a role, while it comes back", { link: gone }, { link: back, roles: applied as never }, "major"],
	])("%s", (_what, before, after, news) => {
		const status = statusOf(host(), machine(before), { now: () => 0 });
		const wanted = statusOf({ ...host(), status: status as never }, machine(after), { now: () => 60_000 });
		expect(newsOf(writtenOf(status), writtenOf(wanted))).toBe(news);
	});
});

describe("how long the first status waits", () => {
	const now = Date.parse("2026-01-01T00:01:00Z");
	const at = (seconds: number) => new Date(now - seconds * 1_000);
	const made = (seconds: number, status?: Host["status"]) => ({
		metadata: { name: "a", creationTimestamp: at(seconds).toISOString() },
		...(status && { status }),
	});
	const machine = (
		enrolled: number,
		dialled?: number,
		accepted?: number,
		state: "connected" | "disconnected" = "connected",
	) => ({
		enrolledAt: at(enrolled),
		...(dialled !== undefined && {
			link: { state, gateway: "tunnel-0", epoch: 1, address: "", at: at(dialled).toISOString() },
		}),
		...(accepted !== undefined && { accepted }),
	});
	test.each([
		["made a moment ago: its enrolment may not be over", made(1), undefined, 4_000],
		["made a while ago, and no machine came", made(5), undefined, 0],
		["whose machine is gone", made(1, { conditions: [] }), undefined, 0],
		["made in the future: the API server's clock is another", made(-2), undefined, 5_000],
		["made far in the future", made(-600), undefined, 0],
		["whose machine has not dialled yet", made(60), machine(2), 3_000],
		["whose machine does not dial", made(60), machine(5), 0],
		["whose machine has no document yet", made(60), machine(6, 1), 4_000],
		["whose machine takes no document", made(60), machine(9, 5), 0],
		["whose machine dials again and again, and takes no document", made(60), machine(16, 0), 0],
		["whose machine has gone again", made(60), machine(6, 1, undefined, "disconnected"), 0],
		["that has all of it", made(1), machine(1, 1, 1), 0],
	])("of a host %s", (_what, host, known, wait) => {
		expect(arrival(host, known, now)).toBe(wait);
	});
});

test("a tunnel that is told of twice has been up since the first time", () => {
	const link = { state: "connected", gateway: "tunnel-0", epoch: 7, address: "a", at: "2026-01-01T00:00:00Z" } as const;
	expect(isSameTunnel(link, { ...link, at: "2026-01-01T00:00:05Z" })).toBe(true);
	expect(isSameTunnel(link, { ...link, epoch: 8 })).toBe(false);
	expect(isSameTunnel(link, { ...link, state: "disconnected", reason: "TunnelClosed" })).toBe(false);
	expect(isSameTunnel(null, link)).toBe(false);
});

test.each([
	["seen for the first time", 0, 9_000, false],
	["of whom a tenth is back", 9_000, 8_100, true],
	["of whom hardly any is back", 9_000, 8_500, false],
	["that grow", 500, 900, false],
	["that are few by now", 9_000, 100, false],
	["one", 1, 1, false],
])("hosts whose tunnel nobody holds, %s: still dialling?", (_what, before, now, expected) => {
	expect(areReturning(before, now)).toBe(expected);
});

describe("batches of messages", () => {
	async function* source(): AsyncGenerator<number> {
		for (const one of [1, 2, 3, 4, 5]) yield one;
		await new Promise((resolve) => setTimeout(resolve, 20));
		yield 6;
	}

	test("hold what is there already, up to their size, and wait for nothing", async () => {
		const seen: number[][] = [];
		for await (const batch of inBatches(source(), 3)) seen.push(batch);
		expect(seen).toEqual([[1, 2, 3], [4, 5], [6]]);
	});

	test("a source that fails while a batch is worked on fails the reader, not the process", async () => {
		async function* failing(): AsyncGenerator<number> {
			yield 1;
			throw new Error("gone");
		}
		const seen: number[][] = [];
		const read = async () => {
			for await (const batch of inBatches(failing(), 8)) {
				seen.push(batch);
				await new Promise((resolve) => setTimeout(resolve, 5));
			}
		};
		await expect(read()).rejects.toThrow("gone");
	});
});
