import { z } from "zod";

/**
 * Parameters of the role pack `kubernetes`: what the cluster controller (or `gp server init`) asks of one host.
 * `roles/kubernetes/pack.yaml` carries the JSON Schema generated from this, and the host validates by that copy.
 */
export const kubernetesRoleParameters = z.object({
	cluster: z
		.string()
		.max(63)
		.regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/)
		.describe("Name of the cluster."),
	clusterId: z
		.string()
		.max(64)
		.optional()
		.describe("UID of the Cluster object: a host that still belongs to an older cluster of that name is reset first."),
	mode: z
		.enum(["init", "join-control-plane", "join-worker", "server", "adopt-control-plane", "adopt-worker"])
		.describe(
			"Make the cluster here, join it, (server) make the management server's own single node, or (adopt) look after a node that others made.",
		),
	prepare: z
		.boolean()
		.default(false)
		.describe(
			"Do what needs no control plane yet: fetch, check and unpack. The role then is Applied without outputs. Not for a node.",
		),
	kubernetesVersion: z
		.string()
		.regex(/^v\d+\.\d+\.\d+$/)
		.describe("Version of Kubernetes; the same as the bundle's."),
	nodeName: z
		.string()
		.max(63)
		.regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/)
		.describe("Name of the Node, a DNS label."),
	nodeAddress: z.ipv4().optional().describe("Address of this node; the one of its default route when empty."),
	controlPlaneAddresses: z
		.array(z.ipv4())
		.max(16)
		.default([])
		.describe("Addresses of all control planes, for the host's load balancer; this node's own when empty."),
	endpoint: z
		.string()
		.max(253)
		.optional()
		.describe("A further name or address that the API server's certificate bears."),
	podSubnet: z.cidrv4().default("10.244.0.0/16"),
	serviceSubnet: z.cidrv4().default("10.96.0.0/12"),
	dnsDomain: z
		.string()
		.regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/)
		.default("cluster.local"),
	cni: z
		.enum(["flannel", "calico", "none"])
		.default("flannel")
		.describe("Network plugin; with none the cluster's people install theirs, and nodes are not ready before."),
	caCertHashes: z
		.array(z.string().regex(/^sha256:[0-9a-f]{64}$/))
		.default([])
		.describe("Pins of the cluster's CA (output caCertHash of the first control plane); needed to join."),
	bootstrapToken: z
		.string()
		.regex(/^[a-z0-9]{6}\.[a-z0-9]{16}$/)
		.optional()
		.describe("Secret. Made known to the cluster by init (24 h), used by joins. May vanish once all have joined."),
	certificateKey: z
		.string()
		.regex(/^[0-9a-f]{64}$/)
		.optional()
		.describe("Secret. Encrypts the control plane's certificates that init publishes for further control planes."),
	publishCertificates: z
		.string()
		.max(64)
		.optional()
		.describe("On a control plane: publish the certificates again whenever this value changes (they last two hours)."),
	formerControlPlanes: z
		.array(z.string().max(63))
		.max(16)
		.default([])
		.describe("On a control plane: nodes that will not come back; their members are removed from etcd."),
	labels: z
		.record(
			z.string().regex(/^(?!([^/]*\.)?(kubernetes|k8s)\.io\/)[A-Za-z0-9][-A-Za-z0-9_./]*$/),
			z.string().regex(/^[-A-Za-z0-9_.]*$/),
		)
		.default({})
		.describe("Labels of the Node, from when it registers; not those of Kubernetes, which a node may not give itself."),
	taints: z
		.array(
			z.object({
				key: z.string().regex(/^[A-Za-z0-9][-A-Za-z0-9_./]*$/),
				value: z
					.string()
					.regex(/^[-A-Za-z0-9_.]*$/)
					.default(""),
				effect: z.enum(["NoSchedule", "PreferNoSchedule", "NoExecute"]),
			}),
		)
		.max(32)
		.default([])
		.describe("Taints of the Node, from when it registers."),
	controlPlaneSchedulable: z.boolean().default(false),
	addons: z
		.object({
			coredns: z.boolean().default(true),
			kubeProxy: z.boolean().default(true),
			metricsServer: z.boolean().default(false),
			localPathStorage: z
				.object({ enabled: z.boolean().default(false), defaultClass: z.boolean().default(true) })
				.default({ enabled: false, defaultClass: true }),
			nodeExporter: z.boolean().default(false),
			prometheus: z
				.object({
					enabled: z.boolean().default(false),
					retention: z
						.string()
						.regex(/^\d+[hdwy]$/)
						.default("15d"),
					storage: z
						.string()
						.regex(/^\d+Gi$/)
						.default("8Gi"),
					dataSize: z
						.string()
						.regex(/^\d+MB$/)
						.default("6553MB")
						.describe("What Prometheus keeps of that on disk, in its own units; the rest is for what it works on."),
				})
				.default({ enabled: false, retention: "15d", storage: "8Gi", dataSize: "6553MB" }),
			sriov: z.boolean().default(false),
		})
		// Written out: the host reads this from a JSON Schema, which does not fill a default in.
		.default({
			coredns: true,
			kubeProxy: true,
			metricsServer: false,
			localPathStorage: { enabled: false, defaultClass: true },
			nodeExporter: false,
			prometheus: { enabled: false, retention: "15d", storage: "8Gi", dataSize: "6553MB" },
			sriov: false,
		}),
});
export type KubernetesRoleInput = z.input<typeof kubernetesRoleParameters>;

/** `RoleStatus.outputs` of the role. */
export interface KubernetesRoleOutputs {
	/** `sha256:HEX` over the CA's public key (control planes). */
	readonly caCertHash?: string;
	readonly kubeletVersion?: string;
	readonly nodeName?: string;
	readonly nodeAddress?: string;
	/** When the last snapshot of etcd before a change of version was taken (ISO 8601). */
	readonly etcdSnapshot?: string;
}
