import { basename } from "node:path";
import type { Upstream } from "./download.ts";
import type { GoProgram } from "./go.ts";

const architecture = process.arch === "arm64" ? "arm64" : "amd64";

/** A file of a project's release on GitHub; in URLs `ARCH` is this machine's architecture. */
function onGitHub(project: string, version: string, file: string, checksums: string, member?: string): Upstream {
	const base = `https://github.com/${project}/releases/download/${version}/`;
	const named = (text: string) => text.replaceAll("ARCH", architecture);
	return { url: named(base + file), checksums: named(base + checksums), ...(member && { member: named(member) }) };
}

/** One supported Kubernetes minor: its patch release, and the versions that its kubeadm asks for. */
export interface Minor {
	readonly kubernetes: string;
	readonly etcd: string;
	readonly coredns: string;
	/** Tag of the pause image. */
	readonly pause: string;
}

/**
 * The supported minors, newest first. `kubeadm config images list` of the release says which etcd, CoreDNS and pause it
 * wants; the build compares this table with it.
 */
export const minors: readonly [Minor, ...Minor[]] = [
	{ kubernetes: "v1.36.3", etcd: "v3.6.8", coredns: "v1.14.2", pause: "3.10.2" },
	{ kubernetes: "v1.35.4", etcd: "v3.6.6", coredns: "v1.13.1", pause: "3.10.1" },
];

export type KubernetesProgramName =
	| "kubeadm"
	| "kubelet"
	| "kubectl"
	| "kube-apiserver"
	| "kube-controller-manager"
	| "kube-scheduler"
	| "kube-proxy";

export function kubernetesProgram({ kubernetes }: Minor, name: KubernetesProgramName): GoProgram {
	const [major = "", minor = ""] = kubernetes.slice(1).split(".");
	const version = "k8s.io/component-base/version";
	const url = `https://dl.k8s.io/release/${kubernetes}/bin/linux/${architecture}/${name}`;
	return {
		upstream: { url, checksums: `${url}.sha256` },
		module: `kubernetes-${major}.${minor}`,
		package: `k8s.io/kubernetes/cmd/${name}`,
		set: {
			[`${version}.gitVersion`]: kubernetes,
			[`${version}.gitMajor`]: major,
			[`${version}.gitMinor`]: minor,
			[`${version}.gitTreeState`]: "clean",
		},
	};
}

export function etcdProgram({ etcd }: Minor, name: "etcd" | "etcdctl" | "etcdutl"): GoProgram {
	const folder = name === "etcd" ? "server" : name;
	const archive = `etcd-${etcd}-linux-ARCH`;
	return {
		module: `etcd-${etcd.slice(1)}`,
		package: `go.etcd.io/etcd/${folder}/v3`,
		name,
		upstream: onGitHub("etcd-io/etcd", etcd, `${archive}.tar.gz`, "SHA256SUMS", `${archive}/${name}`),
	};
}

export function corednsProgram({ coredns }: Minor): GoProgram {
	const archive = `coredns_${coredns.slice(1)}_linux_ARCH.tgz`;
	return {
		module: `coredns-${coredns.slice(1)}`,
		package: ".",
		of: "github.com/coredns/coredns",
		name: "coredns",
		upstream: onGitHub("coredns/coredns", coredns, archive, `${archive}.sha256`, "coredns"),
	};
}

const containerdPackage = "github.com/containerd/containerd/v2";
export const containerdPrograms = ["containerd", "containerd-shim-runc-v2", "ctr"].map(
	(name): GoProgram => ({
		module: "containerd",
		package: `${containerdPackage}/cmd/${name}`,
		upstream: onGitHub(
			"containerd/containerd",
			"v2.4.2",
			"containerd-static-2.4.2-linux-ARCH.tar.gz",
			"containerd-static-2.4.2-linux-ARCH.tar.gz.sha256sum",
			`bin/${name}`,
		),
		set: {
			[`${containerdPackage}/version.Version`]: "v2.4.2",
			[`${containerdPackage}/version.Package`]: containerdPackage,
		},
	}),
);

/** With libseccomp: without the tag runc refuses every pod, because the default profile can't be applied. */
export const runcProgram: GoProgram = {
	module: "runc",
	package: "github.com/opencontainers/runc",
	cgo: true,
	needs: ["pkg-config", "/usr/include/seccomp.h"],
	static: true,
	tags: ["seccomp", "netgo", "osusergo"],
	set: { "main.version": "1.5.2" },
	upstream: onGitHub("opencontainers/runc", "v1.5.2", "runc.ARCH", "runc.sha256sum"),
};

const cni = "github.com/containernetworking/plugins/plugins";
export const cniPrograms: readonly GoProgram[] = [
	...["main/bridge", "main/loopback", "ipam/host-local", "meta/portmap"].map((path) => ({
		module: "cni",
		package: `${cni}/${path}`,
		upstream: onGitHub(
			"containernetworking/plugins",
			"v1.9.1",
			"cni-plugins-linux-ARCH-v1.9.1.tgz",
			"cni-plugins-linux-ARCH-v1.9.1.tgz.sha256",
			`./${basename(path)}`,
		),
	})),
	// The meta-plugin left this module after v0.9.1; its own one is not published for Go's proxy.
	{ module: "cni-flannel", package: `${cni}/meta/flannel` },
];

export const flannelVersion = "v0.26.7";
export const flannelProgram: GoProgram = {
	module: "flannel",
	package: "github.com/flannel-io/flannel",
	name: "flanneld",
	cgo: true,
	set: { "github.com/flannel-io/flannel/pkg/version.Version": flannelVersion },
};

export const localPathVersion = "v0.0.30";
export const localPathProgram: GoProgram = {
	module: "local-path-provisioner",
	package: "github.com/rancher/local-path-provisioner",
	set: { "main.VERSION": localPathVersion },
};

/** Its go.mod holds everything that Kubernetes has as well at Kubernetes' versions: most of it is compiled already then. */
export const metricsServerVersion = "v0.9.0";
export const metricsServerProgram: GoProgram = {
	module: "metrics-server",
	package: "sigs.k8s.io/metrics-server/cmd/metrics-server",
	set: { "k8s.io/client-go/pkg/version.gitVersion": metricsServerVersion },
};

export const nodeExporterVersion = "v1.12.1";
export const nodeExporterProgram: GoProgram = {
	module: "node-exporter",
	package: "github.com/prometheus/node_exporter",
	set: { "github.com/prometheus/common/version.Version": nodeExporterVersion.slice(1) },
	upstream: onGitHub(
		"prometheus/node_exporter",
		nodeExporterVersion,
		"node_exporter-1.12.1.linux-ARCH.tar.gz",
		"sha256sums.txt",
		"node_exporter-1.12.1.linux-ARCH/node_exporter",
	),
};

/**
 * Finds its targets by Kubernetes, files or HTTP alone: the SDKs of public clouds stay out, which halves build and image.
 * What is built here has no web pages (npm's part of its build is not in the module); what upstream publishes has them.
 */
export const prometheusVersion = "v3.13.5";
export const prometheusProgram: GoProgram = {
	module: "prometheus",
	package: "github.com/prometheus/prometheus/cmd/prometheus",
	tags: ["remove_all_sd", "enable_kubernetes_sd"],
	set: { "github.com/prometheus/common/version.Version": prometheusVersion.slice(1) },
	upstream: onGitHub(
		"prometheus/prometheus",
		prometheusVersion,
		"prometheus-3.13.5.linux-ARCH.tar.gz",
		"sha256sums.txt",
		"prometheus-3.13.5.linux-ARCH/prometheus",
	),
};

const newest = minors[0];

/** Programs that tests and the launchers in hack/ run on this machine. */
export const toolPrograms = {
	"kube-apiserver": kubernetesProgram(newest, "kube-apiserver"),
	"kube-controller-manager": kubernetesProgram(newest, "kube-controller-manager"),
	kubectl: kubernetesProgram(newest, "kubectl"),
	etcd: etcdProgram(newest, "etcd"),
	etcdctl: etcdProgram(newest, "etcdctl"),
	"nats-server": {
		module: "nats-server",
		package: "github.com/nats-io/nats-server/v2",
		name: "nats-server",
		upstream: onGitHub(
			"nats-io/nats-server",
			"v2.15.2",
			"nats-server-v2.15.2-linux-ARCH.tar.gz",
			"SHA256SUMS",
			"nats-server-v2.15.2-linux-ARCH/nats-server",
		),
	},
	helm: {
		module: "helm",
		package: "helm.sh/helm/v4/cmd/helm",
		upstream: {
			url: `https://get.helm.sh/helm-v4.3.1-linux-${architecture}.tar.gz`,
			checksums: `https://get.helm.sh/helm-v4.3.1-linux-${architecture}.tar.gz.sha256sum`,
			member: `linux-${architecture}/helm`,
		},
	},
	kubeconform: { module: "kubeconform", package: "github.com/yannh/kubeconform/cmd/kubeconform" },
	"kube-score": { module: "kube-score", package: "github.com/zegl/kube-score/cmd/kube-score" },
} as const satisfies Record<string, GoProgram>;
