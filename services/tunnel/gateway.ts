import { randomUUID, type X509Certificate } from "node:crypto";
import { EventEmitter } from "node:events";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { asGroundplaneError, type ErrorCode, GroundplaneError } from "../../protocol/errors.ts";
import { isNonce, NONCE_HEADER, newNonce, signHello, verifyHello } from "../../protocol/hello.ts";
import type { LinkFigures } from "../../protocol/link.ts";
import type { DownMessage, UpMessage } from "../../protocol/messages.ts";
import { type GoAway, type IncomingStream, type Lane, Session, type SessionLimits } from "../../protocol/mux.ts";
import type { Transport } from "../../protocol/transport.ts";
import { SPARE, SPARE_SUBPROTOCOL, TUNNEL_PATH, TUNNEL_SUBPROTOCOL } from "../../protocol/tunnel.ts";
import { acceptWebSocket } from "../../protocol/websocket.ts";
import type { Log } from "../kit/log.ts";
import { backoffMs } from "../kit/retry.ts";
import type { Admission } from "./admission.ts";
import { Bucket, HostBudget, type LaneRates } from "./budget.ts";
import { bridgeUp, parseDown, sendDown } from "./control.ts";
import type { LineOptions } from "./line.ts";
import type { TunnelMetrics } from "./metrics.ts";
import { type Bounds, hasRoom } from "./room.ts";
import type { Route } from "./routes.ts";

/** What the gateway needs of the region's bus; `bus.ts` has it over NATS. */
export interface GatewayBus {
	/** Says where a host is and gives the epoch of this connection. */
	putRoute(host: string, connection: { connectionId: string; connectedAt: string }): Promise<number>;
	removeRoute(host: string, epoch: number): Promise<void>;
	/** `epoch`: of the tunnel by which the host says so. */
	publishUp(host: string, message: UpMessage, epoch: number): Promise<void>;
	publishLink(host: string, link: Omit<LinkEvent, "gateway">): Promise<void>;
	/** Messages for a host, as text, until the returned function is called. */
	onDown(host: string, listener: (text: string) => void): () => void;
}

/** Body of `hosts.HOST.link`. */
export interface LinkEvent {
	state: "connected" | "disconnected";
	gateway: string;
	epoch: number;
	address: string;
	reason?: string;
	at: string;
}

/** Whom a certificate names. */
interface Peer {
	host: string;
	serial: string;
	notAfter: number;
}

/** A session with the host that it belongs to; behind a proxy that opens up TLS that is known from HELLO on. */
interface Identified {
	session: Session;
	/** By the certificate in TLS. */
	shown: Peer | undefined;
	/** To be asked once the session is ready. */
	peer: () => Peer;
}

/** A host's tunnel. */
interface Connection extends Peer {
	readonly id: string;
	readonly address: string;
	/** Since when it is the host's. */
	connectedAt: string;
	readonly session: Session;
	/** It is kept for the moment at which the host's own breaks, and was never the host's so far. */
	spare: boolean;
	/** Order among the connections of a host; 0 until the bus gave one. */
	epoch: number;
	/** The bus has given the epoch, or the connection is over. */
	registered: Promise<void>;
	control: Duplex | undefined;
	/** Streams to the host that are open, by lane. */
	readonly open: Record<Lane, number>;
	/** What the host may open, and how often it was refused in a row. */
	readonly opens: Bucket;
	refused: number;
	/** It was told to go elsewhere, so its end is no fault. */
	told: boolean;
	/** Its events so far: one goes out after the other, since the bus keeps the one that came last. */
	events: Promise<void>;
}

/** Why a host's tunnels ended here. */
interface History {
	reconnects: number;
	ends: { at: string; reason: string; message: string; planned: boolean }[];
}

/** How long streams of a superseded or leaving tunnel may go on. */
const RETIRE_MS = 30_000;
/** A host that was told to go for a reason that doesn't pass by itself comes back after this. */
const REFUSED_RETRY_MS = 60_000;
/** A host for which there is no room comes back after this, up to twice as long: another gateway may have room, or this one again. */
const FULL_RETRY_MS = 20_000;
/** A spare tunnel that had to make way comes back after this. */
const SPARE_RETRY_MS = 10 * 60_000;
/** A gateway that stops spreads its hosts over the others: this many a second, over at most two seconds. */
const LEAVING_A_SECOND = 500;
const LEAVING_SPREAD_MS = 2_000;
/** How long a host that has just left is expected back: when it was told to go elsewhere, and when it broke off. */
const EXPECTED_MS = 10_000;
const BROKEN_MS = 2_000;
/** A host that dials a gateway which is stopping finds another one at once. */
const LEAVING_RETRY_MS = 300;
/** How long the answer about a link waits for a fresh round trip. */
const PING_MS = 1_000;
/** In each sweep this part of the hosts is asked for a round trip: agents ask by themselves, so a gateway would never learn of its own. */
const PINGED_PART = 5;
/** A certificate that was made a moment ago, by a clock that is a little ahead. */
const CLOCK_SKEW_MS = 60_000;
/** Streams to one host at once, by lane; more is refused with a hint when to try again. */
const MAX_STREAMS: Readonly<Record<Lane, number>> = { control: 4, interactive: 512, bulk: 32 };
/** Bytes that wait for hosts altogether; from there on no more streams are opened until some have left. */
const QUEUED_BUDGET = 64 * 1024 * 1024;
/** Streams that a host may open: far more than any agent does. One that is refused this often in a row is cut off. */
const OPENS = { perSecond: 20, burst: 100 };
const MAX_ARTIFACTS = 16;
/**
 * Receive windows of one host's streams together: half of what an agent allows, since a gateway carries many hosts. For as many streams
 * as there can be (those above, and control streams of a host that dials anew) the least window is set aside; windows grow into the rest.
 */
export const SESSION_LIMITS = { budget: 32 * 1024 * 1024, maxStreams: 600 };
const MAX_REFUSED = 1_000;
/** Before the bus is told again what it did not take. */
const BUS_BACKOFF = { baseMs: 1_000 };
/** Times that the bus is told again that a host has gone. */
const GONE_TRIES = 5;
/** For how long a look at the process' memory holds: no more than some dozens of hosts come meanwhile. */
const RESIDENT_MS = 100;
/** Hosts that are asked about at once after the bus was away. */
const RESYNCHRONIZE_AT_ONCE = 32;
/** Ends of a host's tunnels that are remembered, and for how long. */
const ENDS_KEPT = 8;
const ENDS_KEPT_MS = 24 * 3_600_000;

/** Ends the tunnels of hosts and carries what goes through them. */
export class Gateway {
	readonly #options: GatewayOptions;
	readonly #bootId = randomUUID();
	/** The newest connection of each host. */
	readonly #current = new Map<string, Connection>();
	/** Spare tunnels of hosts whose own ends at another gateway; the oldest first. */
	readonly #spares = new Map<string, Connection>();
	/** All of them, those that are leaving included. */
	readonly #all = new Set<Connection>();
	readonly #attended = new Set<Promise<void>>();
	readonly #histories = new Map<string, History>();
	/** Of each host, all its tunnels together: who dials anew has spent what it has spent. */
	readonly #budgets = new Map<string, HostBudget>();
	readonly #arrivals = new EventEmitter<{ arrived: [host: string] }>().setMaxListeners(0);
	/** The most tunnels that were open at the same time. */
	#peak = 0;
	#resident = { bytes: 0, at: Number.NEGATIVE_INFINITY };
	/** Orders to cut so far: one that came while a host was being admitted counts, too. */
	#cuts = 0;
	#sweeps = 0;
	#leaving = false;

	constructor(options: GatewayOptions) {
		this.#options = options;
	}

	get hosts(): number {
		return this.#current.size;
	}

	/** Hosts whose spare tunnel ends here. */
	get spares(): number {
		return this.#spares.size;
	}

	/** This gateway is stopping: hosts are on their way elsewhere. */
	get leaving(): boolean {
		return this.#leaving;
	}

	/** Whether a host's tunnel ends here and takes streams. */
	has(host: string): boolean {
		return this.#current.get(host)?.session.leaving === false;
	}

	/** For how many milliseconds from now a host that isn't here is expected back; 0 when it isn't. */
	expected(host: string): number {
		if (this.#current.get(host)?.session.leaving) return EXPECTED_MS;
		const last = this.#histories.get(host)?.ends.at(-1);
		if (last === undefined) return 0;
		const most = last.planned ? EXPECTED_MS : BROKEN_MS;
		// No longer than that either, should the clock have been set back meanwhile.
		return Math.min(most, Math.max(0, Date.parse(last.at) + most - Date.now()));
	}

	/** Calls `listener` with each host whose tunnel opens here; returns the function that ends it. */
	onArrival(listener: (host: string) => void): () => void {
		this.#arrivals.on("arrived", listener);
		return () => this.#arrivals.off("arrived", listener);
	}

	/** A host's line, for what may give way on it: somebody works there when an interactive stream to it is open. */
	line(host: string): LineOptions {
		return {
			ping: () => this.#current.get(host)?.session.ping() ?? Promise.reject(notConnected(host)),
			shared: () => (this.#current.get(host)?.open.interactive ?? 0) > 0,
		};
	}

	/** How the tunnel of a host that is here is doing, with the round trip as it is now unless that takes long. */
	async figures(host: string): Promise<LinkFigures | undefined> {
		const connection = this.#current.get(host);
		if (connection === undefined) return undefined;
		const { session, id, address, connectedAt, epoch } = connection;
		const asked = await Promise.race([
			session.ping().catch(() => undefined),
			delay(PING_MS, undefined, { ref: false }),
		]);
		const { rttMs: lastMs, queuedBytes, starvedStreams, streams, bytesIn, bytesOut, opened, refused } = session.stats();
		const history = this.#histories.get(host);
		const rttMs = asked ?? lastMs;
		return {
			host,
			state: session.leaving ? "Leaving" : "Connected",
			gateway: this.#options.name,
			since: connectedAt,
			address,
			tunnel: {
				agent: session.peer?.software ?? "",
				connectionId: id,
				epoch,
				...(rttMs !== undefined && { rttMs: Math.round(rttMs * 1000) / 1000 }),
				streams: { open: streams, opened, refused, stalled: starvedStreams },
				services: Object.fromEntries(session.streamsByService()),
				queuedBytes,
				bytesFromHost: bytesIn,
				bytesToHost: bytesOut,
				reconnects: history?.reconnects ?? 0,
				ends: (history?.ends ?? []).map(({ at, reason, message }) => ({ at, reason, message })),
			},
		};
	}

	/** Opens a stream to a service of a host that is here. */
	async open(host: string, service: string, { lane, signal }: { lane: Lane; signal?: AbortSignal }): Promise<Duplex> {
		const connection = this.#current.get(host);
		if (connection === undefined) throw notConnected(host);
		const { session, open } = connection;
		const since = performance.now();
		const count = (result: string) =>
			this.#options.metrics.opens.observe({ service, result }, (performance.now() - since) / 1000);
		let taken = false;
		const giveBack = () => {
			if (taken) open[lane]--;
			taken = false;
		};
		try {
			this.#checkRoom(connection, lane);
			open[lane]++;
			taken = true;
			const stream = await session.open(service, { lane, ...(signal && { signal }) });
			stream.once("close", giveBack);
			count("ok");
			return stream;
		} catch (error) {
			giveBack();
			count(asGroundplaneError(error).code);
			throw error;
		}
	}

	/**
	 * Takes the upgrade of a host with a certificate of the hosts CA: shown in TLS, or, behind a proxy that opens up TLS, in HELLO.
	 * What is wrong is answered over HTTP as problem details, so that the agent can tell a person.
	 * `address` is where the host dialled from; `opened` is called when the host has said HELLO.
	 */
	async upgrade(
		request: IncomingMessage,
		socket: TLSSocket,
		head: Buffer,
		{ address, opened }: { address: string; opened: () => void },
	): Promise<void> {
		socket.on("error", () => {});
		const spare = request.headers["sec-websocket-protocol"] === SPARE_SUBPROTOCOL;
		try {
			const cuts = this.#cuts;
			const peer = this.#shown(request, socket);
			if (peer) {
				this.#checkRoomFor(peer.host, spare);
				await this.#options.admission.admit(peer.host, peer.serial);
			}
			if (socket.destroyed) return;
			const hostNonce = request.headers[NONCE_HEADER];
			const nonces = !peer && isNonce(hostNonce) ? { hostNonce, gatewayNonce: newNonce() } : undefined;
			const transport = acceptWebSocket(request, socket, head, {
				subprotocol: spare ? SPARE_SUBPROTOCOL : TUNNEL_SUBPROTOCOL,
				...(nonces && { headers: { [NONCE_HEADER]: nonces.gatewayNonce } }),
			});
			socket.setNoDelay(true);
			const attended = this.#attend(this.#session(transport, peer, nonces), { address, cuts, opened, spare });
			this.#attended.add(attended);
			void attended.finally(() => this.#attended.delete(attended));
		} catch (error) {
			const problem = asGroundplaneError(error);
			this.#refused(problem, { address, spare });
			refuse(socket, problem);
		}
	}

	/** Answers whether a host would be let in, without a tunnel: what `gp-agent doctor` asks. Throws what would keep it out. */
	async greet(request: IncomingMessage): Promise<{ gateway: string; host: string }> {
		const peer = this.#shown(request, request.socket as TLSSocket);
		if (!peer) throw noCertificate();
		this.#checkRoomFor(peer.host, false);
		await this.#options.admission.admit(peer.host, peer.serial);
		return { gateway: this.#options.name, host: peer.host };
	}

	/** Who the host is by the certificate it showed in TLS; undefined when it showed none and will in HELLO. */
	#shown(request: IncomingMessage, socket: TLSSocket): Peer | undefined {
		if (request.url !== TUNNEL_PATH) {
			throw new GroundplaneError("NotFound", `there is nothing at ${request.url}`, {
				next: `Hosts open their tunnel at ${TUNNEL_PATH}.`,
			});
		}
		if (this.#leaving) {
			throw new GroundplaneError("Overloaded", "this gateway is stopping", {
				next: "Nothing: the agent dials again.",
				details: { retryAfterMs: LEAVING_RETRY_MS },
			});
		}
		const certificate = socket.getPeerX509Certificate();
		if (certificate === undefined) {
			if (isNonce(request.headers[NONCE_HEADER])) return undefined;
			throw noCertificate();
		}
		if (!socket.authorized) {
			throw badCertificate(`the host's certificate is not good: ${socket.authorizationError}`);
		}
		return this.#identify(certificate);
	}

	/** The session of a host: identified by TLS (`peer`), or by a HELLO that is signed over both nonces. */
	#session(
		transport: Transport,
		shown: Peer | undefined,
		nonces: { hostNonce: string; gatewayNonce: string } | undefined,
	): Identified {
		const { name, version: software, region, key, limits, isOneOfSeveral } = this.#options;
		const connectionId = randomUUID();
		let peer = shown;
		let budget: HostBudget | undefined;
		const session = new Session(transport, {
			role: "server",
			hello: {
				name,
				software,
				bootId: this.#bootId,
				connectionId,
				...(isOneOfSeveral && { capabilities: [SPARE] }),
				...(nonces && { identity: signHello({ role: "gateway", region, name, connectionId, ...nonces }, key()) }),
			},
			checkHello: (hello) => {
				if (nonces) {
					const claim = {
						role: "host",
						region,
						name: hello.name,
						connectionId: hello.connectionId,
						...nonces,
					} as const;
					peer = this.#identify(verifyHello(claim, hello.identity));
				}
				if (hello.name === peer?.host) {
					budget = this.#budgetOf(peer.host);
					return;
				}
				throw new GroundplaneError(
					"HostNameMismatch",
					`this host says it is "${hello.name}", its certificate is for "${peer?.host}"`,
					{ next: "Give the host its own certificate: enrol it again." },
				);
			},
			limits: { pingAfterMs: 45_000, ...SESSION_LIMITS, ...limits },
			spend: (lane, bytes) => budget?.spend(lane, bytes) ?? 0,
		});
		return { session, shown, peer: () => peer as Peer };
	}

	#budgetOf(host: string): HostBudget {
		let budget = this.#budgets.get(host);
		if (budget === undefined) {
			budget = new HostBudget(this.#options.rates);
			this.#budgets.set(host, budget);
		}
		return budget;
	}

	/** The newest route of a host is another one: the connection here, if it is older, makes way. */
	superseded(host: string, route: Route, epoch: number): void {
		const connection = this.#current.get(host);
		if (!connection || connection.epoch === 0 || connection.epoch >= epoch || connection.id === route.connectionId)
			return;
		this.#retire(connection, `${host} has opened a newer tunnel through ${route.gateway}`);
	}

	/** Closes the tunnels of a host at once, except the one of a certificate that stays good. */
	cut(host: string, reason: ErrorCode, message: string, keepSerial?: string): void {
		this.#cuts++;
		this.#options.admission.forget(host);
		for (const connection of this.#all) {
			if (connection.host !== host || connection.serial === keepSerial) continue;
			this.#end(connection, reason, message);
		}
	}

	/**
	 * The bus was away: nobody knows any more where hosts are, who was revoked and what hosts said.
	 * Says and asks all of it again, who was revoked until somebody answers: the hosts service may come back later than the bus.
	 */
	async resynchronize(): Promise<void> {
		const connections = this.#all.values();
		const unknown = new Set<Connection>();
		const worker = async () => {
			for (const connection of connections) {
				if (!this.#all.has(connection)) continue;
				if (!(await this.#check(connection))) unknown.add(connection);
				await this.#register(connection);
				if (connection.control && this.#current.get(connection.host) === connection)
					this.#toHost(connection, { type: "report" });
			}
		};
		await Promise.all(Array.from({ length: RESYNCHRONIZE_AT_ONCE }, worker));
		for (let attempt = 0; unknown.size > 0; attempt++) {
			this.#options.log.warn({ hosts: unknown.size }, "can't ask whether hosts may stay connected; asking again");
			await delay(backoffMs(attempt, BUS_BACKOFF), undefined, { ref: false });
			for (const connection of unknown) {
				if (this.#all.has(connection) && !(await this.#check(connection))) break;
				unknown.delete(connection);
			}
		}
	}

	/** Cuts tunnels whose certificate has ended, and forgets what is old. To be called now and then. */
	async sweep(now: number): Promise<void> {
		this.#options.admission.sweep();
		for (const [host, { ends }] of this.#histories) {
			if (!this.#current.has(host) && now - Date.parse(ends.at(-1)?.at ?? "") > ENDS_KEPT_MS)
				this.#histories.delete(host);
		}
		const here = new Set([...this.#all].map(({ host }) => host));
		for (const host of this.#budgets.keys()) if (!here.has(host)) this.#budgets.delete(host);
		const turn = this.#sweeps++ % PINGED_PART;
		[...this.#all].forEach((connection, index) => {
			if (connection.notAfter < now) {
				this.#end(connection, "CertificateInvalid", "the host's certificate has ended");
			} else if (index % PINGED_PART === turn) connection.session.ping().catch(() => {});
		});
	}

	/** Tells all hosts to go elsewhere, lets their streams end for at most `ms`, and closes. Resolves when the bus knows, too. */
	async leave(ms: number): Promise<void> {
		this.#leaving = true;
		await Promise.all([...this.#all].map((connection) => this.#sendElsewhere(connection, ms)));
		await Promise.all(this.#attended);
	}

	async #sendElsewhere(connection: Connection, ms: number): Promise<void> {
		connection.told = true;
		// Spread, so that the other gateways are not run over.
		const spread = Math.min(LEAVING_SPREAD_MS, (this.#all.size * 1_000) / LEAVING_A_SECOND);
		const reconnectAfterMs = Math.round(Math.random() * spread);
		await connection.session.drain({ code: "TunnelClosed", message: "the gateway is stopping", reconnectAfterMs }, ms);
	}

	/** Whom a certificate names: it must come from the CA for hosts itself, not from the root like a service's, and be in date. */
	#identify(certificate: X509Certificate): Peer {
		const ca = this.#options.hostsCa();
		if (!certificate.checkIssued(ca) || !certificate.verify(ca.publicKey)) {
			throw badCertificate("the host's certificate is not from this region's CA for hosts");
		}
		const notAfter = certificate.validToDate.getTime();
		const now = Date.now();
		if (notAfter < now) throw badCertificate(`the host's certificate ended at ${certificate.validTo}`);
		if (certificate.validFromDate.getTime() > now + CLOCK_SKEW_MS) {
			throw badCertificate(`the host's certificate is good from ${certificate.validFrom} on`);
		}
		const host = /^CN=([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$/m.exec(certificate.subject)?.[1];
		if (host === undefined) throw badCertificate("the host's certificate names no host");
		return { host, serial: certificate.serialNumber.toLowerCase().replace(/^0+(?=.)/, ""), notAfter };
	}

	async #attend(
		{ session, shown, peer: identified }: Identified,
		{ address, cuts, opened, spare }: { address: string; cuts: number; opened: () => void; spare: boolean },
	): Promise<void> {
		const { log, metrics, admission } = this.#options;
		const hello = await session.ready.catch(async () => {
			const err = await session.closed;
			metrics.connections.inc({ result: err?.code ?? "TunnelClosed" });
			log.warn({ host: shown?.host, address, err }, "tunnel ended before it began");
		});
		if (!hello) return;
		const peer = identified();
		const connection: Connection = {
			...peer,
			address,
			session,
			id: randomUUID(),
			connectedAt: new Date().toISOString(),
			spare,
			epoch: 0,
			registered: Promise.resolve(),
			control: undefined,
			open: { control: 0, interactive: 0, bulk: 0 },
			opens: new Bucket(OPENS),
			refused: 0,
			told: false,
			events: Promise.resolve(),
		};
		// Who is known by HELLO alone, or was cut while it came in, is asked about before anything is done for it.
		const admitted =
			shown === undefined || cuts !== this.#cuts
				? admission.admit(peer.host, peer.serial, { fresh: shown !== undefined })
				: Promise.resolve();
		session.on("stream", (incoming) => {
			admitted
				.then(() => this.#onStream(connection, incoming))
				// The host was not admitted, or has given the stream up meanwhile.
				.catch((err: unknown) => log.debug({ host: peer.host, service: incoming.service, err }, "stream not served"));
		});
		try {
			await admitted;
			// Again: many may have come in since the first look.
			this.#checkRoomFor(peer.host, spare);
		} catch (error) {
			const problem = asGroundplaneError(error);
			this.#refused(problem, { address, spare, host: peer.host });
			this.#end(connection, problem.code, problem.message, retryAfter(problem));
			return;
		}
		opened();
		metrics.connections.inc({ result: "accepted" });
		const hasPlace = this.#current.has(peer.host) || this.#spares.has(peer.host);
		if (!spare && !hasPlace && this.#isFull) this.#endOldestSpare();
		this.#all.add(connection);
		this.#peak = Math.max(this.#peak, this.#all.size);
		if (connection.spare) this.#keepSpare(connection);
		else this.#takeOver(connection);
		// One that began while this gateway was told to stop.
		if (this.#leaving) void this.#sendElsewhere(connection, RETIRE_MS);

		const error = await session.closed;
		this.#all.delete(connection);
		if (connection.spare) {
			if (this.#spares.get(peer.host) === connection) this.#spares.delete(peer.host);
			log.debug({ host: peer.host, reason: error?.code }, "spare tunnel closed");
			return;
		}
		const newest = this.#current.get(peer.host) === connection;
		if (newest) this.#current.delete(peer.host);
		this.#remember(connection, error);
		log.info({ host: peer.host, reason: error?.code, message: error?.message }, "tunnel closed");
		await connection.registered;
		if (!newest) return;
		if (connection.epoch > 0) await this.#options.bus.removeRoute(peer.host, connection.epoch);
		await this.#publishLink(connection, "disconnected", error?.code ?? "TunnelClosed");
	}

	/** From now on this tunnel is the host's: one that has just opened, or its spare, on which it has opened its control stream. */
	#takeOver(connection: Connection): void {
		const { host, address, session } = connection;
		const spare = this.#spares.get(host);
		if (spare && spare !== connection) this.#endSpare(spare, heldHere);
		this.#spares.delete(host);
		const older = this.#current.get(host);
		this.#current.set(host, connection);
		this.#countReturn(host, older);
		this.#options.metrics.follow(session, host);
		if (older) this.#retire(older, `${host} has opened a newer tunnel from ${address}`);
		const { software: agent } = session.peer ?? {};
		this.#options.log.info({ host, address, agent, ...(connection.spare && { spare: true }) }, "tunnel open");
		connection.spare = false;
		connection.connectedAt = new Date().toISOString();
		this.#arrivals.emit("arrived", host);
		connection.registered = this.#register(connection);
	}

	#keepSpare(connection: Connection): void {
		const { host } = connection;
		const older = this.#spares.get(host);
		if (older) this.#endSpare(older, { code: "Conflict", message: "the host has opened a newer spare tunnel" });
		this.#spares.set(host, connection);
		this.#options.log.debug({ host }, "spare tunnel open");
	}

	#endOldestSpare(): void {
		const [oldest] = this.#spares.values();
		if (oldest)
			this.#endSpare(oldest, { code: "Overloaded", message: "hosts need its place", reconnectAfterMs: SPARE_RETRY_MS });
	}

	/** Its place is free at once: who takes it counts no more than it did. */
	#endSpare(connection: Connection, reason: GoAway): void {
		const { session, host } = connection;
		this.#spares.delete(host);
		this.#all.delete(connection);
		session.goAway(reason);
		session.close(new GroundplaneError(reason.code, reason.message, { next: "Nothing: the host has another tunnel." }));
	}

	/** Counts the return of a host that was here in the last day, by the reason for which its last tunnel ended. */
	#countReturn(host: string, older: Connection | undefined): void {
		const history = this.#histories.get(host) ?? (older && { reconnects: 0, ends: [] });
		if (history === undefined) return;
		history.reconnects++;
		this.#histories.set(host, history);
		this.#options.metrics.reconnects.inc({
			reason: older ? "Superseded" : (history.ends.at(-1)?.reason ?? "TunnelClosed"),
		});
	}

	#remember({ host, told }: Connection, error: GroundplaneError | undefined): void {
		const history = this.#histories.get(host) ?? { reconnects: 0, ends: [] };
		history.ends.push({
			at: new Date().toISOString(),
			reason: error?.code ?? "TunnelClosed",
			message: error?.message ?? "the tunnel was closed",
			planned: told,
		});
		if (history.ends.length > ENDS_KEPT) history.ends.shift();
		this.#histories.set(host, history);
	}

	/**
	 * Throws Overloaded when there is no memory for one more host. One that is here already takes its own place, and spare tunnels make
	 * way. Throws AlreadyExists at a spare tunnel beside the host's own.
	 */
	#checkRoomFor(host: string, spare: boolean): void {
		if (spare && this.#current.has(host)) {
			throw new GroundplaneError(heldHere.code, heldHere.message, {
				next: "Nothing: the agent tries again, and comes to another gateway.",
				details: { retryAfterMs: heldHere.reconnectAfterMs },
			});
		}
		if (!this.#isFull || this.#current.has(host) || this.#spares.has(host)) return;
		if (!spare && this.#spares.size > 0) return;
		throw new GroundplaneError("Overloaded", `this gateway holds ${this.#all.size} hosts and has no room for more`, {
			next: "Nothing on this host, it tries again. Give the region more gateways: raise Region.spec.tunnel.replicas.",
			details: { full: true, retryAfterMs: Math.round(FULL_RETRY_MS * (1 + Math.random())) },
		});
	}

	get #isFull(): boolean {
		const load = { tunnels: this.#all.size, peak: this.#peak, resident: this.#residentBytes };
		return !hasRoom(load, this.#options.bounds);
	}

	/** Memory of this process, asked for now and then: when hosts come in a crowd to ask at each of them was a seventh of the work. */
	get #residentBytes(): number {
		const now = performance.now();
		if (now >= this.#resident.at + RESIDENT_MS) this.#resident = { bytes: process.memoryUsage.rss(), at: now };
		return this.#resident.bytes;
	}

	/** Throws Overloaded when the host, or the gateway, has enough to do. */
	#checkRoom({ host, open }: Connection, lane: Lane): void {
		const overloaded = (what: string) =>
			new GroundplaneError("Overloaded", what, { next: "Try again in a second; if it lasts, look at gp host link." });
		if (open[lane] >= MAX_STREAMS[lane]) {
			throw overloaded(`${host} has ${open[lane]} ${lane} streams open, which is all that it may`);
		}
		if (this.#options.metrics.queuedBytes() > QUEUED_BUDGET) {
			throw overloaded("more data waits for hosts at this gateway than it can hold");
		}
	}

	/** Counts and logs that a host was not let in. Spare tunnels by themselves: a host that has none is none the worse. */
	#refused(problem: GroundplaneError, { spare, ...who }: { spare: boolean; address: string; host?: string }): void {
		const { metrics, log } = this.#options;
		metrics.connections.inc({ result: spare ? "SpareDeclined" : resultOf(problem) });
		log[spare ? "debug" : "warn"]({ err: problem, ...who }, "tunnel refused");
	}

	/** Whether a host may open one more stream. One that does not stop asking is cut off. */
	#mayOpen(connection: Connection, incoming: IncomingStream): boolean {
		const artifacts = connection.session.streamsByService().get("artifacts") ?? 0;
		if (connection.opens.take() && (incoming.service !== "artifacts" || artifacts < MAX_ARTIFACTS)) {
			connection.refused = 0;
			return true;
		}
		this.#options.metrics.refused.inc({ service: known(incoming.service) });
		incoming.refuse("Overloaded", "this host opens more streams than it may; try again in a second");
		if (++connection.refused >= MAX_REFUSED) {
			this.#end(connection, "Overloaded", `${connection.host} does not stop opening streams`);
		}
		return false;
	}

	#onStream(connection: Connection, incoming: IncomingStream): void {
		// Refused meanwhile, or over.
		if (!this.#all.has(connection)) return;
		if (!this.#mayOpen(connection, incoming)) return;
		switch (incoming.service) {
			case "control":
				if (connection.control && !connection.control.destroyed) {
					incoming.refuse("AlreadyExists", "there is a control stream already");
					return;
				}
				if (connection.spare) this.#takeOver(connection);
				void this.#runControl(connection, incoming.accept());
				return;
			case "artifacts":
				if (connection.spare) {
					incoming.refuse("ServiceNotAllowed", "nothing goes through a spare tunnel");
					return;
				}
				this.#options.onArtifacts(connection.host, incoming.accept());
				return;
			default:
				incoming.refuse("ServiceNotAllowed", `a host can't open "${incoming.service}"`);
		}
	}

	async #runControl(connection: Connection, stream: Duplex): Promise<void> {
		const { host } = connection;
		const { bus, metrics, log } = this.#options;
		connection.control = stream;
		const forget = bus.onDown(host, (text) => {
			const message = parseDown(text);
			if (message) this.#toHost(connection, message);
			else metrics.dropped.inc({ reason: "not-on-the-list" });
		});
		if (connection.epoch > 0) void this.#publishLink(connection, "connected");
		try {
			await bridgeUp(stream, {
				publish: (_type, message) => this.#publishUp(connection, message),
				dropped: (reason) => metrics.dropped.inc({ reason }),
			});
			stream.end();
		} catch (error) {
			const problem = asGroundplaneError(error);
			log.debug({ host, err: problem }, "control stream broke");
			stream.destroy(problem);
		} finally {
			forget();
			connection.control = undefined;
		}
	}

	/** Says what a host said once it is known which of its tunnels is the newer one: what a tunnel that it has left says late does not count. */
	async #publishUp(connection: Connection, message: UpMessage): Promise<void> {
		await connection.registered;
		if (connection.epoch === 0) throw notConnected(connection.host);
		await this.#options.bus.publishUp(connection.host, message, connection.epoch);
	}

	#toHost(connection: Connection, message: DownMessage): void {
		if (!connection.control) return;
		try {
			sendDown(connection.control, message);
			// A host that has lost its power says nothing: whoever wants something of it learns that now, and not from a long silence.
			connection.session.probe();
		} catch (error) {
			connection.session.destroy(asGroundplaneError(error));
		}
	}

	/** Gets the connection its epoch; tries until it has one or the connection is gone. */
	async #register(connection: Connection): Promise<void> {
		const { host, id, connectedAt, session } = connection;
		for (let attempt = 0; this.#all.has(connection) && this.#current.get(host) === connection; attempt++) {
			try {
				connection.epoch = await this.#options.bus.putRoute(host, { connectionId: id, connectedAt });
				if (connection.control) await this.#publishLink(connection, "connected");
				return;
			} catch (err) {
				this.#options.log.warn({ host, err }, "the bus did not take the host's route; trying again");
				await Promise.race([delay(backoffMs(attempt, BUS_BACKOFF)), session.closed]);
			}
		}
	}

	/** Cuts a tunnel whose host may not connect any more. Answers whether that could be asked. */
	async #check(connection: Connection): Promise<boolean> {
		try {
			return await this.#options.admission.admit(connection.host, connection.serial, { fresh: true });
		} catch (error) {
			const { code, message } = asGroundplaneError(error);
			if (code === "BusUnavailable") return false;
			this.#end(connection, code, message);
			return true;
		}
	}

	#end({ host, session }: Connection, reason: ErrorCode, message: string, reconnectAfterMs = REFUSED_RETRY_MS): void {
		this.#options.log.info({ host, reason, message }, "tunnel cut");
		session.goAway({ code: reason, message, reconnectAfterMs });
		session.close(new GroundplaneError(reason, message, { next: "Enrol the host again." }));
	}

	#publishLink(connection: Connection, state: LinkEvent["state"], reason?: string): Promise<void> {
		connection.events = connection.events.then(() => this.#sayLink(connection, state, reason));
		return connection.events;
	}

	/**
	 * Tells the bus of a tunnel until it takes it, as long as it is true. Nobody else would tell that a host is here; that one has gone
	 * the hosts service finds out by itself, so that is not told for ever.
	 */
	async #sayLink(connection: Connection, state: LinkEvent["state"], reason?: string): Promise<void> {
		const { host, address, session } = connection;
		const at = new Date().toISOString();
		const isTrue = () => (state === "connected" ? this.#current.get(host) === connection : !this.#current.has(host));
		for (let attempt = 0; isTrue(); attempt++) {
			try {
				const { epoch } = connection;
				await this.#options.bus.publishLink(host, { state, epoch, address, ...(reason && { reason }), at });
				return;
			} catch (err) {
				this.#options.log.warn({ host, state, err }, "the bus did not take a link event");
			}
			if (state === "disconnected" && (this.#leaving || attempt >= GONE_TRIES)) return;
			await Promise.race(
				state === "connected"
					? [delay(backoffMs(attempt, BUS_BACKOFF)), session.closed]
					: [delay(backoffMs(attempt, BUS_BACKOFF))],
			);
		}
	}

	#retire(connection: Connection, message: string): void {
		if (this.#current.get(connection.host) === connection) this.#current.delete(connection.host);
		connection.told = true;
		this.#options.log.info({ host: connection.host, message }, "older tunnel makes way");
		const { session } = connection;
		const idle = [...session.streamsByService().keys()].every((service) => service === "control");
		// When all hosts come back at once there is no memory for a second tunnel of each.
		if (idle && this.#isFull) session.destroy(new GroundplaneError("Conflict", message, { next: "Connect again." }));
		else void session.drain({ code: "Conflict", message, reconnectAfterMs: REFUSED_RETRY_MS }, RETIRE_MS);
	}
}

export interface GatewayOptions {
	/** Name of this gateway, as it appears in events. */
	name: string;
	version: string;
	region: string;
	/** The gateway's certificate and key, PEM, with which it signs a HELLO that must not be believed on TLS alone. */
	key: () => { certificate: string; key: string };
	/** The only issuer of host certificates. */
	hostsCa: () => X509Certificate;
	admission: Admission;
	bus: GatewayBus;
	metrics: TunnelMetrics;
	log: Log;
	/** Serves HTTP/1.1 on a stream that a host opened to the artifacts service. */
	onArtifacts: (host: string, stream: Duplex) => void;
	/** How many hosts there is room for. */
	bounds: Bounds;
	/** What one host's streams may carry. */
	rates: LaneRates;
	/** There are other gateways in the region, so that hosts have a use for a spare tunnel. */
	isOneOfSeveral: boolean;
	limits?: Partial<SessionLimits>;
}

export function notConnected(host: string): GroundplaneError {
	return new GroundplaneError("HostNotConnected", `host ${host} has no open tunnel`, {
		next: "Look at the Host's condition Connected, and at the agent on the host: gp-agent status.",
	});
}

/** A spare tunnel through the same gateway would break with the host's own. */
const heldHere = {
	code: "AlreadyExists",
	message: "this gateway holds the host's tunnel already",
	reconnectAfterMs: 1_000,
} as const satisfies GoAway;

const badCertificate = (message: string) =>
	new GroundplaneError("CertificateInvalid", message, { next: "Enrol the host again with a new join command." });
const noCertificate = () => badCertificate("the host showed no certificate");

/** A name that a host made up must not become a label. */
const known = (service: string) => (service === "control" || service === "artifacts" ? service : "other");

/** How a refusal is counted: by its code, one for want of memory by itself. */
const resultOf = ({ code, details }: GroundplaneError): string => (details?.full === true ? "Full" : code);
/** When to come back, for an error that says so. */
const retryAfter = ({ details }: GroundplaneError): number | undefined => details?.retryAfterMs as number | undefined;

/** Answers instead of switching protocols; what passes by itself comes with a hint when to try again. */
function refuse(socket: Duplex, error: GroundplaneError): void {
	const passes = error.status === 503;
	const retryAfterMs = retryAfter(error) ?? 2_000 + Math.floor(Math.random() * 8_000);
	const body = JSON.stringify({ ...error.toJSON(), ...(passes && { retryAfterMs }) });
	socket.end(
		[
			`HTTP/1.1 ${error.status} ${error.code}`,
			"content-type: application/problem+json",
			`content-length: ${Buffer.byteLength(body)}`,
			...(passes ? [`retry-after: ${Math.ceil(retryAfterMs / 1000)}`] : []),
			"connection: close",
			"",
			body,
		].join("\r\n"),
	);
}
