import { describe, expect, it } from "vitest";
import { type Cluster, clusterSpec } from "../../crds/cluster.ts";
import { type Host, hostSpec } from "../../crds/host.ts";
import type { FoundKubernetes } from "../../protocol/facts.ts";
import { plan } from "./plan.ts";
import { HASH, NOW } from "./site.fixture.ts";
import type { NodeState, Observed, Plan } from "./state.ts";

const SPEC = {
	version: "v1.35.4",
	adopt: true,
	controlPlane: { hosts: ["a"] },
	workers: [{ name: "workers", hosts: ["b"] }],
	network: { cni: "none", podSubnet: "10.200.0.0/16" },
};
const CONTROL_PLANE: NonNullable<FoundKubernetes["controlPlane"]> = {
	version: "v1.35.4",
	endpoint: "10.0.0.11:6443",
	podSubnet: "10.200.0.0/16",
	serviceSubnet: "10.96.0.0/12",
	etcd: "stacked",
	missing: [],
};
const worker = (nodeName: string): FoundKubernetes => ({
	nodeName,
	caCertHash: HASH,
	dnsDomain: "cluster.local",
	networks: ["cbr0"],
});
const controlPlane = (more: Partial<typeof CONTROL_PLANE> = {}): FoundKubernetes => ({
	...worker("a"),
	controlPlane: { ...CONTROL_PLANE, ...more },
});

const cluster = (spec: object = {}, more: Partial<Cluster> = {}): Cluster => ({
	apiVersion: "groundplane.io/v1alpha1",
	kind: "Cluster",
	metadata: { name: "old", namespace: "region-r", uid: "u1", generation: 1 },
	spec: clusterSpec.parse({ ...SPEC, ...spec }),
	...more,
});

function host(name: string, kubernetes: FoundKubernetes | undefined): Host {
	const ports = { name: "ports", ok: false, severity: "error" as const, message: "a node is here" };
	return {
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Host",
		metadata: { name, namespace: "region-r", generation: 1 },
		spec: hostSpec.parse({ approved: true }),
		status: {
			connection: { state: "Connected", since: "2026-01-01T00:00:00Z" },
			facts: { primaryAddress: "192.0.2.1", ...(kubernetes && { kubernetes }) } as never,
			checks: [ports],
		},
	};
}

const node = (name: string): NodeState => ({
	name,
	ready: true,
	version: "v1.35.4",
	labels: {},
	taints: [],
	unschedulable: false,
});

const observed = (more: Partial<Observed> = {}): Observed => ({
	cluster: cluster(),
	hosts: [host("a", controlPlane()), host("b", worker("b"))],
	others: [],
	versions: ["v1.35.2", "v1.35.4", "v1.36.3"],
	joinSecret: false,
	now: NOW,
	...more,
});

/** As it is when every host has taken its role. */
function adopted(more: Partial<Observed> = {}, nodes = [node("a"), node("b")]): Observed {
	const before = observed();
	const roles = new Map(
		plan(before).actions.map((action) => (action.type === "applyRole" ? [action.host, action.role] : ["", undefined])),
	);
	const hosts = before.hosts.map((each): Host => {
		const role = roles.get(each.metadata.name);
		if (role === undefined) throw new Error(`${each.metadata.name} got no role`);
		const outputs = {
			nodeName: each.metadata.name,
			...(each.metadata.name === "a" ? { caCertHash: HASH } : {}),
		};
		return {
			...each,
			spec: { ...each.spec, roles: [role] },
			status: {
				...each.status,
				checks: [],
				desiredState: { reportedGeneration: 1 },
				roles: [{ name: "kubernetes", version: role.version, phase: "Applied", outputs }],
			},
		};
	});
	return {
		...before,
		hosts,
		workload: {
			nodes,
			dnsReady: true,
			bootstrapToken: false,
			certificates: false,
			apiServers: new Map([["a", { ready: true }]]),
			servingRequests: [{ name: "csr-1", node: "b", names: ["b"] }],
		},
		...more,
	};
}

const readyOf = ({ conditions }: Plan) => conditions.find(({ type }) => type === "Ready");

describe("adopting a cluster", () => {
	it("gives hosts that fit a role that only looks after them, from the release of their minor", () => {
		const { actions, status } = plan(observed());
		const common = { cluster: "old", clusterId: "u1", kubernetesVersion: "v1.35.4" };
		const role = (parameters: object) => ({
			name: "kubernetes",
			version: "v1.35.4",
			parameters: { ...common, ...parameters },
		});
		expect(actions).toEqual([
			{
				type: "applyRole",
				host: "a",
				role: role({ mode: "adopt-control-plane", nodeName: "a", nodeAddress: "10.0.0.11" }),
			},
			{ type: "applyRole", host: "b", role: role({ mode: "adopt-worker", nodeName: "b" }) },
		]);
		expect(status).toMatchObject({ phase: "Provisioning", version: "v1.35.4", ready: "0/2" });
	});

	it("is ready when all nodes are there and ready, and then changes nothing, whatever there is to approve", () => {
		const { actions, status, conditions } = plan(adopted());
		expect(actions).toEqual([]);
		expect(status).toMatchObject({ phase: "Ready", ready: "2/2", version: "v1.35.4" });
		expect(status.progress).toBeUndefined();
		const message = expect.stringContaining(
			"Kubernetes v1.35.4, pods 10.200.0.0/16, services 10.96.0.0/12, network cbr0.",
		);
		expect(conditions).toContainEqual({ type: "Adopted", status: "True", reason: "LookedAfter", message });
		expect(readyOf({ conditions } as Plan)).toMatchObject({ status: "True" });
	});

	const hostsWith = (kubernetes: FoundKubernetes) => ({ hosts: [host("a", kubernetes), host("b", worker("b"))] });
	it.each<[string, Partial<Observed>, string]>([
		["another pod network", hostsWith(controlPlane({ podSubnet: "10.1.0.0/16" })), "the cluster has 10.1.0.0/16"],
		[
			"another service network",
			hostsWith(controlPlane({ serviceSubnet: "10.2.0.0/16" })),
			"the cluster has 10.2.0.0/16",
		],
		["another DNS domain", hostsWith({ ...controlPlane(), dnsDomain: "corp" }), "network.dnsDomain is cluster.local"],
		["etcd elsewhere", hostsWith(controlPlane({ etcd: "external" })), "its etcd is not on the control planes"],
		["another port", hostsWith(controlPlane({ endpoint: "10.0.0.11:8443" })), "Only port 6443 is taken"],
		["no key of the CA", hostsWith(controlPlane({ missing: ["/etc/kubernetes/pki/ca.key"] })), "pki/ca.key"],
		["another version than named", hostsWith(controlPlane({ version: "v1.35.2" })), "the cluster runs v1.35.2"],
		[
			"a minor that is not offered",
			hostsWith(controlPlane({ version: "v1.33.1" })),
			"Offered: v1.35.2, v1.35.4, v1.36.3",
		],
		["another name of the Node", hostsWith({ ...controlPlane(), nodeName: "srv1" }), "its Node is named srv1"],
		["a worker as control plane", hostsWith(worker("a")), "it is a worker of its cluster"],
		[
			"a control plane as worker",
			{ hosts: [host("a", controlPlane()), host("b", { ...controlPlane(), nodeName: "b" })] },
			"it is a control plane of its cluster",
		],
		[
			"a node of another cluster",
			{ hosts: [host("a", controlPlane()), host("b", { ...worker("b"), caCertHash: "sha256:00" })] },
			"it is a node of another cluster than a",
		],
		["no node at all", { hosts: [host("a", controlPlane()), host("b", undefined)] }, "kubeadm join first"],
		["a host that is not there", { hosts: [host("a", controlPlane())] }, "There is no host b"],
		["an add-on of ours", { cluster: cluster({ addons: { metricsServer: true } }) }, "leave addons.metricsServer off"],
	])("begins nothing with %s, and says so", (_name, more, text) => {
		const { actions, status, conditions } = plan(observed(more));
		expect(actions).toEqual([]);
		expect(status.phase).toBe("Pending");
		expect(readyOf({ conditions } as Plan)).toMatchObject({ status: "False", reason: "AdoptionRefused" });
		expect(readyOf({ conditions } as Plan)?.message).toContain(text);
	});

	it("tells all that does not fit at once", () => {
		const hosts = [host("a", controlPlane({ podSubnet: "10.1.0.0/16", etcd: "external" })), host("b", undefined)];
		const message = readyOf(plan(observed({ hosts })))?.message;
		for (const text of ["10.1.0.0/16", "its etcd", "Host b"]) expect(message).toContain(text);
	});

	it("is not fulfilled while the cluster has nodes that are not named", () => {
		const { actions, conditions } = plan(adopted({}, [node("a"), node("b"), node("c")]));
		expect(actions).toEqual([]);
		expect(readyOf({ conditions } as Plan)).toMatchObject({ status: "False", reason: "AdoptionIncomplete" });
		expect(readyOf({ conditions } as Plan)?.message).toContain("not named: c.");
	});

	it("refuses another version, and says what runs and how to change it", () => {
		const { actions, status, conditions } = plan(adopted({ cluster: cluster({ version: "v1.36.3" }) }));
		expect(actions).toEqual([]);
		expect(status.version).toBe("v1.35.4");
		expect(readyOf({ conditions } as Plan)).toMatchObject({ status: "False", reason: "ChangeNotSupported" });
		expect(readyOf({ conditions } as Plan)?.message).toContain("run kubeadm upgrade on its hosts");
	});

	it("says so when a node is not ready", () => {
		const { status, conditions } = plan(
			adopted({ cluster: cluster({}, { status: { phase: "Ready" } }) }, [
				node("a"),
				{ ...node("b"), ready: false, message: "gone" },
			]),
		);
		expect(status).toMatchObject({ phase: "Degraded", ready: "1/2", progress: { host: "b" } });
		expect(readyOf({ conditions } as Plan)).toMatchObject({ reason: "NodesNotReady" });
	});

	it("does not take the role from a host whose evidence changes", () => {
		const before = adopted();
		const [a, b] = before.hosts as [Host, Host];
		const { kubernetes: _gone, ...facts } = b.status?.facts ?? ({} as never);
		const changed = { ...b, status: { ...b.status, facts: facts as never } };
		const { actions, conditions } = plan({ ...before, hosts: [a, changed] });
		expect(actions).toEqual([]);
		expect(readyOf({ conditions } as Plan)).toMatchObject({ reason: "AdoptionMismatch" });
	});

	it("gives a host back that is no longer named, without a drain and without touching its Node", () => {
		const { actions, conditions } = plan(adopted({ cluster: cluster({ workers: [] }) }));
		expect(actions).toEqual([{ type: "removeRole", host: "b" }]);
		expect(readyOf({ conditions } as Plan)).toMatchObject({ reason: "AdoptionIncomplete" });
	});
});

describe("deleting an adopted cluster", () => {
	const members = [
		{ host: "a", role: "control-plane" as const, phase: "Ready" as const },
		{ host: "b", role: "worker" as const, phase: "Ready" as const, pool: "workers" },
	];
	const deleted = (annotations: Record<string, string> = {}): Cluster => {
		const base = cluster({}, { status: { phase: "Ready", members } });
		return { ...base, metadata: { ...base.metadata, deletionTimestamp: new Date(NOW).toISOString(), annotations } };
	};
	const roles = ["a", "b"].map((name) => ({ type: "removeRole", host: name }));
	const released = (phase: "Connected" | "Disconnected", report: boolean): Observed => {
		const before = adopted({ cluster: deleted() });
		const hosts = before.hosts.map(
			(each): Host => ({
				...each,
				spec: { ...each.spec, roles: [] },
				status: {
					...each.status,
					connection: { state: phase, since: "2025-12-31T23:00:00Z" },
					roles: report ? (each.status?.roles ?? []) : [],
				},
			}),
		);
		return { ...before, hosts };
	};

	it("takes the roles away, all at once, and drains and deletes nothing", () => {
		const { actions, status, conditions } = plan(adopted({ cluster: deleted() }));
		expect(actions).toEqual(roles);
		expect(status).toMatchObject({ phase: "Deleting", progress: { step: "Releasing" } });
		expect(readyOf({ conditions } as Plan)?.message).toContain("the cluster runs on");
	});

	it("waits until hosts in reach have taken their own back", () => {
		expect(plan(released("Connected", true)).actions).toEqual([]);
	});

	it("ends when they have", () => {
		expect(plan(released("Connected", false)).actions).toEqual([{ type: "removeFinalizer", leftBehind: [] }]);
	});

	it("does not wait for hosts out of reach, and names them", () => {
		expect(plan(released("Disconnected", true)).actions).toEqual([{ type: "removeFinalizer", leftBehind: ["a", "b"] }]);
	});

	it("waits for nothing when it is forced", () => {
		const { actions } = plan(adopted({ cluster: deleted({ "groundplane.io/force-delete": "true" }) }));
		expect(actions).toEqual([...roles, { type: "removeFinalizer", leftBehind: ["a", "b"] }]);
	});
});

it("no other cluster takes a host on which others made a node", () => {
	const other = cluster({ adopt: false, network: {}, workers: [] });
	const { actions, conditions } = plan(observed({ cluster: other }));
	expect(actions).toEqual([]);
	expect(readyOf({ conditions } as Plan)).toMatchObject({ status: "False", reason: "HostNotReady" });
});
