import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { type Evidence, type Pod, type ReleaseRecord, statusOf, type Workload } from "./status.ts";

const workload = (namespace: string, kind: string, name: string, ready = 1): Workload => ({
	kind,
	metadata: { name, namespace },
	spec: { replicas: 1, template: { spec: { containers: [{ image: `registry.example:5000/${name}:1.2.3` }] } } },
	status: { readyReplicas: ready },
});
const staticPod = (component: string): Pod => ({
	metadata: { name: `${component}-mgmt`, labels: { component } },
	spec: { containers: [{ image: `registry.k8s.io/${component}:v1.36.3` }] },
	status: { conditions: [{ type: "Ready", status: "True" }] },
});
/** A revision as Helm keeps it: base64 of a gzipped JSON, and base64 once more by the API. */
const revision = (version: number, status: string, workloads: readonly Workload[]): ReleaseRecord => {
	const manifest = [
		"# Source: x\n",
		...workloads.map((one) => stringify(one)),
		"kind: Service\nmetadata: {name: edge}\n",
	];
	const packed = gzipSync(JSON.stringify({ manifest: manifest.join("---\n") })).toString("base64");
	return {
		metadata: { name: `v${version}`, labels: { name: "groundplane", version: String(version), status } },
		data: { release: Buffer.from(packed).toString("base64") },
	};
};
const core = [
	workload("groundplane-system", "Deployment", "edge"),
	workload("groundplane-system", "Deployment", "operator"),
];
const own = [
	workload("groundplane-storage", "Deployment", "local-path-provisioner"),
	workload("kube-system", "Deployment", "coredns"),
	workload("kube-system", "DaemonSet", "kube-proxy"),
	workload("kube-flannel", "DaemonSet", "kube-flannel"),
];
const whole: Evidence = {
	units: { "containerd.service": "active", "kubelet.service": "active" },
	nodes: [
		{
			metadata: { name: "mgmt" },
			status: { nodeInfo: { kubeletVersion: "v1.36.3" }, conditions: [{ type: "Ready", status: "True" }] },
		},
	],
	workloads: [...core, ...own],
	controlPlane: ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"].map(staticPod),
	releases: [revision(9, "superseded", []), revision(10, "deployed", core)],
	regions: [{ metadata: { name: "demo" }, status: { phase: "Ready" } }],
};
const problems = (evidence: Evidence, ownNode = true) =>
	statusOf(evidence, { ownNode })
		.components.filter(({ ready }) => !ready)
		.map(({ name, message }) => `${name}: ${message}`);

describe("statusOf", () => {
	it("tells of a server where all is well", () => {
		const { version, components, regions } = statusOf(whole, { ownNode: true });
		expect(version).toBe("1.2.3");
		expect(components.filter(({ ready }) => !ready)).toEqual([]);
		expect(components).toHaveLength(13);
		expect(regions).toEqual([{ name: "demo", phase: "Ready" }]);
	});

	it.each<[string, Partial<Evidence>, string[]]>([
		[
			"a part of the core that somebody deleted",
			{ workloads: [...core.slice(1), ...own] },
			["groundplane-system/edge: missing"],
		],
		["the operator itself", { workloads: [...core.slice(0, 1), ...own] }, ["groundplane-system/operator: missing"]],
		[
			"an add-on of the node",
			{ workloads: [...core, ...own.slice(0, 1), ...own.slice(2)] },
			["kube-system/coredns: missing"],
		],
		[
			"a part of the control plane",
			{ controlPlane: whole.controlPlane.slice(0, 3) },
			["kube-system/kube-scheduler: missing"],
		],
		[
			"a stopped kubelet",
			{ units: { "containerd.service": "active", "kubelet.service": "inactive" } },
			["kubelet.service: inactive"],
		],
		[
			"an API server that does not answer",
			{ apiServer: "connection refused", nodes: [], workloads: [], controlPlane: [], releases: [], regions: [] },
			["kube-apiserver: does not answer: connection refused"],
		],
		[
			"pods that are not ready",
			{ workloads: [workload("groundplane-system", "Deployment", "edge", 0), ...core.slice(1), ...own] },
			["groundplane-system/edge: 0/1"],
		],
		[
			"an installation that was broken off",
			{ releases: [...whole.releases, revision(11, "pending-upgrade", core)] },
			["helm release groundplane: pending-upgrade"],
		],
	])("names %s", (_what, change, expected) => {
		expect(problems({ ...whole, ...change })).toEqual(expected);
	});

	it("asks nothing of an existing cluster but the core, and knows when that is not there", () => {
		const foreign = { ...whole, units: {}, controlPlane: [], workloads: core };
		expect(problems(foreign, false)).toEqual([]);
		expect(statusOf({ ...foreign, workloads: [], releases: [] }, { ownNode: false }).version).toBeUndefined();
	});
});
