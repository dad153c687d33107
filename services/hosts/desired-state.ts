import { createHash, createPrivateKey, type KeyObject } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { CompactSign } from "jose";
import { z } from "zod";
import { ASKED, EPOCH, type Host } from "../../crds/host.ts";
import { DESIRED_STATE_TYPE, type DesiredRole, type DesiredState } from "../../protocol/desired-state.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { Document } from "./inventory.ts";

/** What a document says, apart from numbers and times. */
export type Content = Pick<DesiredState, "epoch" | "paused" | "roles" | "agent">;

/** Decoded content of the Secrets that the host's roles name, by name. */
export type RoleSecrets = ReadonlyMap<string, Readonly<Record<string, string>>>;

/** Names of the Secrets whose content the host's document needs. */
export function secretNames(host: Host): string[] {
	if (!gets(host)) return [];
	return [...new Set(host.spec.roles.flatMap(({ secretName }) => secretName ?? []))];
}

/**
 * What a Host's document says. A host that is being deleted gets an empty one, so that its agent takes everything away, even
 * in maintenance; one that isn't approved is told nothing.
 */
export function contentOf(host: Host, secrets: RoleSecrets, agent?: Content["agent"]): Content {
	const annotated = Number(host.metadata.annotations?.[EPOCH] ?? 0);
	const epoch = Number.isSafeInteger(annotated) && annotated >= 0 ? annotated : 0;
	const deleting = host.metadata.deletionTimestamp !== undefined;
	if (deleting) return { epoch, paused: false, roles: [] };
	const roles = gets(host) ? host.spec.roles.map((role) => withSecret(role, secrets)) : [];
	return { epoch, paused: !host.spec.approved || host.spec.maintenance, roles, ...(agent && { agent }) };
}

/** A question of that age is not asked any more: whoever wanted to know has learnt it otherwise. */
const ASKED_MS = 60_000;

/** Whether a host is to be asked if it is there: somebody wants to know, and it was not asked on that account (`before`). */
export function isAsked({ metadata }: Host, before: string | undefined, now: number): boolean {
	const asked = metadata.annotations?.[ASKED];
	return asked !== undefined && asked !== before && Math.abs(now - Date.parse(asked)) < ASKED_MS;
}

const gets = (host: Host) => host.spec.approved && host.metadata.deletionTimestamp === undefined;

function withSecret(
	{ name, version, parameters, secretName }: Host["spec"]["roles"][number],
	secrets: RoleSecrets,
): DesiredRole {
	const secret = secretName === undefined ? {} : secrets.get(secretName);
	if (secret === undefined) {
		throw new GroundplaneError("NotFound", `The role ${name} needs Secret ${secretName}, which is not there.`, {
			next: `Create Secret ${secretName} in the region's namespace, or correct secretName of the role.`,
		});
	}
	return { name, version, parameters: { ...parameters, ...secret } };
}

/** SHA-256 of a value's JSON with its keys in order: of a document's content, of a status. */
export const digestOf = (value: object): string => createHash("sha256").update(canonical(value)).digest("hex");

function canonical(value: unknown): string {
	if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
	if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
	const entries = Object.entries(value).filter(([, item]) => item !== undefined);
	entries.sort(([a], [b]) => (a < b ? -1 : 1));
	return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonical(item)}`).join(",")}}`;
}

/**
 * The document that must be out: the last one while it says the same and less than half of its life is over, else a new one.
 * Generations never fall, not even when the database was lost: they are at least the time in seconds.
 */
export function nextDocument(
	last: Document | undefined,
	{
		content,
		objectGeneration,
		now,
		lifetimeMs,
	}: { content: Content; objectGeneration: number; now: number; lifetimeMs: number },
): Document {
	const digest = digestOf(content);
	if (last && last.digest === digest && now < renewAt(last)) return { ...last, objectGeneration };
	const seconds = Math.floor(now / 1000);
	return {
		generation: Math.max((last?.generation ?? 0) + 1, seconds),
		epoch: content.epoch,
		objectGeneration,
		digest,
		issuedAt: new Date(seconds * 1000),
		validUntil: new Date(seconds * 1000 + lifetimeMs),
	};
}

/** When a document is replaced by a fresh one: at half of its life. */
export const renewAt = ({ issuedAt, validUntil }: Document): number => (issuedAt.getTime() + validUntil.getTime()) / 2;

const jwkSet = z.object({ keys: z.array(z.record(z.string(), z.unknown())).min(1) });
const privateJwk = z.looseObject({ kty: z.literal("OKP"), crv: z.literal("Ed25519"), kid: z.string().optional() });

/** Signs desired state with the region's key (Secret `desired-state-key`). */
export class DesiredStateSigner {
	readonly #key: KeyObject;
	readonly #kid: string | undefined;
	readonly #region: string;
	/** Public keys, for hosts to verify with. */
	readonly jwks: z.output<typeof jwkSet>;

	constructor(key: KeyObject, kid: string | undefined, jwks: z.output<typeof jwkSet>, region: string) {
		this.#key = key;
		this.#kid = kid;
		this.jwks = jwks;
		this.#region = region;
	}

	static async load(directory: string, region: string): Promise<DesiredStateSigner> {
		try {
			const read = async (name: string) => JSON.parse(await readFile(join(directory, name), "utf8"));
			const jwks = jwkSet.parse(await read("public.jwks"));
			const jwk = privateJwk.parse(await read("private.jwk"));
			const kid = jwk.kid ?? (typeof jwks.keys[0]?.kid === "string" ? jwks.keys[0].kid : undefined);
			return new DesiredStateSigner(createPrivateKey({ key: jwk, format: "jwk" }), kid, jwks, region);
		} catch (cause) {
			throw new GroundplaneError("InvalidConfiguration", `No usable desired-state key in ${directory}.`, {
				next: "Check that Secret desired-state-key is mounted there with private.jwk and public.jwks.",
				cause,
			});
		}
	}

	/**
	 * The compact JWS of a document. Signing the same one again gives the same bytes (Ed25519 is deterministic), but for `peers`: they are
	 * a hint of that moment, and a document isn't made anew when others come or go.
	 */
	async sign(
		host: string,
		{ generation, issuedAt, validUntil }: Document,
		content: Content,
		peers: readonly string[] = [],
	): Promise<string> {
		const state: DesiredState = {
			region: this.#region,
			host,
			epoch: content.epoch,
			generation,
			issuedAt: issuedAt.getTime() / 1000,
			validUntil: validUntil.getTime() / 1000,
			paused: content.paused,
			roles: content.roles,
			...(content.agent && { agent: content.agent }),
			...(peers.length > 0 && { peers: [...peers] }),
		};
		return new CompactSign(Buffer.from(JSON.stringify(state)))
			.setProtectedHeader({ alg: "EdDSA", typ: DESIRED_STATE_TYPE, ...(this.#kid !== undefined && { kid: this.#kid }) })
			.sign(this.#key);
	}
}
