import { setTimeout as delay } from "node:timers/promises";
import pino from "pino";
import { afterEach, describe, expect, it, vi } from "vitest";
import { answering } from "../../test/support/answering.ts";
import { patience } from "../../test/support/patience.ts";
import type { KubeClient } from "./client.ts";
import { runWithLease } from "./lease.ts";
import type { Lease } from "./resources.ts";

const log = pino({ level: "silent" });
const until = (check: () => void) => vi.waitFor(check, { ...patience, interval: 5 });
const quick = { leaseDuration: 1000, renewDeadline: 700, retryPeriod: 50, random: () => 0 };
const cleanup: (() => Promise<void> | void)[] = [];
afterEach(async () => {
	for (const end of cleanup.splice(0).reverse()) await end();
});

type Spec = NonNullable<Lease["spec"]>;
const conflict = { status: 409, reason: "Conflict" };

/** An API server that has one Lease. */
async function leaseServer(spec?: Spec) {
	const api = {
		lease: undefined as Lease | undefined,
		/** What the next requests of a method are refused with. */
		refuse: [] as { method: string; status: number; reason: string }[],
		asked: [] as (string | undefined)[],
		put(next: Spec) {
			const version = Number(api.lease?.metadata.resourceVersion ?? 0) + 1;
			api.lease = { metadata: { name: "test", namespace: "n", resourceVersion: String(version) }, spec: next };
		},
		client: undefined as unknown as KubeClient,
	};
	if (spec !== undefined) api.put(spec);
	api.client = await answering(async (request, response) => {
		api.asked.push(request.method);
		let text = "";
		for await (const chunk of request) text += chunk;
		const answer = (status: number, body: unknown) => response.writeHead(status).end(JSON.stringify(body));
		const refuse = (status: number, reason: string) => answer(status, { kind: "Status", code: status, reason });
		const refusal = api.refuse.find(({ method }) => method === request.method);
		if (refusal !== undefined) {
			api.refuse.splice(api.refuse.indexOf(refusal), 1);
			return refuse(refusal.status, refusal.reason);
		}
		if (request.method !== "POST" && api.lease === undefined) return refuse(404, "NotFound");
		if (request.method === "GET") return answer(200, api.lease);
		if (request.method === "POST" && api.lease !== undefined) return refuse(409, "AlreadyExists");
		const body = JSON.parse(text) as Lease & { spec: Spec };
		if (request.method === "PUT" && body.metadata.resourceVersion !== api.lease?.metadata.resourceVersion)
			return refuse(409, "Conflict");
		api.put(body.spec);
		return answer(200, api.lease);
	});
	return api;
}

function contender(client: KubeClient, identity = "me") {
	const stop = new AbortController();
	const state = { leading: false, epoch: 0, lost: false };
	const ended = runWithLease(
		{ client, namespace: "n", name: "test", identity, log, ...quick },
		stop.signal,
		async (signal, { epoch }) => {
			Object.assign(state, { leading: true, epoch });
			await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
			state.leading = false;
		},
	).catch(() => {
		state.lost = true;
	});
	const end = async () => {
		stop.abort();
		await ended;
	};
	cleanup.push(end);
	return { state, end };
}

const led = (holderIdentity: string, leaseTransitions = 7): Spec => ({
	holderIdentity,
	leaseTransitions,
	leaseDurationSeconds: 1,
	acquireTime: "2026-01-01T00:00:00.000000Z",
	renewTime: "2026-01-01T00:00:00.000000Z",
});

// By the names of client-go's leaderelection_test.go (v0.37) where it has the case.
describe("a lease", () => {
	it.each([
		["acquire from no object", undefined, undefined],
		["acquire from object without annotations", {}, 1],
		["acquire from unled object", led("", 7), 8],
		["acquire from led, unacked object: after its time, by our own clock", led("other", 7), 8],
		["renew already acquired object", led("me", 7), 7],
	])("TestTryAcquireOrRenewLeases: %s", async (_, spec, epoch) => {
		const api = await leaseServer(spec);
		const { state } = contender(api.client);
		await until(() => expect(state.leading).toBe(true));
		// One that is made anew begins with the minutes since 1970.
		expect(state.epoch).toBe(epoch ?? api.lease?.spec?.leaseTransitions);
		expect(state.epoch).toBeGreaterThan(epoch === undefined ? 20_000_000 : 0);
		expect(api.lease?.spec).toMatchObject({ holderIdentity: "me", leaseDurationSeconds: 1 });
	});

	it("TestTryAcquireOrRenewLeases: don't acquire from led, acked object", async () => {
		const api = await leaseServer(led("other"));
		const { state } = contender(api.client);
		for (let i = 0; i < 15; i++) {
			await delay(100);
			api.put(led("other"));
		}
		expect(state.leading).toBe(false);
	});

	it("TestFastPathLeaderElection: renews without reading, and reads again after a write that failed", async () => {
		const api = await leaseServer();
		const { state } = contender(api.client);
		await until(() => expect(api.asked.slice(0, 4)).toEqual(["GET", "POST", "PUT", "PUT"]));
		api.asked.length = 0;
		api.refuse.push({ method: "PUT", ...conflict }, { method: "GET", status: 500, reason: "InternalError" });
		await until(() => expect(api.asked.filter((method) => method === "GET")).toHaveLength(2));
		await delay(300);
		expect([state.leading, state.lost]).toEqual([true, false]);
	});

	it.each([
		["taken by another one", led("other")],
		["taken by another one and given back: ours would be an old epoch from now on", led("", 8)],
	])("ends its holder when it was %s", async (_, spec) => {
		const api = await leaseServer();
		const { state } = contender(api.client);
		await until(() => expect(state.leading).toBe(true));
		api.put(spec);
		await until(() => expect(state.lost).toBe(true));
		expect([state.leading, api.lease?.spec?.holderIdentity]).toEqual([false, spec.holderIdentity]);
	});

	it("TestReleaseLeaseLeases: is given back, and not taken from another one", async () => {
		const api = await leaseServer();
		const one = contender(api.client);
		await until(() => expect(one.state.leading).toBe(true));
		const epoch = api.lease?.spec?.leaseTransitions;
		await one.end();
		expect(api.lease?.spec).toMatchObject({ holderIdentity: "", leaseTransitions: epoch });
		const two = contender(api.client);
		await until(() => expect(two.state.leading).toBe(true));
		api.put(led("other"));
		await two.end();
		expect(api.lease?.spec).toMatchObject({ holderIdentity: "other" });
	});

	it("TestReleaseRetriesOnConflict: is given back although a renewal that was broken off lands in between", async () => {
		const api = await leaseServer();
		const { state, end } = contender(api.client);
		await until(() => expect(api.asked.filter((method) => method === "PUT").length).toBeGreaterThan(1));
		api.refuse.push({ method: "PUT", ...conflict }, { method: "PUT", ...conflict });
		await end();
		expect([state.lost, api.lease?.spec?.holderIdentity]).toEqual([false, ""]);
	});
});
