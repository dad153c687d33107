import { createHash, randomBytes } from "node:crypto";
import type { Kysely, Selectable, Transaction } from "kysely";
import { z } from "zod";
import { dnsLabel } from "../../crds/common.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { durationVariable } from "../kit/config.ts";
import type { HostsDatabase, JoinTokenTable } from "./database.ts";

/** Body of `POST /api/v1/join-tokens`. */
export const joinTokenRequest = z.strictObject({
	uses: z.int().min(1).max(10_000).default(1).describe("How many machines may enrol with it."),
	lifetime: durationVariable
		.refine((ms) => ms >= 60_000 && ms <= 30 * 24 * 3_600_000, "must be between 1m and 720h")
		.prefault("1h")
		.describe("For how long it is good, such as 1h."),
	approve: z.boolean().default(true).describe("Whether hosts that enrol with it are approved at once."),
	hostName: dnsLabel.optional().describe("The only name under which a host may enrol with it."),
});
export type JoinTokenRequest = z.output<typeof joinTokenRequest>;

/** A token as it is listed: without the token. */
export interface JoinToken {
	id: string;
	uses: number;
	usesLeft: number;
	approve: boolean;
	hostName?: string;
	createdBy: string;
	createdAt: string;
	expiresAt: string;
}

/** `gpj_` and 256 random bits, so that it is known for what it is wherever it turns up. */
export const JOIN_TOKEN = /^gpj_[A-Za-z0-9_-]{43}$/;

const hashOf = (token: string) => createHash("sha256").update(token).digest();

const usedUp = () =>
	new GroundplaneError("JoinTokenUsedUp", "This join token has been used as often as it may be.", { next });

const next = "Ask for a new one with `gp host join-command`.";

/** What a bearer token of an enrolment is worth. Used up does not count for a machine that used it already (`used`). */
export function checkJoinToken<T extends Pick<Selectable<JoinTokenTable>, "uses_left" | "expires_at">>(
	token: T | undefined,
	{ used, now }: { used: boolean; now: number },
): T {
	if (!token) throw new GroundplaneError("JoinTokenInvalid", "This join token is not known here.", { next });
	if (token.expires_at.getTime() <= now) {
		throw new GroundplaneError("JoinTokenExpired", `This join token expired at ${token.expires_at.toISOString()}.`, {
			next,
		});
	}
	if (token.uses_left === 0 && !used) {
		throw usedUp();
	}
	return token;
}

/** Short-lived secrets with which machines enrol. Only their hashes are kept. */
export class JoinTokens {
	readonly #db: Kysely<HostsDatabase>;
	readonly #now: () => number;

	constructor(db: Kysely<HostsDatabase>, now: () => number) {
		this.#db = db;
		this.#now = now;
	}

	/** Makes a token; it is shown this once. Forgets those that expired a week ago, and who came with them. */
	async create(request: JoinTokenRequest, createdBy: string): Promise<JoinToken & { token: string }> {
		const weekAgo = new Date(this.#now() - 7 * 24 * 3_600_000);
		await this.#db.deleteFrom("join_tokens").where("expires_at", "<", weekAgo).execute();
		const token = `gpj_${randomBytes(32).toString("base64url")}`;
		const row = await this.#db
			.insertInto("join_tokens")
			.values({
				id: randomBytes(6).toString("hex"),
				hash: hashOf(token),
				uses: request.uses,
				uses_left: request.uses,
				approve: request.approve,
				host_name: request.hostName ?? null,
				created_by: createdBy,
				created_at: new Date(this.#now()),
				expires_at: new Date(this.#now() + request.lifetime),
			})
			.returningAll()
			.executeTakeFirstOrThrow();
		return { ...shown(row), token };
	}

	/** Tokens that are still good for something, newest first. */
	async list(): Promise<JoinToken[]> {
		const rows = await this.#db
			.selectFrom("join_tokens")
			.selectAll()
			.where("expires_at", ">", new Date(this.#now()))
			.where("uses_left", ">", 0)
			.orderBy("created_at", "desc")
			.limit(1000)
			.execute();
		return rows.map(shown);
	}

	async revoke(id: string): Promise<void> {
		const { numDeletedRows } = await this.#db.deleteFrom("join_tokens").where("id", "=", id).executeTakeFirstOrThrow();
		if (numDeletedRows === 0n) {
			throw new GroundplaneError("NotFound", `There is no join token ${id}.`, { next: "See `gp token list --join`." });
		}
	}

	/** The token behind a bearer token, if it may still be used by somebody. */
	async verify(bearer: string): Promise<JoinToken> {
		const row = await this.#db
			.selectFrom("join_tokens")
			.selectAll()
			.where("hash", "=", hashOf(bearer))
			.executeTakeFirst();
		return shown(checkJoinToken(row, { used: false, now: this.#now() }));
	}

	/** The token for an enrolment of `machineId`, if it may be used. Nothing is locked: {@link use} has the last word. */
	async check(
		db: Transaction<HostsDatabase>,
		bearer: string,
		machineId: string,
	): Promise<Selectable<JoinTokenTable> & { used: boolean }> {
		const row = await db
			.selectFrom("join_tokens as token")
			.selectAll("token")
			.select((query) =>
				query
					.exists(
						query
							.selectFrom("enrolments")
							.select("host")
							.whereRef("token_id", "=", "token.id")
							.where("machine_id", "=", machineId),
					)
					.as("used"),
			)
			.where("hash", "=", hashOf(bearer))
			.executeTakeFirst();
		const used = Boolean(row?.used);
		return { ...checkJoinToken(row, { used, now: this.#now() }), used };
	}

	/**
	 * Counts one use, last in an enrolment's transaction: the row is locked from here to its end, and all machines that enrol with
	 * one token take turns for no longer. Throws JoinTokenUsedUp when others were quicker.
	 */
	async use(transaction: Transaction<HostsDatabase>, id: string, machineId: string, host: string): Promise<void> {
		const row = await transaction
			.updateTable("join_tokens")
			.set((column) => ({ uses_left: column("uses_left", "-", 1) }))
			.where("id", "=", id)
			.where("uses_left", ">", 0)
			.returning("uses_left")
			.executeTakeFirst();
		if (!row) throw usedUp();
		await transaction.insertInto("enrolments").values({ token_id: id, machine_id: machineId, host }).execute();
	}
}

function shown(row: Selectable<JoinTokenTable>): JoinToken {
	return {
		id: row.id,
		uses: row.uses,
		usesLeft: row.uses_left,
		approve: row.approve,
		...(row.host_name !== null && { hostName: row.host_name }),
		createdBy: row.created_by,
		createdAt: row.created_at.toISOString(),
		expiresAt: row.expires_at.toISOString(),
	};
}
