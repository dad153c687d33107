import { type ChildProcess, spawn } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { createWriteStream, readdirSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import pino from "pino";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { bundleJavaScript, ROOT } from "../../hack/builder/javascript.ts";
import type { KubeClient } from "../../operator/kube/client.ts";
import { reflectorAudits, reflectorMissed } from "../../operator/kube/metrics.ts";
import { Reflector } from "../../operator/kube/reflector.ts";
import { clusters, hosts, namespaces, secrets } from "../../operator/kube/resources.ts";
import { createInternalClient } from "../../services/kit/internal.ts";
import { TlsFiles } from "../../services/kit/tls.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";
import { regionCertificates } from "../support/certificates.ts";
import { startIssuer } from "../support/issuer.ts";
import { startNats, type TestNats } from "../support/nats.ts";
import { freePort, listensOn } from "../support/ports.ts";
import { dyingWithParent, startPostgres, type TestPostgres } from "../support/postgres.ts";

export const REGION = "fleet";
export const NAMESPACE = `region-${REGION}`;
const DOMAIN = "fleet.example.com";
/** Kubernetes versions that the region offers: nobody installs them here. */
export const versions = ["v1.36.3", "v1.36.4"] as const;

/** Programs of the plane that run as processes of their own, as in their containers. */
export type Program = "tunnel" | "hosts" | "operator";
export const programs: readonly Program[] = ["tunnel", "hosts", "operator"];

/** How soon a program that ended by itself is started anew. */
const RESTART_MS = 1_000;

/** How long a program may take to be ready: after a power cut with ten thousand hosts all of it starts at the same time. */
const READY_MS = 300_000;

/** What a process has used so far. */
export interface Usage {
	readonly cpuSeconds: number;
	readonly rssMiB: number;
}

/** What a simulated host is told by its package. */
export interface RegionAddress {
	readonly region: string;
	readonly enrollAddress: string;
	readonly tunnelAddress: string;
	readonly tunnelServerName: string;
	readonly caBundle: string;
}

/** A region's plane with everything real that it stands on. */
export interface Plane {
	readonly kube: KubeClient;
	readonly apiserver: TestApiServer;
	readonly postgres: TestPostgres;
	readonly nats: TestNats;
	readonly databaseUrl: string;
	readonly address: RegionAddress;
	/** Where logs are. */
	readonly directory: string;
	/** A join token for so many hosts. */
	joinToken(uses: number): Promise<string>;
	/** Starts programs again that were killed; resolves when they are ready. */
	start(names?: readonly Program[]): Promise<void>;
	/** Ends programs as a power cut would (SIGKILL). */
	kill(names?: readonly Program[]): Promise<void>;
	/** Stops (SIGSTOP) or resumes (SIGCONT) a program, or sets its clock (SIGUSR2: clock.mjs). */
	signal(name: Program, signal: "SIGSTOP" | "SIGCONT" | "SIGUSR2"): void;
	/** CPU and memory of every part, children included, by name: programs, postgres, nats-server, kube-apiserver, etcd. */
	usage(): Map<string, Usage>;
	/** Changes of Host and Cluster objects that the API server has stored so far: what costs etcd a write. */
	writes(): Promise<number>;
	/** A metric of a program, summed over its labels; `where` is text that the line must contain. */
	metric(name: Program, metric: string, where?: string): Promise<number>;
	/** Hosts by phase, from a watch. */
	phases(): Partial<Record<string, number>>;
	/** All clusters, from a watch. */
	clusters(): readonly Cluster[];
	/** How often the harness's own copies of Hosts and Clusters were compared with the API server's, and how much they had missed. */
	audits(): Promise<{ readonly made: number; readonly missed: number }>;
	/** Last lines of a program's log. */
	log(name: Program): string;
	close(): Promise<void>;
}

/**
 * Starts a region's plane: PostgreSQL, NATS and an API server, and gateway, hosts service and operator as the bundles that
 * their images hold. `clocks` makes theirs such as can be set; `auditMs` is how often the harness audits
 * its own copies, which goes by the reflector that the programs use.
 */
export async function startPlane({
	clocks = false,
	auditMs,
}: {
	clocks?: boolean;
	auditMs?: number;
} = {}): Promise<Plane> {
	const directory = await mkdtemp(join(tmpdir(), "gp-fleet-"));
	const bundles = await bundleJavaScript("fleet", {
		tunnel: "services/tunnel/main.ts",
		hosts: "services/hosts/main.ts",
		operator: "operator/main.ts",
	});
	// A history that nobody drops fills etcd (2 GiB) with a thousand clusters.
	const [postgres, nats, apiserver] = await Promise.all([
		startPostgres(),
		startNats(),
		startApiServer({ compaction: "5m" }),
	]);
	const certificates = await regionCertificates(directory, REGION);
	const kube = apiserver.client;
	for (const name of [NAMESPACE, "groundplane-system"]) await kube.create(namespaces, { metadata: { name } });

	const file = async (path: string, content: string) => {
		await mkdir(join(directory, path, ".."), { recursive: true });
		await writeFile(join(directory, path), content, { mode: 0o600 });
		return join(directory, path);
	};
	const signing = generateKeyPairSync("ed25519");
	const publicJwk = { ...signing.publicKey.export({ format: "jwk" }), kid: "k1", alg: "EdDSA" };
	await file("desired-state-key/private.jwk", JSON.stringify(signing.privateKey.export({ format: "jwk" })));
	await file("desired-state-key/public.jwks", JSON.stringify({ keys: [publicJwk] }));
	await file("hosts-ca/tls.crt", certificates.hostsCa.cert);
	await file("hosts-ca/tls.key", certificates.hostsCa.key);
	await file("hosts-ca/ca.crt", certificates.caPem);
	// The operator's identity towards the region, as its region controller mints it.
	const identity = await certificates.issueService("operator");
	const base64 = (text: string) => Buffer.from(text).toString("base64");
	await kube.create(secrets, {
		metadata: { name: `region-${REGION}-operator-tls`, namespace: "groundplane-system" },
		data: {
			"tls.crt": base64(identity.cert),
			"tls.key": base64(identity.key),
			"ca.crt": base64(identity.ca),
		},
	});
	const issuer = await startIssuer(DOMAIN, certificates);

	const ports = { tunnel: await freePort(), proxy: await freePort(), edge: await freePort(), hosts: await freePort() };
	const health = { tunnel: await freePort(), hosts: await freePort(), operator: await freePort() };
	const databaseUrl = `${await postgres.createDatabase("hosts")}?sslmode=disable`;
	const tunnelServerName = `tunnel.${DOMAIN}`;
	const gatewayName = `tunnel.${NAMESPACE}.svc.cluster.local`;
	const common = {
		PATH: process.env.PATH ?? "",
		...(process.env.NODE_EXTRA_CA_CERTS === undefined ? {} : { NODE_EXTRA_CA_CERTS: process.env.NODE_EXTRA_CA_CERTS }),
		KUBECONFIG: apiserver.kubeconfig,
		LOG_LEVEL: process.env.LOG_LEVEL ?? "warn",
		// As the charts have it, but for the size of the heap, which is what is looked for here.
		NODE_OPTIONS: "--max-semi-space-size=4",
		UV_THREADPOOL_SIZE: "2",
		MALLOC_ARENA_MAX: "2",
		MALLOC_MMAP_THRESHOLD_: "131072",
	};
	const service = async (name: "tunnel" | "hosts", names: string[] = []) => ({
		...common,
		REGION,
		DOMAIN,
		PORT: String(ports[name]),
		HEALTH_PORT: String(health[name]),
		TLS_DIR: await certificates.service(name, names),
		NATS_URL: nats.url,
		NATS_PASSWORD_FILE: await file("nats-password", "any"),
	});
	const environment: Record<Program, Readonly<Record<string, string>>> = {
		tunnel: {
			...(await service("tunnel", [tunnelServerName, gatewayName])),
			NATS_USER: "tunnel",
			PROXY_PORT: String(ports.proxy),
			EDGE_PORT: String(ports.edge),
			HOSTS_CA_FILE: join(directory, "hosts-ca/tls.crt"),
			POD_NAME: "tunnel-0",
			ARTIFACTS_URL: "https://127.0.0.1:9",
		},
		hosts: {
			...(await service("hosts")),
			JWKS_URL: issuer.url,
			DATABASE_URL: databaseUrl,
			DATABASE_PASSWORD_FILE: await file("database-password", postgres.password),
			HOSTS_CA_DIR: join(directory, "hosts-ca"),
			DESIRED_STATE_KEY_DIR: join(directory, "desired-state-key"),
		},
		operator: {
			...common,
			// Its chart's own: what it takes beyond this heap must fit beside it.
			NODE_OPTIONS: "--max-semi-space-size=1 --max-old-space-size=192",
			VERSION: "0.1.0",
			BUNDLES: JSON.stringify(versions.map((version) => ({ name: "kubernetes", version }))),
			REGION_CHART: join(ROOT, "charts/region"),
			RELEASE_JWKS: JSON.stringify({ keys: [publicJwk] }),
			METRICS_PORT: String(health.operator),
			LISTEN_ADDRESS: "127.0.0.1",
			FLEET_PROXY: `127.0.0.1:${ports.proxy}`,
		},
	};

	const running = new Map<Program, ChildProcess>();
	let restarts = 0;
	const url = (name: Program, path: string) => `http://127.0.0.1:${health[name]}${path}`;

	function launch(name: Program): ChildProcess {
		const preloaded = [...(name === "operator" ? ["redirect"] : []), ...(clocks ? ["clock"] : [])];
		const imports = preloaded.flatMap((module) => ["--import", join(ROOT, `test/fleet/${module}.mjs`)]);
		const [command, args] = dyingWithParent(process.execPath, [...imports, join(bundles, `${name}.js`)]);
		const log = createWriteStream(join(directory, `${name}.log`), { flags: "a" });
		const child = spawn(command, args, { env: { ...environment[name] }, stdio: ["ignore", "pipe", "pipe"] });
		child.stdout?.pipe(log, { end: false });
		child.stderr?.pipe(log, { end: false });
		running.set(name, child);
		return child;
	}

	/** A program that ends by itself is started anew, as a kubelet does: an operator that lost its lease, say. */
	function supervise(name: Program): void {
		const child = launch(name);
		child.once("exit", () => {
			if (running.get(name) !== child) return;
			restarts += 1;
			setTimeout(() => running.get(name) === child && supervise(name), RESTART_MS);
		});
	}

	/** Believes what answers only if it is the process that runs as `name`: somebody else's may have its port. */
	async function ready(name: Program): Promise<void> {
		const until = Date.now() + READY_MS;
		const before = restarts;
		let impostor = "";
		for (;;) {
			const answer = await fetch(url(name, "/readyz")).catch(() => undefined);
			const pid = running.get(name)?.pid ?? 0;
			if (answer?.ok && listensOn(pid, health[name])) return;
			impostor = answer?.ok ? ` (port ${health[name]} is answered by another process)` : "";
			if (restarts > before + 20) throw new Error(`${name} does not stay${impostor}:\n${logOf(name)}`);
			if (Date.now() > until)
				throw new Error(`${name} is not ready after ${READY_MS / 1000} s${impostor}:\n${logOf(name)}`);
			await delay(100);
		}
	}

	const logOf = (name: Program): string => {
		try {
			return readFileSync(join(directory, `${name}.log`), "utf8").slice(-8000);
		} catch {
			return "";
		}
	};

	async function start(names: readonly Program[] = programs): Promise<void> {
		const missing = names.filter((name) => !running.has(name));
		for (const name of missing) supervise(name);
		await Promise.all(missing.map(ready));
	}

	async function kill(names: readonly Program[] = programs): Promise<void> {
		await Promise.all(
			names.map(async (name) => {
				const child = running.get(name);
				running.delete(name);
				if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
				const ended = new Promise((resolve) => child.once("exit", resolve));
				child.kill("SIGKILL");
				await ended;
			}),
		);
	}

	// What people would see, kept by a watch: a list of ten thousand hosts is tens of megabytes.
	const watching = new AbortController();
	const copy = { client: kube, namespace: NAMESPACE, log: silent, ...(auditMs && { auditInterval: auditMs }) };
	const watched = {
		hosts: new Reflector({ ...copy, resource: hosts, transform: phaseOnly }),
		clusters: new Reflector({ ...copy, resource: clusters }),
	};
	const watches = Object.values(watched).map((reflector) => reflector.run(watching.signal));

	async function close(): Promise<void> {
		watching.abort();
		await Promise.allSettled(watches);
		await kill();
		issuer.close();
		await Promise.all([postgres.close(), nats.close(), apiserver.stop()]);
		if (process.env.GROUNDPLANE_KEEP_LOGS === undefined) await rm(directory, { recursive: true, force: true });
	}

	try {
		await start();
	} catch (error) {
		await close();
		throw error;
	}
	const anyone = createInternalClient(new TlsFiles(await certificates.service("front")));
	return {
		kube,
		apiserver,
		postgres,
		nats,
		databaseUrl,
		directory,
		address: {
			region: REGION,
			enrollAddress: `127.0.0.1:${ports.hosts}`,
			tunnelAddress: `127.0.0.1:${ports.tunnel}`,
			tunnelServerName,
			caBundle: certificates.caPem,
		},
		async joinToken(uses) {
			const bearer = await issuer.token("fleet", ["operator"]);
			const answer = await anyone(`https://127.0.0.1:${ports.hosts}/api/v1/join-tokens`, {
				method: "POST",
				headers: { authorization: `Bearer ${bearer}` },
				json: { uses, lifetime: "24h" },
			});
			if (answer.status !== 201) throw new Error(`no join token: ${answer.status} ${answer.text()}`);
			return ((await answer.json()) as { token: string }).token;
		},
		start,
		kill,
		signal: (name, signal) => void running.get(name)?.kill(signal),
		usage: () => usageOf(new Map([...running].map(([name, { pid }]) => [pid ?? 0, name]))),
		async writes() {
			const text = await kube.requestText("GET", "/metrics");
			return sum(
				text,
				"apiserver_request_total",
				(line) =>
					/resource="(hosts|clusters)"/.test(line) &&
					/verb="(APPLY|PATCH|POST|PUT|DELETE)"/.test(line) &&
					/code="2/.test(line),
			);
		},
		async metric(name, metric, where = "") {
			const answer = await fetch(url(name, "/metrics"));
			return sum(await answer.text(), metric, (line) => line.includes(where));
		},
		phases: () => counts(watched.hosts.list().map(({ status }) => status?.phase)),
		clusters: () => watched.clusters.list(),
		async audits() {
			const [made, missed] = await Promise.all([reflectorAudits.get(), reflectorMissed.get()]);
			const total = ({ values }: typeof made) => values.reduce((sum, { value }) => sum + value, 0);
			return { made: total(made), missed: total(missed) };
		},
		log: logOf,
		close,
	};
}

const silent = pino({ level: "silent" });

/** All of a Host that the harness looks at. */
const phaseOnly = ({ apiVersion, kind, metadata, status }: Host): Host =>
	({ apiVersion, kind, metadata, ...(status && { status: { phase: status.phase } }) }) as Host;

/** How often each value is there. */
export function counts(values: readonly (string | undefined)[]): Partial<Record<string, number>> {
	const result: Partial<Record<string, number>> = {};
	for (const value of values) if (value !== undefined) result[value] = (result[value] ?? 0) + 1;
	return result;
}

/** Sum of a metric's samples in Prometheus' text format. */
function sum(text: string, metric: string, holds: (line: string) => boolean): number {
	return text
		.split("\n")
		.filter((line) => (line.startsWith(`${metric}{`) || line.startsWith(`${metric} `)) && holds(line))
		.reduce((total, line) => total + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

/** proc(5): user and system time are fields 14 and 15 in ticks of 10 ms, parent 4, resident pages 24. */
function usageOf(named: ReadonlyMap<number, string>): Map<string, Usage> {
	const processes = new Map<number, { parent: number; name: string; cpuSeconds: number; rssMiB: number }>();
	for (const entry of readdirSync("/proc")) {
		if (!/^\d+$/.test(entry)) continue;
		try {
			const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
			const end = stat.lastIndexOf(")");
			const fields = stat.slice(end + 2).split(" ");
			processes.set(Number(entry), {
				name: stat.slice(stat.indexOf("(") + 1, end),
				parent: Number(fields[1]),
				cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100,
				rssMiB: (Number(fields[21]) * 4) / 1024,
			});
		} catch {
			// It has ended.
		}
	}
	const usage = new Map<string, Usage>();
	for (const [pid, own] of processes) {
		// The child of ours that it descends from.
		let top = pid;
		let process_ = own;
		while (process_.parent !== process.pid && process_.parent > 1) {
			top = process_.parent;
			const parent = processes.get(top);
			if (parent === undefined) break;
			process_ = parent;
		}
		if (process_.parent !== process.pid) continue;
		const name = named.get(top) ?? process_.name;
		const before = usage.get(name) ?? { cpuSeconds: 0, rssMiB: 0 };
		usage.set(name, { cpuSeconds: before.cpuSeconds + own.cpuSeconds, rssMiB: before.rssMiB + own.rssMiB });
	}
	return usage;
}
