import { expect, test } from "vitest";
import { dialTurns } from "./turns.ts";

/** A host that asks for a turn. */
function host(turn: ReturnType<typeof dialTurns>, signal = new AbortController().signal) {
	const asked = { done: undefined as (() => void) | undefined };
	void turn(signal).then((done) => {
		asked.done = done;
	});
	return asked;
}
const settled = () => new Promise((resolve) => setImmediate(resolve));
const dialling = (hosts: readonly ReturnType<typeof host>[]) => hosts.filter(({ done }) => done !== undefined).length;

test("so many dial at a time, the others in the order in which they came, and a turn is given back once", async () => {
	const turn = dialTurns(2, 600_000);
	const hosts = Array.from({ length: 5 }, () => host(turn));
	await settled();
	expect(hosts.map(({ done }) => done !== undefined)).toEqual([true, true, false, false, false]);
	hosts[0]?.done?.();
	hosts[0]?.done?.();
	await settled();
	expect(hosts.map(({ done }) => done !== undefined)).toEqual([true, true, true, false, false]);
	for (const one of hosts) one.done?.();
	await settled();
	expect(dialling(hosts)).toBe(5);
	for (const one of hosts) one.done?.();
	const later = [host(turn), host(turn), host(turn)];
	await settled();
	expect(dialling(later)).toBe(2);
	for (const one of later) one.done?.();
	await settled();
	for (const one of later) one.done?.();
});

test("who is stopped while it waits takes no turn", async () => {
	const turn = dialTurns(1, 600_000);
	const stop = new AbortController();
	const [first, stopped, patient] = [host(turn), host(turn, stop.signal), host(turn)];
	stop.abort();
	await settled();
	stopped.done?.();
	await settled();
	expect([first, stopped, patient].map(({ done }) => done !== undefined)).toEqual([true, true, false]);
	first.done?.();
	await settled();
	expect(patient.done).toBeDefined();
	patient.done?.();
});

test("who never says that it is done holds nobody up for long", async () => {
	const turn = dialTurns(1, 20);
	const [silent, patient] = [host(turn), host(turn)];
	await expect.poll(() => patient.done, { timeout: 10_000 }).toBeDefined();
	silent.done?.();
	patient.done?.();
});
