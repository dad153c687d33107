import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectNats, type NatsConnection } from "@nats-io/transport-node";
import { type RegionCertificates, regionCertificates } from "../../test/support/certificates.ts";
import { startNats } from "../../test/support/nats.ts";
import { freePort } from "../../test/support/ports.ts";
import { atMost, type Figure } from "./figures.ts";
import type { HostsOrder, HostsReport } from "./gateway/hosts.ts";
import type { ServerOrder } from "./gateway/server.ts";

const KIB = 1024;
const SERVER_NAME = "tunnel.test.example.com";
/** Memory of one host is what each of these adds, so that what the process takes by itself doesn't count. */
const SOME = 200;
const MANY = 10_000;
/** Hosts that come back after an outage. */
const FLEET = 1_000;
/** Processes that stand for hosts. */
const PROCESSES = 2;
const IDLE_MS = 60_000;
/** The hosts service asks each host's gateway this often whether it still has it. */
const PROBE_MS = 20_000;
/** As in the pod (charts/region/templates/_service.tpl), with room for ten thousand hosts. */
const V8 = ["--max-semi-space-size=4", "--max-old-space-size=1024", "--expose-gc"];

interface Options {
	report: (line: string) => void;
	/** Hosts for the idle rows; 0 leaves them out. */
	hosts?: number;
}

/**
 * One gateway with very many idle hosts, and a fleet that comes back after an outage. Gateway, NATS and hosts are processes of their
 * own; hosts are the agent's link with a certificate each.
 */
export async function gateway({ report, hosts = MANY }: Options): Promise<Figure[]> {
	const directory = await mkdtemp(join(tmpdir(), "gp-bench-"));
	const nats = await startNats();
	const bus = await connectNats({ servers: nats.url.replace("nats://", "") });
	bus.subscribe("hosts.admit", { callback: (_error, message) => void message.respond('{"admitted":true}') });
	try {
		const certificates = await regionCertificates(directory);
		const bench = new GatewayBench({ directory, certificates, natsUrl: nats.url, bus, report });
		return [
			...(hosts > 0 ? await bench.idle(hosts) : []),
			...(await bench.outage(3_000, 500)),
			...(await bench.outage(30_000, 1_500)),
			...(await bench.takeover()),
		];
	} finally {
		await bus.close();
		await nats.close();
		await rm(directory, { recursive: true, force: true });
	}
}

interface BenchOptions {
	directory: string;
	certificates: RegionCertificates;
	natsUrl: string;
	bus: NatsConnection;
	report: (line: string) => void;
}

class GatewayBench {
	readonly #options: BenchOptions;
	readonly #identities: HostsOrder["hosts"] = [];

	constructor(options: BenchOptions) {
		this.#options = options;
	}

	async idle(many: number): Promise<Figure[]> {
		const { report } = this.#options;
		const plain = await this.#plainTls(Math.min(many, 2_000));
		const server = await this.#startServer("gateway");
		report(`${many} hosts connect`);
		const some = await this.#startHosts([server.port], SOME, { pauseMs: 1 });
		await this.#connected(some, SOME);
		const before = await server.memory();
		const rest = await this.#startHosts([server.port], many - SOME, { pauseMs: 2, from: SOME });
		await this.#connected(rest, many - SOME);
		await delay(5_000);
		const after = await server.memory();
		const each = (what: keyof NodeJS.MemoryUsage) => (after[what] - before[what]) / (many - SOME) / KIB;
		report(
			`a host: ${each("rss").toFixed(1)} KiB resident, of these ${each("heapUsed").toFixed(1)} objects, ${each("external").toFixed(1)} buffers; a plain TLS socket: ${plain.toFixed(1)} KiB`,
		);
		report(`${many} idle hosts for ${IDLE_MS / 1_000} s, each asked about every ${PROBE_MS / 1_000} s`);
		const probing = this.#probe(many);
		await delay(5_000);
		const [used = 0] = await cpuWhile([[server.pid]], () => delay(IDLE_MS));
		clearInterval(probing);
		const stayed = await this.#report([...some, ...rest]);
		await stop(server.process, ...some, ...rest);
		return [
			atMost(
				`gateway, memory per idle host (of ${many})`,
				each("rss"),
				"KiB",
				40,
				`plain TLS socket ${plain.toFixed(1)} KiB`,
			),
			atMost(`${many} idle hosts, CPU`, (used / IDLE_MS) * 100, "% of a core", 10),
			atMost(`${many} idle hosts, not connected after ${IDLE_MS / 1_000} s`, many - stayed.connected, "hosts", 0),
		];
	}

	/** Kills the gateway, starts it again after `outageMs`, and sees how long after that hosts are back. */
	async outage(outageMs: number, targetMs: number): Promise<Figure[]> {
		const { report } = this.#options;
		const server = await this.#startServer("gateway");
		const hosts = await this.#startHosts([server.port], FLEET, { pauseMs: 2 });
		await this.#connected(hosts, FLEET);
		// Long enough that agents take it for a good tunnel.
		await delay(12_000);
		for (const host of hosts) host.send("reset");
		report(`the gateway of ${FLEET} hosts is killed for ${outageMs / 1_000} s`);
		await stop(server.process);
		// Starting takes its time, which belongs to the outage.
		await delay(Math.max(0, outageMs - STARTING_MS));
		const again = await this.#startServer("gateway", { port: server.port });
		const back = Date.now();
		const ends = [[again.pid], hosts.map(({ pid }) => pid as number)];
		const used = await cpuWhile(ends, () => this.#connected(hosts, FLEET));
		const { opened, dials } = await this.#report(hosts);
		await stop(again.process, ...hosts);
		const took = opened.map((at) => Math.max(0, at - back)).sort((a, b) => a - b);
		const p99 = took[Math.floor(0.99 * took.length)] ?? Number.POSITIVE_INFINITY;
		const median = took[took.length >> 1] ?? Number.POSITIVE_INFINITY;
		const [atGateway, atHosts] = used.map((ms) => ms / FLEET) as [number, number];
		const costs = `CPU for each: gateway ${atGateway.toFixed(2)} ms, host ${atHosts.toFixed(2)} ms`;
		// The gateway is one thread; where all runs on one machine, its cores have both ends to do.
		const least = (FLEET * Math.max(atGateway, (atGateway + atHosts) / availableParallelism())) / 1_000;
		const beside = `median ${(median / 1_000).toFixed(2)} s; ${costs}, so ${least.toFixed(2)} s on these ${availableParallelism()} cores`;
		const what = `back after the gateway was killed for ${outageMs / 1_000} s`;
		return [
			atMost(`${what}, p99 of ${FLEET} hosts`, p99 / 1_000, "s", targetMs / 1_000, beside),
			atMost(`${what}, busiest second of dials`, crowding(dials.filter((at) => at >= back - outageMs)), "× mean", 2),
		];
	}

	/** Kills one of two gateways, at which all hosts are, and sees how long it takes until they have gone on at the other. */
	async takeover(): Promise<Figure[]> {
		const { report } = this.#options;
		const first = await this.#startServer("gateway", { oneOfSeveral: true });
		const second = await this.#startServer("gateway", { oneOfSeveral: true });
		const hosts = await this.#startHosts([first.port, second.port], FLEET, { pauseMs: 2 });
		report(`${FLEET} hosts open a spare tunnel each`);
		await this.#count(hosts, FLEET, ({ spared }) => spared);
		await delay(12_000);
		for (const host of hosts) host.send("reset");
		report(`the gateway of ${FLEET} hosts is killed, another one has their spare tunnels`);
		const killed = Date.now();
		await stop(first.process);
		const ends = [[second.pid], hosts.map(({ pid }) => pid as number)];
		const used = await cpuWhile(ends, () => this.#count(hosts, FLEET, ({ opened }) => opened.length));
		const { opened } = await this.#report(hosts);
		await stop(second.process, ...hosts);
		const took = opened.map((at) => Math.max(0, at - killed)).sort((a, b) => a - b);
		const [atGateway, atHosts] = used.map((ms) => ms / FLEET) as [number, number];
		return [
			atMost(
				`gone on at another gateway after theirs was killed, p99 of ${FLEET} hosts`,
				(took[Math.floor(0.99 * took.length)] ?? Number.POSITIVE_INFINITY) / 1_000,
				"s",
				0.5,
				`median ${((took[took.length >> 1] ?? 0) / 1_000).toFixed(2)} s; CPU for each: gateway ${atGateway.toFixed(2)} ms, host ${atHosts.toFixed(2)} ms`,
			),
		];
	}

	/** Memory of an idle TLS connection without anything of ours, KiB. */
	async #plainTls(count: number): Promise<number> {
		const server = await this.#startServer("tls");
		const { cert, key, ca } = await this.#options.certificates.host("host-0");
		const sockets = fork(join(import.meta.dirname, "gateway", "sockets.ts"));
		const order = (howMany: number) => ({ port: server.port, count: howMany, cert, key, ca });
		sockets.send(order(SOME));
		await once(sockets, "message");
		const before = await server.memory();
		sockets.send(order(count));
		await once(sockets, "message");
		const after = await server.memory();
		await stop(server.process, sockets);
		return (after.rss - before.rss) / count / KIB;
	}

	async #startServer(
		kind: ServerOrder["kind"],
		{ port, oneOfSeveral = false }: { port?: number; oneOfSeveral?: boolean } = {},
	): Promise<{ process: ChildProcess; pid: number; port: number; memory: () => Promise<NodeJS.MemoryUsage> }> {
		const { certificates, directory, natsUrl } = this.#options;
		const listening = port ?? (await freePort());
		const child = fork(join(import.meta.dirname, "gateway", "server.ts"), [], { execArgv: V8 });
		const file = (name: string, text: string) => {
			writeFileSync(join(directory, name), text, { mode: 0o600 });
			return join(directory, name);
		};
		child.send({
			kind,
			port: listening,
			tls: await certificates.issueService("tunnel"),
			env: {
				REGION: "test",
				DOMAIN: "test.example.com",
				TLS_DIR: await certificates.service("tunnel", [SERVER_NAME]),
				PORT: String(listening),
				PROXY_PORT: "0",
				EDGE_PORT: "0",
				HEALTH_PORT: "0",
				NATS_URL: natsUrl,
				NATS_USER: "tunnel",
				NATS_PASSWORD_FILE: file("password", "x"),
				HOSTS_CA_FILE: file("hosts-ca.crt", `${certificates.hostsCa.cert}\n${certificates.caPem}`),
				POD_NAME: `tunnel-${child.pid}`,
				ONE_OF_SEVERAL: String(oneOfSeveral),
			},
		} satisfies ServerOrder);
		await once(child, "message");
		const memory = async () => {
			child.send("memory");
			return ((await once(child, "message")) as [NodeJS.MemoryUsage])[0];
		};
		return { process: child, pid: child.pid as number, port: listening, memory };
	}

	async #startHosts(
		ports: readonly number[],
		count: number,
		{ pauseMs, from = 0 }: { pauseMs: number; from?: number },
	): Promise<ChildProcess[]> {
		const { certificates } = this.#options;
		while (this.#identities.length < from + count) {
			const name = `host-${this.#identities.length}`;
			const { cert: certificate, key } = await certificates.host(name);
			this.#identities.push({ name, certificate, key });
		}
		return Array.from({ length: PROCESSES }, (_, index) => {
			const child = fork(join(import.meta.dirname, "gateway", "hosts.ts"));
			const mine = this.#identities.slice(from, from + count).filter((_host, at) => at % PROCESSES === index);
			const order: HostsOrder = { ports, serverName: SERVER_NAME, ca: certificates.caPem, hosts: mine, pauseMs };
			child.send(order);
			return child;
		});
	}

	#connected(processes: readonly ChildProcess[], count: number): Promise<void> {
		return this.#count(processes, count, ({ connected }) => connected);
	}

	/** Waits until so many hosts have come so far. */
	async #count(processes: readonly ChildProcess[], count: number, of: (report: HostsReport) => number): Promise<void> {
		const end = Date.now() + 180_000;
		while (of(await this.#report(processes)) < count) {
			if (Date.now() > end) throw new Error(`${count} hosts were not connected after three minutes`);
			await delay(100);
		}
	}

	async #report(processes: readonly ChildProcess[]): Promise<HostsReport> {
		const reports = await Promise.all(
			processes.map(async (child) => {
				child.send("report");
				return ((await once(child, "message")) as [HostsReport])[0];
			}),
		);
		return {
			connected: reports.reduce((sum, { connected }) => sum + connected, 0),
			spared: reports.reduce((sum, { spared }) => sum + spared, 0),
			opened: reports.flatMap(({ opened }) => opened),
			dials: reports.flatMap(({ dials }) => dials),
		};
	}

	/** Asks about each host in turn, as the hosts service does. */
	#probe(count: number): NodeJS.Timeout {
		const everyMs = 100;
		let next = 0;
		return setInterval(() => {
			for (let left = (count * everyMs) / PROBE_MS; left > 0; left--) {
				this.#options.bus.request(`hosts.host-${next++ % count}.down`, "", { timeout: 5_000 }).catch(() => {});
			}
		}, everyMs);
	}
}

/** What a gateway takes to start, about. */
const STARTING_MS = 1_500;

/** How much busier the busiest second was than the mean: 1 when the dials are spread evenly. */
export function crowding(times: readonly number[]): number {
	const seconds = new Map<number, number>();
	const first = Math.min(...times);
	for (const at of times) {
		const second = Math.floor((at - first) / 1_000);
		seconds.set(second, (seconds.get(second) ?? 0) + 1);
	}
	return Math.max(...seconds.values()) / (times.length / (Math.max(...seconds.keys()) + 1));
}

/** CPU that each group of processes uses meanwhile, ms (proc(5): utime and stime, in hundredths of a second). */
async function cpuWhile(groups: readonly (readonly number[])[], work: () => Promise<unknown>): Promise<number[]> {
	const used = (pid: number) => {
		const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
		return (Number(fields[11]) + Number(fields[12])) * 10;
	};
	const look = () => groups.map((pids) => pids.reduce((sum, pid) => sum + used(pid), 0));
	const before = look();
	await work();
	return look().map((now, index) => now - (before[index] ?? 0));
}

async function stop(...processes: ChildProcess[]): Promise<void> {
	await Promise.all(
		processes.map(async (child) => {
			if (child.exitCode !== null || child.signalCode !== null) return;
			const ended = once(child, "exit");
			child.kill("SIGKILL");
			await ended;
		}),
	);
}
