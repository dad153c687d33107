import { readFile } from "node:fs/promises";
import { basename, join, relative } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type BundleFile, createBundle, releaseKey } from "./bundle.ts";
import { cached, filesUnder, hashTree } from "./cache.ts";
import { goProgram, isAtHand, moduleVersion } from "./go.ts";
import { fullReference, type Image, imageArchive } from "./images.ts";
import { type Import, imports } from "./imports.ts";
import { needPackages } from "./packages.ts";
import {
	cniPrograms,
	containerdPrograms,
	corednsProgram,
	etcdProgram,
	flannelProgram,
	flannelVersion,
	kubernetesProgram,
	localPathProgram,
	localPathVersion,
	type Minor,
	metricsServerProgram,
	metricsServerVersion,
	nodeExporterProgram,
	nodeExporterVersion,
	prometheusProgram,
	prometheusVersion,
	runcProgram,
} from "./programs.ts";
import { part, run, say } from "./run.ts";

const ROOT = join(import.meta.dirname, "../..");
const PACK = join(ROOT, "roles/kubernetes");

export interface KubernetesBundle {
	readonly directory: string;
	/** What it holds of that which not every release holds. */
	readonly extras: readonly string[];
}

/**
 * The Kubernetes release bundle of one minor: a directory with `bundles/kubernetes/VERSION/manifest.jws` and
 * `blobs/sha256/HEX` (programs as `HEX.zst` too). It holds everything that a host needs to become a node without any registry.
 *
 * With `quick`, Prometheus is left out where it would have to be compiled, which takes minutes.
 */
export async function kubernetesBundle(minor: Minor, quick = false): Promise<KubernetesBundle> {
	const binaries = await binaryFiles(minor);
	await checkImageList(minor, binaries);
	const hasPrometheus = !quick || (await isAtHand(prometheusProgram));
	if (!hasPrometheus) say("left out: the add-on Prometheus, which has to be compiled: hack/build makes it");
	const imported = await imports();
	const extras = [...(hasPrometheus ? ["prometheus"] : []), ...imported.map(({ name }) => name)];
	const files = [
		...binaries,
		...(await imageFiles(minor, hasPrometheus)),
		...(await packFiles()),
		...imported.flatMap((one) => one.files),
	];
	const key = await releaseKey();
	const containerd = containerdPrograms[0];
	const components = {
		kubernetes: minor.kubernetes,
		etcd: minor.etcd,
		coredns: minor.coredns,
		pause: minor.pause,
		flannel: flannelVersion,
		"metrics-server": metricsServerVersion,
		"local-path-provisioner": localPathVersion,
		"node-exporter": nodeExporterVersion,
		...(hasPrometheus && { prometheus: prometheusVersion }),
		...Object.fromEntries(imported.map(({ name, version }: Import) => [name, version])),
		runc: await moduleVersion(runcProgram),
		...(containerd && { containerd: await moduleVersion(containerd) }),
	};
	const name = `bundle-kubernetes-${minor.kubernetes.split(".").slice(0, 2).join(".")}`;
	const inputs = [files, await hashTree(PACK), components, key.publicJwk, "programs packed too"];
	const directory = await cached(name, inputs, (directory) =>
		part(`bundle kubernetes ${minor.kubernetes}`, async () => {
			await createBundle(
				directory,
				{ name: "kubernetes", version: minor.kubernetes, components, createdAt: new Date().toISOString(), files },
				key,
			);
		}),
	);
	return { directory, extras };
}

async function binaryFiles(minor: Minor): Promise<BundleFile[]> {
	const programs = [
		kubernetesProgram(minor, "kubeadm"),
		kubernetesProgram(minor, "kubelet"),
		kubernetesProgram(minor, "kubectl"),
		etcdProgram(minor, "etcdctl"),
		...containerdPrograms,
		runcProgram,
	];
	const files: BundleFile[] = [];
	for (const program of programs) files.push(binary("bin", await goProgram(program)));
	for (const program of cniPrograms) files.push(binary("cni", await goProgram(program)));
	return files;
}

const binary = (folder: string, source: string): BundleFile => ({
	path: `${folder}/${basename(source)}`,
	kind: "binary",
	source,
});

const registry = "registry.k8s.io";

/** etcd as kubeadm's static pods name it. */
export const etcdImage = async (minor: Minor): Promise<Image> => ({
	folder: "component",
	reference: `${registry}/etcd:${minor.etcd.slice(1)}-0`,
	files: {
		"bin/etcd": await goProgram(etcdProgram(minor, "etcd")),
		"bin/etcdctl": await goProgram(etcdProgram(minor, "etcdctl")),
		"bin/etcdutl": await goProgram(etcdProgram(minor, "etcdutl")),
	},
});

async function imageFiles(minor: Minor, hasPrometheus: boolean): Promise<BundleFile[]> {
	const networkTools: Image = { folder: "network-tools", reference: "groundplane/network-tools:latest" };
	const components = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] as const;
	const images: Image[] = [];
	for (const name of components)
		images.push({
			folder: "component",
			reference: `${registry}/${name}:${minor.kubernetes}`,
			files: { [`bin/${name}`]: await goProgram(kubernetesProgram(minor, name)) },
		});
	images.push(
		await etcdImage(minor),
		{
			folder: "coredns",
			reference: `${registry}/coredns/coredns:${minor.coredns}`,
			files: { coredns: await goProgram(corednsProgram(minor)) },
		},
		{ folder: "pause", reference: `${registry}/pause:${minor.pause}`, files: { pause: await pauseProgram() } },
		{
			folder: "kube-proxy",
			reference: `${registry}/kube-proxy:${minor.kubernetes}`,
			from: networkTools,
			files: { "kube-proxy": await goProgram(kubernetesProgram(minor, "kube-proxy")) },
		},
		{
			folder: "flannel",
			reference: `docker.io/flannel/flannel:${flannelVersion}`,
			from: networkTools,
			files: { flanneld: await goProgram(flannelProgram) },
		},
		{
			folder: "metrics-server",
			reference: `${registry}/metrics-server/metrics-server:${metricsServerVersion}`,
			files: { "metrics-server": await goProgram(metricsServerProgram) },
		},
		{
			folder: "node-exporter",
			reference: `quay.io/prometheus/node-exporter:${nodeExporterVersion}`,
			files: { node_exporter: await goProgram(nodeExporterProgram) },
		},
		// The management plane has these two as well: the same archives.
		{
			folder: "local-path-provisioner",
			reference: `docker.io/rancher/local-path-provisioner:${localPathVersion}`,
			files: { "local-path-provisioner": await goProgram(localPathProgram) },
		},
		await localPathHelper(),
	);
	if (hasPrometheus)
		images.push({
			folder: "cluster-prometheus",
			reference: `quay.io/prometheus/prometheus:${prometheusVersion}`,
			files: { prometheus: await goProgram(prometheusProgram) },
		});
	const files: BundleFile[] = [];
	for (const image of images) {
		const name = basename(image.reference).replace(/:.*$/, "");
		files.push({
			path: `images/${name}.tar`,
			kind: "image",
			reference: fullReference(image.reference),
			source: await imageArchive(image),
		});
	}
	return files;
}

/** An image of our own bears the version of the platform. */
async function localPathHelper(): Promise<Image> {
	const { version } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as { version: string };
	return { folder: "local-path-helper", reference: `groundplane/local-path-helper:${version}`, files: {} };
}

async function pauseProgram(): Promise<string> {
	const source = join(ROOT, "images/pause/pause.c");
	const options = ["-Os", "-Wall", "-Werror", "-static", "-s"];
	const result = await cached("pause", [await hashTree(source), options, process.arch], async (directory) => {
		await needPackages("gcc", "/usr/include/stdlib.h");
		await run("gcc", [...options, "-o", join(directory, "pause"), source]);
	});
	return join(result, "pause");
}

/** The role pack as it is in the tree. */
async function packFiles(): Promise<BundleFile[]> {
	const paths = (await filesUnder(PACK)).filter((path) => !path.endsWith(".ts"));
	return paths.map((source) => ({ path: `pack/${relative(PACK, source)}`, kind: "pack", source }));
}

/** kubeadm knows which images it will ask for: the bundle must have these and no others. */
async function checkImageList(minor: Minor, binaries: readonly BundleFile[]): Promise<void> {
	const kubeadm = binaries.find((file) => file.path === "bin/kubeadm");
	const wanted = await run(kubeadm?.source ?? "kubeadm", [
		"config",
		"images",
		"list",
		`--kubernetes-version=${minor.kubernetes}`,
	]);
	for (const suffix of [`etcd:${minor.etcd.slice(1)}-0`, `coredns:${minor.coredns}`, `pause:${minor.pause}`])
		if (!wanted.split("\n").some((line) => line.endsWith(`/${suffix}`)))
			throw new GroundplaneError("Conflict", `kubeadm ${minor.kubernetes} does not ask for ${suffix}`, {
				next: `Correct the table in hack/builder/programs.ts by what it does ask for:\n${wanted}`,
			});
}
