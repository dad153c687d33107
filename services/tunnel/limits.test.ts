import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Bucket, HostBudget } from "./budget.ts";
import { Handshakes } from "./handshakes.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

class FakeSocket extends EventEmitter {
	destroyed = false;
	said: Buffer | undefined;
	/** Its other end closes when it is told to go. */
	goes = true;
	resume(): void {}
	end(farewell: Buffer): void {
		this.said = farewell;
		if (this.goes) this.destroy();
	}
	destroy(): void {
		this.destroyed = true;
		this.emit("close");
	}
}

function startHandshakes(utilization = () => 0) {
	const turnedAway: string[] = [];
	const begun: string[] = [];
	const handshakes = new Handshakes({
		openMs: 15_000,
		utilization,
		turnedAway: (reason) => void turnedAway.push(reason),
		now: () => Date.now(),
	});
	const dial = (source: string): Socket => {
		const socket = new FakeSocket() as unknown as Socket;
		handshakes.enter(socket, source, () => {
			begun.push(source);
		});
		return socket;
	};
	return { handshakes, turnedAway, begun, dial };
}

test("one that comes alone is let in at once, a thousand at the pace that the gateway keeps", () => {
	const { begun, dial, handshakes, turnedAway } = startHandshakes();
	dial("a");
	expect(begun).toHaveLength(1);
	for (let i = 0; i < 999; i++) dial("a");
	expect(begun).toHaveLength(1);
	expect(handshakes.waiting).toBe(999);
	vi.advanceTimersByTime(500);
	expect(begun.length).toBeLessThan(450);
	vi.advanceTimersByTime(1_500);
	expect(begun).toHaveLength(1_000);
	expect(turnedAway).toEqual([]);
});

test("a busy gateway lets in fewer, and tells those to come back whom it can't serve in time", () => {
	const { begun, dial, turnedAway, handshakes } = startHandshakes(() => 0.95);
	for (let i = 0; i < 2_000; i++) dial("a");
	vi.advanceTimersByTime(1_000);
	expect(begun.length).toBeGreaterThan(190);
	expect(begun.length).toBeLessThan(210);
	vi.advanceTimersByTime(5_000);
	expect(handshakes.waiting).toBe(0);
	expect(begun.length + turnedAway.filter((reason) => reason === "Overloaded").length).toBe(2_000);
});

test("sources take turns, so that one address can't keep the others out", () => {
	const { begun, dial } = startHandshakes(() => 0.95);
	for (let i = 0; i < 500; i++) dial("attacker");
	dial("host");
	vi.advanceTimersByTime(30);
	expect(begun).toContain("host");
});

test("who has begun has a deadline, who is done has none, and who hung up is forgotten", () => {
	const { dial, handshakes, turnedAway } = startHandshakes();
	const slow = dial("slow");
	const good = dial("good");
	const gone = dial("gone");
	gone.destroy();
	vi.advanceTimersByTime(100);
	expect(handshakes.underWay).toBe(2);
	handshakes.done(good);
	vi.advanceTimersByTime(15_000);
	expect([slow.destroyed, good.destroyed]).toEqual([true, false]);
	expect(turnedAway).toEqual(["DeadlineExceeded"]);
	expect(handshakes.underWay).toBe(0);
});

test("more than can wait are turned away at once, in words of TLS", () => {
	const { dial, turnedAway, handshakes } = startHandshakes();
	const sockets = Array.from({ length: 5_000 }, (_, i) => dial(`${i % 50}`) as unknown as FakeSocket);
	expect(turnedAway.length).toBe(5_000 - 1 - 4_096);
	expect(sockets.filter(({ said }) => said?.equals(Buffer.from("15030300020250", "hex"))).length).toBe(
		turnedAway.length,
	);
	handshakes.close();
	expect(handshakes.waiting).toBe(0);
});

test("who is turned away and does not go, whatever it says, is closed a second later", () => {
	const { dial, handshakes } = startHandshakes();
	for (let i = 0; i <= 4_096; i++) dial("a");
	const stays = new FakeSocket();
	stays.goes = false;
	handshakes.enter(stays as unknown as Socket, "b", () => {});
	expect(stays.said).toBeDefined();
	expect(stays.destroyed).toBe(false);
	vi.advanceTimersByTime(1_000);
	expect(stays.destroyed).toBe(true);
	handshakes.close();
});

test("a bucket gives its burst at once and then its rate", () => {
	let now = 0;
	const bucket = new Bucket({ perSecond: 10, burst: 5 }, () => now);
	expect(Array.from({ length: 7 }, () => bucket.take())).toEqual([true, true, true, true, true, false, false]);
	now = 100;
	expect([bucket.take(), bucket.take()]).toEqual([true, false]);
	now = 10_000;
	expect(bucket.take(5)).toBe(true);
	expect(bucket.owe(10)).toBe(1_000);
	now = 10_500;
	expect(bucket.owe(0)).toBe(500);
});

test.each([
	{ spent: [], over: 0, rests: 0, what: "what was never used" },
	{ spent: [200], over: 0, rests: 0, what: "two seconds' worth at once" },
	{ spent: [250], over: 0, rests: 500, what: "more than that" },
	{ spent: [250], over: 500, rests: 0, what: "the same when what was owed has been made up for" },
	{ spent: [150, 150], over: 0, rests: 1_000, what: "both directions together" },
	{ spent: [200, 100, 100], over: 1_000, rests: 1_000, what: "what came while it rested" },
	{ spent: [100], over: 3_600_000, rests: 0, what: "a long pause" },
])("a host's budget: $what", ({ spent, over, rests }) => {
	let now = 0;
	const budget = new HostBudget({ interactive: 100, bulk: 1 }, () => now);
	for (const bytes of spent) budget.spend("interactive", bytes);
	now = over;
	expect(budget.spend("interactive", 0)).toBe(rests);
	// A pause is no credit for more than the burst, lanes don't pay for each other, and one without a rate pays nothing.
	now = over + 3_600_000;
	expect(budget.spend("interactive", 300)).toBe(1_000);
	expect(budget.spend("bulk", 2)).toBe(0);
	expect(budget.spend("control", 1e9)).toBe(0);
});
