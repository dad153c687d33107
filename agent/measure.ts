import { readFileSync } from "node:fs";
import { open, rm, stat } from "node:fs/promises";
import { connect, isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { dirname, join } from "node:path";
import type { DesiredState } from "../protocol/desired-state.ts";
import { asGroundplaneError } from "../protocol/errors.ts";
import { type HostMeasurements, hostMeasurements, type RoleStatus } from "../protocol/facts.ts";
import type { ClockOffset } from "./enroll.ts";
import type { Log } from "./log.ts";
import { writeDurable } from "./primitives/durable.ts";

const FILE = "measured.json";
const DAY_MS = 86_400_000;
/** Hosts that joined together need not measure the disk that they may share together for ever. */
const JITTER_MS = 2 * 3_600_000;
/** What could not be measured, or peers that are named anew, wait for so long after the last try. */
const AGAIN_MS = 3_600_000;
const NEVER = Number.NEGATIVE_INFINITY;

/** What etcd's log does, as the fio recipe of its documentation has it: small writes in a row, each on the disk before the next. */
const BLOCK_BYTES = 2300;
const FILE_BYTES = 22 * 1024 * 1024;
const WRITES = 200;
const LEAST_WRITES = 10;
const FSYNC_LIMIT_MS = 3_000;

/**
 * Port of the kubelet: hosts of one cluster must reach it on each other anyway. A host that is free answers with a reset, which takes
 * one round trip just as well, so nobody has to listen for this.
 */
const PORT = 10250;
const MOST_PEERS = 16;
const TRIES = 3;
const ANSWER_MS = 1_000;

export interface MeasurerOptions {
	readonly stateDir: string;
	/** etcd's directory, be it there or not. */
	readonly etcdDir: string;
	readonly desired: () => DesiredState | undefined;
	/** Roles and where they stand. */
	readonly roles: () => RoleStatus[];
	readonly clock: () => Promise<ClockOffset | undefined>;
	/** Something was measured. */
	readonly onMeasured: (measured: HostMeasurements) => void;
	readonly log: Log;
	readonly now?: () => number;
	readonly random?: () => number;
	readonly fsync?: typeof measureFsync;
	readonly peers?: typeof measurePeers;
}

/** Measures the host once after it has joined and about daily from then on, never while a role is being applied. */
export class Measurer {
	readonly #options: Required<MeasurerOptions>;
	readonly #intervalMs: number;
	#measured: HostMeasurements;
	#triedAt: Tries = { all: NEVER, peers: NEVER };
	#isRunning = false;

	constructor(options: MeasurerOptions) {
		this.#options = { now: Date.now, random: Math.random, fsync: measureFsync, peers: measurePeers, ...options };
		this.#intervalMs = DAY_MS + this.#options.random() * JITTER_MS;
		this.#measured = readMeasured(options.stateDir);
	}

	/** Begins to measure if it is time. Cheap: to be called whenever something may have changed. */
	look(): void {
		if (this.#isRunning) return;
		this.#isRunning = true;
		this.#measure()
			.catch((error: unknown) => {
				const { code, message } = asGroundplaneError(error);
				this.#options.log.warn({ code }, `the host could not be measured: ${message}`);
			})
			.finally(() => {
				this.#isRunning = false;
			});
	}

	async #measure(): Promise<void> {
		const { stateDir, etcdDir, desired, clock, fsync, peers, onMeasured, log, now } = this.#options;
		const state = desired();
		if (!state || this.#isAtWork()) return;
		const addresses = peersOf(state, ownAddresses());
		const due = dueOf(this.#measured, addresses, { now: now(), triedAt: this.#triedAt, intervalMs: this.#intervalMs });
		if (!due.all && !due.peers) return;
		this.#triedAt = {
			all: due.all ? now() : this.#triedAt.all,
			peers: addresses.length > 0 ? now() : this.#triedAt.peers,
		};
		const at = new Date(now()).toISOString().replace(/\.\d+Z$/, "Z");
		const disk = due.all
			? await fsync(await directoryOn(etcdDir, [stateDir, dirname(etcdDir)]), { stop: () => this.#isAtWork() })
			: undefined;
		if (due.all && !disk && this.#isAtWork()) {
			// It gave way to a role: that is no failure, and it is its turn again as soon as the role is applied.
			this.#triedAt = { ...this.#triedAt, all: NEVER };
			return;
		}
		const offset = due.all ? await clock() : undefined;
		const roundTrips = addresses.length > 0 ? await peers(addresses) : undefined;
		this.#measured = {
			...this.#measured,
			...(disk && { fsync: { at, ...disk } }),
			...(offset && { clock: { at, ...offset } }),
			...(roundTrips && { peers: { at, ...roundTrips } }),
		};
		await writeDurable(join(stateDir, FILE), JSON.stringify(this.#measured), 0o600);
		log.info({ fsync: disk, clock: offset, peersMs: roundTrips?.medianMs }, "measured this host");
		onMeasured(this.#measured);
	}

	#isAtWork(): boolean {
		const state = this.#options.desired();
		return state === undefined || isAtWork(state, this.#options.roles());
	}
}

/** What was measured last on this host, for an agent that starts anew. */
export function readMeasured(stateDir: string): HostMeasurements {
	try {
		return hostMeasurements.parse(JSON.parse(readFileSync(join(stateDir, FILE), "utf8")));
	} catch {
		return {};
	}
}

/** Whether some role is not as it is wanted: its work must not be slowed down, nor spoil the figures. Pure. */
export const isAtWork = ({ roles }: Pick<DesiredState, "roles">, status: readonly RoleStatus[]): boolean =>
	status.some(({ phase }) => phase !== "Applied") ||
	roles.some(({ name, version }) => !status.some((role) => role.name === name && role.version === version));

/** What is to be measured now: all of it, or only how far peers are since others are named. Pure. */
export function dueOf(
	{ fsync, peers }: HostMeasurements,
	addresses: readonly string[],
	{ now, triedAt, intervalMs }: { now: number; triedAt: Tries; intervalMs: number },
): { all: boolean; peers: boolean } {
	// A clock that was set back must not keep the figures for ever.
	const isOld = (at: string | undefined) => at === undefined || Math.abs(now - Date.parse(at)) >= intervalMs;
	const mayTry = (last: number) => Math.abs(now - last) >= AGAIN_MS;
	const known = new Set(peers?.roundTrips.map(({ address }) => address));
	return {
		all: mayTry(triedAt.all) && isOld(fsync?.at),
		peers: mayTry(triedAt.peers) && addresses.some((address) => !known.has(address)),
	};
}

/** When something was last tried, milliseconds since the epoch. */
interface Tries {
	readonly all: number;
	readonly peers: number;
}

/** Addresses of other hosts that the signed desired state names: control planes of the own cluster first. Pure. */
export function peersOf(
	{ roles, peers = [] }: Pick<DesiredState, "roles" | "peers">,
	own: ReadonlySet<string>,
): string[] {
	const controlPlanes = roles.flatMap(({ parameters }) => parameters.controlPlaneAddresses ?? []);
	const isPeer = (one: unknown): one is string => typeof one === "string" && isIP(one) !== 0 && !own.has(one);
	return [...new Set([...controlPlanes, ...peers].filter(isPeer))].slice(0, MOST_PEERS);
}

const ownAddresses = (): Set<string> =>
	new Set(
		Object.values(networkInterfaces())
			.flat()
			.flatMap((one) => one?.address ?? []),
	);

/**
 * Where to write to be on the file system of `target`: beside it where that will do, since kubeadm wants etcd's own directory empty.
 */
export async function directoryOn(target: string, candidates: readonly string[]): Promise<string> {
	const device = await deviceOf(target);
	for (const candidate of candidates) if ((await deviceOf(candidate)) === device) return candidate;
	return target;
}

/** The device of a path, or of where it would be made. */
async function deviceOf(path: string): Promise<number> {
	try {
		return (await stat(path)).dev;
	} catch (error) {
		if (path === dirname(path)) throw error;
		return deviceOf(dirname(path));
	}
}

/**
 * How long fdatasync takes after each of some small writes in a row: what etcd does with its log, and judges a disk by
 * (etcd's FAQ, "apply entries took too long": p99 of wal_fsync under 10 ms). Ends after some seconds on a slow disk, and when `stop`
 * says so; undefined when that left too few.
 */
export async function measureFsync(
	directory: string,
	{ stop = () => false, now = () => performance.now() }: { stop?: () => boolean; now?: () => number } = {},
): Promise<Omit<NonNullable<HostMeasurements["fsync"]>, "at"> | undefined> {
	const path = join(directory, ".groundplane-fsync");
	const took: number[] = [];
	const file = await open(path, "w", 0o600);
	try {
		// etcd allocates its log ahead, too: the size of the file is not what each write changes.
		await file.truncate(FILE_BYTES);
		await file.sync();
		const block = Buffer.alloc(BLOCK_BYTES, 0x67);
		const end = now() + FSYNC_LIMIT_MS;
		while (took.length < WRITES && (now() < end || took.length < LEAST_WRITES) && !stop()) {
			await file.write(block, 0, block.length, took.length * block.length);
			const start = now();
			await file.datasync();
			took.push(now() - start);
		}
	} finally {
		await file.close();
		await rm(path, { force: true });
	}
	if (took.length < LEAST_WRITES) return undefined;
	return { writes: took.length, p50Ms: percentile(took, 50), p99Ms: percentile(took, 99) };
}

/** Round trips to peers, in the order given: of a few tries to each the one in the middle. */
export async function measurePeers(
	addresses: readonly string[],
	trip: (address: string) => Promise<number | undefined> = roundTrip,
): Promise<Omit<NonNullable<HostMeasurements["peers"]>, "at">> {
	const roundTrips: { address: string; ms?: number }[] = [];
	for (const address of addresses) {
		const took: number[] = [];
		for (let i = 0; i < TRIES; i++) {
			const ms = await trip(address);
			// What does not answer once is not waited for again.
			if (ms === undefined) break;
			took.push(ms);
		}
		roundTrips.push(took.length === 0 ? { address } : { address, ms: percentile(took, 50) });
	}
	const answered = roundTrips.flatMap(({ ms }) => ms ?? []);
	return { ...(answered.length > 0 && { medianMs: percentile(answered, 50) }), roundTrips };
}

/** Milliseconds until a host answers a TCP connection, be it by taking it or by a reset (RFC 9293 §3.10.7.1). */
export async function roundTrip(
	address: string,
	{ port = PORT, timeoutMs = ANSWER_MS }: { port?: number; timeoutMs?: number } = {},
): Promise<number | undefined> {
	const { promise, resolve } = Promise.withResolvers<number | undefined>();
	const start = performance.now();
	const socket = connect({ host: address, port });
	const answered = () => resolve(performance.now() - start);
	socket.once("connect", answered);
	socket.once("error", ({ code }: NodeJS.ErrnoException) =>
		code === "ECONNREFUSED" ? answered() : resolve(undefined),
	);
	const timer = setTimeout(() => resolve(undefined), timeoutMs);
	try {
		return await promise;
	} finally {
		clearTimeout(timer);
		socket.destroy();
	}
}

/** By nearest rank, with two decimals. Pure. */
export function percentile(values: readonly number[], percent: number): number {
	const sorted = values.toSorted((a, b) => a - b);
	const value = sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? 0;
	return Math.max(0.01, Math.round(value * 100) / 100);
}
