import { generateKeyPairSync, randomBytes, X509Certificate } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { createServer, request as httpsRequest } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import type { KubeClient } from "../../operator/kube/client.ts";
import { namespaces } from "../../operator/kube/resources.ts";
import { splice } from "../../protocol/splice.ts";
import { artifactsService } from "../../services/artifacts/service.ts";
import { authService } from "../../services/auth/service.ts";
import { clustersService } from "../../services/clusters/service.ts";
import { hostsService } from "../../services/hosts/service.ts";
import { createLog } from "../../services/kit/log.ts";
import { type RunningService, type ServiceDefinition, startService } from "../../services/kit/service.ts";
import { startApiServer, type TestApiServer } from "./apiserver.ts";
import { type RegionCertificates, regionCertificates } from "./certificates.ts";
import { startNats, type TestNats } from "./nats.ts";
import { freePort } from "./ports.ts";
import { startPostgres, type TestPostgres } from "./postgres.ts";

/** A region of a test's own in this process, without operator and gateway: what people and enrolling machines talk to. */
export interface TestRegion {
	readonly name: string;
	readonly namespace: string;
	/** `localhost:PORT`: the region's domain. */
	readonly domain: string;
	/** `https://localhost:PORT`, where the front routes by path. */
	readonly server: string;
	readonly caPem: string;
	/** As in Region.status.caDigest. */
	readonly caDigest: string;
	readonly admin: { readonly username: string; readonly password: string };
	readonly kube: KubeClient;
	readonly apiserver: TestApiServer;
	readonly postgres: TestPostgres;
	readonly nats: TestNats;
	readonly certificates: RegionCertificates;
	/** Where a service listens, `https://127.0.0.1:PORT`. */
	readonly url: (service: string) => string;
	/** Directory of files that go with the region. */
	readonly directory: string;
	/** Ends a service and starts it anew, with other values in its environment, as when the region gets another release. */
	restart(service: string, env: Readonly<Record<string, string>>): Promise<void>;
	close(): Promise<void>;
}

/** Where the front sends a path, as charts/region/files/haproxy.cfg has it. */
function backendOf(path: string): "auth" | "hosts" | "clusters" | "artifacts" | undefined {
	if (/^\/+internal(\/|$)/.test(path)) return undefined;
	if (path.startsWith("/auth/")) return "auth";
	if (path.startsWith("/enroll/") || /^\/api\/v1\/join-tokens(\/|$|\?)/.test(path)) return "hosts";
	if (path.startsWith("/k8s/") || path.startsWith("/api/") || path === "/openapi.json") return "clusters";
	return "artifacts";
}

/** Starts PostgreSQL, NATS, an API server and the services auth, hosts, clusters and artifacts behind one front. */
export async function startRegion(
	name = "test",
	more: Readonly<Record<string, Readonly<Record<string, string>>>> = {},
): Promise<TestRegion> {
	const namespace = `region-${name}`;
	const directory = await mkdtemp(join(tmpdir(), "gp-region-"));
	const [postgres, nats, apiserver] = await Promise.all([startPostgres(), startNats(), startApiServer()]);
	const certificates = await regionCertificates(directory, name);
	process.env.KUBECONFIG = apiserver.kubeconfig;
	await apiserver.client.create(namespaces, { metadata: { name: namespace } });
	const domain = `localhost:${await freePort()}`;
	const admin = { username: "admin", password: randomBytes(12).toString("hex") };

	const secret = async (path: string, files: Readonly<Record<string, string>>) => {
		await mkdir(join(directory, path), { recursive: true });
		for (const [file, content] of Object.entries(files)) {
			await writeFile(join(directory, path, file), content, { mode: 0o600 });
		}
		return join(directory, path);
	};
	const ec = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });
	const signing = generateKeyPairSync("ed25519");
	const release = generateKeyPairSync("ed25519").publicKey.export({ format: "jwk" });
	const frontTls = await certificates.service("front");
	const files = await secret("files", {
		postgres: postgres.password,
		nats: "any",
		"release.jwks": JSON.stringify({ keys: [{ ...release, kid: "release" }] }),
	});

	const running = new Map<string, RunningService>();
	const started = new Map<string, { restart: (env: Readonly<Record<string, string>>) => Promise<void> }>();
	const stop = new AbortController();
	const url = (service: string) => `https://127.0.0.1:${running.get(service)?.port}`;
	const start = async (definition: ServiceDefinition, env: Readonly<Record<string, string>>) => {
		const common = {
			REGION: name,
			DOMAIN: domain,
			PORT: "0",
			HEALTH_PORT: "0",
			TLS_DIR: await certificates.service(definition.name),
			DATABASE_PASSWORD_FILE: join(files, "postgres"),
			NATS_URL: nats.url,
			NATS_PASSWORD_FILE: join(files, "nats"),
			...(running.has("auth") && { JWKS_URL: `${url("auth")}/auth/jwks` }),
		};
		const log = createLog(definition.name, process.env.LOG_LEVEL ?? "silent");
		const own = new AbortController();
		const options = {
			env: { ...common, ...env, ...more[definition.name] },
			signal: AbortSignal.any([stop.signal, own.signal]),
			log,
			lameDuckMs: 0,
		};
		const service = await startService(definition, options);
		running.set(definition.name, service);
		started.set(definition.name, {
			async restart(changed) {
				own.abort();
				await service.stopped;
				await start(definition, { ...env, ...changed });
			},
		});
	};
	const database = async (service: string) => `${await postgres.createDatabase(service)}?sslmode=disable`;

	await start(authService as never, {
		DATABASE_URL: await database("auth"),
		AUTH_KEYS_DIR: await secret("auth-keys", {
			"jwks.json": JSON.stringify({ keys: [{ ...ec, kid: "one" }] }),
			"cookie-keys": `${randomBytes(32).toString("base64url")}\n`,
		}),
		AUTH_ADMIN_DIR: await secret("auth-admin", admin),
	});
	await start(hostsService as never, {
		DATABASE_URL: await database("hosts"),
		HOSTS_CA_DIR: await secret("hosts-ca", {
			"tls.crt": certificates.hostsCa.cert,
			"tls.key": certificates.hostsCa.key,
			"ca.crt": certificates.caPem,
		}),
		DESIRED_STATE_KEY_DIR: await secret("desired-state-key", {
			"private.jwk": JSON.stringify(signing.privateKey.export({ format: "jwk" })),
			"public.jwks": JSON.stringify({ keys: [{ ...signing.publicKey.export({ format: "jwk" }), kid: "one" }] }),
		}),
	});
	await start(clustersService as never, { TUNNEL_URL: "https://127.0.0.1:9" });
	await start(artifactsService as never, {
		HOSTS_URL: url("hosts"),
		PACKAGES_DIR: await secret("packages", { "groundplane-agent_0.1.0_amd64.deb": "an agent" }),
		CONSOLE_DIR: await secret("console", { "index.html": "<!doctype html>" }),
		RELEASE_JWKS_FILE: join(files, "release.jwks"),
		FRONT_CERT_FILE: join(frontTls, "tls.crt"),
	});

	const read = (file: string) => readFile(join(frontTls, file), "utf8");
	const tls = { cert: await read("tls.crt"), key: await read("tls.key"), ca: certificates.caPem };
	const front = createServer({ cert: tls.cert, key: tls.key }, (request, response) => {
		const backend = backendOf(request.url ?? "/");
		if (!backend) return void response.writeHead(404).end();
		const headers = { ...request.headers, "x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https" };
		const outgoing = httpsRequest(
			`${url(backend)}${request.url}`,
			{ ...tls, servername: backend, method: request.method ?? "GET", headers },
			(incoming: IncomingMessage) => {
				response.writeHead(incoming.statusCode ?? 502, incoming.headers);
				incoming.pipe(response);
			},
		);
		outgoing.on("error", () => response.destroy());
		response.on("close", () => outgoing.destroy());
		request.pipe(outgoing);
	});
	front.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
		socket.on("error", () => socket.destroy());
		const outgoing = httpsRequest(`${url(backendOf(request.url ?? "/") ?? "artifacts")}${request.url}`, {
			...tls,
			agent: false,
			servername: "localhost",
			headers: request.headers,
		});
		const begin = ({ statusCode, rawHeaders }: IncomingMessage) => {
			const pairs = rawHeaders.flatMap((name, at) => (at % 2 === 0 ? [`${name}: ${rawHeaders[at + 1]}\r\n`] : []));
			socket.write(`HTTP/1.1 ${statusCode} \r\n${pairs.join("")}\r\n`);
		};
		outgoing.on("upgrade", (answer, onward, onwardHead) => {
			begin(answer);
			socket.write(onwardHead);
			onward.write(head);
			splice(socket, onward);
		});
		outgoing.on("response", (answer) => {
			begin(answer);
			answer.pipe(socket);
		});
		outgoing.on("error", () => socket.destroy());
		socket.on("close", () => outgoing.destroy());
		outgoing.end();
	});
	await new Promise<void>((resolve) => front.listen(Number(domain.split(":")[1]), "127.0.0.1", resolve));

	return {
		name,
		namespace,
		domain,
		server: `https://${domain}`,
		caPem: certificates.caPem,
		caDigest: new X509Certificate(certificates.caPem).fingerprint256.replaceAll(":", "").toLowerCase(),
		admin,
		kube: apiserver.client,
		apiserver,
		postgres,
		nats,
		certificates,
		url,
		directory,
		restart: async (service, env) => started.get(service)?.restart(env),
		async close() {
			stop.abort();
			front.closeAllConnections();
			front.close();
			await Promise.all([...running.values()].map(({ stopped }) => stopped));
			await Promise.all([postgres.close(), nats.close(), apiserver.stop()]);
			await rm(directory, { recursive: true, force: true });
		},
	};
}
