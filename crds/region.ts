import { z } from "zod";
import {
	type CrdDefinition,
	type CustomResource,
	cel,
	conditions,
	dnsLabel,
	domainName,
	duration,
	listMap,
	quantity,
} from "./common.ts";

/** Size of a volume: it can be raised where the StorageClass lets volumes grow, never lowered (Kubernetes can't shrink one). */
const volumeSize = (size: string) =>
	quantity
		.max(32)
		.meta(
			cel({ rule: "quantity(self).compareTo(quantity(oldSelf)) >= 0", message: "a volume can grow but not shrink" }),
		)
		.default(size);

const laneRate = z.int().min(1).max(100_000).default(128);

/** What a customer's region should be. */
export const regionSpec = z
	.object({
		customer: z.string().min(1).max(200).describe("Who the region belongs to, as it is shown in consoles and alerts."),
		domain: domainName
			.describe(
				"Domain that people and hosts dial on port 443: it must resolve to the provider's edge, and can't change, for hosts hold on to it. tunnel.DOMAIN, the TLS server name with which hosts ask for the tunnel there, needs no DNS record.",
			)
			.meta(
				cel(
					{
						rule: "self == oldSelf",
						message: "domain can't be changed: enrolled hosts dial it; make a new region instead",
					},
					{
						rule: "!self.startsWith('tunnel.')",
						message:
							"a domain can't begin with tunnel.: that is the TLS server name of the tunnel of the region of the rest",
					},
				),
			),
		release: z
			.string()
			.max(64)
			.optional()
			.describe("Version of the platform to run, such as 0.1.0. The operator's own version when empty."),
		paused: z
			.boolean()
			.default(false)
			.describe("While true the operator changes nothing in this region, and says so in the condition Paused."),
		tunnel: z
			.object({
				replicas: z
					.int()
					.min(1)
					.max(16)
					.default(1)
					.describe("Number of tunnel gateways. With two or more each host keeps a spare tunnel at another one."),
				hostMegabytesPerSecond: z
					.object({
						interactive: laneRate.describe(
							"Of what somebody waits for: requests to a host's API server, logs, copies.",
						),
						bulk: laneRate.describe("Of what nobody waits for: downloads of releases, metrics."),
					})
					.prefault({})
					.describe(
						"What one host may send and receive through its tunnel, both directions together and at each gateway. Whoever wants more waits; nothing is dropped.",
					),
			})
			.prefault({})
			.describe("The gateways that hosts dial."),
		database: z
			.object({
				storage: volumeSize("5Gi").describe("Size of PostgreSQL's volume."),
				memory: quantity.default("512Mi").describe("Memory limit of PostgreSQL."),
			})
			.prefault({})
			.describe("The region's PostgreSQL."),
		bus: z
			.object({ storage: volumeSize("1Gi").describe("Size of JetStream's volume.") })
			.prefault({})
			.describe("The region's NATS JetStream."),
		monitoring: z
			.object({
				storage: volumeSize("5Gi").describe("Size of Prometheus' volume."),
				retention: duration.default("360h").describe("How long Prometheus keeps samples."),
				scrapeInterval: duration.default("30s").describe("How often the plane's own services are scraped."),
				hostScrapeInterval: duration
					.default("120s")
					.describe("How often hosts and their clusters are scraped, over the customer's line."),
			})
			.prefault({})
			.describe("The region's Prometheus."),
		identity: z
			.object({
				accessTokenLifetime: duration.default("15m").describe("How long an access token is good for."),
				sessionLifetime: duration
					.default("12h")
					.describe("How long a sign-in lasts before the password is asked for again."),
			})
			.prefault({})
			.describe("Sign-in and tokens."),
		storageClass: z
			.string()
			.max(253)
			.optional()
			.describe(
				"StorageClass of all volumes; the cluster's default when empty. It can't be changed: volumes can't move.",
			),
		quota: z
			.object({
				cpu: quantity.default("8").describe("Sum of CPU requests in the region's namespace."),
				memory: quantity.default("8Gi").describe("Sum of memory limits in the region's namespace."),
			})
			.prefault({})
			.describe("ResourceQuota of the region's namespace."),
		hosts: z
			.object({
				certificateLifetime: duration
					.default("720h")
					.describe("Lifetime of a host's certificate; it renews itself at two thirds."),
				desiredStateLifetime: duration
					.default("168h")
					.describe("For how long a host that is cut off keeps acting on its last desired state."),
				forceRemoveAfter: duration
					.default("10m")
					.describe("A deleted host that can't be reached is forgotten after this long."),
			})
			.prefault({})
			.describe("Rules for the region's hosts."),
	})
	.meta(
		cel({
			rule: "has(self.storageClass) == has(oldSelf.storageClass) && (!has(self.storageClass) || self.storageClass == oldSelf.storageClass)",
			message: "storageClass can't be changed: volumes can't move; make a new region instead",
		}),
	)
	.describe("What the region should be.");

export const regionStatus = z.object({
	observedGeneration: z.int().min(0).optional(),
	phase: z
		.enum(["Pending", "Installing", "Ready", "Degraded", "Upgrading", "Paused", "Failed", "Deleting"])
		.optional()
		.describe("Summary for people; programs read conditions."),
	release: z.string().optional().describe("Version that is running."),
	namespace: dnsLabel.optional().describe("Namespace that everything of the region is in."),
	endpoints: z
		.object({
			console: z.string().optional().describe("Page for people."),
			api: z.string().optional().describe("REST API."),
			issuer: z.string().optional().describe("OpenID provider."),
			tunnel: z.string().optional().describe("TLS server name and port of the tunnel. Hosts dial the domain."),
		})
		.optional()
		.describe("Where people and hosts reach the region."),
	caDigest: z
		.string()
		.optional()
		.describe(
			"SHA-256 of the region's CA certificate (DER), hex: what people compare when they sign in for the first time.",
		),
	components: z
		.array(
			z.object({
				name: z.string(),
				version: z.string().optional(),
				ready: z.boolean(),
				replicas: z.string().optional().describe("Ready and wanted replicas, such as 1/1."),
				message: z.string().optional(),
			}),
		)
		.meta(listMap("name"))
		.optional()
		.describe("The region's parts and whether they are ready."),
	hosts: z.object({ total: z.int(), ready: z.int() }).optional().describe("Count of hosts."),
	clusters: z.object({ total: z.int(), ready: z.int() }).optional().describe("Count of clusters."),
	conditions: conditions.optional(),
});

export type RegionSpec = z.output<typeof regionSpec>;
export type RegionStatus = z.output<typeof regionStatus>;
export type Region = CustomResource<"Region", RegionSpec, RegionStatus>;

export const regionCrd: CrdDefinition = {
	kind: "Region",
	plural: "regions",
	singular: "region",
	shortNames: ["rgn"],
	scope: "Cluster",
	description:
		"A customer's deployment unit: it shares nothing with another region and holds that customer's hosts and clusters.",
	spec: regionSpec,
	status: regionStatus,
	rules: [
		{
			rule: "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
			message: "the name of a region is a DNS label of at most 40 characters",
		},
	],
	printerColumns: [
		{ name: "Customer", type: "string", jsonPath: ".spec.customer" },
		{ name: "Domain", type: "string", jsonPath: ".spec.domain" },
		{ name: "Phase", type: "string", jsonPath: ".status.phase" },
		{ name: "Release", type: "string", jsonPath: ".status.release" },
		{ name: "Hosts", type: "integer", jsonPath: ".status.hosts.ready" },
		{ name: "Clusters", type: "integer", jsonPath: ".status.clusters.ready" },
		{ name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp" },
		{ name: "Message", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
	],
};
