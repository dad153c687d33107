import { X509Certificate } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import type { FoundKubernetes } from "../protocol/facts.ts";
import { spkiHash } from "./primitives/kubeadm.ts";

const KUBERNETES = "etc/kubernetes";
/** What a node that our role made has, and no other. */
const OURS = "etc/groundplane/kubernetes/kubeadm.yaml";
/** kubeadm notes there where the API server of this host listens. */
const ENDPOINT = "kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint";
const PROGRAM_DIRECTORIES = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/**
 * The node of a cluster that others made with kubeadm, by the files that kubeadm leaves; no program is run, and nothing is
 * asked of the cluster. `undefined` when there is none, when it is our role's, or when its files can't be read as kubeadm's.
 *
 * @param root Where the host's file system begins.
 */
export function findKubernetes(root = "/"): FoundKubernetes | undefined {
	const at = (path: string) => join(root, path);
	if (existsSync(at(OURS)) || !existsSync(at(`${KUBERNETES}/kubelet.conf`))) return undefined;
	try {
		const kubeconfig = parse(readFileSync(at(`${KUBERNETES}/kubelet.conf`), "utf8"));
		const authority = kubeconfig.clusters[0].cluster["certificate-authority-data"];
		const identity = new X509Certificate(readFileSync(at("var/lib/kubelet/pki/kubelet-client-current.pem")));
		const configuration = parse(readFileSync(at("var/lib/kubelet/config.yaml"), "utf8"));
		const controlPlane = findControlPlane(at);
		return {
			nodeName: /^CN=system:node:(.*)$/m.exec(identity.subject)?.[1] ?? "",
			caCertHash: spkiHash(Buffer.from(authority, "base64").toString()),
			dnsDomain: String(configuration.clusterDomain ?? ""),
			networks: networksIn(at("etc/cni/net.d")),
			...(controlPlane && { controlPlane }),
		};
	} catch {
		// Half made, half removed, or made by something else: nothing that could be adopted.
		return undefined;
	}
}

function findControlPlane(at: (path: string) => string): FoundKubernetes["controlPlane"] {
	const manifest = (name: string) => at(`${KUBERNETES}/manifests/${name}.yaml`);
	if (!existsSync(manifest("kube-apiserver"))) return undefined;
	const apiServer = parse(readFileSync(manifest("kube-apiserver"), "utf8"));
	const manager = parse(readFileSync(manifest("kube-controller-manager"), "utf8"));
	const isInstalled = (program: string) =>
		PROGRAM_DIRECTORIES.some((directory) => existsSync(at(`${directory}/${program}`)));
	return {
		version: String(apiServer.spec.containers[0].image).split(":").at(-1) ?? "",
		endpoint: apiServer.metadata.annotations?.[ENDPOINT] ?? "",
		podSubnet: flag(manager, "cluster-cidr"),
		serviceSubnet: flag(apiServer, "service-cluster-ip-range"),
		etcd: existsSync(manifest("etcd")) ? "stacked" : "external",
		missing: [
			...[`${KUBERNETES}/pki/ca.key`, `${KUBERNETES}/admin.conf`]
				.filter((path) => !existsSync(at(path)))
				.map((path) => `/${path}`),
			...["kubeadm", "kubectl"].filter((program) => !isInstalled(program)),
		],
	};
}

/** What a static pod is told by `--name=value`. */
const flag = (pod: { spec: { containers: { command: string[] }[] } }, name: string): string =>
	pod.spec.containers[0]?.command.find((argument) => argument.startsWith(`--${name}=`))?.slice(name.length + 3) ?? "";

/** Names of the networks that a container runtime finds there, the one that it takes first (CNI: in the order of file names). */
function networksIn(directory: string): string[] {
	const files = existsSync(directory) ? readdirSync(directory).sort() : [];
	return files
		.filter((file) => /\.(conflist|conf|json)$/.test(file))
		.map((file) => String(parse(readFileSync(join(directory, file), "utf8"))?.name ?? file));
}
