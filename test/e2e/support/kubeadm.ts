import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { decodeJwt } from "jose";
import type { RunOptions } from "../../../hack/lib/exec.ts";
import { demo } from "./demo.ts";

const release = join("dist", "release");
export const ADMIN = "/etc/kubernetes/admin.conf";
/** What a customer chose long before there was a region. */
export const POD_SUBNET = "10.200.0.0/16";

interface BundleFile {
	readonly path: string;
	readonly sha256: string;
	readonly reference?: string;
}

/**
 * A cluster as others make it: containerd and the programs of Kubernetes in /usr/bin, plain kubeadm, a network plugin of their own
 * (bridge), nothing of ours. The programs and images come from a bundle of the release, since hosts can pull nothing.
 */
export async function makeKubeadmCluster(version: string, [first, ...workers]: readonly [string, ...string[]]) {
	const files = await filesOf(version);
	for (const [index, host] of [first, ...workers].entries()) await install(host, index, files);
	const address = await demo.lab.address(first);
	await put(first, "/root/kubeadm.yaml", configuration(version, address, first));
	await sh(first, `kubeadm init --config /root/kubeadm.yaml --ignore-preflight-errors=SystemVerification`);
	const token = (await sh(first, `kubeadm token create --kubeconfig ${ADMIN} --print-join-command`)).trim();
	for (const host of workers)
		await sh(host, `${token} --node-name ${host} --ignore-preflight-errors=SystemVerification`);
}

/** The first control plane's own kubectl, not by way of the region. */
export const kubectlOn = (host: string, command: string): Promise<string> =>
	sh(host, `kubectl --kubeconfig ${ADMIN} ${command}`);

/** What the release's bundle of a version holds. */
export async function filesOf(version: string): Promise<BundleFile[]> {
	const manifest = await readFile(join(release, "bundles/kubernetes", version, "manifest.jws"), "utf8");
	return (decodeJwt(manifest) as { files: BundleFile[] }).files;
}

async function install(host: string, index: number, files: readonly BundleFile[]): Promise<void> {
	const pause = files.find(({ path }) => path === "images/pause.tar")?.reference ?? "";
	await sh(host, "mkdir -p /opt/cni/bin /etc/cni/net.d /etc/containerd");
	await copyPrograms(host, files, "bin", "/usr/bin");
	await copyPrograms(host, files, "cni", "/opt/cni/bin");
	await put(host, "/etc/containerd/config.toml", containerd(pause));
	await put(
		host,
		"/etc/systemd/system/containerd.service",
		unit("/usr/bin/containerd", "Type=notify\nDelegate=yes\nKillMode=process"),
	);
	await put(
		host,
		"/etc/systemd/system/kubelet.service",
		unit(KUBELET, "EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env"),
	);
	await installNetwork(host, index);
	await sh(host, "systemctl daemon-reload && systemctl enable containerd kubelet && systemctl restart containerd");
	await sh(host, "sysctl -qw net.ipv4.ip_forward=1");
	await importImages(host, files);
}

/** A network plugin of one's own: pods of a host on a bridge, out by the host's address. */
export const installNetwork = (host: string, index: number) =>
	put(host, "/etc/cni/net.d/10-site.conflist", JSON.stringify(network(index)));

/** Takes away what that plugin has made in a host's kernel: it is the host's people's, and nobody else's to remove. */
export const removeNetwork = (host: string) => sh(host, "ip link delete site0; nft delete table ip nat; true");

/** Puts the programs of one folder of a bundle into one of the host's. */
export async function copyPrograms(host: string, files: readonly BundleFile[], from: "bin" | "cni", to: string) {
	for (const { path, sha256 } of files.filter(({ path }) => path.startsWith(`${from}/`))) {
		const target = `${to}/${path.slice(from.length + 1)}`;
		await demo.lab.copyTo(host, blob(sha256), target);
		await sh(host, `chmod 755 ${target}`);
	}
}

/** Gives a host's containerd the images of a bundle. */
export async function importImages(host: string, files: readonly BundleFile[]): Promise<void> {
	for (const { sha256 } of files.filter(({ path }) => path.startsWith("images/")))
		await run(host, ["ctr", "-n", "k8s.io", "images", "import", "-"], createReadStream(blob(sha256)));
}

const blob = (sha256: string) => join(release, "blobs/sha256", sha256);

const containerd = (pause: string) => `version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '${pause}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
`;

const KUBELET =
	"/usr/bin/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS";

const unit = (start: string, more: string) => `[Service]
ExecStart=${start}
${more}
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
`;

const network = (index: number) => ({
	cniVersion: "1.0.0",
	name: "site",
	plugins: [
		{
			type: "bridge",
			bridge: "site0",
			isGateway: true,
			ipMasq: true,
			ipam: {
				type: "host-local",
				ranges: [[{ subnet: `10.200.${index}.0/24` }]],
				routes: [{ dst: "0.0.0.0/0" }],
			},
		},
	],
});

/** kubeadm takes JSON as well, since that is YAML. */
const configuration = (version: string, address: string, name: string) =>
	[
		{
			apiVersion: "kubeadm.k8s.io/v1beta4",
			kind: "InitConfiguration",
			localAPIEndpoint: { advertiseAddress: address, bindPort: 6443 },
			nodeRegistration: { name, imagePullPolicy: "IfNotPresent" },
		},
		{
			apiVersion: "kubeadm.k8s.io/v1beta4",
			kind: "ClusterConfiguration",
			kubernetesVersion: version,
			networking: { podSubnet: POD_SUBNET },
		},
		{
			apiVersion: "kubelet.config.k8s.io/v1beta1",
			kind: "KubeletConfiguration",
			failCgroupV1: false,
			cgroupDriver: "cgroupfs",
		},
		{
			apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
			kind: "KubeProxyConfiguration",
			mode: "nftables",
			conntrack: { maxPerCore: 0, min: 0 },
		},
	]
		.map((document) => JSON.stringify(document))
		.join("\n---\n");

const put = (host: string, path: string, content: string) => run(host, ["tee", path], content);
export const sh = (host: string, command: string) => run(host, ["sh", "-c", command]);

async function run(host: string, command: readonly string[], input?: RunOptions["input"]): Promise<string> {
	const options = { timeoutMs: 300_000, ...(input === undefined ? {} : { input }) };
	const { code, stdout, stderr } = await demo.lab.exec(host, command, options);
	if (code !== 0) throw new Error(`${host}: ${command.join(" ")}: ${stderr.slice(-2000)}`);
	return stdout;
}
