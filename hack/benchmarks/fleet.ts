import { loadavg } from "node:os";
import { Fleet } from "../../test/fleet/fleet.ts";
import { hostName } from "../../test/fleet/host.ts";
import { type Plane, startPlane, versions } from "../../test/fleet/plane.ts";
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
	readonly report: (line: string) => void;
}

/** The storm of joins that is measured; more hosts follow as fast as they can. */
const AT_ONCE = 500;
const SIZES = [1_000, 3_000, 10_000];
/** Generous: a busy machine gives a bad figure, not none. */
const MOST_MS = 1_800_000;
const IDLE_SECONDS = 30;
const CHANGED_HOSTS = 25;
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
 * known, so that a run that is broken off loses none. On two cores that have nothing else to do 1,000 hosts take about five minutes,
 * 10,000 half an hour.
 */
export async function fleet({ hosts = 1_000, clusters = 20, dark = 20, report }: FleetOptions): Promise<Figure[]> {
	const began = performance.now();
	const say = (line: string) => report(`${clock(performance.now() - began)} ${line}`);
	const plane = await startPlane();
	const sites = await Fleet.make(plane, { size: hosts, pace: PACE });
	const progress = setInterval(() => say(`   ${progressOf(plane, sites)}`), PROGRESS_MS);
	const figures: Figure[] = [];
	try {
		await new FleetBench(plane, sites, say, (figure) => {
			figures.push(figure);
			say(`${figure.name}: ${figure.value} ${figure.unit} (${figure.ok ? "ok" : `target ${figure.target}`})`);
		}).run({ hosts, clusters, dark });
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

	constructor(plane: Plane, sites: Fleet, say: (line: string) => void, take: (figure: Figure) => void) {
		this.#plane = plane;
		this.#sites = sites;
		this.#say = say;
		this.#take = take;
	}

	async run({ hosts, clusters, dark }: { hosts: number; clusters: number; dark: number }): Promise<void> {
		await this.#sizes(hosts);
		await this.#blackout(hosts);
		await this.#storms(hosts, dark);
		await this.#clusters(clusters);
		const problems = await broken(this.#plane, this.#sites, hosts);
		for (const problem of problems) this.#say(`BROKEN: ${problem}`);
		this.#take(atMost("invariants broken", problems.length, "", 0));
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
			await settled(plane, sites, size, MOST_MS);
			rows.push(await this.#row(size));
		}
		const last = rows.at(-1) as Row;
		const course = (value: (row: Row) => number) =>
			rows.map((row) => `${row.hosts}: ${value(row).toFixed(1)}`).join(", ");
		const idleHosts = (what: string, value: (row: Row) => number, unit: string, target: number) =>
			this.#take(atMost(`${hosts} idle hosts: ${what}`, value(last), unit, target, course(value)));
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
			back = await blackout(this.#plane, this.#sites, { ms: MOST_MS });
		});
		this.#cost("blackout", cost, hosts);
		this.#say(`programs ready after ${back?.ready.toFixed(1)} s, tunnels up after ${back?.tunnels.toFixed(1)} s`);
		const what = `${hosts} hosts back after the whole plane was killed`;
		this.#take(atMost(what, back?.settled ?? Number.NaN, "s", 60));
	}

	async #storms(hosts: number, dark: number): Promise<void> {
		const [plane, sites] = [this.#plane, this.#sites];
		const uplink = await uplinkLost(plane, sites, { darkMs: dark * 1_000, ms: MOST_MS });
		this.#take(atMost(`${hosts} hosts back after their line was gone for ${dark} s`, uplink, "s", 60));
		const flaps = await costOf(plane, () => flapping(sites));
		this.#cost("5 % of the hosts flapping for 30 s", flaps, hosts);
		await settled(plane, sites, hosts, MOST_MS);
	}

	async #clusters(count: number): Promise<void> {
		// A cluster by itself takes a while however fast the plane is.
		const most = Math.max(60, count * 0.6);
		const made = await costOf(this.#plane, () => makeClusters(this.#plane, { count, ms: MOST_MS }));
		this.#cost(`${count} clusters`, made, count);
		this.#take(atMost(`${count} clusters of 3 made`, made.seconds, "s", most));
		const changed = await costOf(this.#plane, () => upgradeClusters(this.#plane, versions[1], { ms: MOST_MS }));
		this.#cost(`${count} clusters upgraded together`, changed, count);
		this.#take(atMost(`${count} clusters of 3 upgraded together`, changed.seconds, "s", 2 * most));
	}

	#cost(what: string, cost: Cost, per: number): void {
		const seconds = cost.seconds.toFixed(1);
		this.#say(
			`${what}: ${seconds} s; a piece ${(cost.writes / per).toFixed(1)} writes, ms of CPU: ${cpuOf(cost, per)}`,
		);
	}
}

/** Where things are, for whoever waits: hosts by phase, and what everything takes. */
function progressOf(plane: Plane, sites: Fleet): string {
	const phases = Object.entries(plane.phases()).map(([phase, count]) => `${phase} ${count}`);
	const memory = [...plane.usage()].map(([name, { rssMiB }]) => `${name} ${rssMiB.toFixed(0)}`);
	return `of ${sites.size} hosts ${phases.join(", ") || "none"}; MiB: ${memory.join(", ")}; load ${loadavg()[0]?.toFixed(1)}`;
}

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
