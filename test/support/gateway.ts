import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createLog } from "../../services/kit/log.ts";
import { startService } from "../../services/kit/service.ts";
import { tunnelService } from "../../services/tunnel/service.ts";
import type { RegionCertificates } from "./certificates.ts";
import { freePort } from "./ports.ts";

/** A gateway in the test's own process. */
export interface TestGateway {
	readonly name: string;
	readonly port: number;
	readonly proxyPort: number;
	readonly edgePort: number;
	/** For /metrics. */
	readonly healthPort: number;
	/** Drains and ends it; a second time does nothing. */
	stop(): Promise<void>;
}

export interface TestGatewayOptions {
	/** For its files. */
	readonly directory: string;
	readonly certificates: RegionCertificates;
	readonly natsUrl: string;
	readonly name?: string | undefined;
	readonly port?: number | undefined;
	readonly artifactsUrl?: string;
	readonly drainMs?: number | undefined;
	readonly handshakeMs?: number | undefined;
	readonly maxHosts?: number | undefined;
	/** The region has others. */
	readonly oneOfSeveral?: boolean | undefined;
	readonly hostMegabytesPerSecond?: number | undefined;
}

/** Starts the tunnel service of region `test` (`test.example.com`). */
export async function startGateway(options: TestGatewayOptions): Promise<TestGateway> {
	const { directory, certificates, natsUrl, name = "tunnel-0", drainMs, handshakeMs, maxHosts, oneOfSeveral } = options;
	const megabytes = options.hostMegabytesPerSecond;
	const port = options.port ?? (await freePort());
	const [proxyPort, edgePort] = [await freePort(), await freePort()];
	const file = (path: string, content: string) => {
		writeFileSync(join(directory, path), content);
		return join(directory, path);
	};
	const stop = new AbortController();
	const service = await startService(tunnelService, {
		env: {
			REGION: "test",
			DOMAIN: "test.example.com",
			TLS_DIR: await certificates.service("tunnel", ["tunnel.test.example.com"]),
			PORT: String(port),
			PROXY_PORT: String(proxyPort),
			EDGE_PORT: String(edgePort),
			HEALTH_PORT: "0",
			NATS_URL: natsUrl,
			NATS_USER: "tunnel",
			NATS_PASSWORD_FILE: file("password", "x"),
			HOSTS_CA_FILE: file("hosts-ca.crt", `${certificates.hostsCa.cert}\n${certificates.caPem}`),
			POD_NAME: name,
			ARTIFACTS_URL: options.artifactsUrl ?? "https://localhost:9",
			...(drainMs !== undefined && { DRAIN_MS: String(drainMs) }),
			...(handshakeMs !== undefined && { HANDSHAKE_MS: String(handshakeMs) }),
			...(maxHosts !== undefined && { MAX_HOSTS: String(maxHosts) }),
			...(oneOfSeveral !== undefined && { ONE_OF_SEVERAL: String(oneOfSeveral) }),
			...(megabytes !== undefined && { HOST_INTERACTIVE_MEGABYTES_PER_SECOND: String(megabytes) }),
		},
		signal: stop.signal,
		lameDuckMs: 0,
		log: createLog("tunnel", process.env.DEBUG ? "debug" : "silent"),
	});
	return {
		name,
		port,
		proxyPort,
		edgePort,
		healthPort: service.healthPort,
		async stop() {
			stop.abort();
			await service.stopped;
		},
	};
}
