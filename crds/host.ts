import { z } from "zod";
import { agentUpdate, hostCheck, hostFacts, rolePhase } from "../protocol/facts.ts";
import { type CrdDefinition, type CustomResource, conditions, dnsLabel, listMap, timestamp } from "./common.ts";

/**
 * Annotation: epoch of the operator that last said what the host should be. It goes into the signed document, of which the host
 * refuses an older one, and an admission policy refuses a write with an older one than the Lease has (charts/groundplane). So
 * whoever applies `spec.roles` applies it too; a takeover alone writes nothing.
 */
export const EPOCH = "groundplane.io/epoch";
/**
 * Annotation, a time: when somebody last needed to know whether the host is there. The hosts service asks it then, so that one
 * without power is known in seconds, and not at the end of a long silence.
 */
export const ASKED = "groundplane.io/asked";

/** A role that a host should play: the name of a role pack, its version and its parameters. */
export const hostRole = z.object({
	name: dnsLabel.describe("Name of the role pack, such as kubernetes."),
	version: z.string().max(64).describe("Version of the role's release bundle, such as v1.36.3."),
	parameters: z
		.record(z.string(), z.unknown())
		.default({})
		.meta({ "x-kubernetes-preserve-unknown-fields": true })
		.describe("Parameters of the role, validated by the role pack's own schema on the host."),
	secretName: z
		.string()
		.max(253)
		.optional()
		.describe("Secret in the same namespace whose keys are added to the parameters of the signed document."),
});
export type HostRole = z.output<typeof hostRole>;

export const hostSpec = z
	.object({
		approved: z
			.boolean()
			.default(false)
			.describe(
				"Whether the plane may work on this host. False after an enrolment whose join token does not approve (gp host join-command --no-approve), until a person sets it.",
			),
		maintenance: z
			.boolean()
			.default(false)
			.describe("While true nothing is changed on the host, and no cluster picks it."),
		agentUpdates: z
			.enum(["Automatic", "Manual"])
			.optional()
			.describe(
				"Whether the region changes the agent's version to its own, a few hosts at a time and with a way back. Automatic when empty.",
			),
		roles: z
			.array(hostRole)
			.max(16)
			.meta(listMap("name"))
			.default([])
			.describe("What the host should be. Written by the cluster controller, or by hand."),
	})
	.describe("What the host should be.");

export const hostStatus = z.object({
	observedGeneration: z.int().min(0).optional(),
	phase: z
		.enum(["Pending", "AwaitingApproval", "Ready", "Working", "Disconnected", "Maintenance", "Failed", "Deleting"])
		.optional()
		.describe("Summary for people; programs read conditions."),
	facts: hostFacts.optional().describe("What the host is, as its agent reports it."),
	checks: z
		.array(hostCheck)
		.meta(listMap("name"))
		.optional()
		.describe("Prerequisites, each with its result and what to do."),
	agent: z
		.object({
			version: z.string().optional().describe("Version of the agent."),
			certificateNotAfter: timestamp
				.optional()
				.describe("When the host's certificate ends; it is renewed at two thirds of its life."),
			update: agentUpdate
				.optional()
				.describe("Where it stands with another version of itself; absent when it can't change its version."),
		})
		.optional()
		.describe("The agent on the host."),
	connection: z
		.object({
			state: z.enum(["Connected", "Disconnected"]).describe("Whether the tunnel is open."),
			gateway: z.string().optional().describe("Gateway pod that holds the tunnel."),
			address: z.string().optional().describe("Address that the tunnel came from."),
			since: timestamp.optional().describe("Since when it has been so."),
			reason: z.string().optional().describe("Error code of what closed the tunnel."),
		})
		.optional()
		.describe("The tunnel that the host has dialled."),
	desiredState: z
		.object({
			generation: z.int().optional().describe("metadata.generation that the last signed document was made from."),
			acknowledgedGeneration: z.int().optional().describe("metadata.generation that the host has accepted."),
			reportedGeneration: z
				.int()
				.optional()
				.describe("metadata.generation that the host was working on when it reported status.roles."),
			validUntil: timestamp.optional().describe("When the last signed document expires."),
		})
		.optional()
		.describe("How far the wanted state has got on its way to the host, all in terms of metadata.generation."),
	cluster: z.string().optional().describe("Cluster that the host belongs to."),
	roles: z
		.array(
			z.object({
				name: z.string(),
				version: z.string().optional(),
				phase: rolePhase,
				step: z.string().optional().describe("What is being done now, or what failed."),
				progress: z.string().optional().describe("Steps done and in all, such as 7/19."),
				reason: z.string().optional().describe("Error code from the closed list when something failed."),
				message: z.string().optional(),
				outputs: z
					.record(z.string(), z.string())
					.optional()
					.describe("What the role tells the plane, such as the digest of a cluster's CA. Never a secret."),
			}),
		)
		.meta(listMap("name"))
		.optional()
		.describe("Progress of each role."),
	leftBehind: z
		.array(
			z.object({
				role: z.string(),
				cluster: z.string().optional().describe("Cluster that it was of."),
				since: timestamp.describe("When it was taken off the host's wanted state."),
				message: z.string().describe("What is there, and when it goes."),
			}),
		)
		.meta(listMap("role"))
		.optional()
		.describe(
			"What a cluster that is gone could not clean here. It is cleaned as soon as the host is in contact again.",
		),
	conditions: conditions.optional(),
});

export type HostSpec = z.output<typeof hostSpec>;
export type HostStatus = z.output<typeof hostStatus>;
export type Host = CustomResource<"Host", HostSpec, HostStatus>;

export const hostCrd: CrdDefinition = {
	kind: "Host",
	plural: "hosts",
	singular: "host",
	shortNames: ["gph"],
	scope: "Namespaced",
	description: "A machine at the customer's site whose agent dialled out to the region.",
	spec: hostSpec,
	status: hostStatus,
	rules: [
		{
			rule: "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
			message: "the name of a host is a DNS label",
		},
	],
	printerColumns: [
		{ name: "Phase", type: "string", jsonPath: ".status.phase" },
		{ name: "Connection", type: "string", jsonPath: ".status.connection.state" },
		{ name: "Cluster", type: "string", jsonPath: ".status.cluster" },
		{ name: "OS", type: "string", jsonPath: ".status.facts.os.prettyName" },
		{ name: "Agent", type: "string", jsonPath: ".status.agent.version" },
		{ name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp" },
		{
			name: "Zone",
			type: "string",
			jsonPath: ".metadata.labels.topology\\.kubernetes\\.io/zone",
			description: "Failure domain.",
			priority: 1,
		},
		{
			name: "Fsync p99 ms",
			type: "number",
			jsonPath: ".status.facts.measured.fsync.p99Ms",
			description: "99 of 100 fdatasyncs took no longer. etcd wants under 10.",
			priority: 1,
		},
		{
			name: "Clock ms",
			type: "integer",
			jsonPath: ".status.facts.measured.clock.offsetMs",
			description: "The host's clock minus the region's.",
			priority: 1,
		},
		{
			name: "Peers ms",
			type: "number",
			jsonPath: ".status.facts.measured.peers.medianMs",
			description: "Median round trip to other hosts of the region.",
			priority: 1,
		},
		{ name: "Message", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
	],
};
