import { loadavg } from "node:os";
import { Fleet } from "../../test/fleet/fleet.ts";
import { hostName } from "../../test/fleet/host.ts";
import { counts, type Plane, startPlane, versions } from "../../test/fleet/plane.ts";
import {
	blackout,
	broken,
	type Cost,
	changeAndAcknowledge,
	costOf,
	flapping,
	idle,
	join,
	joinInTurn,
	makeClusters,
	type Return,
	ready,
	settled,
	upgradeClusters,
	uplinkLost,
	writesOver,
} from "../../test/fleet/scenarios.ts";
import { atMost, type Figure, table } from "./figures.ts";

export interface FleetOptions {
	/** Hosts in the end. */
	readonly hosts?: number;
	/** Clusters of three hosts. */
	readonly clusters?: number;
	/** For how long the site's line is gone, in seconds. */
	readonly dark?: number;
	/** What to do with the hosts; all of it when left out. */
	readonly phases?: readonly Phase[];
	readonly report: (line: string) => void;
}

/** What may be left out. Without `sizes` the hosts only join, and nothing is measured on the way; `upgrades` are of clusters that were made. */
export const phases = ["sizes", "blackout", "line", "clusters", "upgrades"] as const;
export type Phase = (typeof phases)[number];

/** The storm of joins that is measured; more hosts follow as fast as they can. */
const AT_ONCE = 500;
const SIZES = [1_000, 3_000, 10_000];
/** Generous: a busy machine gives a bad figure, not none. */
const MOST_MS = 1_800_000;
/** Longer than this nobody waits for hosts to be back: what comes next has its turn, if they are there by then. */
const BACK_MS = 600_000;
const IDLE_SECONDS = 30;
const CHANGED_HOSTS = 25;
const UPGRADES_AT_ONCE = 200;
/** Of what it takes on real hosts: what is measured is the plane. */
const PACE = { factor: 0.25, failures: 0.01 };
const PROGRESS_MS = 20_000;

/** What was measured with so many hosts. */
interface Row {
	readonly hosts: number;
	readonly memory: number;
	readonly cpu: number;
	readonly writes: number;
	readonly p50: number;
	readonly p99: number;
}

/**
 * The region's real gateway, hosts service and operator with PostgreSQL, NATS and an API server, under simulated hosts on the
 * same machine: joins, idle time, changes, a blackout of the plane, a lost line, clusters. Every figure is printed as soon as it is
 * known, so that a run that is broken off loses none, and what fails is told and does not keep the rest from being measured. On two
 * cores that have nothing else to do 1,000 hosts take about five minutes; docs/scale.md tells what 10,000 take.
 */
export async function fleet({
	hosts = 1_000,
	clusters = 20,
	dark = 20,
	phases: wanted = phases,
	report,
}: FleetOptions): Promise<Figure[]> {
	const began = performance.now();
	const say = (line: string) => report(`${clock(performance.now() - began)} ${line}`);
	const plane = await startPlane();
	const sites = await Fleet.make(plane, { size: hosts, pace: PACE });
	const progress = tellProgress(plane, sites, say);
	const figures: Figure[] = [];
	try {
		await new FleetBench(plane, sites, say, (figure) => {
			figures.push(figure);
			say(`${figure.name}: ${figure.value} ${figure.unit} (${figure.ok ? "ok" : `target ${figure.target}`})`);
		}).run({ hosts, clusters, dark, wanted: new Set(wanted) });
		return figures;
	} catch (error) {
		if (figures.length > 0) say(`what was measured until it failed:\n${table(figures)}`);
		throw error;
	} finally {
		clearInterval(progress);
		await sites.close();
		await plane.close();
	}
}

class FleetBench {
	readonly #plane: Plane;
	readonly #sites: Fleet;
	readonly #say: (line: string) => void;
	readonly #take: (figure: Figure) => void;
	/** Phases that did not come to their end. */
	readonly #failed: string[] = [];

	constructor(plane: Plane, sites: Fleet, say: (line: string) => void, take: (figure: Figure) => void) {
		this.#plane = plane;
		this.#sites = sites;
		this.#say = say;
		this.#take = take;
	}

	async run({
		hosts,
		clusters,
		dark,
		wanted,
	}: {
		hosts: number;
		clusters: number;
		dark: number;
		wanted: ReadonlySet<Phase>;
	}): Promise<void> {
		if (wanted.has("sizes")) await this.#sizes(hosts);
		else await this.#join(hosts);
		const phase = (name: string, work: () => Promise<void>) => this.#phase(name, hosts, work);
		if (wanted.has("blackout")) await phase("blackout", () => this.#blackout(hosts));
		if (wanted.has("line")) await phase("line", () => this.#line(hosts, dark));
		if (wanted.has("clusters")) await phase("clusters", () => this.#clusters(clusters));
		if (wanted.has("upgrades")) await phase("upgrades", () => this.#upgrades());
		await phase("invariants", () => this.#invariants(hosts));
		this.#take(atMost("phases that failed", this.#failed.length, "", 0, this.#failed.join(", ")));
	}

	/** Does something with so many hosts once all of them are there. What fails is told, and the next one has its turn. */
	async #phase(name: string, hosts: number, work: () => Promise<void>): Promise<void> {
		this.#say(`--- ${name}`);
		try {
			await settled(this.#plane, this.#sites, hosts, BACK_MS);
			await work();
		} catch (error) {
			this.#failed.push(name);
			this.#say(`${name} failed: ${error instanceof Error ? error.message : error}`);
		}
	}

	async #invariants(hosts: number): Promise<void> {
		const problems = await broken(this.#plane, this.#sites, hosts);
		for (const problem of problems) this.#say(`BROKEN: ${problem}`);
		this.#take(atMost("invariants broken", problems.length, "", 0));
	}

	/** All hosts, as fast as the plane takes them. */
	async #join(hosts: number): Promise<void> {
		const [plane, sites] = [this.#plane, this.#sites];
		const cost = await costOf(plane, () => joinInTurn(plane, sites, { from: 0, to: hosts, ms: MOST_MS }));
		this.#cost(`${hosts} hosts joining one after the other`, cost, hosts);
		await settled(plane, sites, hosts, MOST_MS);
	}

	/** Joins, and what a region of each size costs. */
	async #sizes(hosts: number): Promise<void> {
		const [plane, sites] = [this.#plane, this.#sites];
		const sizes = [...new Set([Math.min(AT_ONCE, hosts), ...SIZES.filter((size) => size < hosts), hosts])];
		const rows: Row[] = [];
		for (const [i, size] of sizes.entries()) {
			const before = sizes[i - 1];
			if (before === undefined) {
				const joined = await costOf(plane, () => join(plane, sites, { to: size, ms: MOST_MS }));
				this.#cost(`${size} hosts joining at once`, joined, size);
				this.#take(atMost(`${size} hosts joining at once → all Ready`, joined.seconds, "s", 45));
			} else {
				const cost = await costOf(plane, () => joinInTurn(plane, sites, { from: before, to: size, ms: MOST_MS }));
				this.#cost(`${size - before} hosts joining one after the other`, cost, size - before);
			}
			await this.#phase(`${size} hosts at rest`, size, async () => void rows.push(await this.#row(size)));
		}
		const last = rows.at(-1);
		if (last === undefined) return;
		const course = (value: (row: Row) => number) =>
			rows.map((row) => `${row.hosts}: ${value(row).toFixed(1)}`).join(", ");
		const idleHosts = (what: string, value: (row: Row) => number, unit: string, target: number) =>
			this.#take(atMost(`${last.hosts} idle hosts: ${what}`, value(last), unit, target, course(value)));
		idleHosts("memory of gateway and hosts service", ({ memory }) => memory, "MiB", 600);
		idleHosts("CPU of gateway and hosts service", ({ cpu }) => cpu, "%", 15);
		idleHosts("writes to etcd", ({ writes }) => writes, "/min", 0);
		const changed = (what: string, value: (row: Row) => number, target: number) =>
			this.#take(atMost(`desired state changed → acknowledged, ${what}`, value(last), "ms", target, course(value)));
		changed("p50", ({ p50 }) => p50, 50);
		changed("p99", ({ p99 }) => p99, 500);
	}

	async #row(size: number): Promise<Row> {
		const [plane, sites] = [this.#plane, this.#sites];
		// As etcd is looked after in a cluster; nobody does it here.
		await plane.apiserver.compact();
		const over = await costOf(plane, () => writesOver(plane));
		const quiet = await idle(plane, IDLE_SECONDS);
		const step = Math.floor(size / CHANGED_HOSTS);
		const names = Array.from({ length: CHANGED_HOSTS }, (_, i) => hostName(i * step));
		const latencies = await changeAndAcknowledge(plane, sites, names);
		const both = (value: (name: string) => number | undefined) => (value("tunnel") ?? 0) + (value("hosts") ?? 0);
		const row: Row = {
			hosts: size,
			memory: both((name) => quiet.usage.get(name)?.rssMiB),
			cpu: both((name) => quiet.cpu.get(name)),
			writes: quiet.writesPerMinute,
			p50: quantile(latencies, 0.5),
			p99: quantile(latencies, 0.99),
		};
		const parts = [...quiet.usage].map(
			([name, { rssMiB }]) => `${name} ${rssMiB.toFixed(0)} MiB ${quiet.cpu.get(name)?.toFixed(1)} %`,
		);
		this.#say(`${size} hosts idle (${over.writes} writes in ${over.seconds.toFixed(0)} s before): ${parts.join(", ")}`);
		this.#say(
			`${size} hosts: gateway and hosts service ${row.memory.toFixed(0)} MiB, ${row.cpu.toFixed(1)} %; ${row.writes.toFixed(1)} writes a minute; acknowledged after ${row.p50} ms, 99 % within ${row.p99} ms`,
		);
		return row;
	}

	async #blackout(hosts: number): Promise<void> {
		let back: Return | undefined;
		const cost = await costOf(this.#plane, async () => {
			back = await blackout(this.#plane, this.#sites, { ms: BACK_MS, report: this.#say });
		});
		const what = `${hosts} hosts back after the whole plane was killed`;
		this.#take(atMost(what, back?.settled ?? Number.NaN, "s", 60));
		this.#cost("blackout", cost, hosts);
	}

	async #line(hosts: number, dark: number): Promise<void> {
		const [plane, sites] = [this.#plane, this.#sites];
		const back = await uplinkLost(plane, sites, { darkMs: dark * 1_000, ms: BACK_MS, report: this.#say });
		this.#take(atMost(`${hosts} hosts back after their line was gone for ${dark} s`, back, "s", 60));
		const flaps = await costOf(plane, () => flapping(sites));
		this.#cost("5 % of the hosts flapping for 30 s", flaps, hosts);
		const over = await costOf(plane, () => settled(plane, sites, hosts, BACK_MS));
		this.#say(`all of them back after ${over.seconds.toFixed(1)} s`);
		const told = await costOf(plane, () => ready(plane, hosts, MOST_MS));
		this.#say(`all Hosts said so another ${told.seconds.toFixed(1)} s later`);
	}

	async #clusters(count: number): Promise<void> {
		const made = await costOf(this.#plane, () => makeClusters(this.#plane, { count, ms: MOST_MS }));
		this.#take(atMost(`${count} clusters of 3 made`, made.seconds, "s", clusterSeconds(count)));
		this.#cost(`${count} clusters`, made, count);
	}

	async #upgrades(): Promise<void> {
		let count = 0;
		const changed = await costOf(this.#plane, async () => {
			count = await upgradeClusters(this.#plane, versions[1], { most: UPGRADES_AT_ONCE, ms: MOST_MS });
		});
		const what = `${count} clusters of 3 upgraded together`;
		this.#take(atMost(what, changed.seconds, "s", 2 * clusterSeconds(count)));
		this.#cost(`${count} clusters upgraded together`, changed, count);
	}

	#cost(what: string, cost: Cost, per: number): void {
		const seconds = cost.seconds.toFixed(1);
		this.#say(
			`${what}: ${seconds} s; a piece ${(cost.writes / per).toFixed(1)} writes, ms of CPU: ${cpuOf(cost, per)}`,
		);
	}
}

/** Tells now and then where things are. Answers the timer. */
function tellProgress(plane: Plane, sites: Fleet, say: (line: string) => void): NodeJS.Timeout {
	let asked = false;
	return setInterval(() => {
		// Simulators that have much to do are not asked twice.
		if (asked) return say(`   ${progressOf(plane)}`);
		asked = true;
		sites
			.summary()
			.then(({ hosts, connected, reconnects }) => {
				say(`   ${connected} of ${hosts} tunnels (${reconnects} reconnects); ${progressOf(plane)}`);
			})
			.catch(() => say(`   ${progressOf(plane)}`))
			.finally(() => {
				asked = false;
			});
	}, PROGRESS_MS);
}

/** Hosts and clusters by phase, and what everything takes. */
function progressOf(plane: Plane): string {
	const list = (phases: Partial<Record<string, number>>) =>
		Object.entries(phases)
			.map(([phase, count]) => `${phase} ${count}`)
			.join(", ") || "none";
	const made = list(counts(plane.clusters().map(({ status }) => status?.phase)));
	const memory = [...plane.usage()].map(([name, { rssMiB }]) => `${name} ${rssMiB.toFixed(0)}`);
	return `hosts ${list(plane.phases())}; clusters ${made}; MiB: ${memory.join(", ")}; load ${loadavg()[0]?.toFixed(1)}`;
}

/** What so many clusters may take: one by itself needs a while however fast the plane is. */
const clusterSeconds = (count: number): number => Math.max(60, count * 0.6);

/** Minutes and seconds. */
const clock = (ms: number): string =>
	[ms / 60_000, (ms / 1_000) % 60].map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");

/** CPU of each part, milliseconds for each of `per`. */
const cpuOf = ({ cpu }: Cost, per: number) =>
	[...cpu].map(([name, seconds]) => `${name} ${((seconds * 1000) / per).toFixed(1)}`).join(", ");

/** The value below which a share of the values lies. */
function quantile(values: readonly number[], share: number): number {
	const sorted = values.toSorted((a, b) => a - b);
	return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}
