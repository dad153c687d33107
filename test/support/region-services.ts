import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, request as httpsRequest } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import type { KubeClient } from "../../operator/kube/client.ts";
import { namespaces } from "../../operator/kube/resources.ts";
import { artifactsService } from "../../services/artifacts/service.ts";
import { authService } from "../../services/auth/service.ts";
import { clustersService } from "../../services/clusters/service.ts";
import { hostsService } from "../../services/hosts/service.ts";
import { createLog } from "../../services/kit/log.ts";
import { startService } from "../../services/kit/service.ts";
import { startApiServer } from "./apiserver.ts";
import { regionCertificates } from "./certificates.ts";
import { startNats } from "./nats.ts";
import { startPostgres } from "./postgres.ts";

export interface TestRegion {
	readonly domain: string;
	/** Where the front door listens on 127.0.0.1, whatever the domain resolves to. */
	readonly port: number;
	readonly namespace: string;
	readonly kube: KubeClient;
	readonly admin: { readonly name: string; readonly password: string };
	/** Cuts the line: what is open breaks, and nothing new gets through until `heal`. */
	cut(): void;
	heal(): void;
	close(): Promise<void>;
}

/**
 * A region's services as processes of this test, on a real API server, PostgreSQL and NATS, behind a front door that routes as
 * the chart's HAProxy does. There is no tunnel: hosts are what the test writes down.
 */
export async function startRegionServices({
	consoleDir,
	domain = "demo.example.com",
	port = 0,
	accessTokenLifetime = "15m",
}: {
	consoleDir: string;
	domain?: string;
	port?: number;
	accessTokenLifetime?: string;
}): Promise<TestRegion> {
	const directory = await mkdtemp(join(tmpdir(), "gp-region-"));
	const [postgres, nats, apiserver] = await Promise.all([startPostgres(), startNats(), startApiServer()]);
	const certificates = await regionCertificates(directory, "demo");
	const namespace = "region-demo";
	const admin = { name: "admin", password: randomBytes(12).toString("base64url") };
	await apiserver.client.create(namespaces, { metadata: { name: namespace } });
	const write = async (path: string, text: string) => {
		await mkdir(join(directory, path, ".."), { recursive: true });
		await writeFile(join(directory, path), text, { mode: 0o600 });
		return join(directory, path);
	};
	const signing = generateKeyPairSync("ed25519");
	const publicJwk = { ...signing.publicKey.export({ format: "jwk" }), kid: "k1", alg: "EdDSA" };
	const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
	await write(
		"auth-keys/jwks.json",
		JSON.stringify({ keys: [{ ...privateKey.export({ format: "jwk" }), kid: "one" }] }),
	);
	await write("auth-keys/cookie-keys", `${randomBytes(32).toString("base64url")}\n`);
	await write("auth-admin/username", admin.name);
	await write("auth-admin/password", admin.password);
	await write("hosts-ca/tls.crt", certificates.hostsCa.cert);
	await write("hosts-ca/tls.key", certificates.hostsCa.key);
	await write("hosts-ca/ca.crt", certificates.caPem);
	await write("desired-state-key/private.jwk", JSON.stringify(signing.privateKey.export({ format: "jwk" })));
	await write("desired-state-key/public.jwks", JSON.stringify({ keys: [publicJwk] }));
	await write("release.jwks", JSON.stringify({ keys: [publicJwk] }));
	// The hosts service takes its kubeconfig from where kubectl does.
	process.env.KUBECONFIG = apiserver.kubeconfig;

	const stop = new AbortController();
	const stopped: Promise<void>[] = [];
	const ports = new Map<string, number>();
	const at = (name: string) => `https://127.0.0.1:${ports.get(name)}`;
	const environment = async (name: string) => ({
		REGION: "demo",
		DOMAIN: domain,
		CUSTOMER: "Example Ltd",
		VERSION: "0.1.0",
		PORT: "0",
		HEALTH_PORT: "0",
		TLS_DIR: await certificates.service(name),
		...(ports.has("auth") && { JWKS_URL: `${at("auth")}/auth/jwks` }),
		DATABASE_PASSWORD_FILE: await write("database-password", postgres.password),
		NATS_URL: nats.url,
		NATS_PASSWORD_FILE: await write("nats-password", "any"),
		KUBECONFIG: apiserver.kubeconfig,
	});
	const start = async (
		definition: { readonly name: string } & Parameters<typeof startService>[0],
		env: Record<string, string>,
	) => {
		const running = await startService(definition, {
			env: { ...(await environment(definition.name)), ...env },
			signal: stop.signal,
			log: createLog(definition.name, process.env.LOG_LEVEL ?? "silent"),
			lameDuckMs: 0,
		});
		ports.set(definition.name, running.port);
		stopped.push(running.stopped);
	};
	const database = async (name: string) => ({ DATABASE_URL: `${await postgres.createDatabase(name)}?sslmode=disable` });
	await start(authService as never, {
		...(await database("auth")),
		AUTH_KEYS_DIR: join(directory, "auth-keys"),
		AUTH_ADMIN_DIR: join(directory, "auth-admin"),
		ACCESS_TOKEN_LIFETIME: accessTokenLifetime,
	});
	await start(hostsService as never, {
		...(await database("hosts")),
		HOSTS_CA_DIR: join(directory, "hosts-ca"),
		DESIRED_STATE_KEY_DIR: join(directory, "desired-state-key"),
	});
	await start(clustersService as never, {});
	const frontTls = await certificates.service("front", [domain]);
	await start(artifactsService as never, {
		CONSOLE_DIR: consoleDir,
		RELEASE_JWKS_FILE: join(directory, "release.jwks"),
		FRONT_CERT_FILE: join(frontTls, "tls.crt"),
		PACKAGES_DIR: directory,
		HOSTS_URL: at("hosts"),
	});

	// The front door.
	let isCut = false;
	const open = new Set<Duplex>();
	const { cert, key, ca } = await certificates.issueService("front", [domain]);
	const front = createServer({ cert, key }, (request, response) => {
		const { host, ...headers } = request.headers;
		const outgoing = httpsRequest(
			at(serviceOf(request.url ?? "/")),
			{
				// Node would take it from the Host header.
				servername: "localhost",
				ca,
				cert,
				key,
				method: request.method,
				path: request.url,
				headers: {
					...headers,
					host,
					"x-forwarded-for": "127.0.0.1",
					"x-forwarded-proto": "https",
					"x-forwarded-host": host,
				},
			},
			(incoming) => {
				response.writeHead(incoming.statusCode ?? 502, incoming.rawHeaders);
				incoming.pipe(response);
			},
		);
		outgoing.on("error", () => response.destroy());
		response.on("close", () => outgoing.destroy());
		request.pipe(outgoing);
	});
	front.on("connection", (socket: Duplex) => {
		if (isCut) return socket.destroy();
		open.add(socket);
		socket.once("close", () => open.delete(socket));
	});
	await new Promise<void>((resolve) => front.listen(port, "127.0.0.1", resolve));
	const address = front.address() as AddressInfo;

	return {
		domain,
		port: address.port,
		namespace,
		kube: apiserver.client,
		admin,
		cut() {
			isCut = true;
			for (const socket of open) socket.destroy();
		},
		heal() {
			isCut = false;
		},
		async close() {
			for (const socket of open) socket.destroy();
			front.close();
			stop.abort();
			await Promise.allSettled(stopped);
			await Promise.all([apiserver.stop(), nats.close(), postgres.close()]);
			await rm(directory, { recursive: true, force: true });
		},
	};
}

/** Routes of the chart's HAProxy. */
function serviceOf(path: string): "auth" | "hosts" | "clusters" | "artifacts" {
	if (path.startsWith("/auth/")) return "auth";
	if (path.startsWith("/enroll/") || path.startsWith("/api/v1/join-tokens")) return "hosts";
	if (/^\/(api|k8s)\/|^\/openapi\.json/.test(path)) return "clusters";
	return "artifacts";
}
