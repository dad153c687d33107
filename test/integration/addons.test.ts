import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse, parseAllDocuments, parseDocument } from "yaml";
import { render, type Step } from "../../agent/engine/pack.ts";
import { type Exec, execute } from "../../agent/primitives/exec.ts";
import { primitives } from "../../agent/primitives/index.ts";
import type { StepContext } from "../../agent/primitives/primitive.ts";
import { goProgram } from "../../hack/builder/go.ts";
import { labelled, referencesIn } from "../../hack/builder/imports.ts";
import { prometheusProgram } from "../../hack/builder/programs.ts";
import { tool } from "../../hack/builder/tools.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";
import { freePort } from "../support/ports.ts";
import { dyingWithParent } from "../support/postgres.ts";
import { packFacts, packFiles, packManifest } from "../support/role-pack.ts";

/** The steps of the role pack that concern add-ons, done by the agent's own primitives against a real API server. */
type Addons = NonNullable<KubernetesRoleInput["addons"]>;
const all = {
	metricsServer: true,
	localPathStorage: { enabled: true },
	nodeExporter: true,
	prometheus: { enabled: true },
} satisfies Addons;
const addons = ["metrics-server", "local-path-storage", "node-exporter", "prometheus"];

let api: TestApiServer;
let exec: Exec;
beforeAll(async () => {
	api = await startApiServer({ crds: false });
	const kubectl = await tool("kubectl");
	// The pack says where kubeadm puts the administrator's credentials.
	exec = (file, args, options) => {
		expect(file).toBe("kubectl");
		const ours = args.map((argument) => argument.replace("/etc/kubernetes/admin.conf", api.kubeconfig));
		return execute(kubectl, ours, { ...options, env: { KUBECACHEDIR: join(api.directory, "kubectl") } });
	};
});
afterAll(() => api?.stop());

it("every add-on's objects are accepted, and leave nothing when it is switched off", async () => {
	const off = steps({}).find(({ name }) => name === "addons-off") as Step;
	await apply(all);
	expect([...(await labels())].sort()).toEqual([...addons].sort());
	for (const step of steps(all).filter(({ name }) => addons.includes(name)))
		expect(await primitive(step).observe(step.want, context(), { last: step.digest, now: step.digest })).toEqual({
			ok: true,
		});

	await apply({ ...all, metricsServer: false });
	expect([...(await labels())].sort()).toEqual(["local-path-storage", "node-exporter", "prometheus"]);
	await primitive(off).apply(off.want, context(), { last: undefined, now: off.digest });
	expect(await labels()).toEqual(new Set());
});

/** Calico's manifest is upstream's and is in no repository of ours: this runs where somebody has brought it. */
const calicoManifest = process.env.GROUNDPLANE_CALICO_MANIFEST;
it.runIf(calicoManifest)("Calico's own objects are accepted, as hosts apply them", async () => {
	const content = await readFile(calicoManifest ?? "", "utf8");
	const pack = new Map([...packFiles, ["pack/imports/calico.yaml", content]]);
	const calico = steps({}, "calico", pack).filter(({ name }) => name.startsWith("calico"));
	expect(calico.map(({ name }) => name)).toEqual(["calico-endpoint", "calico"]);
	for (const step of calico) {
		await primitive(step).apply(step.want, context(), { last: undefined, now: step.digest });
		expect(await primitive(step).observe(step.want, context(), { last: step.digest, now: step.digest })).toEqual({
			ok: true,
		});
	}
	expect(referencesIn(content).map((reference) => reference.replace(/:.*/, ""))).toEqual([
		"quay.io/calico/cni",
		"quay.io/calico/kube-controllers",
		"quay.io/calico/node",
	]);
});

/** So are those of Multus, the SR-IOV CNI plugin and its device plugin: their files, with commas between. */
const sriovManifests = process.env.GROUNDPLANE_SRIOV_MANIFESTS;
it.runIf(sriovManifests)(
	"SR-IOV's own objects are accepted, and go when it is switched off but for what people made",
	async () => {
		const files = (sriovManifests ?? "").split(",");
		const texts = await Promise.all(files.map((path) => readFile(path, "utf8")));
		const content = labelled(texts.join("\n---\n"), "sriov");
		const pack = new Map([...packFiles, ["pack/imports/sriov.yaml", content]]);
		const step = steps({ sriov: true }, "flannel", pack).find(({ name }) => name === "sriov") as Step;
		await primitive(step).apply(step.want, context(), { last: undefined, now: step.digest });
		expect(await primitive(step).observe(step.want, context(), { last: step.digest, now: step.digest })).toEqual({
			ok: true,
		});
		expect(referencesIn(content).map((reference) => reference.replace(/:.*/, ""))).toEqual([
			"ghcr.io/k8snetworkplumbingwg/multus-cni",
			"ghcr.io/k8snetworkplumbingwg/sriov-cni",
			"ghcr.io/k8snetworkplumbingwg/sriov-network-device-plugin",
		]);
		const definition = "customresourcedefinition/network-attachment-definitions.k8s.cni.cncf.io";
		await kubectl("wait", "--for=condition=Established", "--timeout=60s", definition);
		const mine = "network-attachment-definitions.k8s.cni.cncf.io/mine";
		const network = {
			apiVersion: "k8s.cni.cncf.io/v1",
			kind: "NetworkAttachmentDefinition",
			metadata: { name: "mine" },
		};
		await exec("kubectl", ["--kubeconfig=/etc/kubernetes/admin.conf", "apply", "--filename=-"], {
			input: JSON.stringify({ ...network, spec: { config: '{"cniVersion":"1.0.0","type":"sriov"}' } }),
		});

		const addonObjects = async () => {
			const kinds = "daemonsets,configmaps,serviceaccounts,clusterroles,clusterrolebindings";
			const args = ["get", kinds, "--all-namespaces", "--selector=groundplane.io/addon=sriov", "--output=name"];
			return (await kubectl(...args)).trim().split("\n").filter(Boolean).sort();
		};
		expect(await addonObjects()).toEqual([
			"clusterrole.rbac.authorization.k8s.io/multus",
			"clusterrolebinding.rbac.authorization.k8s.io/multus",
			"configmap/multus-daemon-config",
			"daemonset.apps/kube-multus-ds",
			"daemonset.apps/kube-sriov-cni-ds",
			"daemonset.apps/kube-sriov-device-plugin",
			"serviceaccount/multus",
			"serviceaccount/sriov-device-plugin",
		]);
		const off = steps({}).find(({ name }) => name === "addons-off") as Step;
		await primitive(off).apply(off.want, context(), { last: undefined, now: off.digest });
		expect(await addonObjects()).toEqual([]);
		expect(await kubectl("get", mine, "--output=name")).toContain("mine");
	},
);

describe("Prometheus, as upstream's program", () => {
	const children: ChildProcess[] = [];
	const servers: Server[] = [];
	// Where it has never been built that takes minutes.
	let program: string;
	beforeAll(async () => {
		program = await goProgram(prometheusProgram);
		await apply({ prometheus: { enabled: true, retention: "3d", dataSize: "800MB" } });
	}, 1_200_000);
	afterAll(() => {
		for (const child of children) child.kill("SIGKILL");
		for (const server of servers) server.close();
	});

	it("finds API servers, kubelets, node-exporter, pods and services by its rights alone, and reads their numbers", async () => {
		const numbers = createServer((_, response) =>
			response.setHeader("content-type", "text/plain; version=0.0.4").end("answer 42\n"),
		).listen(0, "127.0.0.1");
		servers.push(numbers);
		await once(numbers, "listening");
		const numbersPort = (numbers.address() as AddressInfo).port;
		const apiPort = Number(new URL(api.server).port);
		await make(siteOf(numbersPort, apiPort));
		const url = await start(await configured());

		// The API server stands in for a kubelet: a certificate of the cluster's CA, a token that is checked, numbers that need a right.
		const seen = await until(async () => {
			const targets = await targetsOf(url);
			const up = targets.filter(({ health }) => health === "up").map(({ labels }) => labels);
			return up.length >= 4 &&
				["services", "apiserver"].every((job) => targets.some(({ labels }) => labels.job === job))
				? { targets, up }
				: undefined;
		});
		expect(seen.up).toEqual(
			expect.arrayContaining([
				{ job: "kubelet", metrics_path: "/metrics", node: "host-1", instance: "host-1" },
				{ job: "node-exporter", node: "host-1", instance: `127.0.0.1:${numbersPort}` },
				{ job: "pods", namespace: "default", pod: "shop", node: "host-1", instance: `127.0.0.1:${numbersPort}` },
				expect.objectContaining({ job: "prometheus" }),
			]),
		);
		const found = seen.targets.map(({ scrapePool, scrapeUrl }) => `${scrapePool} ${scrapeUrl}`);
		expect(found).toContain(`kubelet/cadvisor https://127.0.0.1:${apiPort}/metrics/cadvisor`);
		expect(found.filter((one) => one.startsWith("services "))).toEqual(["services http://192.0.2.9:9153/metrics"]);
		expect(found).toContain("apiserver https://192.0.2.8:6443/metrics");
		expect(found.filter((one) => one.includes("silent"))).toEqual([]);

		const { yaml } = await ask<{ yaml: string }>(`${url}/api/v1/status/config`);
		expect(parse(yaml).storage.tsdb.retention).toMatchObject({ time: "3d", size: expect.stringMatching(/^800Mi?B$/) });
		const { result } = await until(async () => {
			const data = await ask<{ result: { value: [number, string] }[] }>(`${url}/api/v1/query?query=answer{job="pods"}`);
			return data.result.length > 0 ? data : undefined;
		});
		expect(result[0]?.value[1]).toBe("42");
	}, 120_000);

	it.each([
		["list pods", "yes"],
		["get nodes --subresource=metrics", "yes"],
		["get /metrics", "yes"],
		["get secrets", "no"],
		["list configmaps", "no"],
		["get nodes --subresource=proxy", "no"],
		["create pods", "no"],
		["delete nodes", "no"],
	])("asked whether it may %s: %s", async (what, answer) => {
		const as = "--as=system:serviceaccount:kube-system:prometheus";
		const args = [
			"--kubeconfig=/etc/kubernetes/admin.conf",
			"auth",
			"can-i",
			...what.split(" "),
			as,
			"--namespace=default",
		];
		const { stdout } = await exec("kubectl", args, { codes: true });
		expect(stdout.trim()).toBe(answer);
	});

	/** The configuration of the ConfigMap, for a process beside the cluster in place of a pod in it. */
	async function configured(): Promise<string> {
		const account = await api.serviceAccount("kube-system", "prometheus");
		const directory = await mkdtemp(join(api.directory, "prometheus-"));
		const [token, ca] = [join(directory, "token"), join(directory, "ca.crt")];
		await writeFile(token, account.token?.() ?? "");
		await writeFile(ca, account.tls?.ca ?? "");
		const text = await kubectl("get", "configmap", "prometheus", "--namespace=kube-system", "--output=json");
		// Its own words stay as they are: what Prometheus can't read must not be mended on the way.
		const config = parseDocument(
			(JSON.parse(text).data["prometheus.yml"] as string)
				.replaceAll("/var/run/secrets/kubernetes.io/serviceaccount", directory)
				.replace("localhost:9090", "LISTEN"),
		);
		config.setIn(["global", "scrape_interval"], "3s");
		config.setIn(["global", "scrape_timeout"], "3s");
		const jobs: { job_name: string; kubernetes_sd_configs?: unknown[] }[] = config.toJS().scrape_configs;
		for (const [index, { job_name, kubernetes_sd_configs = [] }] of jobs.entries()) {
			const job = ["scrape_configs", index];
			// Addresses that are not here: found, and not asked.
			if (["apiserver", "services"].includes(job_name)) config.setIn([...job, "scrape_interval"], "1d");
			for (const at of kubernetes_sd_configs.keys()) {
				const discovery = [...job, "kubernetes_sd_configs", at];
				config.setIn([...discovery, "api_server"], api.server);
				config.setIn([...discovery, "authorization"], config.createNode({ credentials_file: token }));
				config.setIn([...discovery, "tls_config"], config.createNode({ ca_file: ca }));
			}
		}
		const path = join(directory, "prometheus.yml");
		await writeFile(path, config.toString({ lineWidth: 0 }));
		return path;
	}

	/** Starts it as the Deployment does, but for its places. */
	async function start(config: string): Promise<string> {
		const address = `127.0.0.1:${await freePort()}`;
		await writeFile(config, (await readFile(config, "utf8")).replace("LISTEN", address));
		const text = await kubectl("get", "deployment", "prometheus", "--namespace=kube-system", "--output=json");
		const args = (JSON.parse(text).spec.template.spec.containers[0].args as string[]).map((argument) =>
			argument
				.replace("/etc/prometheus/prometheus.yml", config)
				.replace("=/prometheus", `=${dirname(config)}/data`)
				.replace("=:9090", `=${address}`),
		);
		const child = spawn(...dyingWithParent(program, args), {
			stdio: ["ignore", "ignore", "pipe"],
		});
		children.push(child);
		const said: string[] = [];
		child.stderr?.on("data", (chunk: Buffer) => said.push(chunk.toString()));
		await until(async () => {
			if (child.exitCode !== null) throw new Error(said.join(""));
			return (await fetch(`http://${address}/-/ready`).catch(() => undefined))?.ok === true || undefined;
		});
		return `http://${address}`;
	}

	/** A node, pods and a service, as a cluster's parts would write them. Nobody here makes pods run. */
	function siteOf(numbersPort: number, kubeletPort: number) {
		const pod = (name: string, namespace: string, metadata: object) => ({
			apiVersion: "v1",
			kind: "Pod",
			metadata: { name, namespace, ...metadata },
			spec: {
				nodeName: "host-1",
				containers: [
					{ name: "main", image: "example/main:v1", ports: [{ name: "metrics", containerPort: numbersPort }] },
				],
			},
			status: { phase: "Running", podIP: "127.0.0.1", podIPs: [{ ip: "127.0.0.1" }] },
		});
		const slice = (name: string, namespace: string, address: string, ports: object[]) => ({
			apiVersion: "discovery.k8s.io/v1",
			kind: "EndpointSlice",
			metadata: { name, namespace, labels: { "kubernetes.io/service-name": name } },
			addressType: "IPv4",
			endpoints: [{ addresses: [address], conditions: { ready: true } }],
			ports,
		});
		const service = { name: "kube-dns", namespace: "kube-system" };
		return [
			{
				apiVersion: "v1",
				kind: "Node",
				metadata: { name: "host-1" },
				status: {
					addresses: [{ type: "InternalIP", address: "127.0.0.1" }],
					daemonEndpoints: { kubeletEndpoint: { Port: kubeletPort } },
				},
			},
			pod("node-exporter-x", "kube-system", { labels: { "app.kubernetes.io/name": "node-exporter" } }),
			pod("shop", "default", {
				annotations: { "prometheus.io/scrape": "true", "prometheus.io/port": String(numbersPort) },
			}),
			pod("silent", "default", {}),
			{
				apiVersion: "v1",
				kind: "Service",
				metadata: { ...service, annotations: { "prometheus.io/scrape": "true", "prometheus.io/port": "9153" } },
				spec: {
					ports: [
						{ name: "dns", port: 53, protocol: "UDP" },
						{ name: "metrics", port: 9153 },
					],
				},
			},
			slice("kube-dns", "kube-system", "192.0.2.9", [
				{ name: "dns", port: 53, protocol: "UDP" },
				{ name: "metrics", port: 9153, protocol: "TCP" },
			]),
			slice("kubernetes", "default", "192.0.2.8", [{ name: "https", port: 6443, protocol: "TCP" }]),
		];
	}

	async function make(objects: readonly { kind: string; status?: unknown }[]): Promise<void> {
		for (const object of objects) {
			const apply = ["apply", "--server-side", "--filename=-"];
			const input = JSON.stringify(object);
			await exec("kubectl", ["--kubeconfig=/etc/kubernetes/admin.conf", ...apply], { input });
			if (object.status !== undefined)
				await exec("kubectl", ["--kubeconfig=/etc/kubernetes/admin.conf", ...apply, "--subresource=status"], { input });
		}
	}
});

interface Target {
	readonly scrapePool: string;
	readonly scrapeUrl: string;
	readonly health: string;
	readonly labels: Readonly<Record<string, string>>;
}

const targetsOf = async (url: string) =>
	(await ask<{ activeTargets: Target[] }>(`${url}/api/v1/targets?state=active`)).activeTargets;

async function ask<T>(url: string): Promise<T> {
	const response = await fetch(url);
	const { data } = (await response.json()) as { data: T };
	return data;
}

/** Asks again until there is an answer. */
async function until<T>(look: () => Promise<T | undefined>): Promise<T> {
	for (const deadline = Date.now() + 60_000; ; await delay(200)) {
		const answer = await look();
		if (answer !== undefined) return answer;
		if (Date.now() > deadline) throw new Error("nothing within a minute");
	}
}

/** Does what a first control plane would do of add-ons. */
async function apply(wanted: Addons): Promise<void> {
	for (const step of steps(wanted))
		if ([...addons, "addons-off"].includes(step.name))
			await primitive(step).apply(step.want, context(), { last: undefined, now: step.digest });
}

/** Add-ons of which there is any object, of all kinds that the add-ons have. */
async function labels(): Promise<Set<string>> {
	const contents = steps(all).flatMap(({ use, want }) =>
		use === "manifest" ? [(want as { content: string }).content] : [],
	);
	const kinds = new Set(
		contents.flatMap((content) => parseAllDocuments(content).map((one) => one.toJS().kind as string)),
	);
	const args = ["get", [...kinds].join(), "--all-namespaces", "--selector=groundplane.io/addon", "--output=json"];
	const { items } = JSON.parse(await kubectl(...args)) as { items: { metadata: { labels: Record<string, string> } }[] };
	return new Set(items.map(({ metadata }) => metadata.labels["groundplane.io/addon"] ?? ""));
}

async function kubectl(...args: string[]): Promise<string> {
	return (await exec("kubectl", ["--kubeconfig=/etc/kubernetes/admin.conf", ...args])).stdout;
}

const primitive = ({ use }: Step) => primitives[use] as NonNullable<(typeof primitives)[string]>;
const context = () => ({ exec, signal: AbortSignal.timeout(60_000) }) as unknown as StepContext;

const programs = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubelet", "kubeadm", "kubectl", "etcdctl"];
const images = ["metrics-server", "local-path-helper", "local-path-provisioner", "node-exporter", "prometheus"];

function steps(
	wanted: Addons,
	cni: KubernetesRoleInput["cni"] = "none",
	pack: typeof packFiles = packFiles,
): readonly Step[] {
	const manifest = packManifest([
		...programs.map((name) => ({ path: `bin/${name}`, kind: "binary" as const })),
		...images.map((name) => ({ path: `images/${name}.tar`, kind: "image" as const, reference: `example/${name}:v1` })),
	]);
	const parameters: KubernetesRoleInput = {
		cluster: "demo",
		mode: "init",
		kubernetesVersion: "v1.36.3",
		nodeName: "host-1",
		cni,
		addons: wanted,
	};
	return render(manifest, pack, { ...parameters }, packFacts).steps;
}
