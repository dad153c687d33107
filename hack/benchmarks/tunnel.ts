import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { regionCertificates } from "../../test/support/certificates.ts";
import { atLeast, atMost, type Figure } from "./figures.ts";
import type { CarrierName, CarrierOptions } from "./tunnel/carriers.ts";
import { type OtherTunnel, otherTunnels } from "./tunnel/others.ts";
import { type Flow, Pair } from "./tunnel/pair.ts";

/** How often a comparison is made, in turns: the machine does other things as well, and not in each turn the same. */
const ROUNDS = 3;
const FLOW_MS = 1_200;
const PING_MS = 1_000;
/** People at a terminal, and a dashboard: this many ask, one after the other, so often. */
const LIVE_STREAMS = 50;
const LIVE_PAUSE_MS = 20;
const LIVE_MS = 3_000;
const STUCK_STREAMS = 8;
const SITE_TRANSFERS = 8;
/** 80 Mbit/s: what one site's line may be. */
const SITE_LINE = { rttMs: 20, bytesPerSecond: 10_000_000 };
/** What is wanted of the tunnel beside others: how many times as fast, and which part of their CPU. */
const BESIDE = { frp: { faster: 2, cpu: 0.6 }, chisel: { faster: 1, cpu: 1 } };
/** Time for windows to grow to what a long line holds. */
const LINE_SETTLE_MS = 3_000;
const LINE_MS = 2_000;

/**
 * The tunnel beside what it stands in for: a TLS connection of Node's for each stream; and beside frp and chisel, where their programs are given.
 * Both ends are processes of their own, and each figure is a ratio of what was measured in turns.
 */
export async function tunnel({ report }: { report: (line: string) => void }): Promise<Figure[]> {
	const directory = await mkdtemp(join(tmpdir(), "gp-bench-"));
	const pairs: Pair[] = [];
	try {
		const certificates = await regionCertificates(directory);
		const tls = {
			server: await certificates.issueService("tunnel"),
			client: await certificates.host("host-1"),
		};
		const start = async (carrier: CarrierName, options: { rttMs?: number; bytesPerSecond?: number } = {}) => {
			const pair = await Pair.start(carrier, tls as Record<"server" | "client", CarrierOptions["tls"]>, options);
			pairs.push(pair);
			return pair;
		};
		const [pipe, ours] = [await start("tls"), await start("tunnel")];
		return [
			...(await throughput(pipe, ours, report)),
			...(await latency(pipe, ours, report)),
			...(await opening(ours, await start("tunnel", { rttMs: 100 }), report)),
			...(await company(ours, report)),
			...(await besideOthers(otherTunnels(process.env), ours, { tls, directory, report })),
			...(await siteLine(await start("tunnel", SITE_LINE), report)),
			...(await lines(start, report)),
		];
	} finally {
		await Promise.all(pairs.map((pair) => pair.stop()));
		await rm(directory, { recursive: true, force: true });
	}
}

async function throughput(pipe: Pair, ours: Pair, report: (line: string) => void): Promise<Figure[]> {
	// Compiled and warm before anything counts.
	for (const pair of [pipe, ours]) {
		await pair.flow(1, "both", 500);
		await pair.rest();
	}
	report("one stream up and down, eight streams, both directions");
	const up: Flow[][] = [];
	const down: Flow[][] = [];
	const eight: Flow[] = [];
	const both: Flow[] = [];
	for (let round = 0; round < ROUNDS; round++) {
		up.push([await pipe.flow(1, "up", FLOW_MS), await ours.flow(1, "up", FLOW_MS)]);
		eight.push(await ours.flow(8, "up", FLOW_MS));
		down.push([await pipe.flow(1, "down", FLOW_MS), await ours.flow(1, "down", FLOW_MS)]);
		both.push(await ours.flow(8, "both", FLOW_MS));
	}
	const rates = (flows: readonly Flow[]) => `${Math.round(median(flows.map(({ rate }) => rate)))} MB/s`;
	const column = (flows: readonly Flow[][], index: number) => flows.map((round) => round[index] as Flow);
	const ratio = (mine: readonly Flow[], theirs: readonly Flow[], of: (flow: Flow) => number) =>
		median(mine.map((flow, round) => of(flow) / of(theirs[round] as Flow)));
	const rate = (flow: Flow) => flow.rate;
	const beside = (mine: readonly Flow[], theirs: readonly Flow[]) => `${rates(mine)}, TLS pipe ${rates(theirs)}`;
	const [pipeUp, ourUp, pipeDown, ourDown] = [column(up, 0), column(up, 1), column(down, 0), column(down, 1)];
	const oneWay = [...pipeUp, ...pipeDown];
	return [
		atLeast("one stream up", ratio(ourUp, pipeUp, rate), "× TLS pipe", 1, beside(ourUp, pipeUp)),
		atLeast("one stream down", ratio(ourDown, pipeDown, rate), "× TLS pipe", 1, beside(ourDown, pipeDown)),
		atLeast("8 streams up", ratio(eight, pipeUp, rate), "× TLS pipe, one way", 1, beside(eight, pipeUp)),
		atLeast(
			"8 streams each way at once",
			ratio(both, pipeDown, rate),
			"× TLS pipe, one way",
			0.5,
			beside(both, pipeDown),
		),
		atMost("memory above idle, the larger end", Math.max(...both.map(({ memory }) => memory)), "MB", 40),
		atMost(
			"CPU for each GB, both ends",
			ratio([...ourUp, ...ourDown], oneWay, ({ cpu }) => cpu),
			"× TLS pipe",
			1.1,
			`${median([...ourUp, ...ourDown].map(({ cpu }) => cpu)).toFixed(2)} s, TLS pipe ${median(oneWay.map(({ cpu }) => cpu)).toFixed(2)} s`,
		),
	];
}

async function latency(pipe: Pair, ours: Pair, report: (line: string) => void): Promise<Figure[]> {
	report("ping-pong");
	const rounds: [number[], number[]][] = [];
	for (let round = 0; round < ROUNDS; round++) {
		const [theirs, mine] = [
			await pipe.client.tell("pingPong", 1, PING_MS, 0, "interactive"),
			await ours.client.tell("pingPong", 1, PING_MS, 0, "interactive"),
		];
		rounds.push([theirs.times, mine.times]);
	}
	return (
		[
			[0.5, 1.1],
			[0.99, 1.5],
		] as const
	).map(([part, target]) => {
		const [theirs, mine] = [0, 1].map((which) =>
			median(rounds.map((round) => quantile(round[which] as number[], part))),
		);
		return atMost(
			`ping-pong p${part * 100}`,
			(mine as number) / (theirs as number),
			"× TLS pipe",
			target,
			`${micro(mine as number)}, TLS pipe ${micro(theirs as number)}`,
		);
	});
}

async function opening(ours: Pair, far: Pair, report: (line: string) => void): Promise<Figure[]> {
	report("opening streams");
	const counts: number[] = [];
	for (let round = 0; round < ROUNDS; round++) {
		counts.push((await ours.client.tell("opens", 16, PING_MS)).count / (PING_MS / 1000));
	}
	const { times } = await far.client.tell("opens", 4, PING_MS);
	return [
		atLeast("streams opened and ended, 16 at once", median(counts), "a second", 5_000),
		atMost("opening a stream over 100 ms", median(times) / 100, "round trips", 1.1),
	];
}

/** What streams suffer from others. */
async function company(ours: Pair, report: (line: string) => void): Promise<Figure[]> {
	report("live streams beside a bulk transfer, and beside readers that are stuck");
	const live = () => ours.client.tell("pingPong", LIVE_STREAMS, LIVE_MS, LIVE_PAUSE_MS, "interactive");
	const beside = async () => {
		let answers = { times: [] as number[], blocked: 0 };
		const flow = await ours.flow(1, "up", LIVE_MS, {
			meanwhile: async () => {
				answers = await live();
			},
		});
		return { ...answers, rate: flow.rate };
	};
	const alone: number[] = [];
	const bulk: Awaited<ReturnType<typeof beside>>[] = [];
	const stuck: Awaited<ReturnType<typeof beside>>[] = [];
	for (let round = 0; round < ROUNDS; round++) {
		alone.push((await ours.flow(1, "up", FLOW_MS)).rate);
		bulk.push(await beside());
		await ours.client.tell("stuck", STUCK_STREAMS);
		stuck.push(await beside());
		await ours.client.tell("stop");
	}
	const unhindered = median(alone);
	const p99 = (runs: typeof bulk) => runs.map(({ times }) => quantile(times, 0.99));
	const rate = (runs: typeof bulk) => median(runs.map((run) => run.rate));
	const [free, hindered] = [p99(bulk), p99(stuck)];
	const beyond = hindered.map((time, round) => time / (free[round] as number));
	return [
		atMost(
			`${LIVE_STREAMS} live streams beside ${STUCK_STREAMS} stuck readers and a bulk transfer`,
			stuck.reduce((sum, { blocked }) => sum + blocked, 0),
			"blocked",
			0,
		),
		atMost(
			"… their p99",
			median(beyond),
			"× without the stuck ones",
			2,
			`${micro(median(hindered))}, without ${micro(median(free))}`,
		),
		atLeast(
			"… the bulk transfer",
			rate(stuck) / unhindered,
			"× alone",
			0.8,
			`${Math.round(rate(stuck))} MB/s, alone ${Math.round(unhindered)}`,
		),
		atMost(
			`${LIVE_STREAMS} live streams beside a bulk transfer, p99`,
			median(free),
			"ms",
			5,
			`${bulk.reduce((sum, { times }) => sum + times.length, 0)} round trips`,
		),
		atLeast(
			"… the bulk transfer",
			rate(bulk) / unhindered,
			"× alone",
			0.7,
			`${Math.round(rate(bulk))} MB/s, alone ${Math.round(unhindered)}`,
		),
	];
}

/** Other tunnels under the same loads, in turns. */
async function besideOthers(
	others: readonly OtherTunnel[],
	ours: Pair,
	{
		tls,
		directory,
		report,
	}: { tls: Parameters<typeof Pair.start>[1]; directory: string; report: (line: string) => void },
): Promise<Figure[]> {
	const figures: Figure[] = [];
	for (const other of others) {
		report(`beside ${other.name}`);
		const theirs = await Pair.startThrough(other, tls, directory);
		try {
			figures.push(...(await besideOne(other.name, theirs, ours)));
		} finally {
			await theirs.stop();
		}
	}
	return figures;
}

async function besideOne(name: OtherTunnel["name"], theirs: Pair, ours: Pair): Promise<Figure[]> {
	const { faster, cpu } = BESIDE[name];
	const flows: Record<"up" | "down", [theirs: Flow, mine: Flow][]> = { up: [], down: [] };
	for (let round = 0; round < ROUNDS; round++) {
		for (const way of ["up", "down"] as const) {
			flows[way].push([await theirs.flow(1, way, FLOW_MS), await ours.flow(1, way, FLOW_MS)]);
		}
	}
	const both = [...flows.up, ...flows.down];
	const live = async (pair: Pair) => {
		let times: number[] = [];
		await pair.flow(1, "up", LIVE_MS, {
			meanwhile: async () => {
				({ times } = await pair.client.tell("pingPong", LIVE_STREAMS, LIVE_MS, LIVE_PAUSE_MS, "interactive"));
			},
		});
		return quantile(times, 0.99);
	};
	const [theirP99, myP99] = [await live(theirs), await live(ours)];
	return [
		...(["up", "down"] as const).map((way) => {
			const rates = [0, 1].map((which) => Math.round(median(flows[way].map((pair) => (pair[which] as Flow).rate))));
			const times = median(flows[way].map(([them, mine]) => mine.rate / them.rate));
			return atLeast(`one stream ${way}`, times, `× ${name}`, faster, `${rates[1]} MB/s, ${name} ${rates[0]} MB/s`);
		}),
		atMost("CPU for each GB, both ends", median(both.map(([them, mine]) => mine.cpu / them.cpu)), `× ${name}`, cpu),
		atMost(
			`${LIVE_STREAMS} live streams beside a bulk transfer, p99`,
			myP99 / theirP99,
			`× ${name}`,
			1,
			`${micro(myP99)}, ${name} ${micro(theirP99)}`,
		),
	];
}

/** What streams suffer where the line is what limits, and not the machine. */
async function siteLine(pair: Pair, report: (line: string) => void): Promise<Figure[]> {
	const { rttMs, bytesPerSecond } = SITE_LINE;
	report(`live streams beside ${SITE_TRANSFERS} bulk transfers over a site's line`);
	let times: number[] = [];
	const flow = await pair.flow(SITE_TRANSFERS, "up", LIVE_MS, {
		settleMs: LINE_SETTLE_MS,
		meanwhile: async () => {
			({ times } = await pair.client.tell("pingPong", LIVE_STREAMS, LIVE_MS, LIVE_PAUSE_MS, "interactive"));
		},
	});
	const line = `over ${(bytesPerSecond * 8) / 1e6} Mbit/s and ${rttMs} ms`;
	const [p50, p99] = [quantile(times, 0.5), quantile(times, 0.99)];
	return [
		atMost(
			`live streams beside ${SITE_TRANSFERS} bulk transfers ${line}, p99`,
			p99 / rttMs,
			"round trips",
			4,
			`${micro(p99)}, median ${micro(p50)}`,
		),
		atLeast(
			"… the bulk transfers",
			(flow.rate * 1e6) / bytesPerSecond,
			"× the line",
			0.7,
			`${flow.rate.toFixed(1)} MB/s`,
		),
	];
}

/** One stream over lines with a round trip of their own, beside a TCP connection over the same. */
async function lines(
	start: (carrier: CarrierName, options: { rttMs: number }) => Promise<Pair>,
	report: (line: string) => void,
): Promise<Figure[]> {
	const figures: Figure[] = [];
	for (const rttMs of [20, 100]) {
		report(`a line with ${rttMs} ms`);
		const [plain, ours] = [await start("tcp", { rttMs }), await start("tunnel", { rttMs })];
		const options = { settleMs: LINE_SETTLE_MS };
		const [theirs, mine] = [
			(await plain.flow(1, "down", LINE_MS, options)).rate,
			(await ours.flow(1, "down", LINE_MS, options)).rate,
		];
		figures.push(
			atLeast(
				`one stream at ${rttMs} ms`,
				mine / theirs,
				"× TCP",
				0.9,
				`${mine.toFixed(1)} MB/s, TCP ${theirs.toFixed(1)} MB/s`,
			),
		);
		await Promise.all([plain.stop(), ours.stop()]);
	}
	return figures;
}

const quantile = (values: readonly number[], part: number): number => {
	const sorted = values.toSorted((a, b) => a - b);
	return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN;
};
const median = (values: readonly number[]): number => quantile(values, 0.5);
const micro = (ms: number): string => (ms < 1 ? `${Math.round(ms * 1000)} µs` : `${ms.toFixed(1)} ms`);
