import { readFile } from "node:fs/promises";
import {
	Kysely,
	type Migration,
	Migrator,
	PostgresDialect,
	type PostgresPool,
	type PostgresPoolClient,
	sql,
} from "kysely";
import pg from "pg";
import type { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { databaseConfig } from "./config.ts";
import { Counter, Gauge } from "./metrics.ts";
import { retry } from "./retry.ts";
import type { ServiceContext } from "./service.ts";

export type { Migration } from "kysely";
export { Kysely, sql };

/** A database with its own readiness check. */
export interface Database<Tables> {
	readonly db: Kysely<Tables>;
	/** For `checks`: one round trip. Throws DatabaseUnavailable. */
	check(): Promise<void>;
	close(): Promise<void>;
}

export interface DatabaseOptions {
	/** By name; applied in the order of their names, under a lock. */
	readonly migrations: Readonly<Record<string, Migration>>;
	readonly maxConnections?: number;
}

const START_DEADLINE_MS = 5 * 60_000;

/** SQLSTATEs that mean "not now": connection exceptions, shutdown, too many connections, a statement that took too long. */
const UNAVAILABLE = /^(08|57P|53300|57014)/;
/** What pg says when no answer has come within `query_timeout`. */
const NO_ANSWER = "Query read timeout";
const NETWORK = new Set(["ECONNREFUSED", "ECONNRESET", "ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "EPIPE", "EHOSTUNREACH"]);

/** Of a table whose columns have changed since a statement was prepared: it is refused on that connection for good. */
const OTHER_COLUMNS = "cached plan must not change result type";
/** Whether a connection is of no use any more, though it stands. */
const isSpoiled = (error: unknown): boolean =>
	[NO_ANSWER, OTHER_COLUMNS].includes((error as { message?: string } | null)?.message ?? "");

/** Whether the database could not be asked, in contrast to having said no. */
export function isUnavailable(error: unknown): boolean {
	const { code = "", message = "" } = (error ?? {}) as { code?: string; message?: string };
	return (
		UNAVAILABLE.test(code) ||
		NETWORK.has(code) ||
		isSpoiled(error) ||
		/Connection terminated|timeout exceeded when trying to connect|is not queryable/.test(message)
	);
}

/** Whether an error is PostgreSQL's unique_violation. */
export const isDuplicate = (error: unknown): boolean => (error as { code?: string } | null)?.code === "23505";

/**
 * Opens a pool (TLS, connections made when needed), waits for PostgreSQL for up to five minutes and applies migrations;
 * two pods that start together take turns (kysely holds an advisory lock).
 *
 * Queries throw DatabaseUnavailable when the database can't be asked; other errors are PostgreSQL's own.
 */
export async function openDatabase<Tables>(
	{ config, tls, log, metrics, signal }: ServiceContext<z.output<z.ZodObject<typeof databaseConfig>>>,
	{ migrations, maxConnections = 5 }: DatabaseOptions,
): Promise<Database<Tables>> {
	const errors = new Counter({
		name: "groundplane_database_errors_total",
		help: "Times that the database could not be asked.",
		registers: [metrics.registry],
	});
	const url = new URL(config.databaseUrl);
	const pool = new pg.Pool({
		// Taken apart here, because pg lets an URL without a password override the one given beside it.
		host: url.hostname,
		port: Number(url.port || 5432),
		user: decodeURIComponent(url.username),
		database: decodeURIComponent(url.pathname.slice(1)),
		password: async () => (await readFile(config.databasePasswordFile, "utf8")).trim(),
		ssl: url.searchParams.get("sslmode") !== "disable" && {
			// Read at each connection: a getter keeps the CA current.
			get ca() {
				return tls.current.ca;
			},
		},
		max: maxConnections,
		idleTimeoutMillis: 60_000,
		connectionTimeoutMillis: 5_000,
		statement_timeout: 30_000,
		query_timeout: 35_000,
		keepAlive: true,
		application_name: "groundplane",
	});
	// An idle connection broke: the pool has already dropped it.
	pool.on("error", (err) => log.warn({ err }, "a database connection ended"));
	new Gauge({
		name: "groundplane_database_connections",
		help: "Connections of the pool.",
		labelNames: ["state"],
		registers: [metrics.registry],
		collect() {
			this.set({ state: "idle" }, pool.idleCount);
			this.set({ state: "busy" }, pool.totalCount - pool.idleCount);
			this.set({ state: "waiting" }, pool.waitingCount);
		},
	});

	const explain = (cause: unknown): unknown => {
		if (!isUnavailable(cause)) return cause;
		errors.inc();
		return new GroundplaneError("DatabaseUnavailable", "The database can't be reached.", {
			next: "Look at the pod postgresql-0 of the region; requests work again as soon as it answers.",
			cause,
		});
	};
	const db = new Kysely<Tables>({ dialect: new PostgresDialect({ pool: explaining(pool, explain) }) });

	const migrator = new Migrator({ db, provider: { getMigrations: async () => ({ ...migrations }) } });
	await retry(
		async () => {
			const { error, results } = await migrator.migrateToLatest();
			if (error) throw error;
			for (const { migrationName } of results ?? []) log.info({ migration: migrationName }, "migrated the database");
		},
		{
			signal,
			deadlineMs: START_DEADLINE_MS,
			// A password that is refused may be on its way into the Secret; a migration that fails stays wrong.
			when: (error) =>
				(error instanceof GroundplaneError && error.code === "DatabaseUnavailable") ||
				/^28/.test((error as { code?: string }).code ?? ""),
			onError: (err) => log.warn({ err }, "the database is not there yet"),
		},
	).catch(async (error: unknown) => {
		await db.destroy();
		throw error;
	});
	return {
		db,
		check: async () => {
			await sql`select 1`.execute(db);
		},
		close: () => db.destroy(),
	};
}

/** The pool with errors explained, both when a connection is made and when it breaks in a query. */
function explaining(pool: pg.Pool, explain: (cause: unknown) => unknown): PostgresPool {
	const wrapped = new WeakSet<pg.PoolClient>();
	const names = new Map<string, string>();
	return {
		async connect() {
			try {
				const client = await pool.connect();
				if (!wrapped.has(client)) {
					wrapped.add(client);
					// The pool listens while a client is idle only. A connection that breaks in use shows in its next query.
					client.on("error", () => {});
					const query = client.query.bind(client) as (...input: unknown[]) => Promise<unknown>;
					client.query = (async (...input: unknown[]) => {
						try {
							return await query(...prepared(names, input));
						} catch (cause) {
							// Whoever had it next would wait behind this query, until the kernel gives a silent connection up, for a quarter of an hour; or be refused.
							if (isSpoiled(cause)) void (client as unknown as pg.Client).end();
							throw explain(cause);
						}
					}) as typeof client.query;
				}
				return client as unknown as PostgresPoolClient;
			} catch (cause) {
				throw explain(cause);
			}
		},
		end: () => pool.end(),
	} as PostgresPool;
}

/** Each prepared statement takes memory of each connection's backend: there are no more than this. */
const MOST_PREPARED = 100;

/**
 * Names a statement that has parameters, so that each connection parses and plans it once: that was four fifths of what a look at one
 * host costs PostgreSQL.
 */
function prepared(names: Map<string, string>, input: unknown[]): unknown[] {
	const [text, values] = input;
	if (typeof text !== "string" || !Array.isArray(values) || values.length === 0) return input;
	if (!names.has(text) && names.size < MOST_PREPARED) names.set(text, `s${names.size}`);
	const name = names.get(text);
	return name === undefined ? input : [{ name, text, values }];
}
