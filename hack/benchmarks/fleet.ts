import { Fleet } from "../../test/fleet/fleet.ts";
import { hostName } from "../../test/fleet/host.ts";
import { startPlane } from "../../test/fleet/plane.ts";
import {
	blackout,
	broken,
	type Cost,
	changeAndAcknowledge,
	costOf,
	flapping,
	idle,
	join,
	makeClusters,
	type Return,
	settled,
	uplinkLost,
} from "../../test/fleet/scenarios.ts";
import { atMost, type Figure } from "./figures.ts";

export interface FleetOptions {
	/** Hosts in the end. */
	readonly hosts?: number;
	/** Clusters of three hosts. */
	readonly clusters?: number;
	readonly report: (line: string) => void;
}

/** The storm of joins that is measured; more hosts follow at a pace. */
const AT_ONCE = 500;
const SIZES = [1_000, 3_000, 10_000];
/** Generous: a busy machine gives a bad figure, not none. */
const MOST_MS = 1_800_000;
const IDLE_SECONDS = 30;
const CHANGED_HOSTS = 25;
/** Of what it takes on real hosts: what is measured is the plane. */
const PACE = { factor: 0.25, failures: 0.01 };

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
 * same machine: joins, idle time, changes, a blackout of the plane, a lost line, clusters. Ends within five minutes by default.
 */
export async function fleet({ hosts = 1_000, clusters = 20, report }: FleetOptions): Promise<Figure[]> {
	const sizes = [...new Set([Math.min(AT_ONCE, hosts), ...SIZES.filter((size) => size < hosts), hosts])];
	const [first = hosts] = sizes;
	const plane = await startPlane();
	const sites = await Fleet.make(plane, { size: hosts, pace: PACE });
	const tell = (what: string, cost: Cost, per: number) =>
		report(
			`${what}: ${cost.seconds.toFixed(1)} s; a piece ${(cost.writes / per).toFixed(1)} writes, ms of CPU: ${cpuOf(cost, per)}`,
		);
	try {
		const joined = await costOf(plane, () => join(plane, sites, { to: first, ms: MOST_MS }));
		tell(`${first} hosts joining at once`, joined, first);
		const rows: Row[] = [];
		let before = first;
		for (const size of sizes) {
			if (size > before) {
				const cost = await costOf(plane, () =>
					join(plane, sites, { from: before, to: size, spreadMs: (size - before) * 25, ms: MOST_MS }),
				);
				tell(`${size - before} hosts joining one after the other`, cost, size - before);
			}
			before = size;
			await settled(plane, sites, size, MOST_MS);
			const quiet = await idle(plane, IDLE_SECONDS);
			const step = Math.floor(size / CHANGED_HOSTS);
			const names = Array.from({ length: CHANGED_HOSTS }, (_, i) => hostName(i * step));
			const latencies = await changeAndAcknowledge(plane, sites, names);
			const sum = (values: ReadonlyMap<string, number>) => (values.get("tunnel") ?? 0) + (values.get("hosts") ?? 0);
			const row: Row = {
				hosts: size,
				memory: sum(new Map([...quiet.usage].map(([name, { rssMiB }]) => [name, rssMiB]))),
				cpu: sum(quiet.cpu),
				writes: quiet.writesPerMinute,
				p50: quantile(latencies, 0.5),
				p99: quantile(latencies, 0.99),
			};
			rows.push(row);
			report(
				`${size} hosts idle: ${[...quiet.usage].map(([name, { rssMiB }]) => `${name} ${rssMiB.toFixed(0)} MiB ${quiet.cpu.get(name)?.toFixed(1)} %`).join(", ")}`,
			);
		}
		let back: Return | undefined;
		const dark = await costOf(plane, async () => {
			back = await blackout(plane, sites, { ms: MOST_MS });
		});
		tell("blackout", dark, hosts);
		report(
			`blackout: programs ready after ${back?.ready.toFixed(1)} s, tunnels up after ${back?.tunnels.toFixed(1)} s`,
		);
		const uplink = await uplinkLost(plane, sites, { darkMs: 20_000, ms: MOST_MS });
		const flaps = await costOf(plane, () => flapping(sites));
		tell("5 % of the hosts flapping for 30 s", flaps, hosts);
		await settled(plane, sites, hosts, MOST_MS);
		const made = await costOf(plane, () => makeClusters(plane, { count: clusters, ms: MOST_MS }));
		tell(`${clusters} clusters`, made, clusters);
		const problems = await broken(plane, sites, hosts);
		for (const problem of problems) report(`BROKEN: ${problem}`);

		const last = rows.at(-1) as Row;
		const course = (value: (row: Row) => number) =>
			rows.map((row) => `${row.hosts}: ${value(row).toFixed(1)}`).join(", ");
		return [
			atMost(`${first} hosts joining at once → all Ready`, joined.seconds, "s", 45),
			atMost(`${hosts} hosts back after the whole plane was killed`, back?.settled ?? Number.NaN, "s", 60),
			atMost(`${hosts} hosts back after their line was gone for 20 s`, uplink, "s", 60),
			atMost(
				`${hosts} idle hosts: memory of gateway and hosts service`,
				last.memory,
				"MiB",
				600,
				course((row) => row.memory),
			),
			atMost(
				`${hosts} idle hosts: CPU of gateway and hosts service`,
				last.cpu,
				"%",
				15,
				course((row) => row.cpu),
			),
			atMost(
				`${hosts} idle hosts: writes to etcd`,
				last.writes,
				"/min",
				0,
				course((row) => row.writes),
			),
			atMost(
				"desired state changed → acknowledged, p50",
				last.p50,
				"ms",
				50,
				course((row) => row.p50),
			),
			atMost(
				"desired state changed → acknowledged, p99",
				last.p99,
				"ms",
				500,
				course((row) => row.p99),
			),
			// A cluster by itself takes a while however fast the plane is.
			atMost(`${clusters} clusters of 3 made`, made.seconds, "s", Math.max(60, clusters * 0.6)),
			atMost("invariants broken", problems.length, "", 0),
		];
	} finally {
		await sites.close();
		await plane.close();
	}
}

/** CPU of each part, milliseconds for each of `per`. */
const cpuOf = ({ cpu }: Cost, per: number) =>
	[...cpu].map(([name, seconds]) => `${name} ${((seconds * 1000) / per).toFixed(1)}`).join(", ");

/** The value below which a share of the values lies. */
function quantile(values: readonly number[], share: number): number {
	const sorted = values.toSorted((a, b) => a - b);
	return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}
