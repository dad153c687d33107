import { createHash, randomBytes } from "node:crypto";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { Kysely } from "../kit/database.ts";
import type { AuthTables } from "./store.ts";

export const API_TOKEN_PREFIX = "gpt_";

export interface ApiToken {
	readonly id: string;
	readonly userId: string;
	readonly name: string;
	readonly createdAt: Date;
	readonly expiresAt: Date;
	readonly lastUsedAt: Date | null;
}

const columns = [
	"id",
	"user_id as userId",
	"name",
	"created_at as createdAt",
	"expires_at as expiresAt",
	"last_used_at as lastUsedAt",
] as const;

const hashOf = (token: string) => createHash("sha256").update(token).digest("hex");

/** Opaque tokens for programs. They are exchanged for access tokens (RFC 8693) and carry whatever roles their user has. */
export class ApiTokens {
	readonly #db: Kysely<AuthTables>;

	constructor(db: Kysely<AuthTables>) {
		this.#db = db;
	}

	/** Makes a token; `token` is shown this once. */
	async create(userId: string, name: string, expiresInMs: number): Promise<ApiToken & { token: string }> {
		const token = API_TOKEN_PREFIX + randomBytes(32).toString("base64url");
		const row = await this.#db
			.insertInto("api_tokens")
			.values({ user_id: userId, name, hash: hashOf(token), expires_at: new Date(Date.now() + expiresInMs) })
			.returning(columns)
			.executeTakeFirstOrThrow();
		return { ...row, token };
	}

	list(userId?: string): Promise<ApiToken[]> {
		const query = this.#db.selectFrom("api_tokens").select(columns).orderBy("created_at");
		return (userId === undefined ? query : query.where("user_id", "=", userId)).execute();
	}

	/** Revokes a token, of this user only when one is given. Throws NotFound. */
	async revoke(id: string, userId?: string): Promise<void> {
		const query = this.#db.deleteFrom("api_tokens").where("id", "=", id);
		const { numDeletedRows } = await (userId === undefined
			? query
			: query.where("user_id", "=", userId)
		).executeTakeFirst();
		if (numDeletedRows > 0n) return;
		throw new GroundplaneError("NotFound", `There is no API token ${id}.`, {
			next: "List the tokens with GET /auth/api/v1/tokens.",
		});
	}

	/** Id of the user whose token this is; nothing when it is unknown, expired or revoked. */
	async use(token: string): Promise<{ id: string; userId: string } | undefined> {
		if (!token.startsWith(API_TOKEN_PREFIX)) return undefined;
		const row = await this.#db
			.updateTable("api_tokens")
			.set({ last_used_at: new Date() })
			.where("hash", "=", hashOf(token))
			.where("expires_at", ">", new Date())
			.returning(["id", "user_id"])
			.executeTakeFirst();
		return row && { id: row.id, userId: row.user_id };
	}
}
