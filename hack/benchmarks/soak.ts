import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectNats } from "@nats-io/transport-node";
import { harms } from "../../test/support/harms.ts";
import { startNats } from "../../test/support/nats.ts";
import { Relay } from "../../test/support/relay.ts";
import { atLeast, atMost, type Figure } from "./figures.ts";
import type { GatewayOrder, GatewayPlace } from "./soak/gateway.ts";
import type { HostsOrder, HostsReport } from "./soak/hosts.ts";
import type { EndReport } from "./soak/report.ts";
import { growth, type Point } from "./soak/slope.ts";

const SERVER_NAME = "tunnel.test.example.com";
const HOSTS = Array.from({ length: 6 }, (_, index) => `host-${index}`);
/** Who sends something to a host, one thing after the other, and how fast: bytes a second of each. */
const WORKERS = 3;
const BYTES_PER_SECOND = 300_000;
const MOST_BYTES = 2_000_000;
const LEAST_PAUSE_MS = 100;
const TRANSFER_MS = 20_000;
/** What is done how often: echo, a service that breaks off, leaving in the middle, a stuck reader, a watch. */
const KINDS = "eeeeeeeexxllsw";
const WATCH_MS = 10_000;
/** A host's line rests this long between one harm and the next, at least and at most. */
const QUIET_MS = [500, 10_000] as const;
/** After each round all is let come to an end before it is looked at: so many rounds, of this length. */
const ROUNDS = 40;
const ROUND_MS = [5_000, 60_000] as const;
/** Longer than a gateway waits for the streams of a tunnel that was left (30 s), or for a byte from a dead one (60 s). */
const REST_MS = 90_000;
const MB = 1e6;
/** As in the pod (charts/region/templates/_service.tpl). */
const GATEWAY_V8 = ["--max-semi-space-size=4", "--max-old-space-size=256", "--expose-gc"];
const HOSTS_V8 = ["--max-semi-space-size=1", "--expose-gc"];

interface Options {
	forMs: number;
	report: (line: string) => void;
}

/** What came of the transfers and of the harm done to lines. */
interface Count {
	whole: number;
	broken: number;
	changed: number;
	harm: number;
}

/** Both ends at rest. `late`: streams or tunnels of a round that had not come to an end in time. */
interface Rest {
	at: number;
	gateway: EndReport;
	hosts: HostsReport;
	late: number;
	/** CPU of this process so far, µs. */
	cpu: number;
}

/**
 * Real tunnels for hours, over lines that are cut, stalled, reset, thinned out and garbled all the time: nothing may grow, and every
 * stream has to end once at both ends. The gateway, and the links of a few hosts, are processes of their own; lines and those who
 * use the streams are in this one.
 */
export async function soak({ forMs, report }: Options): Promise<Figure[]> {
	const directory = await mkdtemp(join(tmpdir(), "gp-soak-"));
	const nats = await startNats();
	const bus = await connectNats({ servers: nats.url.replace("nats://", "") });
	bus.subscribe("hosts.admit", { callback: (_error, message) => void message.respond('{"admitted":true}') });
	const ends: ChildProcess[] = [];
	const relays: Relay[] = [];
	const startEnd = (name: string, execArgv: string[]) => {
		const child = fork(join(import.meta.dirname, "soak", `${name}.ts`), [], { execArgv });
		ends.push(child);
		return child;
	};
	try {
		const gateway = startEnd("gateway", GATEWAY_V8);
		const order: GatewayOrder = { directory, natsUrl: nats.url, hosts: HOSTS };
		const place = await ask<GatewayPlace>(gateway, order);
		for (const _host of HOSTS) relays.push(await Relay.start(() => ({ port: place.port })));
		const hosts = startEnd("hosts", HOSTS_V8);
		await ask(hosts, {
			serverName: SERVER_NAME,
			hosts: place.hosts.map((host, at) => ({ ...host, port: (relays[at] as Relay).port })),
		} satisfies HostsOrder);
		return await new Soak({ gateway, hosts, place, relays, forMs, report }).run();
	} finally {
		for (const child of ends) child.kill("SIGKILL");
		for (const relay of relays) await relay.close();
		await bus.close();
		await nats.close();
		await rm(directory, { recursive: true, force: true });
	}
}

interface SoakOptions extends Options {
	gateway: ChildProcess;
	hosts: ChildProcess;
	place: GatewayPlace;
	relays: readonly Relay[];
}

class Soak {
	readonly #options: SoakOptions;
	readonly #count: Count = { whole: 0, broken: 0, changed: 0, harm: 0 };

	constructor(options: SoakOptions) {
		this.#options = options;
	}

	async run(): Promise<Figure[]> {
		const { forMs, report } = this.#options;
		const began = performance.now();
		const roundMs = Math.min(ROUND_MS[1], Math.max(ROUND_MS[0], forMs / ROUNDS));
		const rests = [await this.#rest(0)];
		while (performance.now() - began < forMs) {
			await this.#work(Math.min(roundMs, forMs - (performance.now() - began)));
			const rest = await this.#rest(performance.now() - began);
			rests.push(rest);
			report(line(rest, this.#count));
		}
		return figures(rests, this.#count);
	}

	/** Uses and harms all lines for a while. */
	async #work(ms: number): Promise<void> {
		const over = AbortSignal.timeout(Math.round(ms));
		const { relays, place } = this.#options;
		const use = async (host: string) => {
			while (!over.aborted) {
				const bytes = 1 + Math.floor(MOST_BYTES ** Math.random());
				const result = await transfer(place, host, bytes);
				this.#count[result]++;
				await delay(LEAST_PAUSE_MS + (1_000 * bytes) / BYTES_PER_SECOND, undefined, { signal: over }).catch(() => {});
			}
		};
		const harm = async (relay: Relay) => {
			while (!over.aborted) {
				await delay(between(...QUIET_MS), undefined, { signal: over }).catch(() => {});
				if (over.aborted) break;
				await allHarms[Math.floor(Math.random() * allHarms.length)]?.(relay);
				this.#count.harm++;
				relay.behave();
			}
		};
		const users = HOSTS.flatMap((host) => Array.from({ length: WORKERS }, () => use(host)));
		await Promise.all([...users, ...relays.map(harm)]);
	}

	/** Waits until only the tunnels and their control streams are left, and looks at both ends. */
	async #rest(at: number): Promise<Rest> {
		const { gateway, hosts } = this.#options;
		const until = performance.now() + REST_MS;
		for (;;) {
			const [one, other] = await Promise.all([ask<EndReport>(gateway, "look"), ask<HostsReport>(hosts, "look")]);
			const late =
				HOSTS.length -
				other.connected +
				[one, other].reduce((sum, end) => sum + excess(end.sessions) + excess(end.streams) + excess(open(end)), 0);
			if (late === 0 || performance.now() > until) {
				const settled = {
					gateway: await ask<EndReport>(gateway, "settle"),
					hosts: await ask<HostsReport>(hosts, "settle"),
				};
				const { user, system } = process.cpuUsage();
				return { at, late, cpu: user + system, ...settled };
			}
			await delay(250);
		}
	}
}

const open = ({ opened, ended }: EndReport) => opened - ended;
/** How far this is from one for each host. */
const excess = (count: number) => Math.abs(count - HOSTS.length);
const between = (least: number, most: number) => least + Math.random() * (most - least);

/** What happens to a line, for eight seconds at the most. */
const allHarms = harms(8_000);

/**
 * One use of a host: mostly bytes there and back, which have to come back as they were sent, as far as they come; also readers that
 * are stuck, services that break off, watches, and callers who leave in the middle. The first byte tells the host (soak/hosts.ts).
 */
async function transfer(place: GatewayPlace, host: string, bytes: number): Promise<"whole" | "broken" | "changed"> {
	const kind = KINDS[Math.floor(Math.random() * KINDS.length)] as string;
	const over = AbortSignal.timeout(kind === "s" || kind === "w" ? Math.round(between(500, WATCH_MS)) : TRANSFER_MS);
	let stream: Duplex;
	try {
		stream = await connect(place, `kube-apiserver.${host}:80`, over);
	} catch {
		return "broken";
	}
	const stop = () => void stream.destroy();
	over.addEventListener("abort", stop);
	const sent = randomBytes(bytes);
	const leaveAt = kind === "l" ? Math.random() * bytes : Number.POSITIVE_INFINITY;
	let received = 0;
	let changed = false;
	stream.write(kind);
	if (kind === "w") stream.resume();
	else stream.end(sent);
	stream.on("data", (chunk: Buffer) => {
		if (kind === "w") return;
		changed ||= !chunk.equals(sent.subarray(received, received + chunk.length));
		received += chunk.length;
		if (received > leaveAt) stream.destroy();
	});
	stream.on("end", () => stream.destroy());
	if (!stream.closed) await new Promise((resolve) => stream.once("close", resolve));
	over.removeEventListener("abort", stop);
	if (changed) return "changed";
	return received === bytes ? "whole" : "broken";
}

/** Opens a stream to a service of a host through the gateway, as the region's services do. */
function connect({ proxyPort, caller }: GatewayPlace, path: string, signal: AbortSignal): Promise<Duplex> {
	return new Promise((resolve, reject) => {
		request({
			...caller,
			host: "127.0.0.1",
			port: proxyPort,
			method: "CONNECT",
			path,
			agent: false,
			servername: "tunnel",
			signal,
		})
			.once("connect", (response, socket, head) => {
				socket.on("error", () => {});
				if (head.length > 0) socket.unshift(head);
				if (response.statusCode === 200) return resolve(socket);
				socket.destroy();
				reject(new Error(`CONNECT ${path}: ${response.statusCode}`));
			})
			.on("error", reject)
			.end();
	});
}

async function ask<Answer>(end: ChildProcess, what: string | object): Promise<Answer> {
	end.send(what);
	return ((await once(end, "message")) as [Answer])[0];
}

function line({ at, gateway, hosts, late }: Rest, { whole, broken, changed, harm }: Count): string {
	const end = ({ memory, resident, handles }: EndReport) =>
		`${(memory / MB).toFixed(2)} MB (${(resident / MB).toFixed(1)} resident), ${handles} handles`;
	const minutes = (at / 60_000).toFixed(1);
	return `${minutes} min: gateway ${end(gateway)}; hosts ${end(hosts)}; ${gateway.opened} streams, ${late} late; ${hosts.reconnects} reconnects of ${harm} harms; ${whole} whole, ${broken} broken, ${changed} changed`;
}

function figures(rests: readonly Rest[], { whole, broken, changed, harm }: Count): Figure[] {
	const [first, last] = [rests[0] as Rest, rests.at(-1) as Rest];
	const ends = ["gateway", "hosts"] as const;
	const twice = ends.reduce((sum, end) => sum + last[end].twice + excess(open(last[end])), 0);
	const late = rests.reduce((sum, rest) => sum + rest.late, 0);
	const cpu = ends.map(
		(end) => `${end} ${((last[end].cpu - first[end].cpu) / (last.at - first.at) / 10).toFixed(1)} %`,
	);
	const over = `over the second half of ${Math.round(last.at / 60_000)} min`;
	const grown = (end: (typeof ends)[number], of: (report: EndReport) => number) =>
		growth(rests.map((rest): Point => [rest.at, of(rest[end])]));
	return [
		atMost("bytes that came back changed, transfers", changed, "", 0, `${whole} whole, ${broken} broken off`),
		atMost(
			"streams that did not end exactly once, both ends",
			twice,
			"",
			0,
			`${last.gateway.opened} at the gateway, ${last.hosts.opened} at the hosts`,
		),
		atMost("streams and tunnels that were not over in a rest", late, "", 0, `${rests.length} rests`),
		atLeast(
			"tunnels that broke and came back",
			last.hosts.reconnects,
			"",
			harm / 4,
			`${harm} harms; CPU: ${cpu.join(", ")}`,
		),
		...ends.flatMap((end) => [
			atMost(
				`${end}, memory, growth ${over}`,
				grown(end, ({ memory }) => memory / MB),
				"MB",
				1,
				`${(last[end].memory / MB).toFixed(1)} MB in the end`,
			),
			atMost(
				`${end}, resident, growth ${over}`,
				grown(end, ({ resident }) => resident / MB),
				"MB",
				5,
				`${(last[end].resident / MB).toFixed(1)} MB in the end`,
			),
			atMost(
				`${end}, handles, growth ${over}`,
				grown(end, ({ handles }) => handles),
				"",
				1,
				`${last[end].handles} in the end`,
			),
		]),
	];
}
