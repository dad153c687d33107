import { appendFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { hosts } from "../../operator/kube/resources.ts";
import { Fleet, until } from "../fleet/fleet.ts";
import { hostName, seeded } from "../fleet/host.ts";
import { NAMESPACE, type Plane, startPlane } from "../fleet/plane.ts";
import { broken, join, makeClusters, ready, settled } from "../fleet/scenarios.ts";
import { faults, lastingFaults, load, storm } from "./chaos.ts";
import { explained } from "./state.ts";

const HOSTS = 24;
/**
 * How many faults, and which course of things. By default a short one with what once left clusters behind: a NATS that loses its disk
 * while the hosts service is not looking, and nobody who is started anew afterwards. `GROUNDPLANE_CHAOS_ROUNDS=11` strikes with all of
 * these, 15 with those that take long as well.
 */
const ROUNDS = Number(process.env.GROUNDPLANE_CHAOS_ROUNDS ?? 3);
const SEED = Number(process.env.GROUNDPLANE_CHAOS_SEED ?? 1);

const DECK = ROUNDS > faults.length ? [...faults, ...lastingFaults] : faults;
const AUDIT_MS = 2_000;

let plane: Plane;
let fleet: Fleet;
const report = (line: string) => {
	if (process.env.GROUNDPLANE_CHAOS_LOG) appendFileSync(process.env.GROUNDPLANE_CHAOS_LOG, `${line}\n`);
};

beforeAll(async () => {
	plane = await startPlane({ clocks: DECK !== faults, auditMs: AUDIT_MS });
	fleet = await Fleet.make(plane, { size: HOSTS, seed: SEED, pace: { factor: 0.2, failures: 0.05 } });
}, 120_000);
afterAll(async () => {
	await fleet?.close();
	await plane?.close();
});

test("whatever part dies, while hosts change and clusters are made, all is as wanted in the end", async () => {
	await explained(plane, fleet, run);
}, 900_000);

async function run() {
	const random = seeded(SEED);
	await join(plane, fleet, { ms: 120_000 });
	const stop = new AbortController();
	// Hosts of clusters are left alone: one in maintenance is picked by no cluster.
	const changing = load(plane, HOSTS - 6, random, stop.signal);
	const clusters = makeClusters(plane, { count: 2, from: HOSTS - 6, ms: 400_000 });
	clusters.catch(() => undefined);
	await storm(plane, fleet, { deck: DECK, rounds: ROUNDS, random, report });
	stop.abort();
	expect(await changing).toBeGreaterThan(0);

	for (let i = 0; i < HOSTS - 6; i++) {
		await plane.kube.patch(hosts, { name: hostName(i), namespace: NAMESPACE }, { spec: { maintenance: false } });
	}
	await clusters;
	await ready(plane, HOSTS, 180_000);
	await settled(plane, fleet, HOSTS, 120_000);
	expect(await broken(plane, fleet, HOSTS)).toEqual([]);

	// What went on was told to those who watch: none of it was found by looking only.
	const { made } = await plane.audits();
	await until(
		"four more audits",
		() => plane.audits(),
		(audits) => audits.made > made + 3,
		120_000,
	);
	expect((await plane.audits()).missed).toBe(0);
}
