import type { ColumnType, Kysely, Migration } from "kysely";
import { sql } from "kysely";
import type { AgentUpdate, HostCheck, HostFacts, RoleStatus } from "../../protocol/facts.ts";
import type { AgentOffer } from "./agents.ts";

/** A point in time: PostgreSQL gives a Date. */
type Time = ColumnType<Date, Date | string, Date | string>;
/** One that the database fills in. */
type TimeOfInsert = ColumnType<Date, Date | string | undefined, Date | string>;
/** A JSON document: read as it is, written as text. */
type Json<T> = ColumnType<T, string, string>;

export interface JoinTokenTable {
	id: string;
	/** SHA-256 of the token. The token itself is not kept. */
	hash: Buffer;
	uses: number;
	uses_left: number;
	approve: boolean;
	/** The only name under which a host may enrol with it. */
	host_name: string | null;
	created_by: string;
	created_at: TimeOfInsert;
	expires_at: Time;
}

/** Which machine has used which token: what makes an enrolment that is asked for again (its answer was lost) free. */
export interface EnrolmentTable {
	token_id: string;
	machine_id: string;
	host: string;
	at: TimeOfInsert;
}

/** What the gateway says of a host's tunnel (`hosts.HOST.link`). */
export interface Link {
	state: "connected" | "disconnected";
	gateway?: string | undefined;
	epoch: number;
	address?: string | undefined;
	reason?: string | undefined;
	at: string;
}

/** A document that the host did not accept, and why. */
export interface Refusal {
	generation: number;
	reason?: string | undefined;
	message?: string | undefined;
}

/** A machine that enrolled, and the last of each of its reports. */
export interface HostTable {
	name: string;
	machine_id: string;
	/** metadata.uid of the Host: another uid under the same name is another host. */
	uid: string;
	enrolled_at: TimeOfInsert;
	agent_version: string;
	/** Where the agent stands with another version of itself; null when it can't change its version. */
	agent_update: Json<AgentUpdate> | null;
	/** The version that it was told to have. */
	agent_offer: Json<AgentOffer> | null;
	facts: Json<HostFacts>;
	checks: Json<HostCheck[]>;
	certificate_not_after: Time;
	roles: Json<RoleStatus[]> | null;
	/** Generation of the document that `roles` were reported under. */
	roles_generation: string | null;
	/** Generation of the document that the host accepted last. */
	accepted_generation: string | null;
	/** Epoch of the tunnel over which it did: a document is sent once over each. */
	accepted_epoch: string | null;
	refusal: Json<Refusal> | null;
	/** Epoch of the newest tunnel over which a report came: what a tunnel that was left says late does not count. */
	reported_epoch: string | null;
	link: Json<Link> | null;
}

export interface CertificateTable {
	serial: string;
	host: string;
	not_before: Time;
	not_after: Time;
	/** SHA-256 of the request, so that one that is asked for again gets the same answer. */
	request_digest: string;
	/** The certificate with its chain. */
	pem: string;
	revoked_at: Time | null;
}

/** The documents signed last for a host. Their content is not kept (it may hold secrets), only a digest of it. */
export interface DocumentTable {
	host: string;
	generation: string;
	epoch: number;
	/** metadata.generation of the Host that the content came from. */
	object_generation: number;
	digest: string;
	issued_at: Time;
	valid_until: Time;
}

export interface HostsDatabase {
	join_tokens: JoinTokenTable;
	enrolments: EnrolmentTable;
	hosts: HostTable;
	certificates: CertificateTable;
	documents: DocumentTable;
}

export const migrations: Record<string, Migration> = {
	"001-inventory": {
		async up(db: Kysely<unknown>) {
			await sql`
				CREATE TABLE join_tokens (
					id text PRIMARY KEY,
					hash bytea NOT NULL UNIQUE,
					uses integer NOT NULL CHECK (uses > 0),
					uses_left integer NOT NULL CHECK (uses_left >= 0),
					approve boolean NOT NULL,
					host_name text,
					created_by text NOT NULL,
					created_at timestamptz NOT NULL DEFAULT now(),
					expires_at timestamptz NOT NULL
				)`.execute(db);
			await sql`
				CREATE TABLE enrolments (
					token_id text NOT NULL REFERENCES join_tokens ON DELETE CASCADE,
					machine_id text NOT NULL,
					host text NOT NULL,
					at timestamptz NOT NULL DEFAULT now(),
					PRIMARY KEY (token_id, machine_id)
				)`.execute(db);
			await sql`
				CREATE TABLE hosts (
					name text PRIMARY KEY,
					machine_id text NOT NULL UNIQUE,
					uid text NOT NULL,
					enrolled_at timestamptz NOT NULL DEFAULT now(),
					agent_version text NOT NULL,
					facts jsonb NOT NULL,
					checks jsonb NOT NULL,
					certificate_not_after timestamptz NOT NULL,
					roles jsonb,
					roles_generation bigint,
					accepted_generation bigint,
					refusal jsonb,
					link jsonb
				)`.execute(db);
			await sql`
				CREATE TABLE certificates (
					serial text PRIMARY KEY,
					host text NOT NULL REFERENCES hosts ON DELETE CASCADE,
					not_before timestamptz NOT NULL,
					not_after timestamptz NOT NULL,
					request_digest text NOT NULL,
					pem text NOT NULL,
					revoked_at timestamptz
				)`.execute(db);
			await sql`CREATE INDEX certificates_host ON certificates (host, request_digest)`.execute(db);
			await sql`
				CREATE TABLE documents (
					host text NOT NULL REFERENCES hosts ON DELETE CASCADE,
					generation bigint NOT NULL,
					epoch integer NOT NULL,
					object_generation integer NOT NULL,
					digest text NOT NULL,
					issued_at timestamptz NOT NULL,
					valid_until timestamptz NOT NULL,
					PRIMARY KEY (host, generation)
				)`.execute(db);
		},
	},
	"002-accepted-epoch": {
		async up(db: Kysely<unknown>) {
			await sql`ALTER TABLE hosts ADD COLUMN accepted_epoch bigint`.execute(db);
		},
	},
	"003-agent-versions": {
		async up(db: Kysely<unknown>) {
			await sql`ALTER TABLE hosts ADD COLUMN agent_update jsonb, ADD COLUMN agent_offer jsonb`.execute(db);
		},
	},
	"004-reported-epoch": {
		async up(db: Kysely<unknown>) {
			await sql`ALTER TABLE hosts ADD COLUMN reported_epoch bigint`.execute(db);
		},
	},
};
