import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { chmod, chown, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:https";
import { connect as connectTcp, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls, createServer as createTlsServer, type TLSSocket } from "node:tls";
import { gzipSync } from "node:zlib";
import { jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { connect as connectNats } from "@nats-io/transport-node";
import pg from "pg";
import { Agent, request } from "undici";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { tool } from "../hack/builder/tools.ts";
import { type RegionCertificates, regionCertificates } from "../test/support/certificates.ts";
import { startDns, type TestDns } from "../test/support/dns.ts";
import { freePort } from "../test/support/ports.ts";
import { regionQueries } from "./dashboards/region.ts";
import {
	configFile,
	containerOf,
	coreValues,
	execute,
	type Manifest,
	manifests,
	regionValues,
	render,
	repository,
} from "./testing.ts";

/** The programs of the data images, run here with the configuration that the charts render: only paths, ports and the DNS server are put in. */

const domain = regionValues.domain;
const clusterSuffix = "svc.cluster.local";

let directory: string;
let certificates: RegionCertificates;
let region: Manifest[];
let core: Manifest[];
const children: ChildProcess[] = [];
const cleanups: (() => unknown)[] = [];

beforeAll(async () => {
	directory = await mkdtemp(join(tmpdir(), "gp-running-"));
	await chmod(directory, 0o755);
	certificates = await regionCertificates(directory, "demo");
	region = manifests(await render(join(repository, "charts", "region"), "region-demo", regionValues));
	core = manifests(await render(join(repository, "charts", "groundplane"), "groundplane-system", coreValues));
});

afterEach(async () => {
	for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
	await Promise.all(children.splice(0).map((child) => stop(child)));
});

afterAll(() => rm(directory, { recursive: true, force: true }));

async function stop(child: ChildProcess, signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return;
	const ended = once(child, "exit");
	child.kill(signal);
	await ended;
}

/** Starts a program and waits until `ready` holds. */
async function start(
	file: string,
	args: readonly string[],
	ready: () => Promise<unknown>,
	options: { env?: Record<string, string>; uid?: number; gid?: number } = {},
): Promise<ChildProcess> {
	const child = spawn(file, args, {
		stdio: ["ignore", "pipe", "pipe"],
		cwd: directory,
		...options,
		env: { PATH: process.env.PATH, LC_ALL: "C.UTF-8", ...options.env },
	});
	children.push(child);
	let output = "";
	for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (output += chunk));
	for (const deadline = Date.now() + 30_000; ; await delay(50)) {
		try {
			await ready();
			return child;
		} catch (error) {
			if (child.exitCode !== null || Date.now() > deadline)
				throw new Error(`${file} is not ready:\n${output}`, { cause: error });
		}
	}
}

const tcp = (port: number) => async () => {
	const socket = connectTcp(port, "127.0.0.1");
	await once(socket, "connect");
	socket.destroy();
};

/** Waits until a socket is closed, in whatever way. */
const closed = (socket: Socket) =>
	new Promise<void>((resolve) => {
		socket.on("error", () => undefined);
		socket.once("close", () => resolve());
	});

/** Puts the test's own places into a configuration; every one of them must be there. */
function fill(config: string, places: readonly (readonly [string, string])[]): string {
	let filled = config;
	for (const [from, to] of places) {
		if (!filled.includes(from)) throw new Error(`the configuration has no ${JSON.stringify(from)}`);
		filled = filled.replaceAll(from, to);
	}
	return filled;
}

async function haproxy(name: string, config: string, healthPort: number): Promise<ChildProcess> {
	const file = join(directory, `${name}.cfg`);
	await writeFile(file, config);
	const check = await execute("haproxy", ["-c", "-f", file]);
	expect(check).not.toMatch(/WARNING/);
	return start("haproxy", ["-db", "-f", file], async () => {
		const { statusCode } = await request(`http://127.0.0.1:${healthPort}/readyz`);
		if (statusCode !== 200) throw new Error(`HTTP ${statusCode}`);
	});
}

describe("front and edge", () => {
	interface Seen {
		service: string;
		client: string;
		url: string;
		headers: Record<string, string>;
	}
	let dns: TestDns;
	let edgePort: number;
	let frontPort: number;
	const servers = new Map<string, Server>();

	/** A service that answers with what it saw. */
	async function service(name: string, address: string, port: number, certificateOf = name): Promise<void> {
		const { cert, key, ca } = await certificates.issueService(certificateOf);
		const server = createServer({ cert, key, ca, requestCert: true, rejectUnauthorized: true }, (req, res) => {
			const client = (req.socket as TLSSocket).getPeerCertificate().subject.CN;
			res.setHeader("content-type", "application/json");
			if (req.url?.endsWith("/watch")) {
				res.write('{"event":1}\n');
				setTimeout(() => res.end('{"event":2}\n'), 1500);
			} else res.end(JSON.stringify({ service: name, client, url: req.url, headers: req.headers }));
		});
		server.on("upgrade", (req, socket) => {
			socket.write(
				`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${req.headers.upgrade}\r\n\r\n`,
			);
			socket.pipe(socket);
			socket.on("error", () => undefined);
		});
		server.listen(port, address);
		await once(server, "listening");
		servers.set(name, server);
		cleanups.push(() => {
			server.closeAllConnections();
			server.close();
		});
	}

	/** Starts services, front and edge, and a name server that knows what the cluster's would know. */
	async function startAll(): Promise<void> {
		const [servicePort, frontEdgePort, frontHealth, edgeHealth, tunnelPort] = [
			await freePort(),
			await freePort(),
			await freePort(),
			await freePort(),
			await freePort(),
		];
		[frontPort, edgePort] = [await freePort(), await freePort()];
		dns = await startDns();
		cleanups.push(() => dns.close());
		const names = ["auth", "hosts", "clusters", "artifacts"];
		for (const [index, name] of names.entries()) {
			await service(name, `127.0.1.${index + 1}`, servicePort);
			dns.records.set(`${name}.region-demo.${clusterSuffix}`, `127.0.1.${index + 1}`);
		}
		const tunnel = createTlsServer(await certificates.issueService("tunnel", [`tunnel.${domain}`]), (socket) =>
			socket.end("gateway"),
		);
		tunnel.listen(tunnelPort, "127.0.0.1");
		await once(tunnel, "listening");
		cleanups.push(() => tunnel.close());
		for (const name of ["front", "tunnel"]) dns.records.set(`${name}.region-demo.${clusterSuffix}`, "127.0.0.1");
		route(domain, `front.region-demo.${clusterSuffix}`);
		route(`tunnel.${domain}`, `tunnel.region-demo.${clusterSuffix}`);

		const resolver: [string, string] = ["parse-resolv-conf", `nameserver test 127.0.0.1:${dns.port}`];
		await haproxy(
			"front",
			fill(configFile(region, "front", "haproxy.cfg"), [
				resolver,
				["/etc/groundplane/tls", await certificates.service("front", [domain])],
				["bind :8443", `bind 127.0.0.1:${frontPort}`],
				["bind :8444", `bind 127.0.0.1:${frontEdgePort}`],
				["bind :9090", `bind 127.0.0.1:${frontHealth}`],
				[":443 verifyhost", `:${servicePort} verifyhost`],
			]),
			frontHealth,
		);
		await haproxy(
			"edge",
			fill(configFile(core, "edge", "haproxy.cfg"), [
				resolver,
				["bind :8443", `bind 127.0.0.1:${edgePort}`],
				["bind :9090", `bind 127.0.0.1:${edgeHealth}`],
				["0.0.0.0:8445 send-proxy-v2", `0.0.0.0:${tunnelPort}`],
				["0.0.0.0:444", `0.0.0.0:${frontEdgePort}`],
			]),
			edgeHealth,
		);
		// The front learns where its services are within moments of its start.
		for (let tries = 0; (await ask("/auth/ready")).status !== 200; tries += 1) {
			if (tries === 100) throw new Error("the front does not reach its services");
			await delay(50);
		}
	}

	/** What the operator does for a server name. */
	const route = (serverName: string, target: string) =>
		dns.records.set(
			`edge-${createHash("sha224").update(serverName).digest("hex")}.groundplane-system.${clusterSuffix}`,
			target,
		);

	const agentTo = (port: number) =>
		new Agent({
			connect: (_, callback) => {
				const socket = connectTls({
					host: "127.0.0.1",
					port,
					servername: domain,
					ca: certificates.caPem,
					localAddress: "127.0.0.9",
				} as never);
				socket.once("secureConnect", () => callback(null, socket));
				socket.once("error", (error) => callback(error, null));
			},
		});

	async function ask(path: string, headers: Record<string, string> = {}, port = edgePort) {
		const dispatcher = agentTo(port);
		try {
			const answer = await dispatcher.request({ origin: `https://${domain}`, method: "GET", path, headers });
			const text = await answer.body.text();
			return { status: answer.statusCode, headers: answer.headers, text, seen: tryJson(text) as Seen };
		} finally {
			await dispatcher.close();
		}
	}

	test("a request comes through edge and front to the service of its path, with the client's own address", async () => {
		await startAll();
		for (const [path, service] of [
			["/auth/token", "auth"],
			["/enroll/v1/hosts", "hosts"],
			["/api/v1/join-tokens", "hosts"],
			["/api/v1/join-tokens/x", "hosts"],
			["/api/v1/join-tokens-of-another-kind", "clusters"],
			["/api/v1/clusters", "clusters"],
			["/openapi.json", "clusters"],
			["/k8s/demo/api/v1/namespaces/internal/pods", "clusters"],
			["/artifacts/v1/blobs/sha256/00", "artifacts"],
			["/", "artifacts"],
			["/hosts/host-1", "artifacts"],
		] as const) {
			const { status, seen } = await ask(path);
			expect([path, status, seen.service, seen.client]).toEqual([path, 200, service, "front"]);
			expect(seen.url).toBe(path);
		}
		const forged = await ask("/api/v1/hosts", {
			"x-groundplane-host": "host-1",
			"x-groundplane-user": "root",
			"x-remote-user": "root",
			"x-forwarded-for": "198.51.100.7",
			forwarded: "for=198.51.100.7",
			authorization: "Bearer kept",
		});
		expect(Object.keys(forged.seen.headers).filter((name) => /groundplane|remote|^forwarded$/.test(name))).toEqual([]);
		expect(forged.seen.headers).toMatchObject({
			authorization: "Bearer kept",
			host: domain,
			"x-forwarded-for": "127.0.0.9",
			"x-forwarded-proto": "https",
			"x-forwarded-host": domain,
		});
		expect(forged.headers["strict-transport-security"]).toBe("max-age=31536000");
		// Without the edge, as inside the cluster, there is no PROXY protocol.
		expect((await ask("/api/v1/hosts", {}, frontPort)).seen.headers["x-forwarded-for"]).toBe("127.0.0.9");
	});

	test("what is not for the world stays inside, and errors are problem details", async () => {
		await startAll();
		for (const path of ["/internal/v1/targets", "//internal/v1/targets", "/%69nternal/v1/targets"]) {
			expect([path, (await ask(path)).status]).toEqual([path, 404]);
		}
		expect((await ask("/auth/../internal/v1/targets")).status).toBe(400);
		expect((await ask("/healthz")).text).toBe("ok\n");

		const [hosts, clusters] = ["hosts", "clusters"].map((name) => servers.get(name)) as [Server, Server];
		const { address, port } = clusters.address() as { address: string; port: number };
		for (const server of [hosts, clusters]) {
			server.closeAllConnections();
			server.close();
		}
		const down = await ask("/enroll/v1/hosts");
		expect([down.status, down.headers["content-type"]]).toEqual([503, "application/problem+json"]);
		expect(JSON.parse(down.text)).toMatchObject({
			code: "Overloaded",
			next: expect.stringContaining("Region's status"),
		});
		// Somebody else at the address of a service, with a certificate of the same CA but another name.
		await service("impostor", address, port, "hosts");
		expect((await ask("/api/v1/clusters")).status).toBe(503);
	});

	test("upgrades and slow streams pass", async () => {
		await startAll();
		const watch = await ask("/k8s/demo/watch");
		expect(watch.text).toBe('{"event":1}\n{"event":2}\n');

		const socket = connectTls({
			host: "127.0.0.1",
			port: edgePort,
			servername: domain,
			ca: certificates.caPem,
			ALPNProtocols: ["http/1.1"],
		});
		await once(socket, "secureConnect");
		expect(socket.alpnProtocol).toBe("http/1.1");
		socket.write(`GET /k8s/demo/exec HTTP/1.1\r\nHost: ${domain}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n`);
		expect(String((await once(socket, "data"))[0])).toMatch(/^HTTP\/1.1 101 /);
		socket.write("raw bytes");
		expect(String((await once(socket, "data"))[0])).toBe("raw bytes");
		socket.destroy();
	});

	test("guessing passwords and tokens is slowed down, ordinary requests are not", async () => {
		await startAll();
		const dispatcher = agentTo(edgePort);
		cleanups.push(() => dispatcher.close());
		const statuses = { auth: new Set<number>(), api: new Set<number>() };
		for (let count = 0; count < 320; count += 1) {
			for (const [kind, path] of [
				["auth", "/auth/token"],
				["api", "/api/v1/hosts"],
			] as const) {
				const { statusCode, body } = await request(`https://${domain}${path}`, { dispatcher });
				await body.dump();
				statuses[kind].add(statusCode);
			}
		}
		expect([...statuses.auth]).toEqual([200, 429]);
		expect([...statuses.api]).toEqual([200]);
	});

	test("the edge passes tunnels on as they come, and closes whatever leads nowhere", async () => {
		await startAll();
		/** What comes back for a server name: bytes, or how it was closed and how soon. */
		const dial = async (servername: string, ca = certificates.caPem) => {
			const began = Date.now();
			const socket = connectTls({ host: "127.0.0.1", port: edgePort, servername, ca });
			let text = "";
			socket.on("data", (chunk) => (text += chunk));
			await closed(socket);
			return { text, ms: Date.now() - began };
		};
		expect(await dial(`tunnel.${domain}`)).toMatchObject({ text: "gateway" });
		expect(await dial(`TUNNEL.${domain.toUpperCase()}`)).toMatchObject({ text: "gateway" });

		dns.asked.length = 0;
		dns.records.set(`kubernetes.default.${clusterSuffix}`, "127.0.0.1");
		dns.records.set("kubernetes.default.svc", "127.0.0.1");
		for (const name of [
			"nobody.example.com",
			`kubernetes.default.${clusterSuffix}`,
			"kubernetes.default.svc",
			`${domain}.`,
			"tunnel.other.example.com",
		]) {
			const { text, ms } = await dial(name);
			expect([name, text]).toEqual([name, ""]);
			expect(ms).toBeLessThan(2000);
		}
		expect(dns.asked.length).toBeGreaterThan(0);
		for (const name of dns.asked) {
			expect(name).toMatch(
				/^edge-[0-9a-f]{56}\.groundplane-system\.svc\.cluster\.local$|^\w+\.region-demo\.svc\.cluster\.local$/,
			);
		}

		// Not TLS, and TLS without a name.
		const plain = connectTcp(edgePort, "127.0.0.1");
		plain.write("GET / HTTP/1.1\r\n\r\n");
		await closed(plain);
		const nameless = connectTls({ host: "127.0.0.1", port: edgePort, rejectUnauthorized: false });
		nameless.once("secureConnect", () => expect.unreachable("somebody answered"));
		await closed(nameless);

		// A region made later needs no reload.
		await delay(2100);
		route("tunnel.other.example.com", `tunnel.region-demo.${clusterSuffix}`);
		const later = connectTls({
			host: "127.0.0.1",
			port: edgePort,
			servername: "tunnel.other.example.com",
			rejectUnauthorized: false,
		});
		await once(later, "secureConnect");
		later.destroy();
	});
});

describe("postgresql", () => {
	test("databases and roles are made once and kept right, over TLS only", async () => {
		// PostgreSQL refuses to run as root; anybody else runs it as who they are.
		const owner = process.getuid?.() === 0 ? await account("postgres") : undefined;
		const home = join(directory, "postgresql");
		const passwords = join(home, "passwords");
		const sockets = join(home, "run");
		for (const path of [home, passwords, sockets, join(home, "data")]) {
			await mkdir(path, { recursive: true });
			if (owner) await chown(path, owner.uid, owner.gid);
		}
		const tls = await certificates.service("postgresql");
		if (owner) await chown(join(tls, "tls.key"), owner.uid, owner.gid);
		const port = await freePort();
		const setPasswords = async (suffix: string) => {
			for (const [key, value] of Object.entries({
				password: "root'\"\\",
				"auth-password": "a'u$\\t\"h",
				"hosts-password": "1e10",
			})) {
				await writeFile(join(passwords, key), value + suffix);
			}
		};
		await setPasswords("");
		const hba = join(home, "pg_hba.conf");
		const config = join(home, "postgresql.conf");
		// By the socket comes in whose account has the name of the role: not ours, unless we may be anybody.
		const rules = configFile(region, "postgresql", "pg_hba.conf");
		await writeFile(hba, owner ? rules : rules.replace(/^(local .*)peer$/m, "$1trust"));
		await writeFile(
			config,
			fill(configFile(region, "postgresql", "postgresql.conf"), [
				["/etc/postgresql/pg_hba.conf", hba],
				["/etc/groundplane/tls", tls],
				["port = 5432", `port = ${port}`],
				["listen_addresses = '*'", "listen_addresses = '127.0.0.1'"],
			]),
		);
		const images = join(repository, "images", "postgresql");
		const bin = (await execute("/bin/sh", ["-c", "ls -d /usr/lib/postgresql/*/bin | tail -1"])).trim();
		const boot = () =>
			start(
				"/bin/sh",
				[join(images, "entrypoint.sh")],
				async () => {
					await tcp(port)();
					await execute(join(bin, "pg_isready"), ["--host", sockets, "--port", String(port)]);
				},
				{
					...owner,
					env: {
						PATH: `${bin}:${process.env.PATH}`,
						DATA_DIR: join(home, "data"),
						CONFIG_FILE: config,
						SOCKET_DIR: sockets,
						PASSWORDS_DIR: passwords,
						INIT_SQL: join(images, "init.sql"),
						TMPDIR: home,
					},
				},
			);
		const query = async (
			user: string,
			database: string,
			password: string,
			sql: string,
			ssl: boolean | { ca: string } = { ca: certificates.caPem },
		) => {
			const client = new pg.Client({ host: "localhost", port, user, database, password, ssl });
			client.on("error", () => undefined);
			try {
				await client.connect();
				return (await client.query(sql)).rows;
			} finally {
				await client.end().catch(() => undefined);
			}
		};

		let server = await boot();
		await query("hosts", "hosts", "1e10", "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)");
		await query("auth", "auth", "a'u$\\t\"h", "CREATE TABLE users (n int)");
		await expect(query("hosts", "auth", "1e10", "SELECT 1")).rejects.toThrow(/pg_hba|permission denied/);
		await expect(query("hosts", "postgres", "1e10", "SELECT 1")).rejects.toThrow(/pg_hba|permission denied/);
		await expect(query("hosts", "hosts", "wrong", "SELECT 1")).rejects.toThrow(/password authentication failed/);
		await expect(query("hosts", "hosts", "1e10", "SELECT 1", false)).rejects.toThrow(/no encryption/);
		await expect(query("hosts", "hosts", "1e10", "CREATE ROLE x SUPERUSER")).rejects.toThrow(/must be superuser/);
		expect(await query("postgres", "postgres", "root'\"\\", "SELECT current_setting('data_checksums') AS c")).toEqual([
			{ c: "on" },
		]);

		// A power cut, and passwords that were changed meanwhile.
		await stop(server, "SIGKILL");
		await setPasswords("2");
		await delay(200);
		server = await boot();
		expect(await query("hosts", "hosts", "1e102", "SELECT n FROM kept")).toEqual([{ n: 7 }]);
		await expect(query("hosts", "hosts", "1e10", "SELECT 1")).rejects.toThrow(/password authentication failed/);
		await stop(server, "SIGINT");
		expect(server.exitCode).toBe(0);
	});
});

describe("nats", () => {
	test("each service may speak to the subjects that are its own, over TLS, and streams outlive a restart", async () => {
		const [port, monitor] = [await freePort(), await freePort()];
		const file = join(directory, "nats.conf");
		await writeFile(
			file,
			fill(configFile(region, "nats", "nats.conf"), [
				["port: 4222", `port: ${port}\nhost: "127.0.0.1"`],
				["http: 8222", `http: "127.0.0.1:${monitor}"`],
				["/etc/groundplane/tls", await certificates.service("nats")],
				["/var/lib/nats", join(directory, "jetstream")],
			]),
		);
		const binary = await tool("nats-server");
		// Passwords that the configuration language would take for numbers, as Secrets may hold.
		const passwords = { tunnel: "3e10", hosts: "12345" };
		const env = { TUNNEL_PASSWORD: `'${passwords.tunnel}'`, HOSTS_PASSWORD: `'${passwords.hosts}'` };
		await execute(binary, ["-c", file, "-t"], { env });
		const boot = () =>
			start(
				binary,
				["-c", file],
				async () => {
					const { statusCode } = await request(`http://127.0.0.1:${monitor}/healthz`);
					if (statusCode !== 200) throw new Error(`HTTP ${statusCode}`);
				},
				{ env },
			);
		const server = await boot();
		const login = async (user: "tunnel" | "hosts", pass = passwords[user]) => {
			const nc = await connectNats({
				servers: `localhost:${port}`,
				user,
				pass,
				tls: { ca: certificates.caPem },
				maxReconnectAttempts: 0,
			});
			cleanups.push(() => nc.close());
			return nc;
		};
		await expect(login("tunnel", "wrong")).rejects.toThrow(/authorization/i);
		await expect(connectNats({ servers: `localhost:${port}`, tls: { ca: certificates.caPem } })).rejects.toThrow(
			/authorization/i,
		);

		const [tunnel, hosts] = [await login("tunnel"), await login("hosts")];
		const manager = await jetstreamManager(tunnel);
		await manager.streams.add({ name: "HOSTS_UP", subjects: ["hosts.*.up.*"], max_msgs_per_subject: 1 });
		await manager.jetstream().publish("hosts.host-1.up.facts", "{}");
		const routes = await new Kvm(tunnel).create("routes");
		await routes.put("host-1", "gateway-0");
		const watched = await routes.watch();
		for await (const entry of watched) {
			expect([entry.key, entry.string()]).toEqual(["host-1", "gateway-0"]);
			break;
		}

		const down = tunnel.subscribe("hosts.host-1.down", { max: 1 });
		const admit = hosts.subscribe("hosts.admit", { max: 1 });
		void (async () => {
			for await (const message of admit) message.respond('{"admitted":true}');
		})();
		await Promise.all([tunnel.flush(), hosts.flush()]);
		expect((await tunnel.request("hosts.admit", "{}", { timeout: 2000 })).string()).toBe('{"admitted":true}');
		hosts.publish("hosts.host-1.down", "{}");
		for await (const message of down) expect(message.subject).toBe("hosts.host-1.down");
		const consumers = await (await jetstreamManager(hosts)).consumers.add("HOSTS_UP", {
			durable_name: "hosts",
			ack_policy: "explicit",
		});
		expect(consumers.num_pending).toBe(1);
		const message = await (await (await jetstreamManager(hosts)).jetstream().consumers.get("HOSTS_UP", "hosts")).next({
			expires: 2000,
		});
		expect(message?.subject).toBe("hosts.host-1.up.facts");
		expect(await message?.ackAck()).toBe(true);

		for (const [nc, subject] of [
			[tunnel, "hosts.host-1.cut"],
			[hosts, "hosts.host-1.up.facts"],
			[hosts, "$SYS.REQ.SERVER.PING"],
		] as const) {
			const refused = (async () => {
				for await (const status of nc.status()) if (status.type === "error") return String(status.error);
			})();
			nc.publish(subject, "{}");
			await nc.flush();
			expect(await refused).toMatch(/permissions violation for publish/i);
		}

		await stop(server, "SIGTERM");
		await boot();
		const again = await jetstreamManager(await login("tunnel"));
		expect((await again.streams.info("HOSTS_UP")).state.messages).toBe(1);
	});
});

describe("prometheus", () => {
	test("the configuration and the rules are what promtool accepts", async () => {
		const { config, rules } = await prometheusFiles();
		expect(await execute("promtool", ["check", "config", config])).toContain("SUCCESS");
		expect(await execute("promtool", ["check", "rules", rules])).toContain("SUCCESS");
	});

	test("hosts are found through the hosts service and scraped through the gateway, in few bytes", async () => {
		const seen = { bytesIn: 0, bytesOut: 0, scrapes: 0, requests: [] as string[] };
		// A gateway as far as Prometheus sees it, with what an agent answers.
		const { cert, key, ca } = await certificates.issueService("tunnel");
		const metrics = await readFile(join(repository, "charts", "testdata", "host-metrics.txt"));
		const gateway = createTlsServer({ cert, key, ca, requestCert: true, rejectUnauthorized: true }, (socket) => {
			socket.on("error", () => undefined);
			socket.on("data", (chunk) => {
				seen.bytesIn += chunk.length;
				seen.scrapes += 1;
				seen.requests.push(`${socket.getPeerCertificate().subject.CN} ${chunk.toString().split("\r\n")[0]}`);
				const slis = chunk.includes("/metrics/slis");
				const body = gzipSync(slis ? 'kubernetes_healthcheck{name="etcd",type="readyz"} 1\n' : metrics, { level: 9 });
				const head = `HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-encoding: gzip\r\ncontent-length: ${body.length}\r\n\r\n`;
				if (!slis) seen.bytesOut = head.length + body.length;
				socket.write(Buffer.concat([Buffer.from(head), body]));
			});
		});
		const hostsService = createServer(
			{ ...(await certificates.issueService("hosts")), requestCert: true, rejectUnauthorized: true },
			(req, res) => {
				res.setHeader("content-type", "application/json");
				const cluster = req.url?.includes("kube-apiserver");
				const target = `${cluster ? "kube-apiserver" : "metrics"}.host-1:80`;
				res.end(
					JSON.stringify([{ targets: [target], labels: { host: "host-1", ...(cluster && { cluster: "demo" }) } }]),
				);
			},
		);
		for (const server of [gateway, hostsService]) {
			server.listen(0, "127.0.0.1");
			await once(server, "listening");
			cleanups.push(() => server.close());
		}
		const portOf = (server: { address(): unknown }) => (server.address() as { port: number }).port;
		const port = await freePort();
		const { config, web } = await prometheusFiles([
			["https://tunnel:8444", `https://localhost:${portOf(gateway)}`],
			["https://hosts/", `https://localhost:${portOf(hostsService)}/`],
			["localhost:9090", `localhost:${port}`],
			['scrape_interval: "120s"', 'scrape_interval: "2s"'],
			['scrape_interval: "30s"', 'scrape_interval: "2s"'],
			["scrape_timeout: 10s", "scrape_timeout: 2s"],
			["scrape_timeout: 20s", "scrape_timeout: 2s"],
		]);
		const dispatcher = new Agent({
			connect: { ...(await certificates.issueService("operator")), servername: "localhost" },
		});
		cleanups.push(() => dispatcher.close());
		const ask = async (path: string) => {
			const { statusCode, body } = await request(`https://localhost:${port}${path}`, { dispatcher });
			return {
				status: statusCode,
				answer: tryJson(await body.text()) as {
					status: string;
					data: { result: { metric: Record<string, string>; value: [number, string] }[] };
				},
			};
		};
		await start(
			"prometheus",
			[
				`--config.file=${config}`,
				`--web.config.file=${web}`,
				`--web.listen-address=127.0.0.1:${port}`,
				`--storage.tsdb.path=${join(directory, "tsdb")}`,
			],
			async () => {
				const { status } = await ask("/-/ready");
				if (status !== 200) throw new Error(`HTTP ${status}`);
			},
		);
		const query = async (expr: string) => {
			const { status, answer } = await ask(`/api/v1/query?query=${encodeURIComponent(expr)}`);
			expect([expr, status]).toEqual([expr, 200]);
			return answer.data.result;
		};
		let up: Awaited<ReturnType<typeof query>> = [];
		for (let tries = 0; up.length < 3 && tries < 100; tries += 1) {
			await delay(200);
			up = await query('up{job!="services"} == 1');
		}
		expect(up.map(({ metric }) => metric).sort((a, b) => String(a.job).localeCompare(String(b.job)))).toEqual([
			expect.objectContaining({ job: "hosts", host: "host-1", instance: "host-1" }),
			expect.objectContaining({ job: "kube-apiserver", host: "host-1", cluster: "demo" }),
			expect.objectContaining({ job: "prometheus", instance: "prometheus" }),
		]);
		expect(new Set(seen.requests)).toEqual(
			new Set([
				"prometheus GET http://metrics.host-1:80/metrics HTTP/1.1",
				"prometheus GET http://kube-apiserver.host-1:80/metrics/slis HTTP/1.1",
			]),
		);
		// Every query of the dashboard is one that Prometheus understands.
		for (const { expr } of regionQueries) await query(expr);

		// The probe asks the same way, and is all that the container has for it.
		const command = containerOf(region, "prometheus").readinessProbe?.exec?.command ?? [];
		const [probe, ...args] = command.map((argument) =>
			argument.replace("/etc/groundplane/tls", join(directory, "tls-prometheus")).replaceAll(":9090", `:${port}`),
		);
		await execute(String(probe), args);
		// Without a certificate of the region nobody may look.
		const stranger = new Agent({ connect: { ca: certificates.caPem } });
		await expect(
			request(`https://localhost:${port}/api/v1/query?query=up`, { dispatcher: stranger }),
		).rejects.toThrow();
		await stranger.close();

		// What an idle host costs on the line: scrapes of it at the default interval, with frames, TLS, TCP and IP around them.
		const overhead = 6 * 52 + 8 * 40;
		const perDay = ((seen.bytesIn / seen.scrapes + seen.bytesOut + overhead) * 86_400) / 120;
		expect(perDay).toBeLessThan(2_500_000);
	});

	test("alerts fire for what they are meant for, and only then", async () => {
		const { rules } = await prometheusFiles();
		const file = join(directory, "rules.test.json");
		const hostDown = { host: "host-1", instance: "host-1", job: "hosts" };
		await writeFile(
			file,
			JSON.stringify({
				rule_files: [rules],
				evaluation_interval: "1m",
				tests: [
					{
						interval: "1m",
						input_series: [
							{ series: 'up{job="hosts",host="host-1",instance="host-1"}', values: "1x5 0x30" },
							...["tunnel", "auth", "clusters", "hosts", "artifacts"].map((component) => ({
								series: `up{job="services",component="${component}"}`,
								values: "1x40",
							})),
							{ series: 'groundplane_tunnel_connections_total{result="Overloaded"}', values: "0+6x40" },
							{ series: 'groundplane_tunnel_connections_total{result="Full"}', values: "0x10 0+2x30" },
							{ series: "groundplane_tunnel_hosts", values: "10x40" },
							{ series: "groundplane_tunnel_max_hosts", values: "11x20 100x20" },
							{ series: 'groundplane_tunnel_reconnects_total{reason="TunnelClosed"}', values: "0x10 0+2x30" },
							{ series: 'groundplane_tunnel_reconnects_total{reason="Superseded"}', values: "0+20x40" },
							{ series: 'groundplane_tunnel_open_seconds_count{result="ok"}', values: "0+60x40" },
							{ series: 'groundplane_tunnel_open_seconds_count{result="ServiceNotAllowed"}', values: "0+60x40" },
						],
						alert_rule_test: [
							{ eval_time: "10m", alertname: "HostDown", exp_alerts: [] },
							{
								eval_time: "20m",
								alertname: "HostDown",
								exp_alerts: [
									{
										exp_labels: { ...hostDown, severity: "critical" },
										exp_annotations: {
											summary: "Host host-1 can't be reached",
											next: "Look at the Host's conditions; on the host, at `systemctl status gp-agent` and its way out to port 443.",
										},
									},
								],
							},
							{ eval_time: "20m", alertname: "ServiceDown", exp_alerts: [] },
							{
								eval_time: "20m",
								alertname: "TunnelOverloaded",
								exp_alerts: [
									{
										exp_labels: { severity: "warning" },
										exp_annotations: {
											summary: "Tunnel gateways turn hosts or requests away because they have too much to do",
											next: "Give the region more gateways (Region.spec.tunnel.replicas); look at the dashboard's row Tunnel for what keeps them busy.",
										},
									},
								],
							},
							{ eval_time: "10m", alertname: "TunnelFull", exp_alerts: [] },
							{
								eval_time: "20m",
								alertname: "TunnelFull",
								exp_alerts: [
									{
										exp_labels: { severity: "critical" },
										exp_annotations: {
											summary: "Tunnel gateways have no memory for more hosts and turn some away",
											next: "Give the region more gateways (raise Region.spec.tunnel.replicas); the hosts come by themselves as soon as there is room.",
										},
									},
								],
							},
							// Renewed certificates and refusals of a host's own policy are no alarm.
							{ eval_time: "10m", alertname: "TunnelsUnstable", exp_alerts: [] },
							{
								eval_time: "40m",
								alertname: "TunnelsUnstable",
								exp_alerts: [
									{
										exp_labels: { severity: "warning" },
										exp_annotations: {
											summary: "Hosts lose their tunnels again and again",
											next: 'The dashboard\'s panel "Hosts that came back" has the reasons; gp host link HOST and gp-agent doctor on a host say more.',
										},
									},
								],
							},
							{
								eval_time: "18m",
								alertname: "TunnelNearlyFull",
								exp_alerts: [
									{
										exp_labels: { severity: "warning" },
										exp_annotations: {
											summary: "The tunnel gateways have taken 90.91% of the hosts for which they have memory",
											next: "Give the region another gateway (raise Region.spec.tunnel.replicas) before hosts are turned away.",
										},
									},
								],
							},
							{ eval_time: "30m", alertname: "TunnelNearlyFull", exp_alerts: [] },
							{ eval_time: "40m", alertname: "TunnelStreamsFail", exp_alerts: [] },
							{
								eval_time: "20m",
								alertname: "ServiceMissing",
								exp_alerts: [
									{
										exp_labels: { component: "front", job: "services", severity: "critical" },
										exp_annotations: {
											summary: "front has no pod",
											next: "Look at the Deployment of this name in the region's namespace.",
										},
									},
								],
							},
						],
					},
				],
			}),
		);
		await execute("promtool", ["test", "rules", file]);
	});

	/** Writes the files of the ConfigMap `prometheus` with places of this test put in. */
	async function prometheusFiles(places: readonly (readonly [string, string])[] = []) {
		const tls = await certificates.service("prometheus");
		const file = (name: string) => join(directory, name);
		await writeFile(
			file("prometheus.yml"),
			fill(configFile(region, "prometheus", "prometheus.yml"), [
				...places,
				["/etc/groundplane/tls", tls],
				["/etc/prometheus/rules.yml", file("rules.yml")],
			]),
		);
		await writeFile(file("rules.yml"), configFile(region, "prometheus", "rules.yml"));
		await writeFile(
			file("web.yml"),
			fill(configFile(region, "prometheus", "web.yml"), [["/etc/groundplane/tls", tls]]),
		);
		return { config: file("prometheus.yml"), rules: file("rules.yml"), web: file("web.yml") };
	}
});

async function account(name: string): Promise<{ uid: number; gid: number }> {
	const id = async (flag: string) => Number((await execute("id", [flag, name])).trim());
	return { uid: await id("-u"), gid: await id("-g") };
}

function tryJson(text: string): unknown {
	try {
		return JSON.parse(text);
	} catch {
		return text;
	}
}
