import type { Duplex } from "node:stream";
import type { Lane } from "../../../protocol/mux.ts";
import { Relay } from "../../../test/support/relay.ts";
import { type CarrierOptions, dial, type Opener, serve } from "./carriers.ts";

/**
 * One end of a connection under load, in a process of its own. Does what its parent tells it over IPC:
 * `{id, name, args}` is answered by `{id, result}` or `{id, error}`.
 */

let received = 0;
let openStreams: () => number = () => 0;
let open: Opener = () => Promise.reject(new Error("not dialled"));
const flowing = new Set<Duplex>();
const block = Buffer.alloc(64 * 1024, "groundplane");

const commands = {
	async serve(options: CarrierOptions): Promise<number> {
		const { port, streams } = await serve(options, accept);
		openStreams = streams;
		return port;
	},

	async dial(options: CarrierOptions, port: number): Promise<void> {
		open = await dial(options, port);
	},

	/** A line of this round trip before `port`, as fast as the machine when no rate is named; resolves with the port to dial instead. */
	async relay(port: number, line: { rttMs: number; bytesPerSecond?: number }): Promise<number> {
		const relay = await Relay.start(() => ({ port }));
		const { rttMs, bytesPerSecond } = line;
		relay.behave({ delayMs: rttMs / 2, ...(bytesPerSecond !== undefined && { bytesPerSecond }) });
		return relay.port;
	},

	/** Lets data flow until {@link commands.stop}. */
	async flow(count: number, direction: "up" | "down" | "both", lane: Lane): Promise<void> {
		for (let index = 0; index < count; index++) {
			if (direction !== "down") pour(keep(await open("sink", lane)));
			if (direction !== "up") drink(keep(await open("source", lane)));
		}
	},

	/** Opens streams whose reader is stuck, and writes what they take. */
	async stuck(count: number): Promise<void> {
		for (let index = 0; index < count; index++) pour(keep(await open("stuck", "interactive")));
	},

	async stop(): Promise<void> {
		await Promise.all(
			[...flowing].map((stream) => {
				stream.destroy();
				return stream.closed ? undefined : new Promise((resolve) => stream.once("close", resolve));
			}),
		);
	},

	/** Bytes received, CPU used (µs) and memory, so far. */
	async counters(): Promise<Counters> {
		const { user, system } = process.cpuUsage();
		return {
			at: performance.now(),
			received,
			cpu: user + system,
			rss: process.memoryUsage.rss(),
			streams: openStreams(),
		};
	},

	/** Collects garbage, so that memory can be compared. */
	async settle(): Promise<void> {
		globalThis.gc?.();
	},

	/** Round trips, in ms, of `count` streams that each ask again `pause` ms after an answer; and streams that had none at all. */
	async pingPong(count: number, ms: number, pause: number, lane: Lane): Promise<{ times: number[]; blocked: number }> {
		const times: number[] = [];
		const until = performance.now() + ms;
		let blocked = 0;
		const streams = await Promise.all(Array.from({ length: count }, () => open("echo", lane)));
		await Promise.all(
			streams.map(async (stream, index) => {
				await new Promise((resolve) => setTimeout(resolve, (pause * index) / count));
				const answered = await askUntil(stream, until, pause, times);
				if (answered === 0) blocked++;
				stream.destroy();
			}),
		);
		return { times, blocked };
	},

	/** Opens and ends streams, `parallel` at once. */
	async opens(parallel: number, ms: number): Promise<{ count: number; times: number[] }> {
		const until = performance.now() + ms;
		const times: number[] = [];
		await Promise.all(
			Array.from({ length: parallel }, async () => {
				while (performance.now() < until) {
					const began = performance.now();
					const stream = await open("sink", "interactive");
					times.push(performance.now() - began);
					stream.resume();
					stream.end();
					await new Promise((resolve) => stream.once("close", resolve));
				}
			}),
		);
		return { count: times.length, times };
	},
};
export type Commands = typeof commands;

export interface Counters {
	at: number;
	received: number;
	cpu: number;
	rss: number;
	streams: number;
}

function accept(label: string, stream: Duplex): void {
	stream.on("error", () => {});
	if (label === "sink") drink(stream);
	else if (label === "source") pour(stream);
	else if (label === "echo")
		stream
			.on("data", (chunk) => stream.write(chunk))
			.on("end", () => stream.end())
			.resume();
	else if (label !== "stuck") stream.destroy();
}

function keep(stream: Duplex): Duplex {
	flowing.add(stream);
	stream.on("error", () => {});
	stream.on("close", () => flowing.delete(stream));
	return stream;
}

function pour(stream: Duplex): void {
	const fill = () => {
		while (!stream.destroyed && stream.write(block));
	};
	stream.on("drain", fill);
	stream.on("end", () => stream.end());
	stream.resume();
	fill();
}

function drink(stream: Duplex): void {
	stream.on("data", (chunk: Buffer) => {
		received += chunk.length;
	});
	stream.on("end", () => stream.end());
	stream.resume();
}

/** Asks, waits for the whole answer, pauses. Gives up at `until` even when no answer comes. */
function askUntil(stream: Duplex, until: number, pause: number, times: number[]): Promise<number> {
	const question = Buffer.alloc(128, "?");
	let missing = 0;
	let began = 0;
	let answered = 0;
	return new Promise((resolve) => {
		const giveUp = setTimeout(() => resolve(answered), until - performance.now() + 1_000);
		const ask = () => {
			if (performance.now() >= until) {
				clearTimeout(giveUp);
				resolve(answered);
				return;
			}
			missing = question.length;
			began = performance.now();
			stream.write(question);
		};
		stream.on("data", (chunk: Buffer) => {
			missing -= chunk.length;
			if (missing > 0) return;
			times.push(performance.now() - began);
			answered++;
			if (pause === 0) ask();
			else setTimeout(ask, pause);
		});
		stream.on("error", () => {});
		ask();
	});
}

process.on("message", async ({ id, name, args }: { id: number; name: keyof Commands; args: never[] }) => {
	try {
		const result = await (commands[name] as (...all: never[]) => Promise<unknown>)(...args);
		process.send?.({ id, result });
	} catch (error) {
		process.send?.({ id, error: String(error) });
	}
});
process.on("disconnect", () => process.exit());
