import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import type { AddressInfo, Server } from "node:net";
import { hostname } from "node:os";
import type { TLSSocket } from "node:tls";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { VERSION } from "../../protocol/version.ts";
import { connectBus, ensureHostStreams } from "../kit/bus.ts";
import { busConfig } from "../kit/config.ts";
import { defineService } from "../kit/service.ts";
import { Admission } from "./admission.ts";
import { ArtifactsBridge } from "./artifacts.ts";
import { NatsGatewayBus } from "./bus.ts";
import { Gateway } from "./gateway.ts";
import { TunnelMetrics } from "./metrics.ts";
import { ForwardProxy } from "./proxy.ts";
import { proxyProtocolListener } from "./proxy-protocol.ts";

/** Time for streams to end when the gateway stops. */
const DRAIN_MS = 10_000;
const SWEEP_MS = 60_000;

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
	},
	async start(context) {
		const { config, log, tls, signal } = context;
		const hostsCa = readHostsCa(config.hostsCaFile);
		const bus = await connectBus(context);
		await ensureHostStreams(bus);
		const kv = await bus.ensureKv("routes", { history: 1, description: "Which gateway holds which host." });

		const metrics = new TunnelMetrics(context.metrics);
		const artifacts = new ArtifactsBridge({ url: config.artifactsUrl, tls, log });
		let proxyAddress = "";
		const gatewayBus = new NatsGatewayBus({ bus, kv, gateway: config.podName, address: () => proxyAddress, log });
		const gateway = new Gateway({
			name: config.podName,
			version: VERSION,
			hostsCa: () => hostsCa,
			admission: new Admission({ ask: (host, serial) => gatewayBus.askAdmission(host, serial) }),
			bus: gatewayBus,
			metrics,
			log,
			onArtifacts: (host, stream) => artifacts.attach(host, stream),
		});
		gatewayBus.onCut((host, { reason, message, keepSerial }) => gateway.cut(host, reason, message, keepSerial));
		void gatewayBus.routes.watch((host, route, epoch) => gateway.superseded(host, route, epoch), signal);
		void gatewayBus.onReconnect(() => {
			void gateway.resynchronize().catch((err: unknown) => log.error({ err }, "telling the bus again failed"));
		});

		const proxy = new ForwardProxy({ gateway, find: (host) => gatewayBus.routes.find(host), tls, log });
		proxyAddress = `${config.podIp}:${await listen(proxy.server, config.proxyPort)}`;

		// A certificate that doesn't do is refused in the upgrade, where the host can be told why (see Gateway.upgrade).
		const secure = () => ({
			...tls.current,
			minVersion: "TLSv1.3" as const,
			requestCert: true,
			rejectUnauthorized: false,
		});
		const server = createServer(
			{ ...secure(), handshakeTimeout: 10_000, headersTimeout: 10_000 },
			(_request, response) =>
				response.writeHead(426, { upgrade: "websocket", connection: "close" }).end("This is the tunnel of hosts.\n"),
		);
		tls.onChange(() => server.setSecureContext(secure()));
		const { listener, sourceOf } = proxyProtocolListener(server);
		server.on("upgrade", (request, socket, head) => {
			void gateway.upgrade(request, socket as TLSSocket, head, sourceOf(socket as TLSSocket));
		});
		server.on("tlsClientError", (error, socket) => {
			metrics.connections.inc({ result: "CertificateInvalid" });
			log.debug({ err: error, address: socket.remoteAddress }, "TLS handshake failed");
		});
		const port = await listen(server, config.port);
		await listen(listener, config.edgePort);
		log.info({ port, proxy: proxyAddress }, "tunnel listens");

		const sweep = setInterval(() => void gateway.sweep(Date.now()), SWEEP_MS);
		return {
			listen: false as const,
			checks: { bus: () => bus.check() },
			async stop() {
				clearInterval(sweep);
				server.close();
				listener.close();
				proxy.server.close();
				await gateway.leave(DRAIN_MS);
				server.closeAllConnections();
				proxy.server.closeAllConnections();
				await bus.close();
			},
		};
	},
});

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
