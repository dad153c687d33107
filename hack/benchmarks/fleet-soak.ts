import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { hosts } from "../../operator/kube/resources.ts";
import { Fleet, until } from "../../test/fleet/fleet.ts";
import { hostName } from "../../test/fleet/host.ts";
import { NAMESPACE, type Plane, type Program, programs, startPlane, versions } from "../../test/fleet/plane.ts";
import {
	broken,
	deleteClusters,
	flapping,
	join,
	makeClusters,
	ready,
	settled,
	upgradeClusters,
	uplinkLost,
	writesOver,
} from "../../test/fleet/scenarios.ts";
import { atMost, type Figure, table } from "./figures.ts";
import { growth, type Point } from "./soak/slope.ts";

export interface FleetSoakOptions {
	readonly forMs: number;
	readonly hosts?: number;
	readonly report: (line: string) => void;
}

const CLUSTERS = 3;
/** So many hosts are deleted in each round, and as many new ones come. */
const LEAVING = 5;
const DARK_MS = 8_000;
const PACE = { factor: 0.1, failures: 0.05 };
/** Generous: a busy machine makes rounds longer, not wrong. */
const MOST_MS = 900_000;
/** V8 collects garbage when it likes: of so many looks, one a second, the least counts. */
const LOOKS = 10;

/** Rows of a round that are kept on purpose: a join token, and who came with it, until a week after it has expired. */
const KEPT: Readonly<Record<string, number>> = { join_tokens: 1, enrolments: LEAVING };

/** The plane at rest. */
interface Rest {
	readonly at: number;
	readonly of: ReadonlyMap<Program, { readonly rss: number; readonly heap: number; readonly handles: number }>;
	/** Rows of each table. */
	readonly rows: ReadonlyMap<string, number>;
}

/**
 * The plane's real programs under one storm after the other, for hours: hosts flap, their line goes, NATS, PostgreSQL and the API
 * server are killed, clusters are made, change version and go, hosts leave and others come. After each round everything is let come to
 * rest and looked at: memory, handles and timers of the programs, and the database's rows, may not grow.
 */
export async function fleetSoak({ forMs, hosts: size = 100, report }: FleetSoakOptions): Promise<Figure[]> {
	const plane = await startPlane();
	const fleet = await Fleet.make(plane, { size, pace: PACE });
	const rests: Rest[] = [];
	try {
		await join(plane, fleet, { ms: MOST_MS });
		const began = performance.now();
		for (let round = 0; rests.length === 0 || performance.now() - began < forMs; round++) {
			await storm(plane, fleet, { size, round });
			const rest = await atRest(plane, performance.now() - began);
			rests.push(rest);
			report(line(rest));
		}
		const problems = await broken(plane, fleet, size);
		for (const problem of problems) report(`BROKEN: ${problem}`);
		return figures(rests, problems.length);
	} catch (error) {
		if (rests.length > 0) report(`what was measured until it failed:\n${table(figures(rests, Number.NaN))}`);
		throw error;
	} finally {
		await fleet.close();
		await plane.close();
	}
}

/** One of each, and then all as before; hosts `round × LEAVING` and following of those without a cluster have made room for others. */
async function storm(plane: Plane, fleet: Fleet, { size, round }: { size: number; round: number }): Promise<void> {
	await flapping(fleet, { share: 0.2, rounds: 3, everyMs: 3_000 });
	await uplinkLost(plane, fleet, { darkMs: DARK_MS, ms: MOST_MS });
	await ready(plane, size, MOST_MS);
	for (const part of [plane.nats, plane.postgres]) {
		await part.stop("kill");
		await part.start();
		await settled(plane, fleet, size, MOST_MS);
	}
	await plane.apiserver.kill();
	await plane.apiserver.start();
	await makeClusters(plane, { count: CLUSTERS, ms: MOST_MS });
	await upgradeClusters(plane, versions[1], { ms: MOST_MS });
	await deleteClusters(plane, { ms: MOST_MS });
	const from = 3 * CLUSTERS + round * LEAVING;
	await leave(plane, fleet, { from, to: from + LEAVING });
	const token = await plane.joinToken(LEAVING);
	await fleet.start(token, { from: size + round * LEAVING, to: size + (round + 1) * LEAVING });
	await ready(plane, size, MOST_MS);
	await settled(plane, fleet, size, MOST_MS);
	await writesOver(plane, { ms: MOST_MS });
}

/** Deletes Hosts, and switches the machines off when they are gone. */
async function leave(plane: Plane, fleet: Fleet, { from, to }: { from: number; to: number }): Promise<void> {
	const names = Array.from({ length: to - from }, (_, i) => hostName(from + i));
	await Promise.all(names.map((name) => plane.kube.delete(hosts, { name, namespace: NAMESPACE })));
	await until(
		`${names.join(", ")} gone`,
		() => Promise.all(names.map((name) => plane.kube.find(hosts, name, NAMESPACE))),
		(found) => found.every((host) => host === undefined),
		MOST_MS,
	);
	await fleet.stop({ from, to });
}

async function atRest(plane: Plane, at: number): Promise<Rest> {
	const looks: { name: Program; rss: number; heap: number; handles: number }[] = [];
	for (let look = 0; look < LOOKS; look++) {
		const usage = plane.usage();
		for (const name of programs) {
			const [heap, timers, files] = await Promise.all([
				plane.metric(name, "nodejs_heap_size_used_bytes"),
				plane.metric(name, "nodejs_active_resources", "type="),
				plane.metric(name, "process_open_fds"),
			]);
			const rss = usage.get(name)?.rssMiB ?? Number.NaN;
			looks.push({ name, rss, heap: heap / 2 ** 20, handles: timers + files });
		}
		await delay(1_000);
	}
	const least = (name: Program, value: (look: (typeof looks)[number]) => number) =>
		Math.min(...looks.filter((look) => look.name === name).map(value));
	const of = programs.map((name) => {
		const [rss, heap] = [least(name, (look) => look.rss), least(name, (look) => look.heap)];
		return [name, { rss, heap, handles: least(name, ({ handles }) => handles) }] as const;
	});
	return { at, of: new Map(of), rows: await rowsOf(plane) };
}

async function rowsOf(plane: Plane): Promise<Map<string, number>> {
	const database = new pg.Client({ connectionString: plane.databaseUrl });
	await database.connect();
	try {
		const { rows } = await database.query<{ name: string; count: number }>(`
			SELECT relname AS name, (xpath('/row/n/text()',
				query_to_xml(format('SELECT count(*) AS n FROM %I.%I', schemaname, relname), false, true, '')))[1]::text::int AS count
			FROM pg_stat_user_tables ORDER BY relname`);
		return new Map(rows.map(({ name, count }) => [name, count]));
	} finally {
		await database.end();
	}
}

function line({ at, of, rows }: Rest): string {
	const parts = [...of].map(
		([name, { rss, heap, handles }]) =>
			`${name} ${rss.toFixed(1)} MiB (${heap.toFixed(1)} heap), ${handles} handles and timers`,
	);
	return `${(at / 60_000).toFixed(1)} min: ${parts.join("; ")}; rows: ${[...rows].map(([name, count]) => `${name} ${count}`).join(", ")}`;
}

function figures(rests: readonly Rest[], problems: number): Figure[] {
	const last = rests.at(-1) as Rest;
	const over = `growth over the second half of ${Math.round(last.at / 60_000)} min`;
	const grown = (value: (rest: Rest) => number) => growth(rests.map((rest): Point => [rest.at, value(rest)]));
	const of = (name: Program, what: string, key: "rss" | "heap" | "handles", unit: string, most: number) =>
		atMost(
			`${name}: ${what}, ${over}`,
			grown((rest) => rest.of.get(name)?.[key] ?? Number.NaN),
			unit,
			most,
			`${last.of.get(name)?.[key].toFixed(1)} in the end`,
		);
	return [
		...programs.flatMap((name) => [
			of(name, "resident", "rss", "MiB", 5),
			of(name, "heap", "heap", "MiB", 2),
			of(name, "handles and timers", "handles", "", 2),
		]),
		...[...last.rows].map(([name, count]) =>
			atMost(
				`rows of ${name}, ${over}`,
				grown(({ rows }) => rows.get(name) ?? 0),
				"",
				// A host that is changed comes to have a document or two more, of sixteen that are kept: what leaks comes each round.
				Math.max(2, 0.02 * count) + (KEPT[name] ?? 0) * (rests.length / 2),
				`${count} in the end`,
			),
		),
		atMost("invariants broken", problems, "", 0, `${rests.length} rounds`),
	];
}
