import { createHash, randomUUID } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Config, Paths } from "../../agent/config.ts";
import { Control } from "../../agent/control.ts";
import { enroll, mayPass } from "../../agent/enroll.ts";
import { type Identity, loadIdentity } from "../../agent/identity.ts";
import { Link } from "../../agent/link/link.ts";
import type { Log } from "../../agent/log.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { HostCheck, HostFacts, RoleStatus } from "../../protocol/facts.ts";
import type { IncomingStream } from "../../protocol/mux.ts";
import type { SimulatedClusters } from "./clusters.ts";
import { type Pace, SimulatedEngine } from "./engine.ts";
import type { RegionAddress } from "./plane.ts";

export interface SimulatedHostOptions {
	readonly index: number;
	/** Everything random of the fleet follows from it and the host's number. */
	readonly seed: number;
	/** Files of the hosts; a directory in memory. */
	readonly directory: string;
	readonly region: RegionAddress;
	readonly clusters: SimulatedClusters;
	readonly pace: Pace;
	/** Whether the line to the region is there. */
	readonly isCut: () => boolean;
	/** Waits until this host may dial; what it answers is called when it has its tunnel. */
	readonly turn: (signal: AbortSignal) => Promise<() => void>;
	readonly log: Log;
}

/** What a simulated host knows of itself. */
export interface HostState {
	readonly name: string;
	readonly enrolled: boolean;
	readonly connected: boolean;
	readonly reconnects: number;
	/** Why its last tunnel ended, or could not be opened. */
	readonly lastError?: string;
	readonly accepted?: { at: number; epoch: number; generation: number; paused: boolean };
	/** Why it refused its last document. */
	readonly refusal?: string;
	readonly roles: readonly RoleStatus[];
}

/** Name of a simulated host; four digits at least, so that names sort as numbers do. */
export const hostName = (index: number): string => `sim-${String(index).padStart(4, "0")}`;

const ENROLL_RETRY_MS = 30_000;
/** What nobody answers is sent again after one second and after three (RFC 6298, 5), and given up after five, as the agent does it. */
const SILENCE_MS = [1_000, 2_000, 2_000];
/** A machine that never sleeps and stays where it is: ten thousand that look at their network were a third of a core. */
const AT_REST = { wall: 0, steady: 0, addresses: new Set<string>() };

/**
 * A machine without a machine: the agent's own enrolment, link and control channel with keys and a certificate of its own;
 * facts and roles are made up.
 */
export class SimulatedHost {
	readonly name: string;
	readonly engine: SimulatedEngine;
	readonly #options: SimulatedHostOptions;
	readonly #paths: Paths;
	readonly #stop = new AbortController();
	readonly #facts: HostFacts;
	readonly #random: () => number;
	#identity: Identity | undefined;
	#control: Control | undefined;
	#link: Link | undefined;
	#done: Promise<unknown> = Promise.resolve();
	/** Refusals of enrolments by code, tries that ended well not counted. */
	readonly refused: string[] = [];
	/** When the newest document was accepted. */
	accepted: { at: number; epoch: number; generation: number; paused: boolean } | undefined;
	/** Highest epoch and generation must never fall. */
	fell = 0;

	constructor(options: SimulatedHostOptions) {
		this.#options = options;
		this.name = hostName(options.index);
		this.#random = seeded(options.seed * 1_000_003 + options.index);
		this.#paths = new Paths(join(options.directory, this.name));
		this.#facts = factsOf(options.index, this.name);
		this.engine = new SimulatedEngine({
			host: this.name,
			address: this.#facts.primaryAddress,
			clusters: options.clusters,
			pace: options.pace,
			random: this.#random,
		});
	}

	get enrolled(): boolean {
		return this.#identity !== undefined;
	}

	get connected(): boolean {
		return this.#link?.session !== undefined;
	}

	get reconnects(): number {
		return Math.max(0, this.#link?.state.reconnects ?? 0);
	}

	/** Where it stands, for a person who looks for what went wrong. */
	get state(): HostState {
		const { name, enrolled, connected, reconnects, accepted, engine } = this;
		const { lastError } = this.#link?.state ?? {};
		const refusal = this.#control?.refusal;
		return {
			name,
			enrolled,
			connected,
			reconnects,
			...(lastError && { lastError: lastError.detail }),
			...(accepted && { accepted }),
			...(refusal && { refusal: `${refusal.reason}: ${refusal.message}` }),
			roles: engine.status(),
		};
	}

	/** Begins to live: enrols with the token if it has no identity yet, then dials. Does not wait for anything. */
	start(token: string | undefined): void {
		this.#done = this.#live(token).catch((error: unknown) => {
			if (!this.#stop.signal.aborted)
				this.#options.log.error({ host: this.name, err: error }, "a simulated host failed");
		});
	}

	/** Breaks the tunnel as a lost line does. */
	drop(): void {
		this.#link?.session?.destroy(new GroundplaneError("TunnelClosed", "the line was cut", { next: "Nothing." }));
	}

	async stop(): Promise<void> {
		this.#stop.abort();
		this.engine.stop();
		await this.#done;
	}

	async #live(token: string | undefined): Promise<void> {
		const { region, log, turn } = this.#options;
		const signal = this.#stop.signal;
		let done = () => {};
		const identity = loadIdentity(this.#paths.state) ?? (await this.#enrol(token ?? ""));
		if (!identity) return;
		this.#identity = identity;
		const control = new Control({
			stateDir: this.#paths.state,
			identity,
			engine: this.engine,
			observe: () => this.#observe(),
			log,
		});
		this.#control = control;
		const link = new Link({
			target: async () => {
				done();
				await this.#line();
				done = await turn(signal);
				return {
					address: region.tunnelAddress,
					serverName: region.tunnelServerName,
					ca: control.identity.caBundle,
					certificate: control.identity.certificate,
					key: control.identity.key,
				};
			},
			hostName: this.name,
			bootId: this.#facts.bootId,
			onStream: (incoming) => this.#onStream(incoming),
			log,
			random: this.#random,
			look: () => AT_REST,
			lookMs: 3_600_000,
		});
		this.#link = link;
		control.on("changed", () => this.#noteDocument());
		control.on("renewed", () => link.renew());
		link.on("up", (session) => {
			done();
			void control.attend(session);
		});
		// A gateway that says no has answered, too.
		link.on("down", () => done());
		await control.restore();
		await Promise.all([link.run(signal), control.run(signal)]);
	}

	async #enrol(token: string): Promise<Identity | undefined> {
		const { region, log } = this.#options;
		const signal = this.#stop.signal;
		const config: Config = {
			region: region.region,
			address: region.enrollAddress,
			tunnelServerName: region.tunnelServerName,
			enrollUrl: `https://localhost:${region.enrollAddress.split(":")[1]}/`,
			caBundle: region.caBundle,
			releaseJwks: { keys: [] },
			hostName: this.name,
			proxy: undefined,
		};
		mkdirSync(dirname(this.#paths.joinToken), { recursive: true, mode: 0o700 });
		writeFileSync(this.#paths.joinToken, token, { mode: 0o600 });
		for (let attempt = 0; !signal.aborted; attempt++) {
			try {
				await this.#line();
				const answer = await enroll({
					config,
					paths: this.#paths,
					token,
					observed: this.#observe(),
					signal,
				});
				const { approved: _, ...identity } = answer;
				return identity;
			} catch (error) {
				if (signal.aborted) break;
				const problem = asGroundplaneError(error);
				this.refused.push(problem.code);
				log.debug({ host: this.name, code: problem.code }, problem.message);
				if (!mayPass(problem)) throw problem;
				// As the agent's own loop waits (agent/run.ts).
				await delay(this.#random() * Math.min(ENROLL_RETRY_MS, 500 * 2 ** attempt), undefined, { signal }).catch(
					() => {},
				);
			}
		}
		return undefined;
	}

	/** The line to the region: a cut one swallows what is sent, until it is mended or nobody waits for an answer any more. */
	async #line(): Promise<void> {
		const { isCut } = this.#options;
		for (const ms of SILENCE_MS) {
			if (!isCut()) return;
			await delay(ms, undefined, { signal: this.#stop.signal });
		}
		if (isCut())
			throw new GroundplaneError("DeadlineExceeded", "the line is cut: nobody answers", {
				next: "Nothing, it passes.",
			});
	}

	#observe(): { facts: HostFacts; checks: HostCheck[] } {
		return { facts: this.#facts, checks };
	}

	#noteDocument(): void {
		const desired = this.#control?.desired;
		if (!desired) return;
		const { epoch, generation, paused } = desired;
		const last = this.accepted;
		if (last && (epoch < last.epoch || (epoch === last.epoch && generation < last.generation))) this.fell += 1;
		if (last?.epoch === epoch && last.generation === generation) return;
		this.accepted = { at: Date.now(), epoch, generation, paused };
	}

	#onStream(incoming: IncomingStream): void {
		const parameters = this.#control?.desired?.roles.find(({ name }) => name === "kubernetes")?.parameters;
		const cluster = this.#options.clusters.get(String(parameters?.clusterId ?? ""));
		if (incoming.service === "kube-apiserver" && cluster?.controlPlanes.has(this.name))
			cluster.serve(incoming.accept());
		else incoming.refuse("NotFound", `${incoming.service} does not run on this host`);
	}
}

const checks: HostCheck[] = ["swap", "memory", "clock", "kernel", "ports", "disk"].map((name) => ({
	name,
	ok: true,
	severity: "error",
	message: `${name} is as it should be.`,
}));

/** Facts of an ordinary server with two disks and two interfaces. */
function factsOf(index: number, name: string): HostFacts {
	const address = `10.${64 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}`;
	const mac = (prefix: string) =>
		`${prefix}:${[16, 8, 0].map((shift) => ((index >> shift) & 255).toString(16).padStart(2, "0")).join(":")}`;
	return {
		hostname: name,
		machineId: createHash("sha256").update(name).digest("hex"),
		architecture: "amd64",
		os: { id: "debian", versionId: "12", prettyName: "Debian GNU/Linux 12 (bookworm)" },
		kernel: "6.1.0-40-amd64",
		cgroup: "v2",
		cpu: { cores: 16, model: "AMD EPYC 9124 16-Core Processor" },
		memoryBytes: 128 * 2 ** 30,
		disks: [
			{ name: "nvme0n1", sizeBytes: 960 * 10 ** 9, rotational: false },
			{ name: "sda", sizeBytes: 4 * 10 ** 12, rotational: true },
		],
		filesystems: [
			{ path: "/", sizeBytes: 100 * 2 ** 30, availableBytes: 80 * 2 ** 30 },
			{ path: "/var", sizeBytes: 700 * 2 ** 30, availableBytes: 650 * 2 ** 30 },
		],
		interfaces: [
			{ name: "eno1", mac: mac("02:10:00"), addresses: [`${address}/16`] },
			{ name: "eno2", mac: mac("02:11:00"), addresses: [] },
		],
		primaryAddress: address,
		bootId: randomUUID(),
	};
}

/** mulberry32: small, quick, and the same for everybody. */
export function seeded(seed: number): () => number {
	let state = seed >>> 0;
	return () => {
		state = (state + 0x6d2b79f5) >>> 0;
		let t = state;
		t = Math.imul(t ^ (t >>> 15), t | 1);
		t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
		return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
	};
}
