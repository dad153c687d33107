import { z } from "zod";

const time = z.string().meta({ format: "date-time" });

/** What the agent has measured on its host: evidence for where etcd should run. Each figure has its own time. */
export const hostMeasurements = z.object({
	fsync: z
		.object({
			at: time,
			writes: z.int().describe("How many writes the figures are of."),
			p50Ms: z.number().describe("Half of the fdatasyncs took no longer, in milliseconds."),
			p99Ms: z.number().describe("99 of 100 fdatasyncs took no longer, in milliseconds. etcd wants under 10."),
		})
		.optional()
		.describe("How long a small write takes to be on the disk that holds /var/lib/etcd (fdatasync)."),
	clock: z
		.object({
			at: time,
			offsetMs: z.int().describe("The host's clock minus the region's, in milliseconds."),
			uncertaintyMs: z.int().describe("The true offset is at most so far from offsetMs."),
		})
		.optional()
		.describe("How far the host's clock is off the region's."),
	peers: z
		.object({
			at: time,
			medianMs: z.number().optional().describe("The round trip in the middle of those that were answered."),
			roundTrips: z
				.array(
					z.object({
						address: z.string(),
						ms: z.number().optional().describe("Milliseconds; left out when nothing answered."),
					}),
				)
				.meta({ "x-kubernetes-list-type": "atomic" })
				.describe("Round trips to other hosts of the region, by their primary address."),
		})
		.optional()
		.describe("How far other hosts of the region are."),
});
export type HostMeasurements = z.output<typeof hostMeasurements>;

/** A node of a cluster that others made with kubeadm: what a region has to know before it adopts that cluster. */
export const foundKubernetes = z.object({
	nodeName: z.string().describe("Name of its Node."),
	caCertHash: z
		.string()
		.describe("sha256:HEX over the public key of the cluster's CA: nodes of one cluster have the same."),
	dnsDomain: z.string().describe("DNS domain of services, as the kubelet tells pods."),
	networks: z
		.array(z.string())
		.meta({ "x-kubernetes-list-type": "atomic" })
		.describe("Names of the networks that are configured for pods (CNI)."),
	controlPlane: z
		.object({
			version: z.string().describe("Version of the API server."),
			endpoint: z.string().describe("Address and port of this host's API server."),
			podSubnet: z.string().describe("Network of pods; empty where the network plugin hands out addresses by itself."),
			serviceSubnet: z.string().describe("Network of services."),
			etcd: z.enum(["stacked", "external"]).describe("Whether a member of etcd runs here, as kubeadm makes it."),
			missing: z
				.array(z.string())
				.meta({ "x-kubernetes-list-type": "atomic" })
				.describe("What is not here and would be needed: the key of the cluster's CA, kubeadm, kubectl."),
		})
		.optional()
		.describe("Present on a control plane."),
});
export type FoundKubernetes = z.output<typeof foundKubernetes>;

/** What a host is. Metadata only: nothing of what runs on it leaves the site. */
export const hostFacts = z.object({
	hostname: z.string(),
	machineId: z
		.string()
		.describe(
			"SHA-256 of /etc/machine-id with an application salt (machine-id(5)): it identifies, and does not disclose.",
		),
	architecture: z.string().describe("As Debian names it: amd64, arm64."),
	os: z.object({ id: z.string(), versionId: z.string(), prettyName: z.string() }),
	kernel: z.string(),
	cgroup: z.enum(["v1", "v2"]),
	cpu: z.object({ cores: z.int(), model: z.string() }),
	memoryBytes: z.int(),
	disks: z
		.array(z.object({ name: z.string(), sizeBytes: z.int(), rotational: z.boolean() }))
		.meta({ "x-kubernetes-list-type": "atomic" }),
	filesystems: z
		.array(z.object({ path: z.string(), sizeBytes: z.int(), availableBytes: z.int() }))
		.meta({ "x-kubernetes-list-type": "atomic" })
		.describe("Space, rounded to a gibibyte so that ordinary use changes nothing here."),
	interfaces: z
		.array(z.object({ name: z.string(), mac: z.string(), addresses: z.array(z.string()) }))
		.meta({ "x-kubernetes-list-type": "atomic" }),
	primaryAddress: z.string().describe("Address of the interface that holds the default route."),
	bootId: z.string(),
	kubernetes: foundKubernetes.optional().describe("A node of a cluster that others made with kubeadm."),
	measured: hostMeasurements.optional().describe("What the agent has measured, at first when it joined."),
});
export type HostFacts = z.output<typeof hostFacts>;

/** One prerequisite and its result. */
export const hostCheck = z.object({
	name: z.string().describe("Identifier such as swap, memory, clock."),
	ok: z.boolean(),
	severity: z.enum(["error", "warning"]).describe("An error keeps roles from being installed."),
	message: z.string().describe("What was found."),
	next: z.string().optional().describe("What to do about it."),
});
export type HostCheck = z.output<typeof hostCheck>;

/** Where a role stands on a host. */
export const rolePhase = z.enum(["Pending", "Applying", "Applied", "Failed", "Removing"]);

/** Progress of one role, as the agent reports it. */
export const roleStatus = z.object({
	name: z.string(),
	version: z.string(),
	phase: rolePhase,
	/** Steps done and in all; `step` is the one under way or failed. */
	done: z.int(),
	total: z.int(),
	step: z.string().optional(),
	reason: z.string().optional(),
	message: z.string().optional(),
	outputs: z.record(z.string(), z.string()).optional(),
});
export type RoleStatus = z.output<typeof roleStatus>;

/**
 * Where an agent stands with the version that its region wants it to run. An agent that says nothing of this can't change its
 * version by itself.
 */
export const agentUpdate = z.object({
	phase: z
		.enum(["Idle", "Fetching", "Trying", "Waiting", "Failed"])
		.describe("Waiting: a try ended for another reason than the version, and comes again."),
	version: z.string().optional().describe("The version that it is about; none when Idle."),
	reason: z.string().optional().describe("Error code from the closed list when something failed."),
	message: z.string().optional(),
});
export type AgentUpdate = z.output<typeof agentUpdate>;
