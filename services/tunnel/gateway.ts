import { randomUUID, type X509Certificate } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import { WebSocketServer } from "ws";
import { asGroundplaneError, type ErrorCode, GroundplaneError } from "../../protocol/errors.ts";
import type { DownMessage, UpMessage } from "../../protocol/messages.ts";
import { type IncomingStream, type Lane, Session, type SessionLimits, webSocketTransport } from "../../protocol/mux.ts";
import { TUNNEL_PATH, TUNNEL_SUBPROTOCOL } from "../../protocol/tunnel.ts";
import type { Log } from "../kit/log.ts";
import type { Admission } from "./admission.ts";
import { bridgeUp, parseDown, sendDown } from "./control.ts";
import type { TunnelMetrics } from "./metrics.ts";
import type { Route } from "./routes.ts";

/** What the gateway needs of the region's bus; `bus.ts` has it over NATS. */
export interface GatewayBus {
	/** Says where a host is and gives the epoch of this connection. */
	putRoute(host: string, connection: { connectionId: string; connectedAt: string }): Promise<number>;
	removeRoute(host: string, epoch: number): Promise<void>;
	publishUp(host: string, message: UpMessage): Promise<void>;
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

/** A host's tunnel. */
interface Connection {
	readonly host: string;
	readonly id: string;
	readonly serial: string;
	readonly notAfter: number;
	readonly address: string;
	readonly connectedAt: string;
	readonly session: Session;
	/** Order among the connections of a host; 0 until the bus gave one. */
	epoch: number;
	control: Duplex | undefined;
}

/** How long streams of a superseded or leaving tunnel may go on. */
const RETIRE_MS = 30_000;
/** A host that was told to go for a reason that doesn't pass by itself comes back after this. */
const REFUSED_RETRY_MS = 60_000;

/** Ends the tunnels of hosts and carries what goes through them. */
export class Gateway {
	readonly #options: GatewayOptions;
	readonly #sockets = new WebSocketServer({
		noServer: true,
		perMessageDeflate: false,
		clientTracking: false,
		maxPayload: 1024 * 1024,
		handleProtocols: (offered) => (offered.has(TUNNEL_SUBPROTOCOL) ? TUNNEL_SUBPROTOCOL : false),
	});
	readonly #bootId = randomUUID();
	/** The newest connection of each host. */
	readonly #current = new Map<string, Connection>();
	/** All of them, those that are leaving included. */
	readonly #all = new Set<Connection>();
	readonly #attended = new Set<Promise<void>>();
	#leaving = false;

	constructor(options: GatewayOptions) {
		this.#options = options;
	}

	get hosts(): number {
		return this.#current.size;
	}

	/** Whether a host's tunnel ends here. */
	has(host: string): boolean {
		return this.#current.has(host);
	}

	/** Opens a stream to a service of a host that is here. */
	async open(host: string, service: string, { lane, signal }: { lane: Lane; signal?: AbortSignal }): Promise<Duplex> {
		const connection = this.#current.get(host);
		if (connection === undefined) throw notConnected(host);
		const since = performance.now();
		const count = (result: string) =>
			this.#options.metrics.opens.observe({ service, result }, (performance.now() - since) / 1000);
		try {
			const stream = await connection.session.open(service, { lane, ...(signal && { signal }) });
			count("ok");
			return stream;
		} catch (error) {
			count(asGroundplaneError(error).code);
			throw error;
		}
	}

	/**
	 * Takes the upgrade of a host with a certificate of the hosts CA. What is wrong is answered over HTTP
	 * as problem details, so that the agent can tell a person. `address` is where the host dialled from.
	 */
	async upgrade(request: IncomingMessage, socket: TLSSocket, head: Buffer, address: string): Promise<void> {
		socket.on("error", () => {});
		try {
			if (request.url !== TUNNEL_PATH) {
				throw new GroundplaneError("NotFound", `there is nothing at ${request.url}`, {
					next: `Hosts open their tunnel at ${TUNNEL_PATH}.`,
				});
			}
			if (this.#leaving) {
				throw new GroundplaneError("Overloaded", "this gateway is stopping", {
					next: "Nothing: the agent dials again.",
				});
			}
			const { host, serial, notAfter } = this.#identify(socket);
			await this.#options.admission.admit(host, serial);
			if (socket.destroyed) return;
			this.#sockets.handleUpgrade(request, socket, head, (webSocket) => {
				socket.setNoDelay(true);
				const session = new Session(webSocketTransport(webSocket), {
					role: "server",
					hello: {
						name: this.#options.name,
						software: this.#options.version,
						bootId: this.#bootId,
						connectionId: randomUUID(),
					},
					checkHello: ({ name }) => {
						if (name === host) return;
						throw new GroundplaneError(
							"HostNameMismatch",
							`this host says it is "${name}", its certificate is for "${host}"`,
							{
								next: "Give the host its own certificate: enrol it again.",
							},
						);
					},
					limits: { pingAfterMs: 45_000, ...this.#options.limits },
				});
				this.#options.metrics.connections.inc({ result: "accepted" });
				const attended = this.#attend(session, { host, serial, notAfter, address });
				this.#attended.add(attended);
				void attended.finally(() => this.#attended.delete(attended));
			});
		} catch (error) {
			const problem = asGroundplaneError(error);
			this.#options.metrics.connections.inc({ result: problem.code });
			this.#options.log.warn({ err: problem, address }, "tunnel refused");
			refuse(socket, problem);
		}
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
		this.#options.admission.forget(host);
		for (const connection of this.#all) {
			if (connection.host !== host || connection.serial === keepSerial) continue;
			this.#end(connection, reason, message);
		}
	}

	/**
	 * The bus was away: nobody knows any more where hosts are, who was revoked and what hosts said.
	 * Says and asks all of it again.
	 */
	async resynchronize(): Promise<void> {
		for (const connection of this.#current.values()) {
			if (!this.#all.has(connection)) continue;
			await this.#register(connection);
			await this.#check(connection, true);
			if (connection.control) this.#toHost(connection, { type: "report" });
		}
	}

	/** Cuts tunnels whose certificate has ended. To be called now and then. */
	async sweep(now: number): Promise<void> {
		this.#options.admission.sweep();
		for (const connection of [...this.#all]) {
			if (connection.notAfter < now) {
				this.#end(connection, "CertificateInvalid", "the host's certificate has ended");
			}
		}
	}

	/** Tells all hosts to go elsewhere, lets their streams end for at most `ms`, and closes. Resolves when the bus knows, too. */
	async leave(ms: number): Promise<void> {
		this.#leaving = true;
		await Promise.all(
			[...this.#all].map(({ session }) =>
				session.drain(
					// Spread, so that the other gateways are not run over.
					{
						code: "TunnelClosed",
						message: "the gateway is stopping",
						reconnectAfterMs: Math.round(Math.random() * Math.min(2_000, this.#all.size * 5)),
					},
					ms,
				),
			),
		);
		await Promise.all(this.#attended);
	}

	/** The host of a connection: its certificate must be good and come from the CA for hosts, not from the root like a service's. */
	#identify(socket: TLSSocket): { host: string; serial: string; notAfter: number } {
		const certificate = socket.getPeerX509Certificate();
		const fail = (message: string) =>
			new GroundplaneError("CertificateInvalid", message, { next: "Enrol the host again with a new join command." });
		const ca = this.#options.hostsCa();
		if (certificate === undefined) throw fail("the host showed no certificate");
		if (!socket.authorized) throw fail(`the host's certificate is not good: ${socket.authorizationError}`);
		if (!certificate.checkIssued(ca) || !certificate.verify(ca.publicKey)) {
			throw fail("the host's certificate is not from this region's CA for hosts");
		}
		const notAfter = certificate.validToDate.getTime();
		if (notAfter < Date.now()) throw fail(`the host's certificate ended at ${certificate.validTo}`);
		const host = /^CN=([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$/m.exec(certificate.subject)?.[1];
		if (host === undefined) throw fail("the host's certificate names no host");
		return { host, serial: certificate.serialNumber.toLowerCase().replace(/^0+(?=.)/, ""), notAfter };
	}

	async #attend(
		session: Session,
		peer: { host: string; serial: string; notAfter: number; address: string },
	): Promise<void> {
		const { log, metrics } = this.#options;
		const hello = await session.ready.catch(async () => {
			log.warn({ host: peer.host, address: peer.address, err: await session.closed }, "tunnel ended before it began");
		});
		if (!hello) return;
		const connection: Connection = {
			...peer,
			session,
			id: randomUUID(),
			connectedAt: new Date().toISOString(),
			epoch: 0,
			control: undefined,
		};
		const older = this.#current.get(peer.host);
		this.#current.set(peer.host, connection);
		this.#all.add(connection);
		metrics.follow(session);
		if (older) this.#retire(older, `${peer.host} has opened a newer tunnel from ${peer.address}`);
		session.on("stream", (incoming) => this.#onStream(connection, incoming));
		log.info({ host: peer.host, address: peer.address, agent: hello.software }, "tunnel open");
		const registered = this.#register(connection);

		const error = await session.closed;
		this.#all.delete(connection);
		const newest = this.#current.get(peer.host) === connection;
		if (newest) this.#current.delete(peer.host);
		log.info({ host: peer.host, reason: error?.code, message: error?.message }, "tunnel closed");
		await registered;
		if (!newest) return;
		if (connection.epoch > 0) await this.#options.bus.removeRoute(peer.host, connection.epoch);
		await this.#publishLink(connection, "disconnected", error?.code ?? "TunnelClosed");
	}

	#onStream(connection: Connection, incoming: IncomingStream): void {
		switch (incoming.service) {
			case "control":
				if (connection.control && !connection.control.destroyed) {
					incoming.refuse("AlreadyExists", "there is a control stream already");
					return;
				}
				void this.#runControl(connection, incoming.accept());
				return;
			case "artifacts":
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
				publish: (_type, message) => bus.publishUp(host, message),
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

	#toHost(connection: Connection, message: DownMessage): void {
		if (!connection.control) return;
		try {
			sendDown(connection.control, message);
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
				const pause = new Promise((resolve) =>
					setTimeout(resolve, 500 + Math.random() * Math.min(15_000, 500 * 2 ** attempt)),
				);
				await Promise.race([pause, session.closed]);
			}
		}
	}

	async #check(connection: Connection, fresh: boolean): Promise<void> {
		try {
			await this.#options.admission.admit(connection.host, connection.serial, { fresh });
		} catch (error) {
			const { code, message } = asGroundplaneError(error);
			if (code !== "BusUnavailable") this.#end(connection, code, message);
		}
	}

	#end({ host, session }: Connection, reason: ErrorCode, message: string): void {
		this.#options.log.info({ host, reason, message }, "tunnel cut");
		session.goAway({ code: reason, message, reconnectAfterMs: REFUSED_RETRY_MS });
		session.close(new GroundplaneError(reason, message, { next: "Enrol the host again." }));
	}

	async #publishLink(connection: Connection, state: LinkEvent["state"], reason?: string): Promise<void> {
		const { host, epoch, address } = connection;
		await this.#options.bus
			.publishLink(host, { state, epoch, address, ...(reason && { reason }), at: new Date().toISOString() })
			.catch((err: unknown) => this.#options.log.warn({ host, state, err }, "the bus did not take a link event"));
	}

	#retire(connection: Connection, message: string): void {
		if (this.#current.get(connection.host) === connection) this.#current.delete(connection.host);
		this.#options.log.info({ host: connection.host, message }, "older tunnel makes way");
		void connection.session.drain({ code: "Conflict", message, reconnectAfterMs: REFUSED_RETRY_MS }, RETIRE_MS);
	}
}

export interface GatewayOptions {
	/** Name of this gateway, as it appears in events. */
	name: string;
	version: string;
	/** The only issuer of host certificates. */
	hostsCa: () => X509Certificate;
	admission: Admission;
	bus: GatewayBus;
	metrics: TunnelMetrics;
	log: Log;
	/** Serves HTTP/1.1 on a stream that a host opened to the artifacts service. */
	onArtifacts: (host: string, stream: Duplex) => void;
	limits?: Partial<SessionLimits>;
}

export function notConnected(host: string): GroundplaneError {
	return new GroundplaneError("HostNotConnected", `host ${host} has no open tunnel`, {
		next: "Look at the Host's condition Connected, and at the agent on the host: gp-agent status.",
	});
}

function refuse(socket: Duplex, error: GroundplaneError): void {
	const body = JSON.stringify(error.toJSON());
	socket.end(
		[
			`HTTP/1.1 ${error.status} ${error.code}`,
			"content-type: application/problem+json",
			`content-length: ${Buffer.byteLength(body)}`,
			...(error.status === 503 ? [`retry-after: ${2 + Math.floor(Math.random() * 8)}`] : []),
			"connection: close",
			"",
			body,
		].join("\r\n"),
	);
}
