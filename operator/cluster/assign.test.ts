import { expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import { letGoBy } from "./assign.ts";

const cluster = (workers: readonly string[], members: readonly string[] = []) =>
	({
		metadata: { name: "c", namespace: "region-r" },
		spec: { controlPlane: { hosts: ["a"] }, workers: [{ name: "w", hosts: workers }] },
		status: { members: members.map((host) => ({ host })) },
	}) as unknown as Cluster;

it.each([
	["nothing when its status changes", cluster(["b"]), cluster(["b"], ["a", "b"]), []],
	["nothing while one that it no longer names is still leaving", cluster(["b"]), cluster([], ["a", "b"]), []],
	["one that has left", cluster([], ["a", "b"]), cluster([], ["a"]), ["region-r/b"]],
	["all when it is gone", cluster(["b"], ["a", "b"]), undefined, ["region-r/a", "region-r/b"]],
	["nothing when it is new", undefined, cluster(["b"]), []],
])("lets go of %s", (_what, previous, now, expected) => expect(letGoBy(previous, now)).toEqual(expected));
