import { readFileSync } from "node:fs";
import { join } from "node:path";
import { compactVerify, createLocalJWKSet, type JSONWebKeySet } from "jose";
import { DESIRED_STATE_TYPE, type DesiredState, desiredState } from "../protocol/desired-state.ts";
import { GroundplaneError } from "../protocol/errors.ts";
import { writeDurable } from "./primitives/durable.ts";

const FILE = "desired-state.jws";

/** What a document is judged by. */
export interface Expectation {
	jwks: JSONWebKeySet;
	region: string;
	host: string;
	/** The one accepted last. */
	last: Pick<DesiredState, "epoch" | "generation" | "issuedAt"> | undefined;
	/** Seconds since the epoch. */
	now: number;
}

/** Verifies a document of desired state. Throws SignatureInvalid, DesiredStateExpired or DesiredStateStale. */
export async function verifyDesiredState(
	jws: string,
	{ jwks, region, host, last, now }: Expectation,
): Promise<DesiredState> {
	const state = await openDesiredState(jws, jwks);
	if (state.region !== region || state.host !== host) {
		throw new GroundplaneError(
			"SignatureInvalid",
			`the document is for ${state.host} of region ${state.region}, and this is ${host} of ${region}`,
			{ next: "Look at the region's hosts service: it sent another host's document here." },
		);
	}
	if (state.validUntil < now) {
		throw new GroundplaneError(
			"DesiredStateExpired",
			`the document was valid until ${new Date(state.validUntil * 1000).toISOString()}`,
			{ next: "Check this host's clock (timedatectl); the region signs a new document by itself." },
		);
	}
	if (
		last &&
		(state.epoch < last.epoch ||
			(state.epoch === last.epoch &&
				(state.generation < last.generation ||
					(state.generation === last.generation && state.issuedAt < last.issuedAt))))
	) {
		throw new GroundplaneError(
			"DesiredStateStale",
			`the document (epoch ${state.epoch}, generation ${state.generation}) is older than the one that counts (${last.epoch}, ${last.generation})`,
			{ next: "Nothing: the region sends the newest one when the host reports." },
		);
	}
	return state;
}

async function openDesiredState(jws: string, jwks: JSONWebKeySet): Promise<DesiredState> {
	try {
		const { payload, protectedHeader } = await compactVerify(jws, createLocalJWKSet(jwks), {
			algorithms: ["EdDSA", "Ed25519"],
		});
		if (protectedHeader.typ !== DESIRED_STATE_TYPE) throw new Error(`typ is ${protectedHeader.typ}`);
		return desiredState.parse(JSON.parse(new TextDecoder().decode(payload)));
	} catch (cause) {
		throw new GroundplaneError("SignatureInvalid", "the document is not signed by this region's key", {
			next: "If the region was made anew, enrol the host again with a new join command.",
			cause,
		});
	}
}

/** Keeps the document that counts, for a restart without the region. */
export async function keepDesiredState(stateDir: string, jws: string): Promise<void> {
	await writeDurable(join(stateDir, FILE), jws, 0o600);
}

/** The document that was kept, its signature verified again; undefined when there is none that can be believed. */
export async function keptDesiredState(
	stateDir: string,
	{ jwks, region, host }: Pick<Expectation, "jwks" | "region" | "host">,
): Promise<DesiredState | undefined> {
	try {
		// It may have ended meanwhile: the engine then changes nothing, but goes on saying where things stand.
		return await verifyDesiredState(readFileSync(join(stateDir, FILE), "utf8"), {
			jwks,
			region,
			host,
			last: undefined,
			now: 0,
		});
	} catch {
		return undefined;
	}
}
