import { createHash } from "node:crypto";
import type { Adapter, AdapterPayload } from "oidc-provider";
import { type Kysely, sql } from "../kit/database.ts";
import type { AuthTables } from "./store.ts";

/** Models whose id is the very secret that the client holds: only its hash is kept. */
const SECRET_IDS = new Set(["RefreshToken", "AuthorizationCode"]);
const GRANTABLE = ["AccessToken", "AuthorizationCode", "RefreshToken", "DeviceCode"];

/** Keeps what oidc-provider has to remember in PostgreSQL, so that a restart signs nobody out. */
export function postgresAdapter(db: Kysely<AuthTables>): (model: string) => Adapter {
	return (model) => {
		const secret = SECRET_IDS.has(model);
		const keyOf = (id: string) => (secret ? createHash("sha256").update(id).digest("hex") : id);
		const select = () =>
			db
				.selectFrom("oidc_models")
				.select("payload")
				.where("model", "=", model)
				.where((where) => where.or([where("expires_at", "is", null), where("expires_at", ">", new Date())]));
		const payloadOf = (row: { payload: Record<string, unknown> } | undefined, id?: string) =>
			row && ({ ...row.payload, ...(secret && id !== undefined && { jti: id }) } as AdapterPayload);

		return {
			async upsert(id, payload, expiresIn) {
				const { jti, ...withoutId } = payload;
				const row = {
					payload: JSON.stringify(secret ? withoutId : payload),
					account_id: payload.accountId ?? null,
					grant_id: payload.grantId ?? (model === "Grant" ? id : null),
					user_code: payload.userCode ?? null,
					uid: payload.uid ?? null,
					expires_at: expiresIn ? new Date(Date.now() + expiresIn * 1000) : null,
				};
				await db
					.insertInto("oidc_models")
					.values({ model, id: keyOf(id), ...row })
					.onConflict((conflict) => conflict.columns(["model", "id"]).doUpdateSet(row))
					.execute();
			},
			async find(id) {
				return payloadOf(await select().where("id", "=", keyOf(id)).executeTakeFirst(), id);
			},
			async findByUserCode(userCode) {
				return payloadOf(await select().where("user_code", "=", userCode).executeTakeFirst());
			},
			async findByUid(uid) {
				return payloadOf(await select().where("uid", "=", uid).executeTakeFirst());
			},
			async consume(id) {
				await db
					.updateTable("oidc_models")
					.set({ payload: sql<string>`payload || jsonb_build_object('consumed', floor(extract(epoch from now())))` })
					.where("model", "=", model)
					.where("id", "=", keyOf(id))
					.execute();
			},
			async destroy(id) {
				await db.deleteFrom("oidc_models").where("model", "=", model).where("id", "=", keyOf(id)).execute();
			},
			async revokeByGrantId(grantId) {
				await db.deleteFrom("oidc_models").where("model", "in", GRANTABLE).where("grant_id", "=", grantId).execute();
			},
		};
	};
}

/** Ends everything that a user is signed in with. */
export async function endSessions(db: Kysely<AuthTables>, userId: string): Promise<void> {
	await db.deleteFrom("oidc_models").where("account_id", "=", userId).execute();
}

/** Deletes what has expired. */
export async function deleteExpired(db: Kysely<AuthTables>): Promise<void> {
	await db.deleteFrom("oidc_models").where("expires_at", "<", new Date()).execute();
	await db.deleteFrom("api_tokens").where("expires_at", "<", new Date()).execute();
}
