import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { startPostgres } from "../../test/support/postgres.ts";
import { openDatabase, sql } from "./database.ts";
import { createLog } from "./log.ts";
import { createMetrics } from "./metrics.ts";

test("a connection on which nothing comes any more, as when a node dies, is found out and nobody waits on it again", async () => {
	const postgres = await startPostgres();
	const directory = mkdtempSync(join(tmpdir(), "gp-database-"));
	const passwordFile = join(directory, "password");
	writeFileSync(passwordFile, postgres.password);
	const open = new Set<Socket>();
	const relay = createServer((socket) => {
		const onward = connect(postgres.port, postgres.host);
		for (const one of [socket, onward]) open.add(one.on("error", () => {}));
		socket.pipe(onward).pipe(socket);
	});
	await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
	const url = new URL(await postgres.createDatabase("any"));
	url.port = String((relay.address() as AddressInfo).port);
	const context = {
		config: { databaseUrl: `${url}?sslmode=disable`, databasePasswordFile: passwordFile },
		log: createLog("test", "fatal"),
		metrics: createMetrics("test"),
		signal: new AbortController().signal,
	};
	const database = await openDatabase(context as never, { migrations: {} });
	try {
		const question = database.db.transaction().execute(async (transaction) => {
			await sql`select 1`.execute(transaction);
			for (const socket of open) socket.unpipe().resume();
			await sql`select 2`.execute(transaction);
		});
		await expect(question).rejects.toMatchObject({ code: "DatabaseUnavailable" });
		const since = performance.now();
		await database.check();
		expect(performance.now() - since).toBeLessThan(5_000);
	} finally {
		await database.close();
		relay.close();
		for (const socket of open) socket.destroy();
		await postgres.close();
		rmSync(directory, { recursive: true, force: true });
	}
}, 120_000);
