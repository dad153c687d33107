import { describe, expect, it } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import type { RoleFacts } from "../../agent/engine/facts.ts";
import { render, type Step } from "../../agent/engine/pack.ts";
import { NODE_PORTS } from "../../agent/preflight.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { packFiles as files, packFacts, packManifest } from "../../test/support/role-pack.ts";
import { parametersSchema } from "./generate.ts";

const binaries = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubelet", "kubeadm", "kubectl", "etcdctl"];
const manifest = packManifest([
	...binaries.map((name) => ({ path: `bin/${name}`, kind: "binary" as const })),
	...["bridge", "flannel"].map((name) => ({ path: `cni/${name}`, kind: "binary" as const })),
	{ path: "images/pause.tar", kind: "image", reference: "registry.k8s.io/pause:3.10.2" } as const,
	{ path: "images/flannel.tar", kind: "image", reference: "docker.io/flannel/flannel:v0.26.7" } as const,
	{
		path: "images/metrics-server.tar",
		kind: "image",
		reference: "registry.k8s.io/ms/metrics-server:v0.9.0",
	} as const,
	...["local-path-helper", "local-path-provisioner", "node-exporter", "prometheus"].map((name) => ({
		path: `images/${name}.tar`,
		kind: "image" as const,
		reference: `registry.example/${name}:v1`,
	})),
]);
const facts: RoleFacts = { ...packFacts, cgroup: "v1", resourceCapability: false };
const parameters: KubernetesRoleInput = {
	cluster: "demo",
	mode: "init",
	kubernetesVersion: "v1.36.3",
	nodeName: "host-1",
};
const token = "abcdef.0123456789abcdef";

const rendered = (more: Partial<KubernetesRoleInput> = {}, moreFacts: Partial<RoleFacts> = {}) =>
	render(manifest, files, { ...parameters, ...more }, { ...facts, ...moreFacts });
const step = (steps: readonly Step[], name: string) => steps.find((one) => one.name === name);
const want = (steps: readonly Step[], name: string) => step(steps, name)?.want as Record<string, unknown>;
const documents = (steps: readonly Step[], name: string) =>
	parseAllDocuments(String(want(steps, name).content)).map((document) => {
		expect(document.errors).toEqual([]);
		return document.toJS();
	});

describe("role pack kubernetes", () => {
	it("carries the schema of protocol/kubernetes-role.ts", () => {
		const pack = parse(files.get("pack/pack.yaml") ?? "");
		expect(pack.parameters, "run: node roles/kubernetes/generate.ts").toEqual(parametersSchema());
	});

	it.each(["on", "0815", "1e3"])("takes %s for a name: kubeadm reads YAML 1.1", (name) => {
		const names = { cluster: name, nodeName: name, dnsDomain: name };
		for (const mode of ["init", "join-worker"] as const) {
			const { steps } = rendered({ ...names, mode, bootstrapToken: token, publishCertificates: "1" });
			const read = ["kubeadm-config", "publish-config"]
				.filter((config) => step(steps, config))
				.flatMap((config) => parseAllDocuments(String(want(steps, config).content), { version: "1.1" }))
				.map((document) => document.toJS());
			for (const { nodeRegistration, clusterName, networking } of read)
				for (const text of [nodeRegistration?.name, clusterName, networking?.dnsDomain])
					if (text !== undefined) expect(text).toBe(name);
		}
	});

	it("makes the first control plane", () => {
		const { steps, secrets } = rendered({
			bootstrapToken: token,
			labels: { "groundplane.io/pool": "a", zone: "z" },
			endpoint: "k8s.example.com",
		});
		const [init, cluster, kubelet, proxy] = documents(steps, "kubeadm-config");
		expect(init).toMatchObject({
			kind: "InitConfiguration",
			localAPIEndpoint: { advertiseAddress: "10.0.0.11" },
			bootstrapTokens: [{ token, ttl: "24h0m0s" }],
			nodeRegistration: {
				name: "host-1",
				kubeletExtraArgs: [
					{ name: "node-ip", value: "10.0.0.11" },
					{ name: "node-labels", value: "groundplane.io/pool=a,zone=z" },
				],
				taints: [{ key: "node-role.kubernetes.io/control-plane", effect: "NoSchedule" }],
			},
		});
		expect(cluster).toMatchObject({
			controlPlaneEndpoint: "169.254.99.1:6443",
			networking: { podSubnet: "10.244.0.0/16", serviceSubnet: "10.96.0.0/12", dnsDomain: "cluster.local" },
			apiServer: { certSANs: ["localhost", "127.0.0.1", "169.254.99.1", "k8s.example.com"] },
		});
		expect(kubelet).toMatchObject({ kind: "KubeletConfiguration", failCgroupV1: false, serverTLSBootstrap: true });
		expect(proxy).toMatchObject({ mode: "nftables", conntrack: { maxPerCore: 0 } });
		expect(want(steps, "node")).toMatchObject({
			mode: "init",
			ignorePreflightErrors: ["SystemVerification"],
			skipPhases: [],
			uploadCertificates: false,
		});
		expect(want(steps, "balancer").backends).toEqual(["10.0.0.11"]);
		expect(step(steps, "plane-service")).toBeDefined();
		expect(secrets).toEqual([token]);
	});

	it("demands no port but those that a host's checks have looked at", () => {
		const ports = (mode: "init" | "join-worker") => want(rendered({ mode }).steps, "preflight").ports as number[];
		expect(ports("init").toSorted((a, b) => a - b)).toEqual(NODE_PORTS);
		expect(NODE_PORTS).toEqual(expect.arrayContaining(ports("join-worker")));
	});

	it("joins a worker, with its taints and the control planes to reach", () => {
		const { steps } = rendered({
			mode: "join-worker",
			nodeAddress: "10.0.0.12",
			controlPlaneAddresses: ["10.0.0.11", "10.0.0.13"],
			bootstrapToken: token,
			caCertHashes: [`sha256:${"a".repeat(64)}`],
			taints: [{ key: "dedicated", value: "db", effect: "NoSchedule" }],
		});
		const [join] = documents(steps, "kubeadm-config");
		expect(join).toMatchObject({
			kind: "JoinConfiguration",
			discovery: {
				bootstrapToken: { apiServerEndpoint: "169.254.99.1:6443", token, caCertHashes: [`sha256:${"a".repeat(64)}`] },
			},
			nodeRegistration: { taints: [{ key: "dedicated", value: "db", effect: "NoSchedule" }] },
		});
		expect(join.controlPlane).toBeUndefined();
		expect(want(steps, "balancer-rules").content).toContain("numgen inc mod 2 map { 0 : 10.0.0.11, 1 : 10.0.0.13 }");
		expect(steps.map(({ name }) => name)).not.toContain("plane-service");
	});

	it("prepares a host that joins later without changing what it will be, and without what needs the control plane", () => {
		const before = rendered({ mode: "join-worker", prepare: true });
		const after = rendered({ mode: "join-worker", controlPlaneAddresses: ["10.0.0.11"], bootstrapToken: token });
		const done = after.steps.slice(0, before.steps.length);
		expect(done.map(({ name, digest }) => [name, digest])).toEqual(
			before.steps.map(({ name, digest }) => [name, digest]),
		);
		expect(before.steps.map(({ use }) => use)).toContain("image");
		const needControlPlane = ["balancer", "kubeadm", "manifest", "client-certificate"];
		for (const role of [before, rendered({ mode: "join-control-plane", prepare: true })])
			expect(
				role.steps.filter(({ use, name }) => needControlPlane.includes(use) || name.startsWith("kubelet")),
			).toEqual([]);
		expect(after.steps[before.steps.length]?.name).toBe("balancer-rules");
		expect(after.identity).toBe(before.identity);
	});

	it("makes the management server's node schedulable and leads no tunnel to it", () => {
		const { steps } = rendered({ mode: "server", addons: { coredns: false, kubeProxy: true } }, { cgroup: "v2" });
		const [init, , kubelet] = documents(steps, "kubeadm-config");
		// Nobody would approve what its kubelet asks for.
		expect(kubelet.serverTLSBootstrap).toBeUndefined();
		expect(step(steps, "addons-off")).toBeUndefined();
		expect(init.nodeRegistration.taints).toEqual([]);
		expect(init.bootstrapTokens).toBeUndefined();
		expect(want(steps, "node")).toMatchObject({ ignorePreflightErrors: [], skipPhases: ["addon/coredns"] });
		expect(want(steps, "containerd-config").content).toContain("SystemdCgroup = true");
		expect(step(steps, "access")).toBeUndefined();
	});

	it("installs no network plugin where the cluster's people bring theirs", () => {
		const [ours, theirs] = (["flannel", "none"] as const).map((cni) => rendered({ cni }).steps.map(({ name }) => name));
		expect(ours?.filter((name) => !theirs?.includes(name))).toEqual(["image/flannel", "flannel"]);
		// Plugins build on the ones of the CNI project.
		expect(theirs).toContain("cni/bridge");
	});

	it("applies Calico as it was imported, with its images on every host, and says so where the release has none", () => {
		const listed = ["cni", "node", "kube-controllers"].map((name) => ({
			path: `imports/calico/${name}.tar`,
			kind: "image" as const,
			reference: `registry.example/calico/${name}:v1`,
		}));
		const bundle = packManifest([...manifest.files, ...listed]);
		const upstream = "kind: DaemonSet # {{as it is}}";
		const withCalico = new Map([...files, ["pack/imports/calico.yaml", upstream]]);
		const steps = (mode: "init" | "join-worker") =>
			render(bundle, withCalico, { ...parameters, mode, cni: "calico" }, facts).steps;
		expect(want(steps("init"), "calico").content).toBe(upstream);
		expect(want(steps("init"), "calico-endpoint").content).toContain("169.254.99.1");
		expect(step(steps("join-worker"), "calico")).toBeUndefined();
		for (const mode of ["init", "join-worker"] as const)
			expect(steps(mode).filter(({ name }) => name.startsWith("calico-image/"))).toHaveLength(3);
		expect(steps("init").map(({ name }) => name)).not.toContain("flannel");
		expect(() => rendered({ cni: "calico" })).toThrow(/imports\/calico.yaml is missing/);
		expect(() => render(bundle, withCalico, { ...parameters }, facts)).not.toThrow();
	});

	it("applies SR-IOV as it was imported, with its images on every host, and takes it away with the other add-ons", () => {
		const listed = ["multus-cni", "sriov-cni", "sriov-network-device-plugin"].map((name) => ({
			path: `imports/sriov/${name}.tar`,
			kind: "image" as const,
			reference: `registry.example/${name}:v1`,
		}));
		const bundle = packManifest([...manifest.files, ...listed]);
		const withSriov = new Map([...files, ["pack/imports/sriov.yaml", "kind: DaemonSet # {{as it is}}"]]);
		const steps = (mode: "init" | "join-worker", sriov: boolean) =>
			render(bundle, withSriov, { ...parameters, mode, addons: { sriov } }, facts).steps;
		expect(want(steps("init", true), "sriov").content).toContain("{{as it is}}");
		expect(step(steps("join-worker", true), "sriov")).toBeUndefined();
		for (const mode of ["init", "join-worker"] as const) {
			expect(steps(mode, true).filter(({ name }) => name.startsWith("sriov-image/"))).toHaveLength(3);
			expect(steps(mode, false).filter(({ name }) => /sriov|multus/.test(name))).toEqual([]);
		}
		const selector = (on: boolean) =>
			(want(steps("init", on), "addons-off") as { run: string[] }).run.find((one) => one.startsWith("--selector"));
		expect(selector(true)).toMatch(/notin \(none,coredns,sriov\)$/);
		expect(selector(false)).toMatch(/notin \(none,coredns\)$/);
		expect(() => rendered({ addons: { sriov: true } })).toThrow(/imports\/sriov.yaml is missing/);
	});

	const allAddons: KubernetesRoleInput["addons"] = {
		metricsServer: true,
		localPathStorage: { enabled: true },
		nodeExporter: true,
		prometheus: { enabled: true },
	};
	const addonSteps = {
		"metrics-server": ["image/metrics-server"],
		"local-path-storage": ["image/local-path-helper", "image/local-path-provisioner"],
		"node-exporter": ["image/node-exporter"],
		prometheus: ["image/prometheus"],
	};
	const workloadOf = (objects: { kind: string }[]) =>
		objects.find(({ kind }) => ["Deployment", "DaemonSet"].includes(kind)) as unknown as {
			spec: { template: { spec: Record<string, unknown> & { containers: Record<string, unknown>[] } } };
		};

	it.each(Object.entries(addonSteps))(
		"installs %s on control planes when it is wanted, and brings its images",
		(name, images) => {
			const on = rendered({ addons: allAddons }).steps;
			const off = rendered().steps;
			const worker = rendered({ mode: "join-worker", addons: allAddons }).steps;
			for (const image of images) {
				expect([step(on, image)?.use, step(worker, image)?.use, step(off, image)]).toEqual([
					"image",
					"image",
					undefined,
				]);
				expect(want(on, name).content).toContain((want(on, image) as { reference: string }).reference);
			}
			expect([step(on, name)?.use, step(worker, name), step(off, name)]).toEqual(["manifest", undefined, undefined]);
			const { spec } = workloadOf(documents(on, name)).spec.template;
			for (const container of spec.containers)
				expect(container).toMatchObject({
					resources: { requests: { cpu: expect.any(String), memory: expect.any(String) } },
					securityContext: {
						allowPrivilegeEscalation: false,
						readOnlyRootFilesystem: true,
						capabilities: { drop: ["ALL"] },
					},
				});
			const security = { ...(spec.containers[0]?.securityContext as object), ...(spec.securityContext as object) };
			expect(security).toMatchObject({ runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } });
		},
	);

	it("takes away what an add-on had installed when it is off: all of it, by its label, and nothing that holds data", () => {
		const argument = (steps: readonly Step[], start: string) =>
			(want(steps, "addons-off") as { run: string[] }).run.find((one) => one.startsWith(start)) ?? "";
		const on = rendered({ addons: allAddons }).steps;
		const kinds = argument(on, "apiservices").split(",");
		for (const name of Object.keys(addonSteps))
			for (const { kind, metadata } of documents(on, name)) {
				if (kind === "PersistentVolumeClaim") {
					expect(metadata.labels).not.toHaveProperty("groundplane.io/addon");
					continue;
				}
				expect(metadata.labels).toMatchObject({ "groundplane.io/addon": name });
				expect(kinds).toContain(kind === "StorageClass" ? "storageclasses" : `${kind.toLowerCase()}s`);
			}
		expect(kinds).not.toContain("persistentvolumeclaims");
		expect(kinds).not.toContain("namespaces");
		expect(argument(on, "--selector")).toBe(
			"--selector=groundplane.io/addon,groundplane.io/addon notin (none,coredns,metrics-server,local-path-storage,node-exporter,prometheus)",
		);
		expect(argument(rendered({ addons: { nodeExporter: true } }).steps, "--selector")).toBe(
			"--selector=groundplane.io/addon,groundplane.io/addon notin (none,coredns,node-exporter)",
		);
		expect(argument(rendered().steps, "--selector")).toBe(
			"--selector=groundplane.io/addon,groundplane.io/addon notin (none,coredns)",
		);
	});

	it("leaves CoreDNS to kubeadm when the cluster is made, and sees to it on every control plane from then on", () => {
		for (const coredns of [true, false])
			for (const mode of ["init", "join-control-plane"] as const) {
				const { steps } = rendered({ mode, addons: { coredns } });
				expect(want(steps, "core-dns")).toMatchObject({
					wanted: coredns,
					nodeName: "host-1",
					nodeAddress: "10.0.0.11",
				});
				const skips = coredns || mode !== "init" ? [] : ["addon/coredns"];
				expect(want(steps, "node")).toMatchObject({ skipPhases: skips });
				const { run } = want(steps, "addons-off") as { run: string[] };
				expect(run.some((one) => one.includes("notin (none,coredns)"))).toBe(coredns);
			}
		for (const mode of ["join-worker", "server"] as const)
			expect(step(rendered({ mode }).steps, "core-dns")).toBeUndefined();
	});

	it("has metrics-server trust kubelets by the cluster's CA", () => {
		const { content } = want(rendered({ addons: allAddons }).steps, "metrics-server");
		expect(content).toContain("--kubelet-certificate-authority=");
		expect(content).not.toContain("kubelet-insecure-tls");
	});

	it("never deletes the volumes of a host that leaves", () => {
		const name = "directory/var/lib/local-path-provisioner";
		expect(want(rendered({ addons: allAddons }).steps, name)).toMatchObject({ purge: false });
		expect(step(rendered().steps, name)).toBeUndefined();
	});

	it("keeps what Prometheus has on a volume where hosts' disks are offered, and says where there is none", () => {
		const objects = (localPathStorage: { enabled: boolean }) =>
			documents(
				rendered({ addons: { localPathStorage, prometheus: { enabled: true, storage: "20Gi" } } }).steps,
				"prometheus",
			);
		const find = (all: { kind: string }[], kind: string) => all.find((one) => one.kind === kind) as never;
		const lasting = objects({ enabled: true });
		expect(find(lasting, "PersistentVolumeClaim")).toMatchObject({
			spec: { storageClassName: "local-path", resources: { requests: { storage: "20Gi" } } },
		});
		expect(find(lasting, "Deployment")).toMatchObject({
			spec: {
				strategy: { type: "Recreate" },
				template: {
					spec: {
						volumes: expect.arrayContaining([{ name: "data", persistentVolumeClaim: { claimName: "prometheus" } }]),
					},
				},
			},
		});
		const passing = objects({ enabled: false });
		expect(find(passing, "PersistentVolumeClaim")).toBeUndefined();
		expect(find(passing, "Deployment")).toMatchObject({
			metadata: { annotations: { "groundplane.io/storage": expect.stringMatching(/^none that lasts/) } },
			spec: {
				template: { spec: { volumes: expect.arrayContaining([{ name: "data", emptyDir: { sizeLimit: "20Gi" } }]) } },
			},
		});
	});

	it("makes local-path the default class unless the cluster has another", () => {
		const isDefault = (localPathStorage: { enabled: true; defaultClass?: boolean }) =>
			documents(rendered({ addons: { localPathStorage } }).steps, "local-path-storage").find(
				({ kind }) => kind === "StorageClass",
			).metadata.annotations["storageclass.kubernetes.io/is-default-class"];
		expect(isDefault({ enabled: true })).toBe("true");
		expect(isDefault({ enabled: true, defaultClass: false })).toBe("false");
	});

	it("does not touch the node when its secrets go, and makes it anew when its cluster is another one", () => {
		const before = rendered({ bootstrapToken: token, clusterId: "1" });
		const after = rendered({ clusterId: "1" });
		expect(step(after.steps, "node")?.digest).toBe(step(before.steps, "node")?.digest);
		expect(step(after.steps, "kubeadm-config")?.digest).not.toBe(step(before.steps, "kubeadm-config")?.digest);
		expect(after.identity).toBe(before.identity);
		expect(rendered({ clusterId: "2" }).identity).not.toBe(before.identity);
		expect(rendered({ mode: "join-worker", clusterId: "1" }).identity).not.toBe(before.identity);
		expect(rendered({ mode: "join-control-plane", clusterId: "1" }).identity).toBe(before.identity);
	});

	it.each([
		["an unknown mode", { mode: "destroy" }],
		["a bad token", { bootstrapToken: "x" }],
		["a label that a node may not give itself", { labels: { "node-role.kubernetes.io/worker": "" } }],
		["a network that is none", { podSubnet: "10.244.0.0/16; x" }],
	])("refuses %s", (_what, wrong) => {
		expect(() => rendered(wrong as never)).toThrow(/parameters of role kubernetes/);
	});
});
