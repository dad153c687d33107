import { z } from "zod";
import {
	type CrdDefinition,
	type CustomResource,
	cel,
	cidr,
	conditions,
	dnsLabel,
	duration,
	listMap,
	listSet,
	timestamp,
} from "./common.ts";

/** Annotation, a time: a change of version that stopped before it is taken up again. */
export const RETRY = "groundplane.io/upgrade-retry";
/** Annotation, a version: that clients use APIs which it removes is accepted. */
export const ACCEPT = "groundplane.io/upgrade-accept";
/** Annotation `true`: when the cluster is deleted nothing is drained or waited for. */
export const FORCE_DELETE = "groundplane.io/force-delete";

/** How hosts are chosen. `most` bounds the names: the API server refuses rules whose cost it can't bound. */
const hostPick = (most: number) => ({
	hosts: z.array(dnsLabel).max(most).meta(listSet()).default([]).describe("Hosts by name."),
	selector: z
		.object({
			matchLabels: z.record(z.string(), z.string().max(63)).describe("Labels that a Host must carry."),
		})
		.optional()
		.describe("Hosts by label, instead of by name."),
	count: z.int().min(0).max(500).optional().describe("How many hosts the selector takes; all that match when empty."),
});

export const clusterSpec = z
	.object({
		version: z
			.string()
			.regex(/^v1\.\d+\.\d+$/)
			.max(20)
			.describe(
				"Kubernetes version, such as v1.36.3. It must be a release that the region offers. A change is rolled out host by host, one minor at a time, and can be taken back at any moment.",
			)
			// kubeadm and the skew policy of Kubernetes allow one minor; patches in between may be passed over.
			.meta(
				cel({
					rule: "int(self.split('.')[1]) - int(oldSelf.split('.')[1]) in [-1, 0, 1]",
					message: "a cluster changes by one minor version at a time: take the next one first",
				}),
			),
		adopt: z
			.boolean()
			.default(false)
			.meta(cel({ rule: "self == oldSelf", message: "whether a cluster is adopted is decided once, when it is made" }))
			.describe(
				"Take over a cluster that others made with kubeadm, as it is: hosts, version and networks are to be named as they are, and are compared. Nothing of it is changed, and it is left running when this Cluster is deleted.",
			),
		controlPlane: z
			.object(hostPick(9))
			.describe("Hosts that run etcd and the control plane: 1, 3 or 5, by name or by label.")
			.meta(
				cel(
					{
						rule: "has(self.selector) != (has(self.hosts) && self.hosts.size() > 0)",
						message: "give either hosts or a selector",
					},
					{
						rule: "has(self.selector) || self.hosts.size() in [1, 3, 5]",
						message:
							"the control plane needs 1, 3 or 5 hosts: an even number of etcd members tolerates no more failures than one less",
					},
					{
						rule: "!has(self.selector) || (has(self.count) && self.count in [1, 3, 5])",
						message: "with a selector, count must be 1, 3 or 5",
					},
				),
			),
		workers: z
			.array(
				z
					.object({
						name: dnsLabel.describe("Name of the pool."),
						...hostPick(100),
						labels: z.record(z.string(), z.string()).default({}).describe("Labels that the pool's nodes carry."),
						taints: z
							.array(
								z.object({
									key: z.string().describe("Key of the taint."),
									value: z.string().default("").describe("Value of the taint."),
									effect: z
										.enum(["NoSchedule", "PreferNoSchedule", "NoExecute"])
										.describe("What happens to pods that do not tolerate it."),
								}),
							)
							.max(32)
							.default([])
							.describe("Taints that the pool's nodes carry."),
					})
					.meta(
						cel({
							rule: "!(has(self.selector) && has(self.hosts) && self.hosts.size() > 0)",
							message: "give either hosts or a selector",
						}),
					),
			)
			.max(8)
			.meta(listMap("name"))
			.default([])
			.describe("Pools of workers. A pool of more than 100 hosts takes them by selector."),
		network: z
			.object({
				podSubnet: cidr.default("10.244.0.0/16").describe("Network of pods."),
				serviceSubnet: cidr.default("10.96.0.0/12").describe("Network of services."),
				dnsDomain: z.string().max(253).default("cluster.local").describe("DNS domain of services."),
				cni: z
					.enum(["flannel", "calico", "none"])
					.default("flannel")
					.describe(
						"Network plugin. calico needs a release that holds it. With none you bring your own: nodes are not ready, and the cluster waits, until you have installed it.",
					),
			})
			.prefault({})
			.meta(
				cel(
					{
						rule: "isCIDR(self.podSubnet) && isCIDR(self.serviceSubnet)",
						message: "podSubnet and serviceSubnet must be networks in CIDR notation",
					},
					{
						rule: "!isCIDR(self.podSubnet) || !isCIDR(self.serviceSubnet) || !(cidr(self.podSubnet).containsCIDR(self.serviceSubnet) || cidr(self.serviceSubnet).containsCIDR(self.podSubnet))",
						message: "podSubnet and serviceSubnet overlap",
					},
					{ rule: "self == oldSelf", message: "the networks of a cluster can't be changed after it was made" },
				),
			)
			.describe("Networks, fixed once the cluster was made."),
		endpoint: z
			.string()
			.max(253)
			.optional()
			.describe(
				"Address of the API server for clients at the site (a name or a virtual IP that the site provides). Not needed for access through the region. Decided when the cluster is made.",
			),
		controlPlaneSchedulable: z
			.boolean()
			.default(false)
			.describe("Whether ordinary pods may run on control-plane nodes."),
		addons: z
			.object({
				coredns: z
					.boolean()
					.default(true)
					.describe("CoreDNS: names of services and pods. Switched off, it takes its configuration with it."),
				kubeProxy: z
					.boolean()
					.default(true)
					.meta(
						cel({
							rule: "self == oldSelf",
							message:
								"whether a cluster has kube-proxy is decided when it is made: what it, or the plugin in its place, has written in the kernels of running nodes would stay there beside the other's",
						}),
					)
					.describe("kube-proxy: addresses of services on every node, by nftables. Decided when the cluster is made."),
				metricsServer: z
					.boolean()
					.default(false)
					.describe(
						"metrics-server: kubectl top and the HorizontalPodAutoscaler. Can be switched on and off at any time.",
					),
				localPathStorage: z
					.object({
						enabled: z
							.boolean()
							.default(false)
							.describe(
								"Whether it is there. Off unless wanted, because such a volume lives and dies with its host. Switched off, it deletes no data: volumes go on working, but none is made or removed any more.",
							),
						defaultClass: z
							.boolean()
							.default(true)
							.describe(
								"Whether claims that name no class get one. Say false when the cluster has another default class.",
							),
					})
					.prefault({})
					.describe(
						"Storage on the hosts' own disks (rancher's local-path-provisioner): StorageClass local-path. A volume is a directory below /var/lib/local-path-provisioner of one host, and its pods run there only. No size is enforced.",
					),
				nodeExporter: z
					.boolean()
					.default(false)
					.describe(
						"node-exporter: numbers about every host, at port 9100 of its address in the cluster, for whoever reaches that.",
					),
				prometheus: z
					.object({
						enabled: z.boolean().default(false).describe("Whether it is there."),
						retention: z
							.string()
							.regex(/^[1-9][0-9]{0,3}[hdwy]$/)
							.default("15d")
							.describe("How long numbers are kept, such as 36h, 15d, 8w or 1y. What does not fit goes before."),
						storage: z
							.string()
							.regex(/^[1-9][0-9]{0,3}Gi$/)
							.default("8Gi")
							.describe(
								"What it may take on disk. Not to be changed while the add-on is on: a volume of the hosts' own disks can't be.",
							),
					})
					.prefault({})
					.meta(
						cel({
							rule: "!(self.enabled && oldSelf.enabled) || self.storage == oldSelf.storage",
							message:
								"the storage of Prometheus can't be changed while it is on: switch it off, delete the claim kube-system/prometheus and its numbers, and switch it on with the other size",
						}),
					)
					.describe(
						"Prometheus: numbers of API servers, kubelets, containers, node-exporter, and pods and services that ask for it by annotation, at the Service prometheus in kube-system, port 9090. On a volume of localPathStorage where that is on; else the numbers go with the pod.",
					),
				sriov: z
					.boolean()
					.default(false)
					.describe(
						"SR-IOV: virtual functions of the hosts' network cards as second networks of pods, by Multus, the SR-IOV CNI plugin and its device plugin. Needs a release that holds them. Which functions there are, the ConfigMap kube-system/sriovdp-config says, which is yours to make.",
					),
			})
			.prefault({})
			.describe(
				"Add-ons of the release, at its versions: they change with the cluster, and each can be switched on and off at any time but kube-proxy. One that is off leaves its place to your own.",
			),
		upgradePolicy: z
			.object({
				maxUnavailableWorkers: z
					.int()
					.min(1)
					.max(50)
					.default(1)
					.describe("Workers that are taken out at the same time when the cluster is changed."),
				drainTimeout: duration
					.default("5m")
					.describe("How long a node may take to drain before it is taken out all the same."),
			})
			.prefault({})
			.describe("How much is taken out at once."),
	})
	.describe("What the cluster should be.")
	.meta(
		cel(
			{
				rule: "!has(self.workers) || self.workers.all(w, !has(w.hosts) || w.hosts.all(h, !(has(self.controlPlane.hosts) && h in self.controlPlane.hosts)))",
				message: "a host is named twice: in the control plane and in a worker pool",
			},
			{
				rule: "!has(self.workers) || self.workers.all(a, self.workers.all(b, a.name == b.name || !has(a.hosts) || !has(b.hosts) || a.hosts.all(h, !(h in b.hosts))))",
				message: "a host is named twice: in two worker pools",
			},
			{
				rule: "has(self.endpoint) == has(oldSelf.endpoint) && (!has(self.endpoint) || self.endpoint == oldSelf.endpoint)",
				message: "the endpoint of a cluster is decided when it is made: the certificates of its API servers bear it",
			},
			{
				rule: "!self.adopt || (self.network.cni == 'none' && !has(self.endpoint))",
				message:
					"an adopted cluster keeps its network plugin and its endpoint: give network.cni: none, and no endpoint",
			},
			{
				rule: "!self.adopt || (!has(self.controlPlane.selector) && (!has(self.workers) || self.workers.all(w, !has(w.selector))))",
				message: "an adopted cluster's hosts are given by name",
			},
			{
				rule: "!self.adopt || !has(self.workers) || self.workers.all(w, (!has(w.labels) || w.labels.size() == 0) && (!has(w.taints) || w.taints.size() == 0))",
				message: "labels and taints of an adopted cluster's nodes are not changed from here",
			},
		),
	);

export const clusterStatus = z.object({
	observedGeneration: z.int().min(0).optional(),
	phase: z
		.enum(["Pending", "Provisioning", "Ready", "Degraded", "Updating", "Failed", "Deleting"])
		.optional()
		.describe("Summary for people; programs read conditions."),
	version: z.string().optional().describe("Kubernetes version that is running."),
	endpoint: z.string().optional().describe("URL of the API server through the region."),
	progress: z
		.object({
			step: z.string().describe("What is being done now."),
			host: z.string().optional().describe("On which host."),
			detail: z.string().optional(),
			since: timestamp.optional(),
			usual: duration.optional().describe("How long this usually takes."),
			next: z.string().optional().describe("What comes after it."),
		})
		.optional()
		.describe("What is under way."),
	upgrade: z
		.object({
			from: z.string().describe("Version that the cluster had."),
			to: z.string().describe("Version that it is brought to."),
			since: timestamp.describe("When it began."),
			notes: z.array(z.string()).optional().describe("What was to be known before it began."),
			finished: timestamp.optional().describe("When all hosts had the version."),
			hosts: z
				.array(
					z.object({
						host: z.string(),
						from: z.string().describe("Version that worked here before: it is put back when the new one fails."),
						to: z.string().describe("Version that the host was asked to take."),
						since: timestamp.describe("When its turn came."),
						applied: timestamp.optional().describe("When it was asked to take the version, after its pods were moved."),
						failing: timestamp.optional().describe("Since when it has failed."),
						finished: timestamp.optional().describe("When its checks passed."),
					}),
				)
				.meta(listMap("host"))
				.describe("Hosts whose turn has come."),
			stopped: z
				.object({
					host: z.string(),
					to: z.string().describe("Version that failed."),
					at: timestamp,
					message: z.string(),
				})
				.optional()
				.describe(
					"A host failed and was put back, and no other is taken. Another spec.version, or gp cluster upgrade once more, goes on.",
				),
		})
		.optional()
		.describe("The change of version that is under way, or the last one."),
	members: z
		.array(
			z.object({
				host: z.string(),
				role: z.enum(["control-plane", "worker"]),
				pool: z.string().optional(),
				version: z.string().optional().describe("Version of the kubelet."),
				phase: z.enum(["Waiting", "Joining", "Ready", "Updating", "NotReady", "Failed", "Leaving"]),
				message: z.string().optional(),
			}),
		)
		.meta(listMap("host"))
		.optional()
		.describe("The cluster's hosts and how each is doing."),
	controlPlaneInitialized: z
		.boolean()
		.optional()
		.describe("Whether the first control plane has been made: from then on it is never made again."),
	lastBackup: timestamp.optional().describe("When the last good backup was made."),
	ready: z.string().optional().describe("Ready nodes of all, such as 3/3."),
	conditions: conditions.optional(),
});

export type ClusterSpec = z.output<typeof clusterSpec>;
export type ClusterStatus = z.output<typeof clusterStatus>;
export type Cluster = CustomResource<"Cluster", ClusterSpec, ClusterStatus>;

export const clusterCrd: CrdDefinition = {
	kind: "Cluster",
	plural: "clusters",
	singular: "cluster",
	shortNames: ["gpc"],
	scope: "Namespaced",
	description: "A Kubernetes cluster on the customer's hosts.",
	spec: clusterSpec,
	status: clusterStatus,
	rules: [
		{
			rule: "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
			message: "the name of a cluster is a DNS label of at most 40 characters",
		},
	],
	printerColumns: [
		{ name: "Phase", type: "string", jsonPath: ".status.phase" },
		{ name: "Version", type: "string", jsonPath: ".status.version" },
		{ name: "Ready", type: "string", jsonPath: ".status.ready" },
		{ name: "Step", type: "string", jsonPath: ".status.progress.step" },
		{ name: "Host", type: "string", jsonPath: ".status.progress.host" },
		{ name: "Since", type: "date", jsonPath: ".status.progress.since" },
		{ name: "Usual", type: "string", jsonPath: ".status.progress.usual" },
		{ name: "Next", type: "string", jsonPath: ".status.progress.next" },
		{ name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp" },
		{ name: "Detail", type: "string", jsonPath: ".status.progress.detail", priority: 1 },
		{ name: "Message", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
	],
};
