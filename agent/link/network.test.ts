import { expect, test } from "vitest";
import { type Disturbance, disturbance, type Surroundings, surroundings } from "./network.ts";

const before: Surroundings = { wall: 1_000_000, steady: 500, addresses: new Set(["192.0.2.1", "2001:db8::1"]) };
const later = (change: { wall?: number; steady?: number; addresses?: string[] }): Surroundings => ({
	wall: before.wall + (change.wall ?? 5_000),
	steady: before.steady + (change.steady ?? 5_000),
	addresses: new Set(change.addresses ?? before.addresses),
});

test.each<[string, Surroundings, Disturbance | undefined]>([
	["nothing", later({}), undefined],
	["a busy machine", later({ wall: 9_000, steady: 9_000 }), undefined],
	["a suspended machine: only the wall clock went on", later({ wall: 600_000 }), "slept"],
	["a stopped virtual machine: both went on", later({ wall: 60_000, steady: 60_000 }), "slept"],
	["a clock that was set back", later({ wall: -3_600_000 }), "slept"],
	["the tunnel's address is gone", later({ addresses: ["2001:db8::1"] }), "address-gone"],
	["another address is gone", later({ addresses: ["192.0.2.1"] }), undefined],
	["a new address", later({ addresses: ["192.0.2.1", "2001:db8::1", "198.51.100.1"] }), "network-changed"],
	["moved to another network", later({ addresses: ["198.51.100.1"] }), "address-gone"],
])("%s", (_what, now, expected) => {
	expect(disturbance(before, now, "192.0.2.1")).toBe(expected);
});

test("a tunnel over the loopback interface never loses its address", () => {
	expect(disturbance(before, later({ addresses: ["192.0.2.1"] }), "127.0.0.1")).toBeUndefined();
});

test("a look at this machine tells both clocks and no loopback address", () => {
	const seen = surroundings();
	expect(Math.abs(seen.wall - Date.now())).toBeLessThan(1_000);
	expect(seen.addresses.has("127.0.0.1")).toBe(false);
	expect(disturbance(seen, surroundings(), undefined)).toBeUndefined();
});
