import { expect, it } from "vitest";
import { type Cluster, clusterSpec } from "../../crds/cluster.ts";
import { stepsOf } from "./cluster-upgrade.ts";

const members = ["c1", "c2", "w1", "w2", "w3"].map((host) => ({
	host,
	role: host.startsWith("c") ? ("control-plane" as const) : ("worker" as const),
	phase: "Ready" as const,
	version: host === "c1" ? "v1.36.3" : "v1.35.4",
}));
const cluster = (maxUnavailableWorkers: number): Cluster => ({
	apiVersion: "groundplane.io/v1alpha1",
	kind: "Cluster",
	metadata: { name: "shop" },
	spec: clusterSpec.parse({
		version: "v1.35.4",
		controlPlane: { hosts: ["c1"] },
		upgradePolicy: { maxUnavailableWorkers },
	}),
	status: { members },
});

it.each<[string, number, string, string[][]]>([
	["the way up: only hosts that are not there yet, workers last", 1, "v1.36.3", [["c2"], ["w1"], ["w2"], ["w3"]]],
	["workers together within the budget", 2, "v1.36.3", [["c2"], ["w1", "w2"], ["w3"]]],
	["half-way back: only what has changed", 1, "v1.35.4", [["c1"]]],
	["the way down: workers first", 3, "v1.34.2", [["w1", "w2", "w3"], ["c1"], ["c2"]]],
])("%s", (_name, budget, version, hosts) => {
	expect(stepsOf(cluster(budget), version).map((step) => step.hosts)).toEqual(hosts);
});
