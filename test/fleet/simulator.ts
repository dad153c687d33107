/**
 * A process full of simulated hosts: started by `Fleet` (fleet.ts), told what to do over Node's IPC channel, one answer for
 * each request.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { createLog } from "../../agent/log.ts";
import { SimulatedClusters } from "./clusters.ts";
import type { Pace } from "./engine.ts";
import { SimulatedHost, seeded } from "./host.ts";
import type { RegionAddress } from "./plane.ts";
import { dialTurns } from "./turns.ts";

/** What a simulator can be asked. */
export type Command =
	| { do: "configure"; region: RegionAddress; seed: number; pace: Pace }
	/** Starts hosts `from` to `to` (exclusive), spread evenly over `spreadMs`. */
	| { do: "start"; from: number; to: number; token: string; spreadMs: number }
	| { do: "stop"; from: number; to: number }
	/** Cuts the line of all hosts, or mends it. */
	| { do: "cut"; cut: boolean }
	/** Breaks the tunnels of a share of the hosts, spread over `spreadMs`; they dial again. */
	| { do: "drop"; share: number; spreadMs: number }
	| { do: "summary" }
	/** When each of these hosts accepted its newest document. */
	| { do: "documents"; hosts: readonly string[] }
	/** All that the hosts know of themselves. */
	| { do: "states" };

export interface Summary {
	hosts: number;
	enrolled: number;
	connected: number;
	/** Hosts that have accepted a document. */
	accepted: number;
	reconnects: number;
	refused: Record<string, number>;
	/** Times that a host accepted an older document than before. */
	fell: number;
	actions: number;
	/** Clusters that kubeadm made, and those that it made more than once. */
	clusters: number;
	madeTwice: number;
	maxEpoch: number;
	cpuSeconds: number;
	rssMiB: number;
}

/** `[host, accepted at, paused]`. */
export type Accepted = readonly [host: string, at: number, paused: boolean];

// In memory: ten thousand hosts' identities and documents cost no disk.
const directory = mkdtempSync(join(process.platform === "linux" ? "/dev/shm" : tmpdir(), "gp-simulator-"));
const clusters = new SimulatedClusters();
const hosts = new Map<number, SimulatedHost>();
const log = createLog({
	level: process.env.LOG_LEVEL === "debug" ? "debug" : "error",
	write: (line) => void process.stderr.write(line),
	journal: false,
});
const turn = dialTurns();
let setting: Extract<Command, { do: "configure" }> | undefined;
let isCut = false;

async function answer(command: Command): Promise<unknown> {
	switch (command.do) {
		case "configure":
			setting = command;
			return undefined;
		case "start":
			return start(command);
		case "stop": {
			const leaving = [...hosts].filter(([index]) => index >= command.from && index < command.to);
			for (const [index] of leaving) hosts.delete(index);
			await Promise.all(leaving.map(([, host]) => host.stop()));
			return undefined;
		}
		case "cut":
			isCut = command.cut;
			if (isCut) for (const host of hosts.values()) host.drop();
			return undefined;
		case "drop": {
			const random = seeded((setting?.seed ?? 0) + hosts.size + Date.now());
			const chosen = [...hosts.values()].filter(() => random() < command.share);
			for (const host of chosen) setTimeout(() => host.drop(), random() * command.spreadMs);
			return chosen.length;
		}
		case "summary":
			return summary();
		case "states":
			return [...hosts.values()].map(({ state }) => state);
		case "documents": {
			const wanted = new Set(command.hosts);
			return [...hosts.values()]
				.filter(({ name, accepted }) => wanted.has(name) && accepted)
				.map(({ name, accepted }): Accepted => [name, accepted?.at ?? 0, accepted?.paused ?? false]);
		}
	}
}

async function start({ from, to, token, spreadMs }: Extract<Command, { do: "start" }>): Promise<void> {
	if (!setting) throw new Error("not configured");
	const { region, seed, pace } = setting;
	const began = performance.now();
	for (let index = from; index < to; index++) {
		const host = new SimulatedHost({ index, seed, directory, region, clusters, pace, isCut: () => isCut, turn, log });
		hosts.set(index, host);
		host.start(token);
		const ahead = ((index - from) / (to - from)) * spreadMs - (performance.now() - began);
		if (ahead > 1) await delay(ahead);
	}
}

function summary(): Summary {
	const all = [...hosts.values()];
	const sum = (value: (host: SimulatedHost) => number) => all.reduce((total, host) => total + value(host), 0);
	const refused: Record<string, number> = {};
	for (const code of all.flatMap((host) => host.refused)) refused[code] = (refused[code] ?? 0) + 1;
	const { user, system } = process.cpuUsage();
	return {
		hosts: all.length,
		enrolled: sum(({ enrolled }) => Number(enrolled)),
		connected: sum(({ connected }) => Number(connected)),
		accepted: sum(({ accepted }) => Number(accepted !== undefined)),
		reconnects: sum(({ reconnects }) => reconnects),
		refused,
		fell: sum(({ fell }) => fell),
		actions: sum(({ engine }) => engine.actions),
		clusters: clusters.inits.size,
		madeTwice: [...clusters.inits.values()].filter((times) => times > 1).length,
		maxEpoch: all.reduce((most, { accepted }) => Math.max(most, accepted?.epoch ?? 0), 0),
		cpuSeconds: (user + system) / 1e6,
		rssMiB: process.memoryUsage.rss() / 2 ** 20,
	};
}

/** A parent that has ended meanwhile hears of nothing any more. */
const tell = (message: { id: number; result?: unknown; error?: string }) =>
	void process.send?.(message, undefined, {}, () => {});

process.on("message", ({ id, command }: { id: number; command: Command }) => {
	answer(command).then(
		(result) => tell({ id, result }),
		(error: unknown) => tell({ id, error: error instanceof Error ? error.message : String(error) }),
	);
});
// The parent is gone: nobody will ask again.
process.on("disconnect", () => process.exit(0));
process.on("exit", () => rmSync(directory, { recursive: true, force: true }));
for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => process.exit(0));
tell({ id: 0, result: "ready" });
