import { z } from "zod";
import { agentUpdate, hostCheck, hostFacts, roleStatus } from "./facts.ts";

/**
 * The closed, versioned list of what passes over the control stream: one JSON object a line (NDJSON), 1 MiB at most.
 * Both ends validate; what is not on the list is dropped and counted. `gp-agent report` prints what would be sent.
 */
export const upMessage = z.discriminatedUnion("type", [
	/** What the host is and whether it meets the prerequisites. Sent on connect and when it changes. */
	z.object({
		type: z.literal("facts"),
		agentVersion: z.string(),
		/** Where it stands with another version of itself; absent from an agent that can't change its version. */
		agentUpdate: agentUpdate.optional(),
		facts: hostFacts,
		checks: z.array(hostCheck),
		certificateNotAfter: z.string(),
	}),
	/** A desired state was accepted, or refused with the code of the error. */
	z.object({
		type: z.literal("acknowledgement"),
		epoch: z.int(),
		generation: z.int(),
		accepted: z.boolean(),
		reason: z.string().optional(),
		message: z.string().optional(),
	}),
	/** All roles of the host and where they stand; always the whole list, so an absent role is gone. */
	z.object({ type: z.literal("roles"), generation: z.int(), roles: z.array(roleStatus) }),
	/** Ask for a new certificate (PKCS#10, PEM) before the old one ends. */
	z.object({ type: z.literal("certificate-request"), csr: z.string() }),
]);
export type UpMessage = z.output<typeof upMessage>;

export const downMessage = z.discriminatedUnion("type", [
	/** The signed desired state: a compact JWS over `DesiredState`. */
	z.object({ type: z.literal("desired-state"), jws: z.string() }),
	/** The renewed certificate with its chain (PEM), and the CA bundle to trust from now on. */
	z.object({ type: z.literal("certificate"), certificate: z.string(), caBundle: z.string() }),
	/** Report everything again. */
	z.object({ type: z.literal("report") }),
]);
export type DownMessage = z.output<typeof downMessage>;

/** Body of `POST /enroll/v1/hosts`. */
export const enrollRequest = z.object({
	csr: z.string().max(8192).describe("PKCS#10 in PEM; the key stays on the host."),
	name: z.string(),
	agentVersion: z.string(),
	/** The host's clock, seconds since the epoch: more than five minutes off is refused with ClockSkew. */
	time: z.number(),
	facts: hostFacts,
	checks: z.array(hostCheck),
});
export type EnrollRequest = z.output<typeof enrollRequest>;

/** Answer to an enrolment. */
export const enrollResponse = z.object({
	region: z.string(),
	host: z.string(),
	certificate: z.string().describe("The host's certificate and its chain, PEM."),
	caBundle: z.string().describe("The region's root, PEM."),
	desiredStateJwks: z
		.object({ keys: z.array(z.record(z.string(), z.unknown())) })
		.describe("Keys that sign desired state (RFC 7517)."),
	approved: z.boolean(),
});
export type EnrollResponse = z.output<typeof enrollResponse>;

/**
 * `/etc/groundplane/agent.json`: what the stamped configuration package puts on a host. It holds no secret;
 * the join token is a file of its own (`/etc/groundplane/join-token`, mode 0600), removed once it was used.
 */
export const agentConfig = z.object({
	region: z.string(),
	/** Where to dial, `host:port`. */
	address: z.string(),
	/** SNI of the tunnel. */
	tunnelServerName: z.string(),
	/** Path of the tunnel, where something on the way wants another one than the usual. */
	tunnelPath: z.string().startsWith("/").optional(),
	/** Base URL for enrolment. */
	enrollUrl: z.url(),
	/** The region's root certificate, PEM. */
	caBundle: z.string(),
	/** Public keys that sign release bundles (RFC 7517). */
	releaseJwks: z.object({ keys: z.array(z.record(z.string(), z.unknown())) }),
	/** Name under which the host enrols; the host's own name when empty. */
	hostName: z.string().optional(),
	/** `http://[user:password@]proxy:port`, used with CONNECT. Kept in a file of mode 0600. */
	proxy: z.url().optional(),
});
export type AgentConfig = z.output<typeof agentConfig>;
