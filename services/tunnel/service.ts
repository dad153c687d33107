import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from "node:net";
import { hostname } from "node:os";
import { performance } from "node:perf_hooks";
import type { TLSSocket } from "node:tls";
import { z } from "zod";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { VERSION } from "../../protocol/version.ts";
import { connectBus, ensureHostStreams } from "../kit/bus.ts";
import { busConfig } from "../kit/config.ts";
import { defineService } from "../kit/service.ts";
import { Admission } from "./admission.ts";
import { ArtifactsBridge } from "./artifacts.ts";
import { NatsGatewayBus } from "./bus.ts";
import { Gateway } from "./gateway.ts";
import { Handshakes } from "./handshakes.ts";
import { TunnelMetrics } from "./metrics.ts";
import { ForwardProxy } from "./proxy.ts";
import { proxyProtocolListener } from "./proxy-protocol.ts";
import { hostsIn, memoryLimit } from "./room.ts";

/** Time for streams to end when the gateway stops; the pod's terminationGracePeriodSeconds is longer. */
const DRAIN_MS = 25_000;
/** No step of a handshake may take longer, whoever dawdles over it (and see `handshakes.ts`). */
const STEP_MS = 10_000;
const SWEEP_MS = 60_000;
const MEGABYTE = 1_000_000;

/** The gateway: hosts dial 8443, services of the region reach them through 8444. */
export const tunnelService = defineService({
	name: "tunnel",
	config: {
		...busConfig,
		hostsCaFile: z.string().default("/etc/groundplane/hosts-ca/tls.crt"),
		proxyPort: z.coerce.number().int().min(0).max(65535).default(8444),
		/** Where the edge passes connections on with a PROXY header, so that the hosts' own addresses are seen. */
		edgePort: z.coerce.number().int().min(0).max(65535).default(8445),
		podName: z.string().default(hostname()),
		podIp: z.string().default("127.0.0.1"),
		artifactsUrl: z.url().default("https://artifacts"),
		/** Milliseconds from a host's first byte to its HELLO. */
		handshakeMs: z.coerce.number().int().min(100).default(15_000),
		drainMs: z.coerce.number().int().min(0).default(DRAIN_MS),
		/** Hosts for which there is room; by default as many as the container's memory holds. */
		maxHosts: z.coerce.number().int().min(1).optional(),
		/** The region has more gateways than this one: hosts may keep a spare tunnel. Not how many, so that one more restarts none. */
		oneOfSeveral: z.stringbool().default(false),
		/** What one host's streams may carry, by lane: more than one has a use for, and a part of what a gateway carries in all. */
		hostInteractiveMegabytesPerSecond: z.coerce.number().positive().default(128),
		hostBulkMegabytesPerSecond: z.coerce.number().positive().default(128),
	},
	async start(context) {
		const { config, log, tls } = context;
		const hostsCa = readHostsCa(config.hostsCaFile);
		const bus = await connectBus(context);
		await ensureHostStreams(bus);
		const kv = await bus.ensureKv("routes", { history: 1, description: "Which gateway holds which host." });

		const limit = memoryLimit();
		const bounds = { limit, maxHosts: config.maxHosts ?? hostsIn(limit) };
		const metrics = new TunnelMetrics(context.metrics, bounds);
		const artifacts = new ArtifactsBridge({
			url: config.artifactsUrl,
			tls,
			log,
			lineOf: (host) => gateway.line(host),
		});
		let proxyAddress = "";
		const gatewayBus = new NatsGatewayBus({ bus, kv, gateway: config.podName, address: () => proxyAddress, log });
		const gateway: Gateway = new Gateway({
			name: config.podName,
			version: VERSION,
			region: config.region,
			key: () => ({ certificate: tls.current.cert, key: tls.current.key }),
			hostsCa: () => hostsCa,
			admission: new Admission({ ask: (host, serial) => gatewayBus.askAdmission(host, serial) }),
			bus: gatewayBus,
			metrics,
			log,
			onArtifacts: (host, stream) => artifacts.attach(host, stream),
			bounds,
			isOneOfSeveral: config.oneOfSeveral,
			rates: {
				interactive: config.hostInteractiveMegabytesPerSecond * MEGABYTE,
				bulk: config.hostBulkMegabytesPerSecond * MEGABYTE,
			},
		});
		gatewayBus.onCut((host, { reason, message, keepSerial }) => gateway.cut(host, reason, message, keepSerial));
		// Longer than the service's signal: while it drains it sends requests after the hosts that have left.
		const ended = new AbortController();
		void gatewayBus.routes.watch((host, route, epoch) => gateway.superseded(host, route, epoch), ended.signal);
		bus.onReturn(() => {
			void gateway.resynchronize().catch((err: unknown) => log.error({ err }, "telling the bus again failed"));
		});

		const proxy = new ForwardProxy({ gateway, name: config.podName, routes: gatewayBus.routes, tls, log });
		proxyAddress = `${config.podIp}:${await listen(proxy.server, config.proxyPort)}`;

		const handshakes = new Handshakes({
			openMs: config.handshakeMs,
			utilization: eventLoopUtilization(),
			turnedAway: (result) => metrics.connections.inc({ result }),
		});
		metrics.watch(handshakes);
		metrics.watchSpares(() => gateway.spares);
		// A certificate that doesn't do is refused in the upgrade, where the host can be told why (see Gateway.upgrade).
		const secure = () => ({
			...tls.current,
			minVersion: "TLSv1.3" as const,
			requestCert: true,
			rejectUnauthorized: false,
		});
		const server = createServer({
			...secure(),
			handshakeTimeout: STEP_MS,
			headersTimeout: STEP_MS,
			requestTimeout: STEP_MS,
			connectionsCheckingInterval: 1_000,
			keepAliveTimeout: 1_000,
			maxHeaderSize: 8 * 1024,
		});
		tls.onChange(() => server.setSecureContext(secure()));
		const entrance = new Entrance(handshakes, server);
		server.on("upgrade", (request, socket, head) => {
			const { address, opened } = entrance.of(socket as TLSSocket);
			void gateway.upgrade(request, socket as TLSSocket, head, { address, opened });
		});
		server.on("request", (request, response) => {
			const answer = (status: number, body: object) => {
				const text = JSON.stringify(body);
				const type = { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
				response.writeHead(status, { ...type, connection: "close" }).end(text);
			};
			gateway.greet(request).then(
				(greeting) => answer(200, greeting),
				(error: unknown) => answer(asGroundplaneError(error).status, asGroundplaneError(error).toJSON()),
			);
		});
		server.on("tlsClientError", (error, socket) => {
			metrics.connections.inc({ result: "CertificateInvalid" });
			log.debug({ err: error, address: socket.remoteAddress }, "TLS handshake failed");
		});
		const straight = createTcpServer({ noDelay: true }, (socket) => entrance.take(socket));
		const listener = proxyProtocolListener((socket, source) => entrance.take(socket, source));
		const port = await listen(straight, config.port);
		await listen(listener, config.edgePort);
		log.info({ port, proxy: proxyAddress, maxHosts: bounds.maxHosts }, "tunnel listens");

		const sweep = setInterval(() => void gateway.sweep(Date.now()), SWEEP_MS);
		return {
			listen: false as const,
			checks: { bus: () => bus.check() },
			async stop() {
				clearInterval(sweep);
				// Hosts that still come here are told to dial again; services go on to be served, by way of the other gateways in the end.
				await gateway.leave(config.drainMs);
				straight.close();
				listener.close();
				proxy.server.close();
				handshakes.close();
				server.closeAllConnections();
				proxy.server.closeAllConnections();
				ended.abort();
				await bus.close();
			},
		};
	},
});

/** Where connections of hosts come in: straight or by way of the edge, and then one after the other into the handshake. */
class Entrance {
	readonly #handshakes: Handshakes;
	readonly #server: Server;
	readonly #comingIn = new Map<string, { raw: Socket; address: string }>();

	constructor(handshakes: Handshakes, server: Server) {
		this.#handshakes = handshakes;
		this.#server = server;
	}

	/** Takes a connection; `source` is the address that the edge names. */
	take(raw: Socket, source?: string): void {
		const address = source ?? (raw.remoteAddress ?? "").replace(/^::ffff:/, "");
		const id = key(raw);
		this.#comingIn.set(id, { raw, address });
		raw.once("close", () => this.#comingIn.delete(id));
		this.#handshakes.enter(raw, address, () => void this.#server.emit("connection", raw));
	}

	/** What is known of the connection that a TLS socket wraps: Node tells no other way which one that is than by its ends. */
	of(socket: TLSSocket): { address: string; opened: () => void } {
		const known = this.#comingIn.get(key(socket));
		return {
			address: known?.address ?? socket.remoteAddress ?? "",
			opened: () => {
				if (known) this.#handshakes.done(known.raw);
			},
		};
	}
}

const key = ({ remoteAddress, remotePort }: Socket) => `${remoteAddress} ${remotePort}`;

/** Share of the event loop in use since the last call. */
function eventLoopUtilization(): () => number {
	let last = performance.eventLoopUtilization();
	return () => {
		const now = performance.eventLoopUtilization();
		const { utilization } = performance.eventLoopUtilization(now, last);
		last = now;
		return utilization;
	};
}

/** The first certificate of the file: what may come after it is its issuer, whose other certificates are no hosts. */
function readHostsCa(file: string): X509Certificate {
	try {
		return new X509Certificate(readFileSync(file));
	} catch (cause) {
		throw new GroundplaneError("InvalidConfiguration", `${file} holds no certificate`, {
			next: "Mount tls.crt of the region's Secret hosts-ca there.",
			cause,
		});
	}
}

async function listen(server: Server, port: number): Promise<number> {
	await new Promise<void>((resolve, reject) => {
		server.once("error", reject);
		server.listen(port, () => {
			server.removeListener("error", reject);
			resolve();
		});
	});
	return (server.address() as AddressInfo).port;
}
