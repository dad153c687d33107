import { randomUUID } from "node:crypto";
import { EventEmitter } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import {
	type GoAway,
	type IncomingStream,
	Session,
	type SessionLimits,
	webSocketTransport,
} from "../../protocol/mux.ts";
import { VERSION } from "../../protocol/version.ts";
import type { Log } from "../log.ts";
import { pauseBefore } from "./backoff.ts";
import { type DialTarget, dial } from "./dial.ts";

export interface LinkOptions {
	/** Read at every try, so that a new certificate or address counts at once. */
	target: () => DialTarget;
	hostName: string;
	bootId: string;
	/** Takes the streams that the gateway opens. */
	onStream: (incoming: IncomingStream) => void;
	log: Log;
	random?: () => number;
	limits?: Partial<SessionLimits>;
}

/** How the link is doing, for `gp-agent status` and the metrics. */
export interface LinkState {
	connected: boolean;
	since: number;
	gateway?: string;
	reconnects: number;
	rttMs?: number;
	lastError?: ReturnType<GroundplaneError["toJSON"]>;
}

/** A session that lasted this long was a good one: the next tries are quick again. */
const GOOD_MS = 10_000;
/** An agent asks sooner than the gateway would, so that one of the two pings suffices. */
const PING_AFTER_MS = 25_000;

/**
 * Keeps a tunnel open for ever. Emits `up` with each new session; the one before may live on for a while
 * until its streams have ended.
 */
export class Link extends EventEmitter<{ up: [session: Session]; down: [error: GroundplaneError]; state: [] }> {
	readonly #options: LinkOptions;
	readonly #random: () => number;
	#session: Session | undefined;
	#state: LinkState = { connected: false, since: Date.now(), reconnects: -1 };
	#renew: (() => void) | undefined;

	constructor(options: LinkOptions) {
		super();
		this.#options = options;
		this.#random = options.random ?? Math.random;
	}

	/** The session to open streams on; undefined while the link is down. */
	get session(): Session | undefined {
		return this.#session;
	}

	get state(): LinkState {
		const rttMs = this.#session?.rttMs;
		return { ...this.#state, ...(rttMs !== undefined && { rttMs }) };
	}

	/** Opens a new tunnel beside the old one, which then makes way: after the certificate was renewed. */
	renew(): void {
		this.#renew?.();
	}

	/** Runs until `signal` aborts, then ends the tunnel in an orderly way. */
	async run(signal: AbortSignal): Promise<void> {
		const { log } = this.#options;
		for (let attempt = 0; !signal.aborted; attempt++) {
			let hintMs: number | undefined;
			let problem: GroundplaneError;
			const started = performance.now();
			try {
				const session = await this.#connect(signal);
				const goAway = await this.#holdUntilItLeaves(session, signal);
				if (signal.aborted) break;
				if (goAway === "renew") {
					attempt = -1;
					continue;
				}
				hintMs = goAway?.reconnectAfterMs;
				problem =
					goAway === undefined
						? ((await session.closed) ??
							new GroundplaneError("TunnelClosed", "the tunnel was closed", { next: "Nothing." }))
						: new GroundplaneError(goAway.code, `the gateway says: ${goAway.message}`, { next: "Nothing, it passes." });
				if (performance.now() - started > GOOD_MS) attempt = -1;
			} catch (error) {
				problem = asGroundplaneError(error);
			}
			if (signal.aborted) break;
			this.#down(problem);
			const pause = pauseBefore(Math.max(0, attempt), { random: this.#random, hintMs, code: problem.code });
			log.warn({ code: problem.code, next: problem.next, retryMs: Math.round(pause) }, problem.message);
			await delay(pause, undefined, { signal }).catch(() => {});
		}
		await this.#session?.drain({ code: "TunnelClosed", message: "the agent is stopping" }, 2_000);
		this.#session = undefined;
	}

	async #connect(signal: AbortSignal): Promise<Session> {
		const webSocket = await dial(this.#options.target(), signal);
		const session = new Session(webSocketTransport(webSocket), {
			role: "client",
			hello: {
				name: this.#options.hostName,
				software: VERSION,
				bootId: this.#options.bootId,
				connectionId: randomUUID(),
			},
			limits: { pingAfterMs: PING_AFTER_MS, ...this.#options.limits },
		});
		session.on("stream", this.#options.onStream);
		const stop = () => session.destroy();
		signal.addEventListener("abort", stop, { once: true });
		await session.ready.finally(() => signal.removeEventListener("abort", stop));
		return session;
	}

	/** Resolves with the gateway's GOAWAY, `renew`, or undefined when the session has ended. */
	async #holdUntilItLeaves(session: Session, signal: AbortSignal): Promise<GoAway | "renew" | undefined> {
		this.#session = session;
		this.#state = {
			connected: true,
			since: Date.now(),
			gateway: session.peer?.name ?? "",
			reconnects: this.#state.reconnects + 1,
		};
		this.#options.log.info({ gateway: session.peer?.name }, "tunnel open");
		this.emit("state");
		this.emit("up", session);
		const { promise, resolve } = Promise.withResolvers<GoAway | "renew" | undefined>();
		const onAbort = () => resolve(undefined);
		session.once("goaway", resolve);
		if (session.goAwayReceived) resolve(session.goAwayReceived);
		signal.addEventListener("abort", onAbort, { once: true });
		this.#renew = () => resolve("renew");
		void session.closed.then(() => resolve(undefined));
		try {
			return await promise;
		} finally {
			signal.removeEventListener("abort", onAbort);
			this.#renew = undefined;
			if (!signal.aborted && session.leaving && this.#session === session) this.#session = undefined;
		}
	}

	#down(error: GroundplaneError): void {
		if (this.#state.connected || this.#state.lastError?.detail !== error.message) {
			const { since, connected, reconnects } = this.#state;
			this.#state = { connected: false, since: connected ? Date.now() : since, reconnects, lastError: error.toJSON() };
			this.emit("state");
			this.emit("down", error);
		}
	}
}
