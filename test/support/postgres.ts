import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { chown, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { freePort } from "./ports.ts";

const run = promisify(execFile);

/** A PostgreSQL of a test's own, on 127.0.0.1. */
export interface TestPostgres {
	/** `postgres://postgres:PASSWORD@127.0.0.1:PORT/DATABASE`. The user is a superuser. */
	url(database?: string): string;
	readonly host: string;
	readonly port: number;
	readonly user: string;
	readonly password: string;
	/** Makes an empty database and gives its URL. */
	createDatabase(name: string): Promise<string>;
	/** Ends the server as a power cut would (SIGKILL), or stops it (fast shutdown); the data stays. */
	stop(how?: "fast" | "kill"): Promise<void>;
	/** Starts it again after {@link stop}, on the same port with the same data. */
	start(): Promise<void>;
	/** Stops it and deletes its data. */
	close(): Promise<void>;
}

/** Starts a real PostgreSQL from the distribution's binaries with a fresh data directory. As root it runs as user postgres or nobody. */
export async function startPostgres(): Promise<TestPostgres> {
	const bin = await binaries();
	const user = await unprivileged();
	const directory = await mkdtemp(join(tmpdir(), "gp-postgres-"));
	const data = join(directory, "data");
	const password = "test";
	const passwordFile = join(directory, "password");
	await writeFile(passwordFile, password, { mode: 0o600 });
	if (user) {
		await chown(directory, user.uid, user.gid);
		await chown(passwordFile, user.uid, user.gid);
	}
	const as = user ? { uid: user.uid, gid: user.gid } : {};
	const env = { PATH: process.env.PATH, LC_ALL: "C.UTF-8", HOME: directory };
	await run(
		join(bin, "initdb"),
		["-D", data, "-U", "postgres", "-A", "scram-sha-256", `--pwfile=${passwordFile}`, "-E", "UTF8", "--no-sync"],
		{ ...as, env, cwd: directory },
	);
	const port = await freePort();
	let child: ChildProcess | undefined;

	/** After a kill the server's children go when they notice it, which takes a moment on a busy machine; it starts when they have gone. */
	async function start(): Promise<void> {
		for (let attempt = 1; ; attempt++) {
			try {
				return await launch();
			} catch (error) {
				if (attempt === 100 || !String(error).includes("pre-existing shared memory block")) throw error;
				await delay(100);
			}
		}
	}

	async function launch(): Promise<void> {
		const output: string[] = [];
		const started = spawn(
			...dyingWithParent(join(bin, "postgres"), [
				...["-D", data, "-p", String(port), "-h", "127.0.0.1", "-k", directory],
				...["-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=50", "-c", "max_wal_size=64MB"],
			]),
			{ ...as, env, cwd: directory, stdio: ["ignore", "pipe", "pipe"] },
		);
		child = started;
		await new Promise<void>((resolve, reject) => {
			const timer = setTimeout(() => reject(new Error(`postgres did not start in 30 s:\n${output.join("")}`)), 30_000);
			const onData = (chunk: Buffer) => {
				output.push(chunk.toString());
				if (!output.join("").includes("database system is ready to accept connections")) return;
				clearTimeout(timer);
				started.stderr?.removeListener("data", onData);
				started.stderr?.resume();
				resolve();
			};
			started.stdout?.resume();
			started.stderr?.on("data", onData);
			started.once("exit", (code) => {
				clearTimeout(timer);
				reject(new Error(`postgres ended with ${code}:\n${output.join("")}`));
			});
		});
	}

	async function stop(how: "fast" | "kill" = "fast"): Promise<void> {
		const running = child;
		child = undefined;
		if (running?.exitCode !== null || running.signalCode !== null) return;
		const ended = new Promise<void>((resolve) => running.once("exit", () => resolve()));
		running.kill(how === "kill" ? "SIGKILL" : "SIGINT");
		await ended;
	}

	await start();
	const url = (database = "postgres") => `postgres://postgres:${password}@127.0.0.1:${port}/${database}`;
	return {
		url,
		host: "127.0.0.1",
		port,
		user: "postgres",
		password,
		start,
		stop,
		async createDatabase(name) {
			await run(join(bin, "createdb"), ["-h", "127.0.0.1", "-p", String(port), "-U", "postgres", name], {
				env: { ...env, PGPASSWORD: password },
			});
			return url(name);
		},
		async close() {
			await stop();
			await rm(directory, { recursive: true, force: true });
		},
	};
}

/** A command line whose process is ended (SIGINT) when ours ends, however that came about: an interrupted test leaves no server behind. */
export function dyingWithParent(program: string, args: readonly string[]): [string, string[]] {
	const setpriv = "/usr/bin/setpriv";
	return existsSync(setpriv) ? [setpriv, ["--pdeathsig", "INT", "--", program, ...args]] : [program, [...args]];
}

async function binaries(): Promise<string> {
	const root = "/usr/lib/postgresql";
	const versions = await readdir(root).catch(() => []);
	const newest = versions
		.map(Number)
		.filter(Number.isFinite)
		.sort((a, b) => b - a)[0];
	if (newest === undefined) throw new Error("PostgreSQL is not installed: apt-get install postgresql");
	return join(root, String(newest), "bin");
}

/** PostgreSQL refuses to run as root: gives the user that it runs as then. */
async function unprivileged(): Promise<{ uid: number; gid: number } | undefined> {
	if (process.getuid?.() !== 0) return undefined;
	for (const name of ["postgres", "nobody"]) {
		try {
			const uid = Number((await run("id", ["-u", name])).stdout);
			const gid = Number((await run("id", ["-g", name])).stdout);
			return { uid, gid };
		} catch {
			// The next one.
		}
	}
	throw new Error("no user postgres or nobody to run PostgreSQL as");
}
