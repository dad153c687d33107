import type { ColumnType, Generated } from "kysely";
import type { Role } from "../kit/auth.ts";
import { type Migration, sql } from "../kit/database.ts";

type Timestamp = ColumnType<Date, Date | undefined, Date>;
type Json<Value> = ColumnType<Value, string, string>;

/** Tables of the auth service. */
export interface AuthTables {
	users: {
		id: Generated<string>;
		/** What the person signs in with and what clusters see; lower case, unique. */
		name: string;
		/** Argon2id in PHC format. */
		password_hash: string;
		roles: Json<Role[]>;
		disabled: Generated<boolean>;
		created_at: Timestamp;
	};
	api_tokens: {
		id: Generated<string>;
		user_id: string;
		name: string;
		/** SHA-256 of the token, hex: the token itself is shown once and never kept. */
		hash: string;
		created_at: Timestamp;
		expires_at: Date;
		last_used_at: ColumnType<Date | null, undefined, Date>;
	};
	/** What oidc-provider keeps: sessions, interactions, grants, codes, refresh tokens. */
	oidc_models: {
		model: string;
		id: string;
		payload: Json<Record<string, unknown>>;
		account_id: string | null;
		grant_id: string | null;
		user_code: string | null;
		uid: string | null;
		expires_at: Date | null;
	};
}

export const migrations: Readonly<Record<string, Migration>> = {
	"001-users": {
		async up(db) {
			await sql`
				create table users (
					id uuid primary key default gen_random_uuid(),
					name text not null unique,
					password_hash text not null,
					roles jsonb not null,
					disabled boolean not null default false,
					created_at timestamptz not null default now()
				)`.execute(db);
			await sql`
				create table api_tokens (
					id uuid primary key default gen_random_uuid(),
					user_id uuid not null references users on delete cascade,
					name text not null,
					hash text not null unique,
					created_at timestamptz not null default now(),
					expires_at timestamptz not null,
					last_used_at timestamptz
				)`.execute(db);
			await sql`create index api_tokens_user on api_tokens (user_id)`.execute(db);
			await sql`
				create table oidc_models (
					model text not null,
					id text not null,
					payload jsonb not null,
					account_id text,
					grant_id text,
					user_code text,
					uid text,
					expires_at timestamptz,
					primary key (model, id)
				)`.execute(db);
			for (const column of ["account_id", "grant_id", "user_code", "uid", "expires_at"]) {
				await sql`create index ${sql.ref(`oidc_models_${column}`)} on oidc_models (${sql.ref(column)})`.execute(db);
			}
		},
	},
};
