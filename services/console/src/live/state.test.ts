import { describe, expect, it } from "vitest";
import { cluster, host } from "../testing/objects.ts";
import { emptyState, reduce } from "./state.ts";

const snapshot = (hosts = [host("h1")], clusters = [cluster("c1")]) =>
	({ event: "snapshot", hosts, clusters }) as const;
const loaded = reduce(emptyState, [snapshot()], 1000);
const lines = (state: typeof loaded) => state.activity.map(({ name, what }) => `${name}: ${what}`);

describe("events into state", () => {
	it("takes the first snapshot without calling it news", () => {
		expect(loaded).toMatchObject({ isLoaded: true, activity: [] });
		expect([...loaded.hosts.keys(), ...loaded.clusters.keys()]).toEqual(["h1", "c1"]);
	});

	it("adds, changes and removes, and tells what was different, newest first", () => {
		const next = reduce(
			loaded,
			[
				{ event: "host", type: "added", object: host("h2", { phase: "Pending" }) },
				{ event: "host", type: "updated", object: host("h1", { phase: "Maintenance" }, { resourceVersion: "2" }) },
				{ event: "cluster", type: "deleted", object: cluster("c1") },
			],
			2000,
		);
		expect([...next.hosts.keys()]).toEqual(["h1", "h2"]);
		expect(next.hosts.get("h1")?.status?.phase).toBe("Maintenance");
		expect(next.clusters.size).toBe(0);
		expect(lines(next)).toEqual(["c1: Deleted", "h1: Maintenance", "h2: Joined the region"]);
		expect(loaded.hosts.size).toBe(1);
	});

	it("compares a snapshot after a cut with what it knew: what went meanwhile goes, what is the same stays the same object", () => {
		const next = reduce(loaded, [snapshot([host("h3"), host("h1")], [])], 2000);
		expect([...next.hosts.keys()].sort()).toEqual(["h1", "h3"]);
		expect(next.hosts.get("h1")).toBe(loaded.hosts.get("h1"));
		expect(lines(next).sort()).toEqual(["c1: Deleted", "h3: Joined the region"]);
	});

	it("takes an object that was made anew under its old name for what it is", () => {
		const next = reduce(
			loaded,
			[{ event: "host", type: "updated", object: host("h1", { phase: "Pending" }, { uid: "another" }) }],
			2000,
		);
		expect(next.hosts.get("h1")?.metadata.uid).toBe("another");
	});

	it("tells each step of a cluster once, with the host", () => {
		const at = (step: string, hostName: string, detail: string, resourceVersion: string) =>
			({
				event: "cluster",
				type: "updated",
				object: cluster(
					"c1",
					{ phase: "Provisioning", progress: { step, host: hostName, detail } },
					{ resourceVersion },
				),
			}) as const;
		const next = reduce(
			loaded,
			[
				at("Making the first control plane", "h1", "containerd 1/9", "2"),
				at("Making the first control plane", "h1", "kubelet 2/9", "3"),
				at("Joining workers", "h2", "", "4"),
			],
			2000,
		);
		expect(next.activity.map(({ what, host: on }) => [what, on])).toEqual([
			["Joining workers", "h2"],
			["Making the first control plane", "h1"],
			["Provisioning", undefined],
		]);
	});

	it("keeps the last 200 lines", () => {
		let state = loaded;
		for (let i = 0; i < 150; i++) {
			state = reduce(
				state,
				[
					{ event: "host", type: "added", object: host("x") },
					{ event: "host", type: "deleted", object: host("x") },
				],
				i,
			);
		}
		expect(state.activity).toHaveLength(200);
		expect(new Set(state.activity.map(({ id }) => id)).size).toBe(200);
	});
});
