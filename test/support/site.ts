import { mkdirSync, writeFileSync } from "node:fs";
import { request as httpsRequest } from "node:https";
import { connect, createServer } from "node:net";
import { dirname, join } from "node:path";
import { text } from "node:stream/consumers";
import type { Paths } from "../../agent/config.ts";
import { createLog } from "../../services/kit/log.ts";
import { startService } from "../../services/kit/service.ts";
import { tunnelService } from "../../services/tunnel/service.ts";
import { freePort } from "./ports.ts";
import { startRegion, type TestRegion } from "./region.ts";

/** A real region in this process with its gateway and an edge that routes by SNI: what an agent finds when it dials. */
export interface TestSite {
	readonly region: TestRegion;
	/** The gateway's port for the region's own services. */
	readonly proxyPort: number;
	/** A request that trusts the region's CA. */
	call(
		method: string,
		url: string,
		options?: { headers?: Record<string, string>; body?: string; tls?: object },
	): Promise<{ status: number; body: string }>;
	/** A join token, asked for as `gp host join-command` does. */
	joinToken(request?: object): Promise<string>;
	/** Puts on a host what the stamped package does. */
	install(paths: Paths, token: string | undefined, change?: object): void;
	close(): Promise<void>;
}

/** @param more Environment of the region's services, by their names. */
export async function startSite(
	more: Readonly<Record<string, Readonly<Record<string, string>>>> = {},
): Promise<TestSite> {
	const [tunnelPort, proxyPort, edgePort] = [await freePort(), await freePort(), await freePort()];
	const stopGateway = new AbortController();
	const region = await startRegion("test", {
		...more,
		clusters: { TUNNEL_URL: `https://localhost:${proxyPort}`, ...more.clusters },
	});
	await startService(tunnelService, {
		env: {
			REGION: "test",
			DOMAIN: region.domain,
			PORT: String(tunnelPort),
			PROXY_PORT: String(proxyPort),
			EDGE_PORT: String(await freePort()),
			HEALTH_PORT: "0",
			TLS_DIR: await region.certificates.service("tunnel", ["tunnel.localhost"]),
			NATS_URL: region.nats.url,
			NATS_USER: "tunnel",
			NATS_PASSWORD_FILE: join(region.directory, "files/nats"),
			HOSTS_CA_FILE: join(region.directory, "hosts-ca/tls.crt"),
			ARTIFACTS_URL: region.url("artifacts").replace("127.0.0.1", "localhost"),
		},
		signal: stopGateway.signal,
		lameDuckMs: 0,
		log: createLog("tunnel", process.env.LOG_LEVEL ?? "silent"),
	});
	const edge = createServer((socket) => {
		socket.on("error", () => {});
		socket.once("data", (hello: Buffer) => {
			const port = hello.includes("tunnel.localhost") ? tunnelPort : Number(new URL(region.server).port);
			const onward = connect(port, "127.0.0.1", () => {
				onward.write(hello);
				socket.pipe(onward).pipe(socket);
			});
			onward.on("error", () => socket.destroy());
			socket.on("close", () => onward.destroy());
		});
	});
	await new Promise<void>((resolve) => edge.listen(edgePort, resolve));

	const call: TestSite["call"] = (method, url, options = {}) =>
		new Promise((resolve, reject) => {
			const outgoing = httpsRequest(
				url,
				{ method, ca: region.caPem, headers: options.headers ?? {}, agent: false, ...options.tls },
				(response) => text(response).then((body) => resolve({ status: response.statusCode ?? 0, body }), reject),
			);
			outgoing.on("error", reject);
			outgoing.end(options.body);
		});

	return {
		region,
		proxyPort,
		call,
		async joinToken(request = {}) {
			const { username, password } = region.admin;
			const json = { "content-type": "application/json" };
			const apiToken = await call("POST", `${region.server}/auth/api/v1/tokens`, {
				headers: { ...json, authorization: `Basic ${btoa(`${username}:${password}`)}` },
				body: JSON.stringify({ name: "test", expiresIn: "1h" }),
			});
			const exchange = await call("POST", `${region.server}/auth/token`, {
				headers: { "content-type": "application/x-www-form-urlencoded" },
				body: new URLSearchParams({
					grant_type: "urn:ietf:params:oauth:grant-type:token-exchange",
					subject_token: (JSON.parse(apiToken.body) as { token: string }).token,
					subject_token_type: "urn:groundplane:params:oauth:token-type:api-token",
					client_id: "gp",
					resource: `${region.server}/api`,
				}).toString(),
			});
			const { access_token: accessToken } = JSON.parse(exchange.body) as { access_token: string };
			const answer = await call("POST", `${region.server}/api/v1/join-tokens`, {
				headers: { ...json, authorization: `Bearer ${accessToken}` },
				body: JSON.stringify(request),
			});
			if (answer.status !== 201) throw new Error(`no join token: ${answer.body}`);
			return (JSON.parse(answer.body) as { token: string }).token;
		},
		install(paths, token, change = {}) {
			mkdirSync(dirname(paths.config), { recursive: true });
			writeFileSync(
				paths.config,
				JSON.stringify({
					region: "test",
					address: `127.0.0.1:${edgePort}`,
					tunnelServerName: "tunnel.localhost",
					enrollUrl: region.server,
					caBundle: region.caPem,
					releaseJwks: { keys: [] },
					hostName: "host-1",
					...change,
				}),
			);
			if (token !== undefined) writeFileSync(paths.joinToken, `${token}\n`, { mode: 0o600 });
		},
		async close() {
			stopGateway.abort();
			edge.close();
			await region.close();
		},
	};
}
