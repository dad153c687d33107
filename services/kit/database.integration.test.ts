import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { startPostgres } from "../../test/support/postgres.ts";
import { Relay } from "../../test/support/relay.ts";
import { openDatabase, sql } from "./database.ts";
import { createLog } from "./log.ts";
import { createMetrics } from "./metrics.ts";

test("a connection on which nothing comes any more, as when a node dies, is found out and nobody waits on it again", async () => {
	const { database, relay } = await open();
	const question = database.db.transaction().execute(async (transaction) => {
		await sql`select 1`.execute(transaction);
		relay.behave({ silent: true });
		await sql`select 2`.execute(transaction);
	});
	await expect(question).rejects.toMatchObject({ code: "DatabaseUnavailable" });
	relay.behave();
	const since = performance.now();
	await database.check();
	expect(performance.now() - since).toBeLessThan(5_000);
}, 120_000);

test("a table that gets another column, as when a newer version migrates it, costs a connection that knew the old one no more than itself", async () => {
	const { database } = await open();
	await sql`create table machines (name text)`.execute(database.db);
	const find = () => sql`select * from machines where name = ${"host-1"}`.execute(database.db);
	await find();
	await sql`alter table machines add column uid text`.execute(database.db);
	await expect(find()).rejects.toMatchObject({ code: "DatabaseUnavailable" });
	expect((await find()).rows).toEqual([]);
});

/** A database with one connection, through a relay. */
async function open() {
	const postgres = await startPostgres();
	const directory = mkdtempSync(join(tmpdir(), "gp-database-"));
	const passwordFile = join(directory, "password");
	writeFileSync(passwordFile, postgres.password);
	const relay = await Relay.start(() => postgres);
	const url = new URL(await postgres.createDatabase("any"));
	url.port = String(relay.port);
	const context = {
		config: { databaseUrl: `${url}?sslmode=disable`, databasePasswordFile: passwordFile },
		log: createLog("test", "fatal"),
		metrics: createMetrics("test"),
		signal: new AbortController().signal,
	};
	const database = await openDatabase(context as never, { migrations: {}, maxConnections: 1 });
	onTestFinished(async () => {
		await database.close();
		await relay.close();
		await postgres.close();
		rmSync(directory, { recursive: true, force: true });
	});
	return { database, relay };
}
