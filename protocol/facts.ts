import { z } from "zod";

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
