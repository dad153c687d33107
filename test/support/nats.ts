import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tool } from "../../hack/builder/tools.ts";
import { freePort } from "./ports.ts";
import { dyingWithParent } from "./postgres.ts";

/** A NATS server with JetStream of a test's own, on 127.0.0.1, without TLS. */
export interface TestNats {
	/** `nats://127.0.0.1:PORT`. */
	readonly url: string;
	readonly port: number;
	/** Directory of its streams. */
	readonly store: string;
	/** Ends the server (SIGTERM, or SIGKILL as a power cut would); streams stay on disk. */
	stop(how?: "term" | "kill"): Promise<void>;
	/** Starts it again after {@link stop}, on the same port with the same streams. */
	start(): Promise<void>;
	/** Stops it and deletes its streams. */
	close(): Promise<void>;
}

export interface TestNatsOptions {
	/** Users with their passwords; without any, everybody may do everything. */
	readonly users?: Readonly<Record<string, string>>;
}

/** Starts a real nats-server with JetStream and a fresh store. */
export async function startNats({ users }: TestNatsOptions = {}): Promise<TestNats> {
	const binary = await tool("nats-server");
	const directory = await mkdtemp(join(tmpdir(), "gp-nats-"));
	const port = await freePort();
	const configuration = join(directory, "nats.conf");
	const store = join(directory, "store");
	await writeFile(
		configuration,
		JSON.stringify({
			listen: `127.0.0.1:${port}`,
			max_payload: 4 * 1024 * 1024,
			jetstream: { store_dir: store, max_memory_store: 64 * 1024 * 1024 },
			...(users && {
				authorization: { users: Object.entries(users).map(([user, password]) => ({ user, password })) },
			}),
		}),
		{ mode: 0o600 },
	);
	let child: ChildProcess | undefined;

	async function start(): Promise<void> {
		let output = "";
		const started = spawn(...dyingWithParent(binary, ["-c", configuration]), { stdio: ["ignore", "pipe", "pipe"] });
		child = started;
		await new Promise<void>((resolve, reject) => {
			const timer = setTimeout(() => reject(new Error(`nats-server did not start in 15 s:\n${output}`)), 15_000);
			const onData = (chunk: Buffer) => {
				output += chunk;
				if (!output.includes("Server is ready")) return;
				clearTimeout(timer);
				started.stderr?.removeListener("data", onData);
				started.stderr?.resume();
				resolve();
			};
			started.stdout?.resume();
			started.stderr?.on("data", onData);
			started.once("exit", (code) => {
				clearTimeout(timer);
				reject(new Error(`nats-server ended with ${code}:\n${output}`));
			});
		});
	}

	async function stop(how: "term" | "kill" = "term"): Promise<void> {
		const running = child;
		child = undefined;
		if (running?.exitCode !== null || running.signalCode !== null) return;
		const ended = new Promise<void>((resolve) => running.once("exit", () => resolve()));
		running.kill(how === "kill" ? "SIGKILL" : "SIGTERM");
		await ended;
	}

	await start();
	return {
		url: `nats://127.0.0.1:${port}`,
		port,
		store,
		start,
		stop,
		async close() {
			await stop();
			await rm(directory, { recursive: true, force: true });
		},
	};
}
