import { describe, expect, it } from "vitest";
import { labelChanges, leftBehind, measurements } from "./host.ts";

describe("gp host label", () => {
	it("sets with = and takes away with -", () => {
		expect(labelChanges(["rack=a", "empty=", "old-", "example.com/tier=front"])).toEqual({
			rack: "a",
			empty: "",
			old: null,
			"example.com/tier": "front",
		});
	});

	it.each(["rack", "=a", "-", ""])("%j is refused", (label) =>
		expect(() => labelChanges([label])).toThrow(/KEY=VALUE/),
	);
});

it("what is left behind on a host is told with the cluster that it was of, where there was one", () => {
	const since = "2026-01-01T00:00:00Z";
	expect(leftBehind(undefined)).toEqual([]);
	expect(
		leftBehind([
			{ role: "kubernetes", cluster: "shop", since, message: "Being undone." },
			{ role: "other", since, message: "Being undone." },
		]),
	).toEqual([`kubernetes of cluster shop, since ${since}: Being undone.`, `other, since ${since}: Being undone.`]);
});

describe("what was measured on a host", () => {
	const at = "2026-01-01T00:00:00Z";
	it("is told with its uncertainty and time, and nothing is told of what was not measured", () => {
		expect(measurements(undefined)).toEqual([]);
		expect(
			measurements({
				fsync: { at, writes: 200, p50Ms: 1.2, p99Ms: 38 },
				clock: { at, offsetMs: -120, uncertaintyMs: 510 },
				peers: { at, medianMs: 0.3, roundTrips: [{ address: "10.0.0.2", ms: 0.3 }, { address: "10.0.0.3" }] },
			}),
		).toEqual([
			`fdatasync    p50 1.2 ms, p99 38 ms of 200 writes where etcd would be (${at})`,
			`clock        120 ms behind the region's, ± 510 ms (${at})`,
			`peers        10.0.0.2 0.3 ms, 10.0.0.3 no answer (${at})`,
		]);
	});
});
