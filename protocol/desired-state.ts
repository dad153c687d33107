import { z } from "zod";

/** One role of a host's desired state, with secrets already merged into its parameters. */
export const desiredRole = z.object({
	name: z.string(),
	version: z.string(),
	parameters: z.record(z.string(), z.unknown()),
});
export type DesiredRole = z.output<typeof desiredRole>;

/**
 * What a host should be: the payload of a compact JWS (RFC 7515, EdDSA, `typ: "groundplane-desired-state+jwt"`) signed by the
 * region's desired-state key. A host refuses it when the signature, region or host is wrong, when it is past `validUntil`,
 * or when (epoch, generation) is older than the last one it accepted.
 */
export const desiredState = z.object({
	region: z.string(),
	host: z.string(),
	epoch: z.int().min(0),
	generation: z.int().min(0),
	issuedAt: z.int().describe("Seconds since the epoch."),
	validUntil: z.int().describe("Seconds since the epoch."),
	paused: z.boolean().describe("Maintenance or not approved: keep what is there, change nothing."),
	roles: z.array(desiredRole),
	peers: z
		.array(z.string())
		.optional()
		.describe("Addresses of a few other hosts of the region, for a free host to measure how far they are."),
	agent: z
		.object({
			version: z.string(),
			retry: z.string().optional().describe("Another word than last time: try a version again that failed."),
		})
		.optional()
		.describe("Version that the agent itself should have. Without it, the agent stays what it is."),
});
export type DesiredState = z.output<typeof desiredState>;

export const DESIRED_STATE_TYPE = "groundplane-desired-state+jwt";
