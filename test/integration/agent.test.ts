import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request as httpsRequest } from "node:https";
import { connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { loadConfig, Paths } from "../../agent/config.ts";
import { loadIdentity } from "../../agent/identity.ts";
import { createLog } from "../../agent/log.ts";
import { run } from "../../agent/run.ts";
import { type AgentStatus, readStatus } from "../../agent/status.ts";
import type { Host } from "../../crds/host.ts";
import { hosts } from "../../operator/kube/resources.ts";
import { createLog as createServiceLog } from "../../services/kit/log.ts";
import { startService } from "../../services/kit/service.ts";
import { tunnelService } from "../../services/tunnel/service.ts";
import { freePort } from "../support/ports.ts";
import { startRegion, type TestRegion } from "../support/region.ts";

/** A real region in this process, an edge that routes by SNI, and the real agent with a root directory of its own. */
const directory = mkdtempSync(join(tmpdir(), "gp-agent-run-"));
const paths = new Paths(directory);
const stopGateway = new AbortController();
const tunnelPort = await freePort();
const proxyPort = await freePort();
const edgePort = await freePort();
let region: TestRegion;
let edge: Server;
let stopAgent: () => Promise<void> = async () => {};

beforeAll(async () => {
	region = await startRegion();
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
		log: createServiceLog("tunnel", process.env.LOG_LEVEL ?? "silent"),
	});
	edge = createServer((socket) => {
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
}, 120_000);

afterAll(async () => {
	await stopAgent();
	stopGateway.abort();
	edge?.close();
	await region?.close();
	rmSync(directory, { recursive: true, force: true });
});

async function call(
	method: string,
	url: string,
	options: { headers?: Record<string, string>; body?: string; tls?: object } = {},
): Promise<{ status: number; body: string }> {
	return new Promise((resolve, reject) => {
		const outgoing = httpsRequest(
			url,
			{ method, ca: region.caPem, headers: options.headers ?? {}, agent: false, ...options.tls },
			(response) => text(response).then((body) => resolve({ status: response.statusCode ?? 0, body }), reject),
		);
		outgoing.on("error", reject);
		outgoing.end(options.body);
	});
}

/** A join token, asked for as `gp host join-command` does. */
async function joinToken(request: object = {}): Promise<string> {
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
	expect(answer.status, answer.body).toBe(201);
	return (JSON.parse(answer.body) as { token: string }).token;
}

/** What the stamped package puts on a host. */
function install(token: string | undefined, change: object = {}): void {
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
}

async function startAgent({ ahead = 0 } = {}): Promise<string[]> {
	await stopAgent();
	rmSync(paths.status, { force: true });
	const lines: string[] = [];
	const stop = new AbortController();
	const log = createLog({ write: (line) => lines.push(line), journal: false });
	const running = run({
		config: loadConfig(paths, {}),
		paths,
		log,
		signal: stop.signal,
		now: () => Date.now() + ahead,
	});
	stopAgent = async () => {
		stop.abort();
		await running;
		stopAgent = async () => {};
	};
	return lines;
}

const status = (): AgentStatus | undefined => readStatus(paths.status);
const host = () => region.kube.get<Host>(hosts, "host-1", region.namespace);

test("a token that is no good is explained, and a good one that follows is taken without a restart", async () => {
	install("gpj_forged.forged");
	const lines = await startAgent();
	await vi.waitFor(() => expect(status()?.problem?.code).toBe("JoinTokenInvalid"), { timeout: 20_000 });
	expect(lines.join("")).toContain("code=JoinTokenInvalid next=");
	expect(status()?.enrolled).toBe(false);
	install(await joinToken());
	await vi.waitFor(() => expect(status()?.link?.connected).toBe(true), { timeout: 20_000 });
	expect(existsSync(paths.joinToken)).toBe(false);
	await vi.waitFor(
		async () => {
			expect((await host()).status).toMatchObject({
				connection: { state: "Connected" },
				facts: {
					hostname: expect.any(String),
					bootId: expect.any(String),
					measured: { fsync: { p99Ms: expect.any(Number) }, clock: { uncertaintyMs: expect.any(Number) } },
				},
				agent: { version: expect.any(String) },
			});
		},
		{ timeout: 40_000 },
	);
});

test("desired state arrives, is acknowledged, and its progress is reported", async () => {
	const roles = [{ name: "kubernetes", version: "v9.9.9", parameters: {} }];
	await region.kube.patch(hosts, { name: "host-1", namespace: region.namespace }, { spec: { approved: true, roles } }, {
		type: "merge",
	} as never);
	await vi.waitFor(
		async () => {
			const { metadata, status: seen } = await host();
			expect(seen?.desiredState?.acknowledgedGeneration).toBe(metadata.generation);
			expect(seen?.roles).toMatchObject([{ name: "kubernetes", phase: "Failed", reason: "BundleNotFound" }]);
		},
		{ timeout: 30_000 },
	);
	expect(status()?.roles).toMatchObject([{ name: "kubernetes", phase: "Failed" }]);
	expect(readFileSync(join(paths.state, "desired-state.jws"), "utf8").split(".")).toHaveLength(3);
});

test("Prometheus gets the host's figures through the tunnel", async () => {
	const tls = await region.certificates.issueService("prometheus");
	const { status: code, body } = await call("GET", `https://127.0.0.1:${proxyPort}`, {
		tls: { ...tls, path: "http://metrics.host-1/metrics", servername: "tunnel" },
	});
	expect(code).toBe(200);
	expect(body).toMatch(/^groundplane_agent_info\{version="[\d.]+"\} 1$/m);
	expect(body).toContain('groundplane_agent_role_phase{role="kubernetes",phase="Failed"} 1');
});

test("after a restart it goes on with its identity and its last desired state, without a token", async () => {
	await startAgent();
	await vi.waitFor(() => expect(status()).toMatchObject({ enrolled: true, link: { connected: true } }), {
		timeout: 20_000,
	});
	expect(status()?.desiredState?.generation).toBeGreaterThan(0);
});

test("past two thirds of its life the certificate is renewed, and the tunnel goes over to it", async () => {
	const before = loadIdentity(paths.state);
	await startAgent({ ahead: 21 * 86_400_000 });
	await vi.waitFor(() => expect(status()?.link).toMatchObject({ connected: true, reconnects: 1 }), { timeout: 20_000 });
	const after = loadIdentity(paths.state);
	expect(after?.certificate).not.toBe(before?.certificate);
	expect(after?.key).not.toBe(before?.key);
	await startAgent();
	await vi.waitFor(() => expect(status()?.link?.connected).toBe(true), { timeout: 20_000 });
});

test("a host that is deleted is told so, and its agent does not hammer the door", async () => {
	await region.kube.delete(hosts, { name: "host-1", namespace: region.namespace });
	// The tunnel may end before the agent is told why: then the next gateway that it asks says so.
	await vi.waitFor(
		() => {
			expect(status()?.link?.connected).toBe(false);
			expect(["CertificateRevoked", "Forbidden"]).toContain(status()?.link?.lastError?.code);
		},
		{ timeout: 45_000, interval: 100 },
	);
});
