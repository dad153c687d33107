import { EventEmitter, once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import type { DesiredState } from "../../protocol/desired-state.ts";
import { asGroundplaneError } from "../../protocol/errors.ts";
import type { AgentUpdate, RoleStatus } from "../../protocol/facts.ts";
import type { BundleSource } from "../engine/bundles.ts";
import type { LinkState } from "../link/link.ts";
import type { Log } from "../log.ts";
import { type Attempt, judge, REACHED_WITHIN_MS, tryIn, type Wanted } from "./decide.ts";
import { keepAttempt, readAttempt, type Versions } from "./versions.ts";

export interface UpdaterOptions {
	stateDir: string;
	versions: Versions;
	bundles: BundleSource;
	/** The version of this process. */
	running: string;
	desired: () => Pick<DesiredState, "agent" | "paused" | "validUntil"> | undefined;
	roles: () => readonly Pick<RoleStatus, "phase">[];
	link: () => Pick<LinkState, "connected" | "since">;
	/** What kept the version that ran before this one from the region. */
	lastError?: string | undefined;
	/** Ends this process; the service manager starts the launcher anew. */
	restart: () => void;
	log: Log;
	now?: () => number;
	random?: () => number;
	/** How long a tunnel must have been up before a version has proved itself, and before another one is tried. */
	steadyMs?: number;
}

/** Downloads that fail are tried again after this long, doubling. */
const FIRST_FETCH_PAUSE_MS = 15_000;
const LONGEST_FETCH_PAUSE_MS = 30 * 60_000;
/** How often to look whether a host that is at work has come to rest. */
const REST_MS = 5_000;
const IDLE_MS = 3_600_000;
/** So that the region hears of it before the tunnel goes down. */
const FAREWELL_MS = 500;

/**
 * Gives the agent the version that its region wants: fetches it, has the launcher try it, and, as the new version, proves itself
 * or, as the one before, says why the new one did not (docs/architecture.md, "The agent's own version").
 */
export class Updater extends EventEmitter<{ changed: []; accepted: []; down: [] }> {
	readonly #options: Required<Omit<UpdaterOptions, "lastError">> & Pick<UpdaterOptions, "lastError">;
	#state: AgentUpdate = { phase: "Idle" };
	#attempt: Attempt | undefined;
	#staged: string | undefined;
	#fetch = { of: "", failures: 0, notBefore: 0 };
	#wake = Promise.withResolvers<void>();

	constructor(options: UpdaterOptions) {
		super();
		this.#options = { now: Date.now, random: Math.random, steadyMs: 10_000, ...options };
	}

	get state(): AgentUpdate {
		return this.#state;
	}

	/** The region has spoken over the tunnel that is up: a document came and was accepted. */
	accepted(): void {
		this.emit("accepted");
		this.#wake.resolve();
	}

	/** The tunnel has ended. */
	down(): void {
		this.emit("down");
	}

	/** Works until `signal` aborts; never throws, since the agent has more to do than this. */
	async run(signal: AbortSignal): Promise<void> {
		const { versions, running, log } = this.#options;
		const stop = () => this.#wake.resolve();
		signal.addEventListener("abort", stop);
		for (let begun = false; !signal.aborted; ) {
			try {
				if (!begun) {
					if ((await versions.trying()) === running) await this.#prove(signal);
					else await this.#lookBack(signal);
					if (signal.aborted) return;
					await versions.prune();
					begun = true;
				}
				this.#wake = Promise.withResolvers();
				await this.#sleep(await this.#turn(signal), signal);
			} catch (error) {
				if (signal.aborted) return;
				const { code, message, next } = asGroundplaneError(error);
				log.error({ code, next, err: error }, `the agent's version can't be looked after: ${message}`);
				await this.#sleep(60_000, signal);
			}
		}
	}

	/** This process is a try: it counts once the region has spoken to it and its tunnel has held for a while. */
	async #prove(signal: AbortSignal): Promise<void> {
		const { versions, running, link, log, stateDir, steadyMs } = this.#options;
		this.#set({ phase: "Trying", version: running });
		while (!signal.aborted) {
			await once(this, "accepted", { signal }).catch(() => {});
			const steady = AbortSignal.any([signal, AbortSignal.timeout(steadyMs)]);
			const fell = await once(this, "down", { signal: steady }).then(
				() => true,
				() => false,
			);
			if (signal.aborted || fell || !link().connected) continue;
			await versions.settle();
			await keepAttempt(stateDir, undefined);
			this.#set({ phase: "Idle" });
			log.info({ version: running }, "this version of the agent has proved itself, and stays");
			return;
		}
	}

	/** What became of the last try, told by the version that runs after it. */
	async #lookBack(signal: AbortSignal): Promise<void> {
		const { versions, running, stateDir, log, lastError, now, random } = this.#options;
		this.#attempt = await readAttempt(stateDir);
		if (this.#attempt?.version === running) {
			await keepAttempt(stateDir, undefined);
			this.#attempt = undefined;
		}
		if (this.#attempt?.outcome === "trying") {
			const ending = (await versions.ending(this.#attempt.version)) ?? "lost";
			const reached = ending === "deadline" && (await this.#reached(signal));
			if (signal.aborted) return;
			this.#attempt = judge(this.#attempt, ending, { reached, lastError, now: now(), random: random() });
			await keepAttempt(stateDir, this.#attempt);
			const { version, outcome, message } = this.#attempt;
			log.error({ code: "AgentUpdateFailed", version, outcome, next: "The agent stays what it is." }, message ?? "");
		}
		await versions.forgetEnding();
	}

	async #reached(signal: AbortSignal): Promise<boolean> {
		const limit = AbortSignal.any([signal, AbortSignal.timeout(REACHED_WITHIN_MS)]);
		await once(this, "accepted", { signal: limit }).catch(() => {});
		return this.#options.link().connected;
	}

	/** Does what is to be done about the version that is wanted. Gives the milliseconds until there may be more. */
	async #turn(signal: AbortSignal): Promise<number> {
		const { running, now } = this.#options;
		const wanted = this.#wanted();
		const wait = tryIn({ wanted, running, attempt: this.#attempt, now: now() });
		if (!wanted || wait !== 0) {
			this.#set(wanted && wanted.version !== running ? stateOf(this.#attempt) : { phase: "Idle" });
			return wait ?? IDLE_MS;
		}
		const of = `${wanted.version} ${wanted.retry ?? ""}`;
		if (this.#fetch.of !== of) this.#fetch = { of, failures: 0, notBefore: 0 };
		if (now() < this.#fetch.notBefore) return this.#fetch.notBefore - now();
		try {
			await this.#stage(wanted, signal);
		} catch (error) {
			signal.throwIfAborted();
			return this.#fetchFailed(wanted, error);
		}
		if (!this.#atRest()) return REST_MS;
		if (this.#wanted()?.version !== wanted.version) return 0;
		await this.#try(wanted, signal);
		return IDLE_MS;
	}

	async #stage({ version }: Wanted, signal: AbortSignal): Promise<void> {
		if (this.#staged === version) return;
		this.#set({ phase: "Fetching", version });
		await this.#options.versions.stage(version, this.#options.bundles, signal);
		this.#staged = version;
	}

	#fetchFailed({ version }: Wanted, error: unknown): number {
		const { log, now, random } = this.#options;
		const { code, message, next } = asGroundplaneError(error);
		const ceiling = Math.min(FIRST_FETCH_PAUSE_MS * 2 ** Math.min(this.#fetch.failures, 10), LONGEST_FETCH_PAUSE_MS);
		const pause = ceiling * (0.5 + random() / 2);
		this.#fetch = { ...this.#fetch, failures: this.#fetch.failures + 1, notBefore: now() + pause };
		this.#set({ phase: "Fetching", version, reason: code, message: `${message}. ${next}` });
		log.warn({ code, next, retryMs: Math.round(pause) }, message);
		return pause;
	}

	/** Restarting in the middle of a step would only cost time; without a tunnel, the next version could not prove itself. */
	#atRest(): boolean {
		const { link, roles, steadyMs } = this.#options;
		const { connected, since } = link();
		return (
			connected &&
			Date.now() - since >= steadyMs &&
			roles().every(({ phase }) => phase === "Applied" || phase === "Failed")
		);
	}

	async #try(wanted: Wanted, signal: AbortSignal): Promise<void> {
		const { stateDir, versions, running, restart, log } = this.#options;
		const inconclusive = this.#attempt?.version === wanted.version ? this.#attempt.inconclusive : 0;
		this.#attempt = { ...wanted, outcome: "trying", inconclusive, notBefore: 0 };
		await keepAttempt(stateDir, this.#attempt);
		await versions.arm(wanted.version);
		this.#set({ phase: "Trying", version: wanted.version });
		log.info({ from: running, to: wanted.version }, "the agent ends here, so that another version of it can be tried");
		await delay(FAREWELL_MS, undefined, { signal }).catch(() => {});
		restart();
	}

	/** The version that is wanted; none when the document is no longer good for anything, or the host is to be left alone. */
	#wanted(): Wanted | undefined {
		const desired = this.#options.desired();
		if (!desired || desired.paused || this.#options.now() / 1000 > desired.validUntil) return undefined;
		return desired.agent;
	}

	#set(state: AgentUpdate): void {
		if (JSON.stringify(state) === JSON.stringify(this.#state)) return;
		this.#state = state;
		this.emit("changed");
	}

	async #sleep(ms: number, signal: AbortSignal): Promise<void> {
		if (signal.aborted) return;
		const timer = setTimeout(this.#wake.resolve, ms);
		await this.#wake.promise;
		clearTimeout(timer);
	}
}

function stateOf(attempt: Attempt | undefined): AgentUpdate {
	if (!attempt) return { phase: "Idle" };
	const { version, outcome, message } = attempt;
	return {
		phase: outcome === "failed" ? "Failed" : "Waiting",
		version,
		...(outcome === "failed" && { reason: "AgentUpdateFailed" }),
		...(message && { message }),
	};
}
