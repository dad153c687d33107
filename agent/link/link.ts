import { randomUUID, X509Certificate } from "node:crypto";
import { EventEmitter, once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { asGroundplaneError, type ErrorCode, GroundplaneError } from "../../protocol/errors.ts";
import { type HelloClaim, signHello, verifyHello } from "../../protocol/hello.ts";
import { type GoAway, type Hello, type IncomingStream, Session, type SessionLimits } from "../../protocol/mux.ts";
import { SPARE } from "../../protocol/tunnel.ts";
import { VERSION } from "../../protocol/version.ts";
import type { Log } from "../log.ts";
import { pauseBefore, pauseBeforeSpare } from "./backoff.ts";
import { certificatesIn, type Dialled, type DialTarget, dial } from "./dial.ts";
import { disturbance, LOOK_MS, type Surroundings, surroundings } from "./network.ts";

export interface LinkOptions {
	/** Asked at every try, so that a new certificate or address counts at once. */
	target: () => DialTarget | Promise<DialTarget>;
	hostName: string;
	bootId: string;
	/** Takes the streams that the gateway opens. */
	onStream: (incoming: IncomingStream) => void;
	log: Log;
	random?: () => number;
	limits?: Partial<SessionLimits>;
	/** Looks at clocks and addresses; and how often. */
	look?: () => Surroundings;
	lookMs?: number;
}

/** How the link is doing, for `gp-agent status` and the metrics. */
export interface LinkState {
	connected: boolean;
	since: number;
	gateway?: string;
	/** Another gateway, at which a second tunnel stands ready. */
	spare?: string;
	reconnects: number;
	/** A proxy of the customer's opens up TLS: it can read and change what passes. */
	opened?: true;
	rttMs?: number;
	lastError?: ReturnType<GroundplaneError["toJSON"]>;
}

/** A session that lasted this long was a good one: the next tries are quick again. */
const GOOD_MS = 10_000;
/** An agent asks sooner than the gateway would, so that one of the two pings suffices. */
const PING_AFTER_MS = 25_000;
/** After a sleep or a change of the network the gateway has this long to say anything. */
const PROBE_MS = 3_000;
/** A spare tunnel has this long to show that it still stands: a line that has gone took both. */
const SPARE_PROBE_MS = 1_000;
/** Why a gateway lets a host go that did nothing wrong: the old tunnel serves until the new one is open. */
const moves: ReadonlySet<ErrorCode> = new Set(["TunnelClosed", "Overloaded"]);

/**
 * Keeps a tunnel open for ever. Emits `up` with each new session; the one before may live on for a while
 * until its streams have ended.
 *
 * Where there are several gateways it holds a spare tunnel through another one, which carries nothing until the first breaks or its
 * gateway leaves: then it takes over at once, without a dial and a handshake. Otherwise, when a gateway leaves, the next tunnel is
 * opened before the old one ends.
 */
export class Link extends EventEmitter<{ up: [session: Session]; down: [error: GroundplaneError]; state: [] }> {
	readonly #options: LinkOptions;
	readonly #random: () => number;
	/** The newest session that is not over. */
	#session: Session | undefined;
	#spare: Tunnel | undefined;
	#localAddress: string | undefined;
	#upAt = 0;
	#state: LinkState = { connected: false, since: Date.now(), reconnects: -1 };
	#renew: (() => void) | undefined;
	#wake: (() => void) | undefined;

	constructor(options: LinkOptions) {
		super();
		this.#options = options;
		this.#random = options.random ?? Math.random;
	}

	/** The session to open streams on; undefined while there is none that takes any. */
	get session(): Session | undefined {
		return this.#session?.leaving ? undefined : this.#session;
	}

	get state(): LinkState {
		const rttMs = this.#session?.rttMs;
		const spare = this.#spare?.session.peer?.name;
		return { ...this.#state, ...(rttMs !== undefined && { rttMs }), ...(spare !== undefined && { spare }) };
	}

	/** Opens a new tunnel beside the old one, which then makes way: after the certificate was renewed. */
	renew(): void {
		this.#spare?.session.close();
		this.#spare = undefined;
		this.#renew?.();
	}

	/** Runs until `signal` aborts, then ends the tunnel in an orderly way. */
	async run(signal: AbortSignal): Promise<void> {
		const forget = this.#lookAround();
		void this.#keepSpare(signal);
		let awaySince = performance.now();
		let turnedAway = 0;
		for (let attempt = 0; !signal.aborted; attempt++) {
			let left: Leaving;
			try {
				left = await this.#connectAndHold(signal);
				if (performance.now() - this.#upAt > GOOD_MS || left === "renew") {
					attempt = -1;
					awaySince = performance.now();
				}
			} catch (error) {
				left = { problem: asGroundplaneError(error) };
			}
			if (signal.aborted) break;
			if (left === "renew") continue;
			const { problem, hintMs = problem.details?.retryAfterMs as number | undefined } = left;
			if (!this.#session || left.ends) this.#down(problem);
			const outageMs = performance.now() - awaySince;
			const { code, message, next } = problem;
			turnedAway = code === "Overloaded" ? turnedAway + 1 : 0;
			const pause = pauseBefore({ attempt: Math.max(0, attempt), outageMs, code, hintMs, turnedAway }, this.#random);
			// One that is only told to leave serves until another one is open, which spreads hosts over the gateways that stay.
			if (this.#spare && !this.#session && !left.ends) {
				this.#options.log.warn({ code, spare: this.#spare.session.peer?.name }, message);
				continue;
			}
			this.#options.log.warn({ code, next, retryMs: Math.round(pause) }, message);
			await this.#pause(pause, { wakes: hintMs === undefined, signal });
		}
		forget();
		this.#spare?.session.close();
		await this.#session?.drain({ code: "TunnelClosed", message: "the agent is stopping" }, 2_000);
		this.#session = undefined;
	}

	/** Opens a tunnel and resolves when another one is wanted: this one has ended or is about to, or `renew` was called. */
	async #connectAndHold(signal: AbortSignal): Promise<Leaving> {
		const { session, dialled } = this.#takeSpare() ?? (await this.#open(signal, false));
		this.#up(session, dialled);
		const { promise, resolve } = Promise.withResolvers<Leaving>();
		const onAbort = () => resolve("renew");
		const onGoAway = ({ code, message, reconnectAfterMs }: GoAway) => {
			if (moves.has(code)) dialled.avoid();
			resolve({
				problem: new GroundplaneError(code, `the gateway says: ${message}`, { next: "Nothing, it passes." }),
				hintMs: reconnectAfterMs,
				ends: !moves.has(code),
			});
		};
		session.once("goaway", onGoAway);
		if (session.goAwayReceived) onGoAway(session.goAwayReceived);
		signal.addEventListener("abort", onAbort, { once: true });
		if (signal.aborted) onAbort();
		this.#renew = () => resolve("renew");
		void session.closed.then((error) => {
			const problem = error ?? new GroundplaneError("TunnelClosed", "the tunnel was closed", { next: "Nothing." });
			resolve({ problem });
			if (this.#session !== session || signal.aborted) return;
			this.#session = undefined;
			this.#down(problem);
		});
		try {
			return await promise;
		} finally {
			signal.removeEventListener("abort", onAbort);
			this.#renew = undefined;
		}
	}

	async #open(signal: AbortSignal, spare: boolean): Promise<Tunnel> {
		const target = await this.#options.target();
		const dialled = await dial(target, signal, spare);
		return { session: await this.#greet(target, dialled, signal), dialled };
	}

	/** Holds a spare tunnel whenever the gateway says that there are others. */
	async #keepSpare(signal: AbortSignal): Promise<void> {
		let hintMs: number | undefined;
		for (let attempt = 0; !signal.aborted; ) {
			try {
				while (!this.#hasOthers) await once(this, "up", { signal });
				// Not as soon as it is back: the other hosts are coming back, too.
				await delay(pauseBeforeSpare({ attempt, hintMs }, this.#random), undefined, { signal });
				if (!this.#hasOthers) continue;
				const spare = await this.#open(signal, true);
				const since = performance.now();
				hintMs = (await this.#holdSpare(spare))?.reconnectAfterMs;
				attempt = performance.now() - since > GOOD_MS ? 0 : attempt + 1;
			} catch (error) {
				if (signal.aborted) return;
				const { code, message, details } = asGroundplaneError(error);
				this.#options.log.debug({ code }, `no spare tunnel: ${message}`);
				hintMs = details?.retryAfterMs as number | undefined;
				attempt++;
			}
		}
	}

	/** The region has other gateways than the one that holds this host. */
	get #hasOthers(): boolean {
		return this.session?.peer?.capabilities.includes(SPARE) === true;
	}

	/** Resolves when it has taken over, or is over; with what its gateway said, if that has sent it away. */
	async #holdSpare(spare: Tunnel): Promise<GoAway | undefined> {
		const { session } = spare;
		const { promise, resolve } = Promise.withResolvers<GoAway | undefined>();
		const onUp = () => {
			if (this.#session === session) resolve(undefined);
		};
		session.once("goaway", resolve);
		if (session.goAwayReceived) resolve(session.goAwayReceived);
		void session.closed.then(() => resolve(undefined));
		this.on("up", onUp);
		this.#spare = spare;
		this.emit("state");
		const goAway = await promise;
		this.off("up", onUp);
		if (this.#spare === spare) this.#spare = undefined;
		if (this.#session !== session) session.close();
		this.emit("state");
		return goAway;
	}

	/** The spare tunnel to go on with where there is no other. It is over in a moment when it does not stand any more. */
	#takeSpare(): Tunnel | undefined {
		const spare = this.#spare;
		if (spare === undefined || this.#session !== undefined) return undefined;
		this.#spare = undefined;
		if (spare.session.leaving) return undefined;
		spare.session.probe(SPARE_PROBE_MS);
		return spare;
	}

	/** Says HELLO and hears the gateway's. Where TLS was opened up on the way, each proves in it who it is. */
	async #greet(target: DialTarget, { transport, opened }: Dialled, signal: AbortSignal): Promise<Session> {
		const { hostName, bootId, limits } = this.#options;
		const connectionId = randomUUID();
		const claim = opened && { region: regionOf(target.certificate), name: hostName, connectionId, ...opened };
		const session = new Session(transport, {
			role: "client",
			hello: {
				name: hostName,
				software: VERSION,
				bootId,
				connectionId,
				...(claim && { identity: signHello({ ...claim, role: "host" }, target) }),
			},
			checkHello: (hello) => {
				if (claim) judgeGateway(target, hello, { ...claim, ...hello, role: "gateway" });
			},
			limits: { pingAfterMs: PING_AFTER_MS, ...limits },
		});
		session.on("stream", this.#options.onStream);
		const stop = () => session.destroy();
		signal.addEventListener("abort", stop, { once: true });
		await session.ready.finally(() => signal.removeEventListener("abort", stop));
		return session;
	}

	#up(session: Session, { localAddress, opened }: Dialled): void {
		this.#session = session;
		this.#localAddress = localAddress;
		this.#upAt = performance.now();
		const gateway = session.peer?.name ?? "";
		const reconnects = this.#state.reconnects + 1;
		this.#state = { connected: true, since: Date.now(), gateway, reconnects, ...(opened && { opened: true }) };
		this.#options.log.info({ gateway }, "tunnel open");
		this.emit("state");
		this.emit("up", session);
	}

	#down(error: GroundplaneError): void {
		if (this.#state.connected || this.#state.lastError?.detail !== error.message) {
			const { since, connected, reconnects } = this.#state;
			this.#state = { connected: false, since: connected ? Date.now() : since, reconnects, lastError: error.toJSON() };
			this.emit("state");
			this.emit("down", error);
		}
	}

	async #pause(ms: number, { wakes, signal }: { wakes: boolean; signal: AbortSignal }): Promise<void> {
		if (signal.aborted) return;
		const { promise, resolve } = Promise.withResolvers<void>();
		const end = () => resolve();
		const timer = setTimeout(end, ms);
		signal.addEventListener("abort", end, { once: true });
		this.#wake = wakes ? end : undefined;
		await promise;
		this.#wake = undefined;
		signal.removeEventListener("abort", end);
		clearTimeout(timer);
	}

	/** A machine that slept, or whose network changed, finds out at once whether its tunnel still stands. */
	#lookAround(): () => void {
		const look = this.#options.look ?? surroundings;
		let before = look();
		const timer = setInterval(() => {
			const now = look();
			const what = disturbance(before, now, this.#localAddress);
			before = now;
			if (what === undefined) return;
			this.#options.log.debug({ what }, "the machine's clock or network changed");
			if (what !== "network-changed") for (const one of [this.#session, this.#spare?.session]) one?.probe(PROBE_MS);
			this.#wake?.();
		}, this.#options.lookMs ?? LOOK_MS);
		return () => clearInterval(timer);
	}
}

/** A tunnel, and how it was come by. */
interface Tunnel {
	readonly session: Session;
	readonly dialled: Dialled;
}

/** Why a tunnel is no longer enough. */
type Leaving = "renew" | { problem: GroundplaneError; hintMs?: number | undefined; ends?: boolean };

/** The region that a host's certificate is for, as its SAN says (`groundplane://REGION/hosts/HOST`). */
const regionOf = (certificate: string): string =>
	/URI:groundplane:\/\/([^/]+)\/hosts\//.exec(new X509Certificate(certificate).subjectAltName ?? "")?.[1] ?? "";

/** Behind a proxy that opens up TLS: the gateway must hold the key of a certificate that the region's root issued for it. */
function judgeGateway({ ca, serverName }: DialTarget, { identity }: Hello, claim: HelloClaim): void {
	const leaf = verifyHello(claim, identity);
	const now = Date.now();
	const good =
		certificatesIn(ca).some((root) => leaf.checkIssued(root) && leaf.verify(root.publicKey)) &&
		leaf.checkHost(serverName) !== undefined &&
		leaf.validFromDate.getTime() <= now &&
		leaf.validToDate.getTime() > now;
	if (good) return;
	throw new GroundplaneError(
		"CertificateInvalid",
		`the gateway behind the proxy is not ${serverName} of this region, but ${leaf.subject.replaceAll("\n", ", ")}`,
		{ next: "Check the address, the server name and the host's clock." },
	);
}
