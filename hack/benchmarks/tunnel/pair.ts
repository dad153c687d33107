import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Lane } from "../../../protocol/mux.ts";
import type { CarrierName, CarrierOptions } from "./carriers.ts";
import type { Commands, Counters } from "./end.ts";
import type { OtherTunnel, RunningTunnel } from "./others.ts";

type Certificates = CarrierOptions["tls"];

/** A process that does what it is told (end.ts). */
export class End {
	readonly #process: ChildProcess;
	readonly #waiting = new Map<number, { resolve(result: never): void; reject(error: Error): void }>();
	#number = 0;

	constructor() {
		this.#process = fork(join(import.meta.dirname, "end.ts"), [], { execArgv: ["--expose-gc"] });
		this.#process.on("message", ({ id, result, error }: { id: number; result: never; error?: string }) => {
			const waiting = this.#waiting.get(id);
			this.#waiting.delete(id);
			if (error === undefined) waiting?.resolve(result);
			else waiting?.reject(new Error(error));
		});
		this.#process.on("exit", (code) => {
			for (const { reject } of this.#waiting.values()) reject(new Error(`an end of the bench ended with ${code}`));
		});
	}

	tell<Name extends keyof Commands>(name: Name, ...args: Parameters<Commands[Name]>): ReturnType<Commands[Name]> {
		const id = ++this.#number;
		return new Promise((resolve, reject) => {
			this.#waiting.set(id, { resolve, reject });
			this.#process.send({ id, name, args });
		}) as ReturnType<Commands[Name]>;
	}

	async stop(): Promise<void> {
		if (this.#process.exitCode !== null) return;
		const ended = new Promise((resolve) => this.#process.once("exit", resolve));
		this.#process.disconnect();
		await ended;
	}
}

/** What a flow of data came to. */
export interface Flow {
	/** Megabytes (10⁶) a second, all streams and directions together. */
	rate: number;
	/** CPU seconds of both ends, and of what is between them, for each gigabyte. */
	cpu: number;
	/** Most memory of either end over what it had before, MB. */
	memory: number;
}

/** Time for a flow to get going before it is measured. */
const SETTLE_MS = 250;

/** Two processes with a connection between them. */
export class Pair {
	readonly server: End;
	readonly client: End;
	readonly #relay: End | undefined;
	#other: RunningTunnel | undefined;
	#idle: Counters[] = [];

	private constructor(server: End, client: End, relay: End | undefined) {
		this.server = server;
		this.client = client;
		this.#relay = relay;
	}

	/** TCP connections through another tunnel, whose files go into `directory`. */
	static async startThrough(
		other: OtherTunnel,
		tls: { server: Certificates; client: Certificates },
		directory: string,
	): Promise<Pair> {
		const pair = new Pair(new End(), new End(), undefined);
		try {
			const port = await pair.server.tell("serve", { carrier: "tcp", tls: tls.server });
			pair.#other = await other.start(port, { directory, tls: tls.server });
			await pair.client.tell("dial", { carrier: "tcp", tls: tls.client }, pair.#other.port);
			return pair;
		} catch (error) {
			await pair.stop();
			throw error;
		}
	}

	/** `rttMs`: the round trip of a line between the two, which carries `bytesPerSecond` each way. */
	static async start(
		carrier: CarrierName,
		{ server: serverTls, client: clientTls }: { server: Certificates; client: Certificates },
		{ rttMs, bytesPerSecond }: { rttMs?: number; bytesPerSecond?: number } = {},
	): Promise<Pair> {
		const [server, client] = [new End(), new End()];
		const relay = rttMs === undefined ? undefined : new End();
		const pair = new Pair(server, client, relay);
		const port = await server.tell("serve", { carrier, tls: serverTls });
		await client.tell(
			"dial",
			{ carrier, tls: clientTls },
			relay
				? await relay.tell("relay", port, {
						rttMs: rttMs as number,
						...(bytesPerSecond !== undefined && { bytesPerSecond }),
					})
				: port,
		);
		return pair;
	}

	async stop(): Promise<void> {
		await Promise.all([this.server.stop(), this.client.stop(), this.#relay?.stop(), this.#other?.stop()]);
	}

	/** Remembers the memory of now as that of an idle pair. */
	async rest(): Promise<void> {
		await Promise.all([this.server.tell("settle"), this.client.tell("settle")]);
		this.#idle = await this.#counters();
	}

	/** Lets data flow for `ms`, after `settleMs`. */
	async flow(
		count: number,
		direction: "up" | "down" | "both",
		ms: number,
		{
			lane = "bulk",
			settleMs = SETTLE_MS,
			meanwhile,
		}: { lane?: Lane; settleMs?: number; meanwhile?: () => Promise<void> } = {},
	): Promise<Flow> {
		await this.client.tell("flow", count, direction, lane);
		await delay(settleMs);
		const before = await this.#counters();
		const otherBefore = this.#other?.cpu() ?? 0;
		let most = 0;
		const watch = async () => {
			for (const until = performance.now() + ms; performance.now() < until; ) {
				await delay(Math.min(250, ms));
				const now = await this.#counters();
				most = Math.max(most, ...now.map(({ rss }, end) => rss - (this.#idle[end]?.rss ?? rss)));
			}
		};
		await Promise.all([watch(), meanwhile?.()]);
		const after = await this.#counters();
		const otherCpu = (this.#other?.cpu() ?? 0) - otherBefore;
		await this.client.tell("stop");
		const change = (of: (counters: Counters) => number) =>
			after.reduce((sum, now, end) => sum + of(now) - of(before[end] as Counters), 0);
		const bytes = change(({ received }) => received);
		// Both clocks ran as long; the mean of the two.
		const seconds = change(({ at }) => at) / 2 / 1000;
		const cpu = (change((counters) => counters.cpu) + otherCpu) / 1e6 / (bytes / 1e9);
		return { rate: bytes / 1e6 / seconds, cpu, memory: most / 1e6 };
	}

	async #counters(): Promise<Counters[]> {
		return Promise.all([this.server.tell("counters"), this.client.tell("counters")]);
	}
}
