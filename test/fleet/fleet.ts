import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Pace } from "./engine.ts";
import type { HostState } from "./host.ts";
import type { Plane } from "./plane.ts";
import type { Accepted, Command, Summary } from "./simulator.ts";

/** So many hosts share a process: what one core can take through a storm. A multiple of three, so that clusters stay together. */
const HOSTS_PER_PROCESS = 5_001;

/** Simulated hosts of a plane, in as many processes as they need. */
export class Fleet {
	readonly size: number;
	readonly #simulators: readonly Simulator[];

	private constructor(size: number, simulators: readonly Simulator[]) {
		this.size = size;
		this.#simulators = simulators;
	}

	/** Makes room for `size` hosts; none lives yet. */
	static async make(
		plane: Plane,
		{ size, seed = 1, pace = { factor: 1, failures: 0 } }: { size: number; seed?: number; pace?: Pace },
	): Promise<Fleet> {
		const count = Math.ceil(size / HOSTS_PER_PROCESS);
		const simulators = await Promise.all(Array.from({ length: count }, () => Simulator.start()));
		const fleet = new Fleet(size, simulators);
		await fleet.#all({ do: "configure", region: plane.address, seed, pace });
		return fleet;
	}

	/** Starts hosts `from` to `to` (exclusive), spread over `spreadMs`: 0 is all at once. */
	async start(token: string, { from = 0, to = this.size, spreadMs = 0 } = {}): Promise<void> {
		await this.#shards(from, to, (range) => ({ do: "start", ...range, token, spreadMs }));
	}

	async stop({ from = 0, to = this.size } = {}): Promise<void> {
		await this.#shards(from, to, (range) => ({ do: "stop", ...range }));
	}

	/** Cuts the line between site and plane, or mends it. */
	async cut(cut: boolean): Promise<void> {
		await this.#all({ do: "cut", cut });
	}

	/** Breaks a share of the tunnels. */
	async drop(share: number, spreadMs = 0): Promise<void> {
		await this.#all({ do: "drop", share, spreadMs });
	}

	async summary(): Promise<Summary> {
		const parts = await this.#all<Summary>({ do: "summary" });
		return parts.reduce((total, part) => ({
			hosts: total.hosts + part.hosts,
			enrolled: total.enrolled + part.enrolled,
			connected: total.connected + part.connected,
			accepted: total.accepted + part.accepted,
			reconnects: total.reconnects + part.reconnects,
			refused: Object.fromEntries(
				[...new Set([...Object.keys(total.refused), ...Object.keys(part.refused)])].map((code) => [
					code,
					(total.refused[code] ?? 0) + (part.refused[code] ?? 0),
				]),
			),
			fell: total.fell + part.fell,
			actions: total.actions + part.actions,
			clusters: total.clusters + part.clusters,
			madeTwice: total.madeTwice + part.madeTwice,
			maxEpoch: Math.max(total.maxEpoch, part.maxEpoch),
			cpuSeconds: total.cpuSeconds + part.cpuSeconds,
			rssMiB: total.rssMiB + part.rssMiB,
		}));
	}

	/** When hosts accepted their newest document. */
	async documents(hosts: readonly string[]): Promise<Map<string, { at: number; paused: boolean }>> {
		const parts = await this.#all<Accepted[]>({ do: "documents", hosts });
		return new Map(parts.flat().map(([host, at, paused]) => [host, { at, paused }]));
	}

	/** What every host knows of itself. */
	async states(): Promise<HostState[]> {
		return (await this.#all<HostState[]>({ do: "states" })).flat();
	}

	/** Waits until the summary is as wanted; fails with what it was last. */
	async until(what: string, holds: (summary: Summary) => boolean, ms: number): Promise<Summary> {
		return until(what, () => this.summary(), holds, ms);
	}

	async close(): Promise<void> {
		await Promise.all(this.#simulators.map((simulator) => simulator.end()));
	}

	async #shards(from: number, to: number, command: (range: { from: number; to: number }) => Command): Promise<void> {
		await Promise.all(
			this.#simulators.map(async (simulator, i) => {
				const range = { from: Math.max(from, i * HOSTS_PER_PROCESS), to: Math.min(to, (i + 1) * HOSTS_PER_PROCESS) };
				if (range.from < range.to) await simulator.ask(command(range));
			}),
		);
	}

	#all<T>(command: Command): Promise<T[]> {
		return Promise.all(this.#simulators.map((simulator) => simulator.ask(command) as Promise<T>));
	}
}

/** A thousand clusters that are not ready fill a screen each. */
const MOST_TOLD = 2_000;

/** Asks until the answer holds; fails with the last one. */
export async function until<T>(
	what: string,
	ask: () => Promise<T>,
	holds: (answer: T) => boolean,
	ms: number,
	everyMs = 250,
): Promise<T> {
	const end = performance.now() + ms;
	for (;;) {
		const answer = await ask();
		if (holds(answer)) return answer;
		if (performance.now() > end)
			throw new Error(`not in ${ms / 1000} s: ${what}; last seen ${JSON.stringify(answer)?.slice(0, MOST_TOLD)}`);
		await delay(everyMs);
	}
}

/** One process of simulated hosts. */
class Simulator {
	readonly #child: ChildProcess;
	readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
	#last = 0;

	private constructor(child: ChildProcess) {
		this.#child = child;
		child.on("message", ({ id, result, error }: { id: number; result?: unknown; error?: string }) => {
			const waiting = this.#waiting.get(id);
			this.#waiting.delete(id);
			if (error === undefined) waiting?.resolve(result);
			else waiting?.reject(new Error(error));
		});
		child.once("exit", (code, signal) => {
			for (const { reject } of this.#waiting.values()) reject(new Error(`a simulator ended: ${signal ?? code}`));
			this.#waiting.clear();
		});
	}

	static async start(): Promise<Simulator> {
		const child = fork(join(import.meta.dirname, "simulator.ts"), {
			// Not what a test runner gives its own workers.
			execArgv: ["--max-semi-space-size=64"],
			stdio: ["ignore", "inherit", "inherit", "ipc"],
		});
		const simulator = new Simulator(child);
		await simulator.#expect(0);
		return simulator;
	}

	ask(command: Command): Promise<unknown> {
		const id = ++this.#last;
		const answer = this.#expect(id);
		this.#child.send({ id, command });
		return answer;
	}

	async end(): Promise<void> {
		if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
		const ended = new Promise((resolve) => this.#child.once("exit", resolve));
		this.#child.kill("SIGTERM");
		await ended;
	}

	#expect(id: number): Promise<unknown> {
		const waiting = Promise.withResolvers<unknown>();
		this.#waiting.set(id, waiting);
		return waiting.promise;
	}
}
