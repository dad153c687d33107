import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import type { Cluster } from "../../crds/cluster.ts";
import { clusters, hosts } from "../../operator/kube/resources.ts";
import { type Fleet, until } from "./fleet.ts";
import { hostName } from "./host.ts";
import { counts, NAMESPACE, type Plane, type Usage, versions } from "./plane.ts";
import type { Summary } from "./simulator.ts";

/** What a scenario took: time on the clock, and CPU of each part of the plane. */
export interface Cost {
	readonly seconds: number;
	readonly cpu: ReadonlyMap<string, number>;
	/** Writes of Hosts and Clusters that the API server has stored. */
	readonly writes: number;
}

/** Runs something and says what it cost. */
export async function costOf(plane: Plane, work: () => Promise<unknown>): Promise<Cost> {
	const before = { usage: plane.usage(), writes: await plane.writes(), at: performance.now() };
	await work();
	const seconds = (performance.now() - before.at) / 1000;
	const cpu = new Map(
		[...plane.usage()].map(([name, { cpuSeconds }]) => {
			const earlier = before.usage.get(name)?.cpuSeconds ?? 0;
			// A program that was started anew counts from nothing.
			return [name, cpuSeconds >= earlier ? cpuSeconds - earlier : cpuSeconds];
		}),
	);
	const writes = await plane.writes();
	return { seconds, cpu, writes: writes >= before.writes ? writes - before.writes : writes };
}

/** Hosts `from` to `to` enrol at once; ends when all of them are Ready. */
export async function join(plane: Plane, fleet: Fleet, { from = 0, to = fleet.size, spreadMs = 0, ms = 300_000 } = {}) {
	const token = await plane.joinToken(to - from);
	await fleet.start(token, { from, to, spreadMs });
	await ready(plane, to, ms);
}

/**
 * Hosts `from` to `to` enrol in batches, the next one as soon as few enough are on their way: as fast as the plane can, and nobody is
 * sent away.
 */
export async function joinInTurn(
	plane: Plane,
	fleet: Fleet,
	{
		from,
		to,
		batch = 60,
		underWay = 180,
		ms,
	}: { from: number; to: number; batch?: number; underWay?: number; ms: number },
) {
	const token = await plane.joinToken(to - from);
	for (let next = from; next < to; ) {
		const end = Math.min(next + batch, to);
		await fleet.start(token, { from: next, to: end, spreadMs: batch * 5 });
		next = end;
		await until(
			`${next - underWay} hosts Ready`,
			async () => plane.phases(),
			({ Ready = 0 }) => Ready >= next - underWay,
			ms,
		);
	}
	await ready(plane, to, ms);
}

/** Waits until the API server has not been written to for a while: what a storm left to be written goes out at a pace. */
export async function writesOver(plane: Plane, { quietSeconds = 5, ms = 900_000 } = {}): Promise<void> {
	await until(
		"no more writes",
		async () => (await idle(plane, quietSeconds)).writesPerMinute,
		(writes) => writes === 0,
		ms,
	);
}

/** Waits until so many Hosts are Ready. */
export async function ready(plane: Plane, count: number, ms: number): Promise<void> {
	await until(
		`${count} hosts Ready`,
		async () => plane.phases(),
		(phases) => phases.Ready === count,
		ms,
	);
}

/** Waits until the region's database says of so many hosts that their tunnels are up, and they have acknowledged their newest document. */
export async function settled(plane: Plane, fleet: Fleet, count: number, ms: number): Promise<void> {
	await fleet.until(`${count} tunnels`, ({ connected }) => connected === count, ms);
	const database = new pg.Pool({ connectionString: plane.databaseUrl, max: 1, connectionTimeoutMillis: 2_000 });
	database.on("error", () => {});
	try {
		const query = `SELECT count(*)::int AS count FROM hosts h WHERE link->>'state' = 'connected'
			AND accepted_epoch = (link->>'epoch')::bigint
			AND accepted_generation = (SELECT max(generation) FROM documents d WHERE d.host = h.name)`;
		await until(
			`${count} hosts known to be connected with their document acknowledged`,
			async () => (await database.query<{ count: number }>(query).catch(() => undefined))?.rows[0]?.count,
			(known) => known === count,
			ms,
			// The question costs PostgreSQL more the more hosts there are.
			Math.max(250, count / 10),
		);
	} finally {
		await database.end();
	}
}

/** Hears how far something that takes long has come. */
type Report = (line: string) => void;

/** Seconds from when the power is back. */
export interface Return {
	/** Every program says that it is ready. */
	readonly ready: number;
	/** Every host has its tunnel. */
	readonly tunnels: number;
	/** The region knows so, and every host has acknowledged its document over the new tunnel. */
	readonly settled: number;
}

/** The power goes off under the whole plane, and comes back after `darkMs`. Ends when all is as before; nobody lends a hand. */
export async function blackout(
	plane: Plane,
	fleet: Fleet,
	{ darkMs = 1_000, ms = 300_000, report = () => {} }: { darkMs?: number; ms?: number; report?: Report } = {},
): Promise<Return> {
	const count = (await fleet.summary()).hosts;
	await Promise.all([plane.kill(), plane.postgres.stop("kill"), plane.nats.stop("kill"), plane.apiserver.kill()]);
	await fleet.until("no tunnel", ({ connected }) => connected === 0, ms);
	await delay(darkMs);
	const since = clock();
	// What is slow to start runs all the same, and the programs wait for it.
	const parts = [plane.postgres.start(), plane.nats.start(), plane.apiserver.start()];
	await Promise.all(parts.map((part) => part.catch((error: unknown) => report(`slow to start: ${error}`))));
	const [ready, tunnels] = await Promise.all([
		plane.start().then(() => {
			report(`programs ready after ${since().toFixed(1)} s`);
			return since();
		}),
		tunnelsUp(fleet, count, { since, ms, report }),
	]);
	await settled(plane, fleet, count, ms);
	return { ready, tunnels, settled: since() };
}

/**
 * The site's line is gone for `darkMs`. Ends when all hosts are back; answers how many seconds that took from when the line was
 * mended. Their Hosts say so later: that can wait ({@link ready}).
 */
export async function uplinkLost(
	plane: Plane,
	fleet: Fleet,
	{ darkMs, ms = 300_000, report = () => {} }: { darkMs: number; ms?: number; report?: Report },
): Promise<number> {
	const count = (await fleet.summary()).hosts;
	await fleet.cut(true);
	await delay(darkMs);
	const since = clock();
	await fleet.cut(false);
	await tunnelsUp(fleet, count, { since, ms, report });
	await settled(plane, fleet, count, ms);
	return since();
}

/** Waits for all tunnels, and tells on the way when some of them were up. Answers after how many seconds all were. */
async function tunnelsUp(
	fleet: Fleet,
	count: number,
	{ since, ms, report }: { since: () => number; ms: number; report: Report },
): Promise<number> {
	const shares = [0.1, 0.5, 0.9, 0.99, 1];
	const tell = ({ connected }: Summary) => {
		while (shares[0] !== undefined && connected >= shares[0] * count)
			report(`${Math.round((shares.shift() as number) * 100)} % of ${count} tunnels up after ${since().toFixed(1)} s`);
		return connected === count;
	};
	await fleet.until(`${count} tunnels`, tell, ms);
	return since();
}

/** Seconds from now on. */
function clock(): () => number {
	const began = performance.now();
	return () => (performance.now() - began) / 1000;
}

/** A share of the hosts loses its tunnel again and again. */
export async function flapping(fleet: Fleet, { share = 0.05, rounds = 6, everyMs = 5_000 } = {}): Promise<void> {
	for (let round = 0; round < rounds; round++) {
		await fleet.drop(share, everyMs);
		await delay(everyMs);
	}
}

/**
 * Changes the desired state of single hosts, one after the other, and answers how long each took until the host had accepted it,
 * in milliseconds from when the change was asked for.
 */
export async function changeAndAcknowledge(plane: Plane, fleet: Fleet, names: readonly string[]): Promise<number[]> {
	const latencies: number[] = [];
	for (const maintenance of [true, false]) {
		for (const name of names) {
			const asked = Date.now();
			await plane.kube.patch(hosts, { name, namespace: NAMESPACE }, { spec: { maintenance } });
			const document = await until(
				`${name} accepted`,
				async () => (await fleet.documents([name])).get(name),
				(document) => document !== undefined && document.at >= asked && document.paused === maintenance,
				60_000,
				20,
			);
			latencies.push((document?.at ?? 0) - asked);
		}
	}
	return latencies;
}

/** What people ask for, by so many of them at a time: a thousand requests at once would wait for each other until their time is over. */
async function people<T>(
	wishes: readonly T[],
	ask: (wish: T, i: number) => Promise<unknown>,
	most = 20,
): Promise<void> {
	const left = wishes.entries();
	const one = async () => {
		for (const [i, wish] of left) await ask(wish, i);
	};
	await Promise.all(Array.from({ length: most }, one));
}

/** Makes clusters of one control plane and two workers from hosts `from` on; ends when all are Ready. */
export async function makeClusters(
	plane: Plane,
	{ count, from = 0, ms = 600_000 }: { count: number; from?: number; ms?: number },
): Promise<void> {
	const names = Array.from({ length: count }, (_, i) => `cluster-${from + i * 3}`);
	await people(names, (name, i) => {
		const [first, ...others] = [0, 1, 2].map((k) => hostName(from + i * 3 + k));
		return plane.kube.create(clusters, {
			apiVersion: "groundplane.io/v1alpha1",
			kind: "Cluster",
			metadata: { name, namespace: NAMESPACE },
			spec: { version: versions[0], controlPlane: { hosts: [first] }, workers: [{ name: "workers", hosts: others }] },
		} as unknown as Cluster);
	});
	const wanted = new Set(names);
	await until(
		`${count} clusters Ready`,
		async () => {
			const made = plane.clusters().filter(({ metadata }) => wanted.has(metadata.name));
			return counts(made.map(({ status }) => status?.phase));
		},
		(phases) => phases.Ready === count,
		ms,
	);
}

/** Changes the version of all clusters, or of so many, at once; ends when every one of them runs it on all nodes. Answers how many. */
export async function upgradeClusters(
	plane: Plane,
	version: string,
	{ most, ms = 600_000 }: { most?: number; ms?: number } = {},
): Promise<number> {
	const { items } = await plane.kube.listAll(clusters, { namespace: NAMESPACE });
	const names = new Set(items.slice(0, most).map(({ metadata }) => metadata.name));
	await people([...names], (name) => plane.kube.patch(clusters, { name, namespace: NAMESPACE }, { spec: { version } }));
	await until(
		`${names.size} clusters at ${version}`,
		async () => {
			const left = plane
				.clusters()
				.filter(
					({ metadata, status }) =>
						names.has(metadata.name) &&
						(status?.phase !== "Ready" ||
							status.version !== version ||
							status.members?.some((member) => member.version !== version)),
				);
			return left.map(({ metadata, status }) => `${metadata.name} ${status?.phase} ${status?.progress?.step ?? ""}`);
		},
		(left) => left.length === 0,
		ms,
		1_000,
	);
	return names.size;
}

/** Deletes clusters; ends when they are gone and their hosts are free again. */
export async function deleteClusters(plane: Plane, { ms = 600_000 } = {}): Promise<void> {
	const { items } = await plane.kube.listAll(clusters, { namespace: NAMESPACE });
	await people(items, ({ metadata }) => plane.kube.delete(clusters, { name: metadata.name, namespace: NAMESPACE }));
	await until(
		"no cluster left",
		async () => (await plane.kube.listAll(clusters, { namespace: NAMESPACE })).items.length,
		(left) => left === 0,
		ms,
	);
}

/** What must hold whatever happened: nobody lost, nobody twice, nothing older than before. Answers what does not. */
export async function broken(plane: Plane, fleet: Fleet, count: number): Promise<string[]> {
	const problems: string[] = [];
	const expect = (what: string, value: unknown, wanted: unknown) => {
		if (value !== wanted) problems.push(`${what}: ${value}, not ${wanted}`);
	};
	const summary = await fleet.summary();
	expect("simulated hosts", summary.hosts, count);
	expect("connected", summary.connected, count);
	expect("documents that were older than the one before", summary.fell, 0);
	expect("clusters that kubeadm made twice", summary.madeTwice, 0);
	const { items } = await plane.kube.listAll(hosts, { namespace: NAMESPACE });
	expect("Hosts", items.length, count);
	const database = new pg.Client({ connectionString: plane.databaseUrl });
	await database.connect();
	try {
		const one = async (query: string) => (await database.query<{ n: number }>(query)).rows[0]?.n;
		expect("machines", await one("SELECT count(*)::int AS n FROM hosts"), count);
		const uids = new Set(items.map(({ metadata }) => metadata.uid));
		const rows = (await database.query<{ uid: string }>("SELECT uid FROM hosts")).rows;
		expect("machines whose Host is another one", rows.filter(({ uid }) => !uids.has(uid)).length, 0);
		const good =
			"SELECT count(*)::int AS n FROM (SELECT host FROM certificates WHERE revoked_at IS NULL GROUP BY host) c";
		expect("hosts with a good certificate", await one(good), count);
	} finally {
		await database.end();
	}
	return problems;
}

/** What the plane takes while nothing happens: share of a core, memory and writes a minute. */
export async function idle(
	plane: Plane,
	seconds: number,
): Promise<{ cpu: ReadonlyMap<string, number>; usage: ReadonlyMap<string, Usage>; writesPerMinute: number }> {
	const cost = await costOf(plane, () => delay(seconds * 1000));
	return {
		cpu: new Map([...cost.cpu].map(([name, used]) => [name, (used / cost.seconds) * 100])),
		usage: plane.usage(),
		writesPerMinute: (cost.writes / cost.seconds) * 60,
	};
}
