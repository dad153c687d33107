import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { parseAllDocuments } from "yaml";
import { render, type Step } from "../../agent/engine/pack.ts";
import { type Exec, execute } from "../../agent/primitives/exec.ts";
import { primitives } from "../../agent/primitives/index.ts";
import type { StepContext } from "../../agent/primitives/primitive.ts";
import { referencesIn } from "../../hack/builder/imports.ts";
import { tool } from "../../hack/builder/tools.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";
import { packFacts, packFiles, packManifest } from "../support/role-pack.ts";

/** The steps of the role pack that concern add-ons, done by the agent's own primitives against a real API server. */
type Addons = NonNullable<KubernetesRoleInput["addons"]>;
const all = {
	metricsServer: true,
	localPathStorage: { enabled: true },
	nodeExporter: true,
} satisfies Addons;
const addons = ["metrics-server", "local-path-storage", "node-exporter"];

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
	expect([...(await labels())].sort()).toEqual(["local-path-storage", "node-exporter"]);
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
const images = ["metrics-server", "local-path-helper", "local-path-provisioner", "node-exporter"];

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
