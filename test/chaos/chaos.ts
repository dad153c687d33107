import { rm } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { hosts } from "../../operator/kube/resources.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { hostName } from "../fleet/host.ts";
import { NAMESPACE, type Plane } from "../fleet/plane.ts";

/** Something bad that happens to the plane, and is over when the promise resolves. */
export interface Fault {
	readonly name: string;
	/** What it strikes: two faults at a time are of different parts. */
	readonly part: string;
	strike(plane: Plane, fleet: Fleet, random: () => number): Promise<void>;
}

/** How long something stays away; a tenth of it is enough for most to go wrong. */
const away = (random: () => number) => delay(200 + random() * 3_000);

/** What may happen, each by itself or while another is not over yet. */
export const faults: readonly Fault[] = [
	...(["hosts", "tunnel", "operator"] as const).map((name) => ({
		name: `${name} killed`,
		part: name as string,
		async strike(plane: Plane, _fleet: Fleet, random: () => number) {
			await plane.kill([name]);
			await away(random);
			await plane.start([name]);
		},
	})),
	{
		name: "PostgreSQL killed",
		part: "postgres",
		async strike({ postgres }, _fleet, random) {
			await postgres.stop("kill");
			await away(random);
			await postgres.start();
		},
	},
	{
		name: "NATS killed",
		part: "nats",
		async strike({ nats }, _fleet, random) {
			await nats.stop("kill");
			await away(random);
			await nats.start();
		},
	},
	{
		name: "NATS loses its disk",
		part: "nats",
		async strike({ nats }, _fleet, random) {
			await nats.stop("kill");
			await rm(nats.store, { recursive: true, force: true });
			await away(random);
			await nats.start();
		},
	},
	{
		name: "API server killed, its history compacted",
		part: "apiserver",
		async strike({ apiserver }, _fleet, random) {
			await apiserver.compact().catch(() => undefined);
			await apiserver.kill();
			await away(random);
			await apiserver.start();
		},
	},
	{
		name: "operator paused",
		part: "operator",
		async strike(plane, _fleet, random) {
			plane.signal("operator", "SIGSTOP");
			await away(random);
			plane.signal("operator", "SIGCONT");
		},
	},
	{
		name: "hosts service paused",
		part: "hosts",
		async strike(plane, _fleet, random) {
			plane.signal("hosts", "SIGSTOP");
			await away(random);
			plane.signal("hosts", "SIGCONT");
		},
	},
	{
		name: "a third of the tunnels broken",
		part: "line",
		async strike(_plane, fleet) {
			await fleet.drop(0.33, 1_000);
		},
	},
	{
		name: "the line cut",
		part: "line",
		async strike(_plane, fleet, random) {
			await fleet.cut(true);
			await away(random);
			await fleet.cut(false);
		},
	},
];

const MINUTE_MS = 60_000;

/** What takes long, or a plane whose clocks can be set: no part of every run. */
export const lastingFaults: readonly Fault[] = [
	{
		name: "PostgreSQL gone for a minute",
		part: "postgres",
		async strike({ postgres }) {
			await postgres.stop("kill");
			await delay(MINUTE_MS);
			await postgres.start();
		},
	},
	...(["hosts", "tunnel", "operator"] as const).map((name) => ({
		name: `clock of ${name} set an hour ahead, then an hour back`,
		part: name as string,
		async strike(plane: Plane, _fleet: Fleet, random: () => number) {
			for (let step = 0; step < 3; step++) {
				plane.signal(name, "SIGUSR2");
				await away(random);
			}
		},
	})),
];

/** Work for the plane while it is struck: desired state that changes all the time. What fails is tried no further. */
export async function load(plane: Plane, count: number, random: () => number, signal: AbortSignal): Promise<number> {
	let changes = 0;
	while (!signal.aborted) {
		const name = hostName(Math.floor(random() * count));
		await plane.kube
			.patch(hosts, { name, namespace: NAMESPACE }, { spec: { maintenance: random() < 0.5 } }, { signal })
			.then(
				() => {
					changes += 1;
				},
				() => undefined,
			);
		await delay(50, undefined, { signal }).catch(() => undefined);
	}
	return changes;
}

/** Strikes `rounds` times from the deck, each fault once before any comes again; the next one mostly comes before the last is over. */
export async function storm(
	plane: Plane,
	fleet: Fleet,
	{
		deck: all,
		rounds,
		random,
		report,
	}: { deck: readonly Fault[]; rounds: number; random: () => number; report: (line: string) => void },
): Promise<void> {
	let deck: Fault[] = [];
	const under = new Map<string, Promise<void>>();
	for (let round = 0; round < rounds; round++) {
		if (deck.length === 0) deck = shuffled(all, random);
		const fault = deck.pop() as Fault;
		await under.get(fault.part);
		report(`round ${round + 1}: ${fault.name}`);
		const strike = fault.strike(plane, fleet, random);
		strike.catch(() => undefined);
		under.set(fault.part, strike);
		await Promise.race([strike, delay(random() * 2_500)]);
	}
	await Promise.all(under.values());
}

/** Fisher and Yates. */
function shuffled<T>(values: readonly T[], random: () => number): T[] {
	const result = [...values];
	for (let i = result.length - 1; i > 0; i--) {
		const j = Math.floor(random() * (i + 1));
		[result[i], result[j]] = [result[j] as T, result[i] as T];
	}
	return result;
}
