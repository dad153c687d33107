import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { publicJwks } from "../../charts/testing.ts";
import { namespaces } from "../../operator/kube/resources.ts";
import { startApiServer, type TestApiServer } from "../../test/support/apiserver.ts";
import { freePort } from "../../test/support/ports.ts";
import { dyingWithParent } from "../../test/support/postgres.ts";
import { cached, hashTree } from "../builder/cache.ts";
import { bundleJavaScript, ROOT } from "../builder/javascript.ts";
import { run } from "../builder/run.ts";
import { atLeast, atMost, type Figure } from "./figures.ts";
import { makeClusters, makeHosts } from "./operator/objects.ts";

const NAMESPACE = "region-bench";
/** Hosts; a tenth as many clusters. */
const SIZES = [1_000, 3_000];
const IDLE_SECONDS = 20;
/** Rounds over all hosts are taken in turns with the reference, so that both meet the same machine. */
const TURNS = 5;

/** What was measured with so many hosts. */
interface Row {
	readonly hosts: number;
	readonly coldStart: number;
	/** CPU time of the cold start: what the machine's other work does not change. */
	readonly coldCpu: number;
	readonly rss: number;
	readonly writes: number;
	readonly cpu: number;
	readonly ours: Rounds;
	readonly reference: Rounds;
}
/** Rounds over all hosts with nothing to do. */
interface Rounds {
	readonly perSecond: number;
	readonly perCpuSecond: number;
	readonly rss: number;
}

/**
 * The operator as its image holds it on a real API server and etcd, and its host controller beside the same controller written
 * with controller-runtime (test/fleet/reference). Takes five minutes on an idle machine of two cores.
 */
export async function operator({
	hosts: most = 10_000,
	report,
}: {
	readonly hosts?: number;
	readonly report: (line: string) => void;
}): Promise<Figure[]> {
	const bundles = await bundleJavaScript("bench-operator", {
		operator: "operator/main.ts",
		worker: "hack/benchmarks/operator/worker.ts",
	});
	const reference = await buildReference();
	const api = await startApiServer();
	try {
		for (const name of ["groundplane-system", NAMESPACE]) await api.client.create(namespaces, { metadata: { name } });
		const rows: Row[] = [];
		let made = 0;
		for (const hosts of [...SIZES.filter((size) => size < most), most]) {
			report(`making ${hosts} hosts and ${hosts / 10} clusters`);
			await makeHosts(api.etcd, NAMESPACE, made, hosts);
			await makeClusters(api.etcd, NAMESPACE, made / 10, hosts / 10);
			made = hosts;
			rows.push(await measure(api, { bundles, reference, hosts }));
			report(line(rows.at(-1) as Row));
		}
		return figures(rows);
	} finally {
		await api.stop();
	}
}

async function measure(
	api: TestApiServer,
	{ bundles, reference, hosts }: { bundles: string; reference: string; hosts: number },
): Promise<Row> {
	// What is new is written by this one; the next one finds everything as it should be.
	await (await Operator.start(api, join(bundles, "operator.js"), hosts)).stop();
	const main = await Operator.start(api, join(bundles, "operator.js"), hosts);
	const coldCpu = main.cpuSeconds();
	await delay(5_000);
	const [cpu, writes] = [main.cpuSeconds(), await writesOf(api)];
	await delay(IDLE_SECONDS * 1000);
	const idle = {
		coldStart: main.coldStart,
		coldCpu,
		rss: main.rss(),
		writes: ((await writesOf(api)) - writes) * (60 / IDLE_SECONDS),
		cpu: ((main.cpuSeconds() - cpu) / IDLE_SECONDS) * 100,
	};
	await main.stop();

	const workers = [
		new Worker(api, process.execPath, [join(bundles, "worker.js")]),
		new Worker(api, reference, []),
	] as const;
	for (const worker of workers) await worker.said("idle");
	const answers = workers.map(() => [] as Answer[]);
	for (let turn = 0; turn <= TURNS; turn++) {
		for (const [i, worker] of workers.entries()) {
			const answer = await worker.resync(Math.max(1, Math.round(30_000 / hosts)));
			// The first turn is for the compilers.
			if (turn > 0) answers[i]?.push(answer);
		}
	}
	for (const worker of workers) await worker.stop();
	const [ours, theirs] = answers.map(rounds);
	return { hosts, ...idle, ours: ours as Rounds, reference: theirs as Rounds };
}

const rounds = (answers: readonly Answer[]): Rounds => ({
	perSecond: median(answers.map(({ reconciles, seconds }) => reconciles / seconds)),
	perCpuSecond: median(answers.map(({ reconciles, cpuSeconds }) => reconciles / cpuSeconds)),
	rss: answers.at(-1)?.rssMiB ?? 0,
});

function figures(rows: readonly Row[]): Figure[] {
	const last = rows.at(-1) as Row;
	const first = rows[0] as Row;
	const slope = (of: (row: Row) => number, unit: number) =>
		((of(last) - of(first)) / Math.max(1, last.hosts - first.hosts)) * unit;
	const size = `${last.hosts} hosts, ${last.hosts / 10} clusters`;
	const { ours, reference } = last;
	const beside = (theirs: number, unit: string) => `controller-runtime: ${Math.round(theirs)} ${unit}`;
	return [
		atMost(`operator with ${size}: memory`, last.rss, "MiB", 250),
		atMost(`operator with ${size}: cold start to synced and idle`, last.coldStart, "s", 15),
		atMost("writes to etcd at idle, without the Lease's", last.writes, "1/min", 0),
		atLeast(
			"reconciles on a no-change resync, of controller-runtime's",
			ours.perSecond / reference.perSecond,
			"times",
			0.5,
			`${Math.round(ours.perSecond)} to ${Math.round(reference.perSecond)} a second; for a second of CPU ${Math.round(ours.perCpuSecond)} to ${Math.round(reference.perCpuSecond)}`,
		),
		atMost(
			"memory of the whole operator, of the reference's",
			last.rss / reference.rss,
			"times",
			2,
			beside(reference.rss, "MiB"),
		),
		// A straight line through nothing would be 10 times as much for 10 times as many.
		atMost(
			"memory for each further host",
			slope((row) => row.rss, 1024),
			"KiB",
			20,
			beside(
				slope((row) => row.reference.rss, 1024),
				"KiB",
			),
		),
		atMost(
			"CPU of a cold start for each further 1,000 hosts",
			slope((row) => row.coldCpu, 1000),
			"s",
			1.5,
			rows.map((row) => `${row.hosts}: ${row.coldCpu.toFixed(1)} s`).join(", "),
		),
	];
}

const line = ({ hosts, coldStart, coldCpu, rss, writes, cpu, ours, reference }: Row): string =>
	[
		`${hosts} hosts: cold start ${coldStart.toFixed(1)} s (${coldCpu.toFixed(1)} s of CPU), ${Math.round(rss)} MiB, at idle ${writes} writes/min and ${cpu.toFixed(1)} % of a core;`,
		`resync ${Math.round(ours.perSecond)}/s (${Math.round(ours.perCpuSecond)} per CPU second, ${Math.round(ours.rss)} MiB),`,
		`controller-runtime ${Math.round(reference.perSecond)}/s (${Math.round(reference.perCpuSecond)}, ${Math.round(reference.rss)} MiB)`,
	].join(" ");

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;

/** The reference's program, built once for its sources. */
async function buildReference(): Promise<string> {
	const folder = join(ROOT, "test/fleet/reference");
	const directory = await cached("fleet-reference", [await hashTree(folder), process.arch], async (target) => {
		await run("go", ["build", "-o", join(target, "reference"), "."], {
			cwd: folder,
			env: { GOFLAGS: "-mod=readonly -buildvcs=false" },
			next: "Read what the compiler said. Go 1.26 or later is needed.",
		});
	});
	return join(directory, "reference");
}

/** Writes that the API server has done since it started, but for Leases (the election of our operator among them). */
async function writesOf(api: TestApiServer): Promise<number> {
	const text = await api.client.requestText("GET", "/metrics");
	return sum(
		text,
		(name, labels) =>
			name === "apiserver_request_total" &&
			/verb="(POST|PUT|PATCH|APPLY|DELETE)"/.test(labels) &&
			!/resource="(leases|tokenreviews|subjectaccessreviews)"/.test(labels),
	);
}

/** Sum of the samples of a Prometheus text that are wanted. */
function sum(text: string, wanted: (name: string, labels: string) => boolean): number {
	let total = 0;
	for (const [, name = "", labels = "", value = "0"] of text.matchAll(/^(\w+)\{(.*)\} (\S+)$/gm))
		if (wanted(name, labels)) total += Number(value);
	return total;
}

const environment = (api: TestApiServer) => ({
	PATH: process.env.PATH,
	KUBECONFIG: api.kubeconfig,
	VERSION: "0.1.0",
	RELEASE_JWKS: publicJwks,
	BUNDLES: JSON.stringify([{ name: "kubernetes", version: "v1.36.3" }]),
	REGION_CHART: join(ROOT, "charts/region"),
	LISTEN_ADDRESS: "127.0.0.1",
	LOG_LEVEL: "warn",
	// As in charts/groundplane.
	NODE_OPTIONS: "--max-semi-space-size=1 --max-old-space-size=192",
	MALLOC_ARENA_MAX: "2",
});

/** The whole operator as a process. */
class Operator {
	readonly coldStart: number;
	readonly #child: ChildProcess;

	static async start(api: TestApiServer, program: string, hosts: number): Promise<Operator> {
		const startedAt = performance.now();
		const port = await freePort();
		const [command, args] = dyingWithParent(process.execPath, [program]);
		const child = spawn(command, args, {
			env: { ...environment(api), METRICS_PORT: String(port) },
			stdio: ["ignore", "ignore", "inherit"],
		});
		for (const deadline = startedAt + 300_000; ; await delay(50)) {
			if (child.exitCode !== null || performance.now() > deadline) throw new Error("the operator did not get idle");
			const metrics = await fetch(`http://127.0.0.1:${port}/metrics`).then(
				(answer) => answer.text(),
				() => "",
			);
			const reconciled = (controller: string) =>
				sum(
					metrics,
					(name, labels) => name === "controller_runtime_reconcile_total" && labels.includes(`"${controller}"`),
				);
			const waiting = sum(metrics, (name) => /^(workqueue_depth|controller_runtime_active_workers)$/.test(name));
			if (reconciled("host") >= hosts && reconciled("cluster") >= hosts / 10 && waiting === 0) break;
		}
		return new Operator(child, (performance.now() - startedAt) / 1000);
	}

	private constructor(child: ChildProcess, coldStart: number) {
		this.#child = child;
		this.coldStart = coldStart;
	}

	/** Resident memory, in MiB. */
	rss(): number {
		const status = readFileSync(`/proc/${this.#child.pid}/status`, "utf8");
		return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
	}

	/** CPU time that it has taken (proc(5): ticks of 10 ms). */
	cpuSeconds(): number {
		const fields = readFileSync(`/proc/${this.#child.pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
		return (Number(fields[11]) + Number(fields[12])) / 100;
	}

	/** Ends it in order, so that it gives the Lease back. */
	async stop(): Promise<void> {
		const ended = once(this.#child, "exit");
		this.#child.kill("SIGTERM");
		await ended;
	}
}

interface Answer {
	readonly event: string;
	readonly rssMiB: number;
	readonly reconciles: number;
	readonly seconds: number;
	readonly cpuSeconds: number;
	readonly writes: number;
}

/** A program that speaks in lines, as test/fleet/reference says. */
class Worker {
	readonly #child: ChildProcess;
	readonly #lines: AsyncIterator<string>;

	constructor(api: TestApiServer, program: string, args: readonly string[]) {
		this.#child = spawn(...dyingWithParent(program, args), {
			env: environment(api),
			stdio: ["pipe", "pipe", "inherit"],
		});
		this.#lines = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
	}

	/** The next thing that it says, which must be this. */
	async said(event: string): Promise<Answer> {
		const { value, done } = await this.#lines.next();
		const answer = done === true ? undefined : (JSON.parse(value) as Answer);
		if (answer?.event !== event) throw new Error(`a worker said ${value} instead of ${event}`);
		return answer;
	}

	async resync(count: number): Promise<Answer> {
		this.#child.stdin?.write(`resync ${count}\n`);
		const answer = await this.said("resync");
		if (answer.writes > 0) throw new Error(`a round that should change nothing wrote ${answer.writes} times`);
		return answer;
	}

	async stop(): Promise<void> {
		const ended = once(this.#child, "exit");
		this.#child.stdin?.end();
		await ended;
	}
}
