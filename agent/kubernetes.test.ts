import "reflect-metadata";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { X509CertificateGenerator } from "@peculiar/x509";
import { afterAll, expect, test } from "vitest";
import { foundKubernetes } from "../protocol/facts.ts";
import { findKubernetes } from "./kubernetes.ts";

const directory = mkdtempSync(join(tmpdir(), "gp-kubernetes-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const certificate = async (name: string) => {
	const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
	return (await X509CertificateGenerator.createSelfSigned({ name, keys, signingAlgorithm: ALGORITHM })).toString("pem");
};
const ca = await certificate("CN=kubernetes");
const pod = (name: string, image: string, flags: string[], annotations = {}) =>
	JSON.stringify({
		metadata: { name, annotations },
		spec: { containers: [{ image, command: [name, ...flags] }] },
	});

/** The files of a worker as kubeadm makes it. */
const WORKER: Record<string, string> = {
	"etc/kubernetes/kubelet.conf": JSON.stringify({
		clusters: [{ cluster: { "certificate-authority-data": Buffer.from(ca).toString("base64") } }],
	}),
	"var/lib/kubelet/pki/kubelet-client-current.pem": await certificate("O=system:nodes, CN=system:node:srv-1"),
	"var/lib/kubelet/config.yaml": "clusterDomain: corp.local\n",
	"etc/cni/net.d/20-other.conf": JSON.stringify({ name: "other" }),
	"etc/cni/net.d/10-flannel.conflist": JSON.stringify({ name: "cbr0" }),
	"etc/cni/net.d/calico-kubeconfig": "not a network",
};
const CONTROL_PLANE: Record<string, string> = {
	...WORKER,
	"etc/kubernetes/manifests/kube-apiserver.yaml": pod(
		"kube-apiserver",
		"registry.k8s.io/kube-apiserver:v1.35.4",
		["--service-cluster-ip-range=10.96.0.0/12", "--etcd-servers=https://127.0.0.1:2379"],
		{ "kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint": "192.0.2.7:6443" },
	),
	"etc/kubernetes/manifests/kube-controller-manager.yaml": pod("kube-controller-manager", "x", [
		"--cluster-cidr=10.200.0.0/16",
	]),
	"etc/kubernetes/manifests/etcd.yaml": pod("etcd", "registry.k8s.io/etcd:3.6.6-0", []),
	"etc/kubernetes/pki/ca.key": "",
	"etc/kubernetes/admin.conf": "",
	"usr/bin/kubeadm": "",
	"usr/local/bin/kubectl": "",
};

let made = 0;
/** A host's file system with these files, but for those that are taken out. */
function hostWith(files: Record<string, string>, ...without: string[]): string {
	const root = join(directory, String(made++));
	for (const [path, content] of Object.entries(files).filter(([name]) => !without.includes(name))) {
		mkdirSync(dirname(join(root, path)), { recursive: true });
		writeFileSync(join(root, path), content);
	}
	return root;
}

const caCertHash = expect.stringMatching(/^sha256:[0-9a-f]{64}$/);
const worker = { nodeName: "srv-1", caCertHash, dnsDomain: "corp.local", networks: ["cbr0", "other"] };
const controlPlane = {
	version: "v1.35.4",
	endpoint: "192.0.2.7:6443",
	podSubnet: "10.200.0.0/16",
	serviceSubnet: "10.96.0.0/12",
	etcd: "stacked",
	missing: [],
};

test("a worker that others made is known by its files", () => {
	const found = findKubernetes(hostWith(WORKER));
	expect(found).toEqual(worker);
	expect(foundKubernetes.parse(found)).toEqual(found);
});

test("a control plane tells its version, its networks and where it listens", () => {
	const found = findKubernetes(hostWith(CONTROL_PLANE));
	expect(found).toEqual({ ...worker, controlPlane });
	expect(foundKubernetes.parse(found)).toEqual(found);
});

test.each([
	["etc/kubernetes/manifests/etcd.yaml", { etcd: "external" }],
	["etc/kubernetes/pki/ca.key", { missing: ["/etc/kubernetes/pki/ca.key"] }],
	["usr/bin/kubeadm", { missing: ["kubeadm"] }],
])("a control plane without %s says so", (path, change) => {
	expect(findKubernetes(hostWith(CONTROL_PLANE, path))?.controlPlane).toEqual({ ...controlPlane, ...change });
});

test.each<[string, string]>([
	["no node", hostWith({})],
	["a node that our role made", hostWith({ ...WORKER, "etc/groundplane/kubernetes/kubeadm.yaml": "" })],
	["a node that is half made", hostWith(WORKER, "var/lib/kubelet/pki/kubelet-client-current.pem")],
	["files that are not kubeadm's", hostWith({ ...WORKER, "etc/kubernetes/kubelet.conf": "clusters: {" })],
])("nothing is found where there is %s", (_what, root) => {
	expect(findKubernetes(root)).toBeUndefined();
});
