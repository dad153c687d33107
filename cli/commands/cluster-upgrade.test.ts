import { describe, expect, it } from "vitest";
import { type Cluster, clusterSpec } from "../../crds/cluster.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { Session } from "../session.ts";
import { planOf, stepsOf } from "./cluster-upgrade.ts";

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

describe("a dry run", () => {
	const release = (version: string, etcd: string) => ({ name: "kubernetes", version, components: { etcd } });
	const region = (answers: Readonly<Record<string, unknown>>): Pick<Session, "call"> => ({
		call: async <T>(_method: string, path: string): Promise<T> => {
			const found = Object.entries(answers).find(([start]) => path.startsWith(start))?.[1];
			if (found === undefined)
				throw new GroundplaneError("NotFound", `nothing at ${path}`, { next: "Look elsewhere." });
			return found as T;
		},
	});
	const METRICS = "/k8s/clusters/shop/metrics";
	const answers = {
		"/api/v1/hosts": { items: [] },
		[METRICS]: `apiserver_requested_deprecated_apis{group="batch",removed_release="1.36",resource="cronjobs",version="v1beta1"} 1\n`,
		"/k8s/clusters/shop/apis/policy": {
			items: [{ metadata: { namespace: "web", name: "never" }, status: { disruptionsAllowed: 0, expectedPods: 1 } }],
		},
		"/artifacts/v1/bundles": {
			items: [release("v1.35.4", "v3.5.9"), release("v1.36.3", "v3.6.8"), { name: "agent", version: "v1.34.9" }],
		},
	};
	const at = (version: string): Cluster => ({ ...cluster(1), status: { version, members: [...members] } });

	it("says that a version is not offered", async () => {
		const { findings } = await planOf(region({ ...answers, [METRICS]: "" }), at("v1.35.4"), "v1.34.9");
		expect(findings).toContain("Kubernetes v1.34.9 is not offered here. Offered: v1.35.4, v1.36.3.");
	});

	it("says what uses removed APIs, which budgets hold, and what the way back will not restore", async () => {
		const { findings, notes } = await planOf(region(answers), at("v1.35.4"), "v1.36.3");
		expect(findings).toEqual([expect.stringContaining("batch/v1beta1/cronjobs")]);
		expect(notes).toEqual([
			expect.stringContaining("allow no eviction now: web/never"),
			expect.stringContaining("way back to v1.35"),
			expect.stringContaining("etcd changes from v3.5.9 to v3.6.8"),
			expect.stringContaining("one of 2 was asked"),
		]);
	});

	it("says what could not be looked at", async () => {
		const { findings, notes } = await planOf(region({ "/api/v1/hosts": { items: [] } }), at("v1.36.3"), "v1.36.4");
		expect(findings).toEqual([]);
		expect(notes).toEqual([
			expect.stringContaining("Budgets and APIs in use could not be looked at"),
			expect.stringContaining("Which versions are offered could not be looked at"),
		]);
	});
});
