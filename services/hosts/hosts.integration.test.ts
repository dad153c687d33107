import "reflect-metadata";
import { createHash, generateKeyPairSync, randomBytes, webcrypto, X509Certificate } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { jetstreamManager } from "@nats-io/jetstream";
import { headers, type Subscription } from "@nats-io/nats-core";
import { connect } from "@nats-io/transport-node";
import * as x509 from "@peculiar/x509";
import { compactVerify, createLocalJWKSet } from "jose";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Host } from "../../crds/host.ts";
import { hosts, namespaces, secrets } from "../../operator/kube/resources.ts";
import type { DesiredState } from "../../protocol/desired-state.ts";
import type { EnrollRequest, EnrollResponse, UpMessage } from "../../protocol/messages.ts";
import { startApiServer } from "../../test/support/apiserver.ts";
import { regionCertificates } from "../../test/support/certificates.ts";
import { startIssuer } from "../../test/support/issuer.ts";
import { startNats } from "../../test/support/nats.ts";
import { startPostgres } from "../../test/support/postgres.ts";
import { createInternalClient } from "../kit/internal.ts";
import { createLog } from "../kit/log.ts";
import { startService } from "../kit/service.ts";
import { TlsFiles } from "../kit/tls.ts";
import { hostsService } from "./service.ts";

const NAMESPACE = "region-test";
const DOMAIN = "test.example.com";

/** The hosts service with everything real that it stands on, and what a test does to it. */
async function startWorld() {
	const directory = await mkdtemp(join(tmpdir(), "gp-hosts-"));
	const [postgres, nats, apiserver] = await Promise.all([startPostgres(), startNats(), startApiServer()]);
	const certificates = await regionCertificates(directory);
	process.env.KUBECONFIG = apiserver.kubeconfig;
	const kube = apiserver.client;
	await kube.create(namespaces, { metadata: { name: NAMESPACE } });

	const file = async (name: string, content: string) => {
		await writeFile(join(directory, name), content, { mode: 0o600 });
		return join(directory, name);
	};
	const caDir = join(directory, "hosts-ca");
	await mkdir(caDir);
	await writeFile(join(caDir, "tls.crt"), certificates.hostsCa.cert);
	await writeFile(join(caDir, "tls.key"), certificates.hostsCa.key);
	await writeFile(join(caDir, "ca.crt"), certificates.caPem);
	const keyDir = join(directory, "desired-state-key");
	await mkdir(keyDir);
	const signing = generateKeyPairSync("ed25519");
	await writeFile(join(keyDir, "private.jwk"), JSON.stringify(signing.privateKey.export({ format: "jwk" })));
	const publicJwk = { ...signing.publicKey.export({ format: "jwk" }), kid: "k1", alg: "EdDSA" };
	await writeFile(join(keyDir, "public.jwks"), JSON.stringify({ keys: [publicJwk] }));

	const issuer = await startIssuer(DOMAIN, certificates);
	const databaseUrl = `${await postgres.createDatabase("hosts")}?sslmode=disable`;
	const env = {
		REGION: "test",
		DOMAIN,
		LOG_LEVEL: "error",
		PORT: "0",
		HEALTH_PORT: "0",
		TLS_DIR: await certificates.service("hosts"),
		JWKS_URL: issuer.url,
		DATABASE_URL: databaseUrl,
		DATABASE_PASSWORD_FILE: await file("database-password", postgres.password),
		NATS_URL: nats.url,
		NATS_PASSWORD_FILE: await file("nats-password", "any"),
		PROBE_INTERVAL: "1s",
		HOSTS_CA_DIR: caDir,
		DESIRED_STATE_KEY_DIR: keyDir,
	};
	const start = async () => {
		const stop = new AbortController();
		const log = createLog("hosts", process.env.LOG_LEVEL ?? "fatal");
		const running = await startService(hostsService, { env, signal: stop.signal, log, lameDuckMs: 0 });
		const end = async () => {
			stop.abort();
			await running.stopped;
		};
		return { running, end };
	};
	let service = await start();

	const client = (tls: string) => createInternalClient(new TlsFiles(tls));
	const asArtifacts = client(await certificates.service("artifacts"));
	const asPrometheus = client(await certificates.service("prometheus"));
	const anyone = client(await certificates.service("front"));
	const url = (path: string) => `https://127.0.0.1:${service.running.port}${path}`;
	const nc = await connect({ servers: nats.url.replace("nats://", "") });
	const database = new pg.Pool({ connectionString: databaseUrl });
	database.on("error", () => {});

	return {
		kube,
		nats,
		postgres,
		certificates,
		nc,
		database,
		asArtifacts,
		asPrometheus,
		anyone,
		url,
		publicJwk,
		async restart() {
			await this.during(async () => {});
		},
		/** Restarts the service, and does something while there is none. */
		async during(work: () => Promise<void>) {
			await service.end();
			await work();
			service = await start();
		},
		async api(method: string, path: string, json?: unknown, role = "operator") {
			const headers = { authorization: `Bearer ${await issuer.token("alice", [role])}` };
			return anyone(url(path), { method, headers, ...(json !== undefined && { json }) });
		},
		async joinToken(request: Record<string, unknown> = {}): Promise<{ id: string; token: string }> {
			const answer = await this.api("POST", "/api/v1/join-tokens", request);
			expect(answer.status, answer.text()).toBe(201);
			return (await answer.json()) as { id: string; token: string };
		},
		async enrol(token: string | undefined, request: EnrollRequest) {
			const answer = await anyone(url("/enroll/v1/hosts"), {
				method: "POST",
				...(token && { headers: { authorization: `Bearer ${token}` } }),
				json: request,
			});
			const body = (await answer.json()) as EnrollResponse & { code?: string; next?: string };
			return { status: answer.status, code: body.code, body };
		},
		host: (name: string) => kube.find(hosts, name, NAMESPACE),
		/** `epoch`: of the tunnel by which the gateway has heard it. */
		up: (host: string, message: UpMessage, epoch?: number) => {
			const said = headers();
			if (epoch !== undefined) said.set("Groundplane-Epoch", String(epoch));
			nc.publish(`hosts.${host}.up.${message.type}`, JSON.stringify(message), { headers: said });
		},
		link: (host: string, link: Record<string, unknown>) =>
			nc.publish(
				`hosts.${host}.link`,
				JSON.stringify({ gateway: "tunnel-0", epoch: 1, address: "192.0.2.1", at: new Date().toISOString(), ...link }),
			),
		async close() {
			await nc.close();
			await database.end();
			await service.end();
			issuer.close();
			await Promise.all([postgres.close(), nats.close(), apiserver.stop()]);
			await rm(directory, { recursive: true, force: true });
		},
	};
}

let world: Awaited<ReturnType<typeof startWorld>>;
beforeAll(async () => {
	world = await startWorld();
});
afterAll(async () => {
	await world?.close();
});

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };

async function csrFor(name: string): Promise<string> {
	const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
	const csr = await x509.Pkcs10CertificateRequestGenerator.create({
		name: `CN=${name}`,
		keys: keys as never,
		signingAlgorithm: algorithm,
	});
	return csr.toString("pem");
}

const facts = (name: string, machineId: string): EnrollRequest["facts"] => ({
	hostname: name,
	machineId,
	architecture: "amd64",
	os: { id: "debian", versionId: "12", prettyName: "Debian GNU/Linux 12 (bookworm)" },
	kernel: "6.1.0",
	cgroup: "v2",
	cpu: { cores: 2, model: "any" },
	memoryBytes: 4 * 2 ** 30,
	disks: [{ name: "sda", sizeBytes: 2 ** 34, rotational: false }],
	filesystems: [{ path: "/", sizeBytes: 2 ** 34, availableBytes: 2 ** 33 }],
	interfaces: [{ name: "eth0", mac: "02:00:00:00:00:01", addresses: ["192.0.2.10/24"] }],
	primaryAddress: "192.0.2.10",
	bootId: "b",
});

const checks = [{ name: "swap", ok: true, severity: "error" as const, message: "Swap is off." }];
const machine = () => createHash("sha256").update(randomBytes(8)).digest("hex");

async function request(
	name: string,
	change: Partial<EnrollRequest> & { machineId?: string } = {},
): Promise<EnrollRequest> {
	const { machineId = machine(), ...rest } = change;
	return {
		csr: await csrFor(name),
		name,
		agentVersion: "0.1.0",
		time: Date.now() / 1000,
		facts: facts(name, machineId),
		checks,
		...rest,
	};
}

/** Waits until `probe` gives something; fails with what it gave last. */
async function eventually<T>(probe: () => Promise<T | undefined | false>, what: string, ms = 10_000): Promise<T> {
	const end = Date.now() + ms;
	for (;;) {
		const value = await probe();
		if (value) return value;
		if (Date.now() > end) throw new Error(`not in ${ms} ms: ${what}`);
		await delay(50);
	}
}

const conditionOf = (host: Host | undefined, type: string) => host?.status?.conditions?.find((c) => c.type === type);

const rowsOf = async (name: string) =>
	(await world.database.query("SELECT name FROM hosts WHERE name = $1", [name])).rowCount;

describe("join tokens", () => {
	test("are made, listed without the secret and revoked by operators alone", async () => {
		expect((await world.api("POST", "/api/v1/join-tokens", {}, "viewer")).status).toBe(403);
		const { id, token } = await world.joinToken({ uses: 2, lifetime: "10m", hostName: "named" });
		expect(token).toMatch(/^gpj_[\w-]{43}$/);
		const list = await world.api("GET", "/api/v1/join-tokens");
		expect(list.text()).toContain(id);
		expect(list.text()).not.toContain(token);
		const stored = await world.database.query("SELECT * FROM join_tokens WHERE id = $1", [id]);
		expect(JSON.stringify(stored.rows)).not.toContain(token);

		const verify = () =>
			world.asArtifacts(world.url("/internal/v1/join-tokens/verify"), { method: "POST", json: { token } });
		expect(await (await verify()).json()).toMatchObject({ id, hostName: "named", usesLeft: 2 });
		expect(
			(await world.anyone(world.url("/internal/v1/join-tokens/verify"), { method: "POST", json: { token } })).status,
		).toBe(403);
		expect((await world.api("DELETE", `/api/v1/join-tokens/${id}`)).status).toBe(204);
		expect((await verify()).status).toBe(401);
		expect((await world.enrol(token, await request("named"))).code).toBe("JoinTokenInvalid");
	});

	test("that expired a week ago are forgotten when the next one is made, with who came by them", async () => {
		const { id } = await world.joinToken();
		await world.database.query("INSERT INTO enrolments (token_id, machine_id, host) VALUES ($1, 'm', 'h')", [id]);
		const left = async () => {
			await world.joinToken();
			const { rowCount } = await world.database.query("SELECT FROM enrolments WHERE token_id = $1", [id]);
			return rowCount;
		};
		const expired = (days: number) =>
			world.database.query("UPDATE join_tokens SET expires_at = now() - $2 * interval '1 day' WHERE id = $1", [
				id,
				days,
			]);
		await expired(6);
		expect(await left()).toBe(1);
		await expired(8);
		expect(await left()).toBe(0);
	});

	test("bad lifetimes are refused with the field's name", async () => {
		const answer = await world.api("POST", "/api/v1/join-tokens", { lifetime: "1s", uses: 0 });
		expect(answer.status).toBe(400);
		expect(answer.text()).toMatch(/body\.lifetime.*body\.uses|body\.uses.*body\.lifetime/);
	});
});

describe("enrolment", () => {
	test("gives a certificate of the hosts CA, makes an approved Host and counts the token", async () => {
		const { token } = await world.joinToken();
		const { status, body } = await world.enrol(token, await request("host-1"));
		expect(status, JSON.stringify(body)).toBe(201);
		expect(body).toMatchObject({ region: "test", host: "host-1", approved: true });
		expect(body.desiredStateJwks.keys).toEqual([world.publicJwk]);
		const [leaf, intermediate] = body.certificate
			.split(/(?<=-----END CERTIFICATE-----)\s+/)
			.filter(Boolean)
			.map((pem) => new X509Certificate(pem));
		const root = new X509Certificate(body.caBundle);
		expect(leaf?.subject).toContain("CN=host-1");
		expect(leaf?.subject).toContain("O=groundplane:hosts");
		expect(leaf?.subjectAltName).toContain("URI:groundplane://test/hosts/host-1");
		expect(intermediate && leaf?.checkIssued(intermediate) && leaf.verify(intermediate.publicKey)).toBe(true);
		expect(intermediate?.checkIssued(root) && intermediate.verify(root.publicKey)).toBe(true);
		expect((await world.host("host-1"))?.spec).toMatchObject({ approved: true });
		expect((await world.enrol(token, await request("host-1b"))).code).toBe("JoinTokenUsedUp");
		expect(await world.host("host-1b")).toBeUndefined();
	});

	test("that is asked for again with the same token by the same machine works, and replaces the certificate", async () => {
		const { token } = await world.joinToken();
		const machineId = machine();
		const first = await world.enrol(token, await request("again", { machineId }));
		const cuts = world.nc.subscribe("hosts.again.cut", { max: 1 });
		const second = await world.enrol(token, await request("again", { machineId }));
		expect([first.status, second.status]).toEqual([201, 201]);
		const serial = (answer: typeof first) => new X509Certificate(answer.body.certificate).serialNumber.toLowerCase();
		for await (const cut of cuts) expect(cut.json()).toMatchObject({ keepSerial: serial(second) });
		const admit = async (answer: typeof first) =>
			(await world.nc.request("hosts.admit", JSON.stringify({ host: "again", serial: serial(answer) }))).json();
		expect(await admit(first)).toMatchObject({ admitted: false, reason: "CertificateRevoked" });
		expect(await admit(second)).toEqual({ admitted: true });
	});

	test("with a token that asks for approval waits", async () => {
		const { token } = await world.joinToken({ approve: false });
		expect((await world.enrol(token, await request("waiting"))).body.approved).toBe(false);
		expect((await world.host("waiting"))?.spec.approved).toBe(false);
	});

	test("takes a Host that was made before it, with its spec", async () => {
		await world.kube.create(hosts, {
			apiVersion: "groundplane.io/v1alpha1",
			kind: "Host",
			metadata: { name: "before", namespace: NAMESPACE },
			spec: { approved: false, maintenance: true, roles: [] },
		});
		const seen = await eventually(async () => conditionOf(await world.host("before"), "Connected"), "a condition");
		expect(seen).toMatchObject({ status: "False", reason: "NotEnrolled" });
		const { token } = await world.joinToken();
		expect((await world.enrol(token, await request("before"))).body.approved).toBe(false);
	});

	const bad: [string, string, () => Promise<{ token: string | undefined; request: EnrollRequest }>][] = [
		["no token", "JoinTokenInvalid", async () => ({ token: undefined, request: await request("bad") })],
		[
			"a forged token",
			"JoinTokenInvalid",
			async () => ({ token: `gpj_${randomBytes(32).toString("base64url")}`, request: await request("bad") }),
		],
		[
			"an expired token",
			"JoinTokenExpired",
			async () => {
				const { id, token } = await world.joinToken();
				await world.database.query("UPDATE join_tokens SET expires_at = now() - interval '1 second' WHERE id = $1", [
					id,
				]);
				return { token, request: await request("bad") };
			},
		],
		[
			"a clock an hour ahead",
			"ClockSkew",
			async () => ({
				token: (await world.joinToken()).token,
				request: await request("bad", { time: Date.now() / 1000 + 3600 }),
			}),
		],
		[
			"a clock an hour behind",
			"ClockSkew",
			async () => ({
				token: (await world.joinToken()).token,
				request: await request("bad", { time: Date.now() / 1000 - 3600 }),
			}),
		],
		[
			"another name in the certificate request",
			"HostNameMismatch",
			async () => ({
				token: (await world.joinToken()).token,
				request: await request("bad", { csr: await csrFor("host-1") }),
			}),
		],
		[
			"a token for another host",
			"HostNameMismatch",
			async () => ({ token: (await world.joinToken({ hostName: "other" })).token, request: await request("bad") }),
		],
		[
			"a certificate request with a broken signature",
			"CertificateInvalid",
			async () => {
				const der = Buffer.from((await csrFor("bad")).replace(/-----.+-----|\s/g, ""), "base64");
				der[der.length - 5] = (der[der.length - 5] ?? 0) ^ 1;
				const csr = x509.PemConverter.encode(new Uint8Array(der).buffer, "CERTIFICATE REQUEST");
				return { token: (await world.joinToken()).token, request: await request("bad", { csr }) };
			},
		],
		[
			"a name that is no label",
			"InvalidInput",
			async () => ({ token: (await world.joinToken()).token, request: await request("bad", { name: "Bad.Name" }) }),
		],
		[
			"facts that are none",
			"InvalidInput",
			async () => ({
				token: (await world.joinToken()).token,
				request: { ...(await request("bad")), facts: {} } as unknown as EnrollRequest,
			}),
		],
	];
	test.each(bad)("with %s is refused with %s and leaves nothing", async (_what, code, make) => {
		const { token, request } = await make();
		const { body } = await world.enrol(token, request);
		expect(body.code).toBe(code);
		expect(body.next).toBeTruthy();
		expect(await world.host("bad")).toBeUndefined();
		expect(await rowsOf("bad")).toBe(0);
	});

	test("refuses another machine under a name that is taken, and a machine under a second name", async () => {
		const { token } = await world.joinToken({ uses: 5 });
		const machineId = machine();
		await world.enrol(token, await request("taken", { machineId }));
		expect((await world.enrol(token, await request("taken"))).code).toBe("HostAlreadyEnrolled");
		expect((await world.enrol(token, await request("second", { machineId }))).code).toBe("HostAlreadyEnrolled");
		expect(await world.host("second")).toBeUndefined();
	});

	test("counts uses exactly when machines come at the same time", async () => {
		const { token } = await world.joinToken({ uses: 3 });
		const answers = await Promise.all(
			Array.from({ length: 8 }, async (_, i) => world.enrol(token, await request(`burst-${i}`))),
		);
		expect(answers.map(({ status }) => status).sort()).toEqual([201, 201, 201, 401, 401, 401, 401, 401]);
		const made = await Promise.all(answers.map((_, i) => world.host(`burst-${i}`)));
		expect(made.filter(Boolean)).toHaveLength(3);
	});

	test("leaves nothing in the database when the Host can't be made", async () => {
		const { token } = await world.joinToken();
		await world.kube.create(hosts, {
			apiVersion: "groundplane.io/v1alpha1",
			kind: "Host",
			metadata: { name: "going", namespace: NAMESPACE, finalizers: ["groundplane.io/host"] },
			spec: { approved: true, maintenance: false, roles: [] },
		});
		await world.kube.delete(hosts, { name: "going", namespace: NAMESPACE });
		const machineId = machine();
		expect((await world.enrol(token, await request("going", { machineId }))).code).toBe("Conflict");
		expect(await rowsOf("going")).toBe(0);
		await world.kube.patch(hosts, { name: "going", namespace: NAMESPACE }, { metadata: { finalizers: [] } });
		await eventually(async () => !(await world.host("going")), "the Host to go");
		expect((await world.enrol(token, await request("going", { machineId }))).status).toBe(201);
	});
});

describe("a host's life", () => {
	const name = "life";
	let enrolled: EnrollResponse;

	const documents: DesiredState[] = [];
	const verify = async (data: Uint8Array): Promise<DesiredState> => {
		const { jws } = JSON.parse(Buffer.from(data).toString()) as { jws: string };
		const { payload, protectedHeader } = await compactVerify(
			jws,
			createLocalJWKSet(enrolled.desiredStateJwks as never),
		);
		expect(protectedHeader).toMatchObject({ alg: "EdDSA", typ: "groundplane-desired-state+jwt", kid: "k1" });
		return JSON.parse(Buffer.from(payload).toString());
	};
	const listeners: Subscription[] = [];
	/** The gateway that holds the host. */
	const listen = () => {
		const subscription = world.nc.subscribe(`hosts.${name}.down`);
		listeners.push(subscription);
		void (async () => {
			for await (const message of subscription) {
				if (message.string() === "") continue;
				if (message.json<{ type: string }>().type === "desired-state") documents.push(await verify(message.data));
			}
		})();
	};
	const nextDocument = (after: number) =>
		eventually(async () => documents.find(({ generation }) => generation > after), `a document after ${after}`);
	const last = () => documents.at(-1) as DesiredState;
	const statusWhere = (test: (host: Host) => unknown, what: string) =>
		eventually(async () => {
			const host = await world.host(name);
			return host && test(host) ? host : undefined;
		}, what).catch(async (error: Error) => {
			throw new Error(`${error.message}: ${JSON.stringify((await world.host(name))?.status)}`);
		});
	const patch = (body: unknown) => world.kube.patch(hosts, { name, namespace: NAMESPACE }, body);
	const acknowledge = ({ epoch, generation }: DesiredState, roles: unknown[] = []) => {
		world.up(name, { type: "acknowledgement", epoch, generation, accepted: true });
		world.up(name, { type: "roles", generation, roles: roles as never });
	};

	beforeAll(async () => {
		const { token } = await world.joinToken({ approve: false });
		enrolled = (await world.enrol(token, await request(name))).body;
		listen();
		await world.nc.flush();
	});

	test("connected, it shows so and gets a document that tells it nothing until it is approved", async () => {
		world.link(name, { state: "connected" });
		const host = await statusWhere((h) => conditionOf(h, "Connected")?.status === "True", "Connected");
		expect(host.status?.connection).toMatchObject({ state: "Connected", gateway: "tunnel-0", address: "192.0.2.1" });
		expect(conditionOf(host, "Prerequisites")).toMatchObject({ status: "True" });
		expect(host.status?.facts?.os.prettyName).toContain("Debian");
		const document = await nextDocument(0);
		expect(document).toMatchObject({ region: "test", host: name, epoch: 0, paused: true, roles: [] });
		acknowledge(document);
		await statusWhere((h) => h.status?.desiredState?.reportedGeneration === h.metadata.generation, "the report");
	});

	test("approved and given a role, it gets it with the Secret's content; progress comes back", async () => {
		await world.kube.create(secrets, {
			metadata: { name: "join", namespace: NAMESPACE },
			stringData: { bootstrapToken: "abcdef.0123456789abcdef" },
		} as never);
		const before = last().generation;
		await patch({
			metadata: { annotations: { "groundplane.io/epoch": "7" } },
			spec: {
				approved: true,
				roles: [
					{ name: "kubernetes", version: "v1.36.3", parameters: { cluster: "demo", mode: "init" }, secretName: "join" },
				],
			},
		});
		const document = await nextDocument(before);
		expect(document).toMatchObject({
			epoch: 7,
			paused: false,
			roles: [{ name: "kubernetes", parameters: { cluster: "demo", bootstrapToken: "abcdef.0123456789abcdef" } }],
		});
		const role = { name: "kubernetes", version: "v1.36.3", phase: "Applying", done: 3, total: 9, step: "kubeadm-init" };
		acknowledge(document, [role]);
		const busy = await statusWhere((h) => h.status?.roles?.[0]?.phase === "Applying", "Applying");
		expect(busy.status?.roles?.[0]).toMatchObject({ progress: "3/9", step: "kubeadm-init" });
		expect(busy.status?.cluster).toBe("demo");
		expect(conditionOf(busy, "RolesApplied")).toMatchObject({ status: "False", reason: "Applying" });
		acknowledge(document, [{ ...role, phase: "Applied", done: 9, outputs: { caCertHash: "sha256:00" } }]);
		const done = await statusWhere((h) => conditionOf(h, "RolesApplied")?.status === "True", "Applied");
		expect(done.status?.desiredState).toMatchObject({
			generation: done.metadata.generation,
			acknowledgedGeneration: done.metadata.generation,
			reportedGeneration: done.metadata.generation,
		});
		expect(done.status?.roles?.[0]?.outputs).toEqual({ caCertHash: "sha256:00" });
		expect(JSON.stringify(done)).not.toContain("abcdef.0123456789abcdef");
		const targets = await world.asPrometheus(world.url("/internal/v1/targets?service=kube-apiserver"));
		expect(await targets.json()).toEqual([
			{ targets: [`kube-apiserver.${name}:80`], labels: { host: name, cluster: "demo" } },
		]);
	});

	test("an unchanged report writes nothing", async () => {
		const { resourceVersion } = (await world.host(name))?.metadata ?? {};
		world.link(name, { state: "connected", at: (await world.host(name))?.status?.connection?.since });
		world.up(name, {
			type: "facts",
			agentVersion: "0.1.0",
			facts: (await world.host(name))?.status?.facts as never,
			checks,
			certificateNotAfter: (await world.host(name))?.status?.agent?.certificateNotAfter ?? "",
		});
		await delay(1_000);
		expect((await world.host(name))?.metadata.resourceVersion).toBe(resourceVersion);
	});

	test("a report that PostgreSQL can't take is dropped and holds up none of those that come with it", async () => {
		const before = (await world.host(name))?.status?.agent;
		const facts = (await world.host(name))?.status?.facts as never;
		const version = (agentVersion: string, certificateNotAfter: string): UpMessage => ({
			type: "facts",
			agentVersion,
			facts,
			checks,
			certificateNotAfter,
		});
		const { token } = await world.joinToken();
		expect((await world.enrol(token, await request("bad-reporter"))).status).toBe(201);
		world.up("bad-reporter", version("0.1.1", "no time at all"));
		world.up(name, version("0.1.1", before?.certificateNotAfter ?? ""));
		await statusWhere((h) => h.status?.agent?.version === "0.1.1", "the good report");
		world.up("bad-reporter", version("0.1.2", before?.certificateNotAfter ?? ""));
		await eventually(
			async () =>
				(await world.database.query("SELECT agent_version FROM hosts WHERE name = 'bad-reporter'")).rows[0]
					?.agent_version === "0.1.2",
			"its next report",
		);
	});

	test("a document that nobody acknowledges is sent again", async () => {
		const before = last().generation;
		await patch({ spec: { maintenance: true } });
		const document = await nextDocument(before);
		expect(document.paused).toBe(true);
		const count = documents.length;
		await eventually(async () => documents.length > count, "the document again");
		expect(last()).toEqual(document);
		world.up(name, {
			type: "acknowledgement",
			epoch: 7,
			generation: document.generation,
			accepted: false,
			reason: "DesiredStateExpired",
			message: "expired",
		});
		const refused = await statusWhere(
			(h) => conditionOf(h, "RolesApplied")?.reason === "DesiredStateExpired",
			"a refusal",
		);
		expect(refused.status?.desiredState?.acknowledgedGeneration).toBeLessThan(refused.metadata.generation ?? 0);
		await patch({ spec: { maintenance: false } });
		acknowledge(await nextDocument(document.generation), [
			{ name: "kubernetes", version: "v1.36.3", phase: "Applied", done: 9, total: 9 },
		]);
		await statusWhere((h) => conditionOf(h, "RolesApplied")?.status === "True", "Applied again");
	});

	test("a Secret that is missing is said, and found when it comes", async () => {
		const before = last().generation;
		const roles = [{ name: "kubernetes", version: "v1.36.3", parameters: { cluster: "demo" }, secretName: "later" }];
		await patch({ spec: { roles } });
		const host = await statusWhere((h) => conditionOf(h, "RolesApplied")?.reason === "NotFound", "NotFound");
		expect(conditionOf(host, "RolesApplied")?.message).toContain("later");
		await world.kube.create(secrets, {
			metadata: { name: "later", namespace: NAMESPACE },
			stringData: { a: "b" },
		} as never);
		expect((await nextDocument(before)).roles[0]?.parameters).toEqual({ cluster: "demo", a: "b" });
	});

	test("a certificate is renewed over the tunnel, twice the same for the same request, and not for another name", async () => {
		const renewed: { certificate: string }[] = [];
		const subscription = world.nc.subscribe(`hosts.${name}.down`);
		void (async () => {
			for await (const message of subscription) {
				if (message.string() === "") continue;
				const body = message.json<{ type: string; certificate: string }>();
				if (body.type === "certificate") renewed.push(body);
			}
		})();
		documents.length = 0;
		const csr = await csrFor(name);
		world.up(name, { type: "certificate-request", csr: await csrFor("host-1") });
		await delay(300);
		world.up(name, { type: "certificate-request", csr });
		await eventually(async () => renewed.length === 1, "a certificate");
		world.up(name, { type: "certificate-request", csr });
		await eventually(async () => renewed.length === 2, "the certificate again");
		expect(renewed[0]?.certificate).toBe(renewed[1]?.certificate);
		const serial = new X509Certificate(renewed[0]?.certificate ?? "").serialNumber.toLowerCase();
		const admit = await world.nc.request("hosts.admit", JSON.stringify({ host: name, serial }));
		expect(admit.json()).toEqual({ admitted: true });
		const other = await world.nc.request("hosts.admit", JSON.stringify({ host: "host-1", serial }));
		expect(other.json()).toMatchObject({ admitted: false, reason: "HostNameMismatch" });
		subscription.unsubscribe();
	});

	test("an older tunnel that speaks up late changes nothing; the newest one's end does", async () => {
		world.link(name, { state: "connected", gateway: "tunnel-1", epoch: 5 });
		await statusWhere((h) => h.status?.connection?.gateway === "tunnel-1", "the new gateway");
		world.link(name, { state: "disconnected", gateway: "tunnel-0", epoch: 1, reason: "late" });
		await delay(700);
		expect((await world.host(name))?.status?.connection?.state).toBe("Connected");
		world.link(name, { state: "disconnected", gateway: "tunnel-1", epoch: 5, reason: "TunnelClosed" });
		const host = await statusWhere((h) => conditionOf(h, "Connected")?.status === "False", "Disconnected");
		expect(conditionOf(host, "Connected")?.reason).toBe("TunnelClosed");
		expect(host.status?.connection?.state).toBe("Disconnected");
	});

	test("a tunnel that no gateway holds any more is found out", async () => {
		const listening = world.nc.subscribe(`hosts.${name}.down`, { callback: () => undefined });
		world.link(name, { state: "connected", gateway: "tunnel-1", epoch: 6 });
		await statusWhere((h) => conditionOf(h, "Connected")?.status === "True", "Connected");
		for (const subscription of [listening, ...listeners.splice(0)]) subscription.unsubscribe();
		await eventually(
			async () => conditionOf(await world.host(name), "Connected")?.reason === "TunnelLost",
			"lost",
			60_000,
		);
		listen();
	}, 90_000);

	test("restarts of the service, PostgreSQL and NATS lose nothing", async () => {
		await Promise.all([world.nats.stop("kill"), world.postgres.stop("kill")]);
		await delay(500);
		await Promise.all([world.nats.start(), world.postgres.start()]);
		await world.restart();
		documents.length = 0;
		await eventually(
			async () => {
				world.link(name, { state: "connected", gateway: "tunnel-1", epoch: 6 });
				await delay(500);
				return conditionOf(await world.host(name), "Connected")?.status === "True";
			},
			"Connected after restarts",
			30_000,
		);
		await eventually(async () => documents.length > 0, "the document after the restarts");
	});

	test("a NATS that has lost its disk gets its streams back, and what is said on them is heard", async () => {
		const linked = async () =>
			(await world.database.query("SELECT link->>'gateway' AS gateway FROM hosts WHERE name = $1", [name])).rows[0]
				?.gateway;
		await world.nats.stop("kill");
		await rm(world.nats.store, { recursive: true, force: true });
		await world.nats.start();
		await eventually(
			async () => {
				world.link(name, { state: "connected", gateway: "tunnel-2", epoch: 7 });
				await delay(500);
				return (await linked()) === "tunnel-2";
			},
			"the report after the loss",
			60_000,
		);
	}, 90_000);

	test("a tunnel that was left before the hosts service heard of the new one is not taken for it", async () => {
		await world.during(async () => {
			world.link(name, { state: "connected", gateway: "tunnel-1", epoch: 9 });
			world.link(name, { state: "disconnected", gateway: "tunnel-2", epoch: 8, reason: "TunnelClosed" });
			await world.nc.flush();
		});
		await eventually(
			async () => (await world.host(name))?.status?.connection?.gateway === "tunnel-1",
			"the new gateway",
			40_000,
		);
		expect((await world.host(name))?.status?.connection?.state).toBe("Connected");
	}, 60_000);

	test("what an older version has left on the bus is taken over", async () => {
		const jsm = await jetstreamManager(world.nc);
		await jsm.consumers.update("HOSTS_UP", "hosts", { max_ack_pending: 64 });
		await world.restart();
		const { facts, agent } = (await world.host(name))?.status ?? {};
		world.up(name, {
			type: "facts",
			agentVersion: "0.2.0",
			facts: facts as never,
			checks,
			certificateNotAfter: agent?.certificateNotAfter ?? "",
		});
		await statusWhere((h) => h.status?.agent?.version === "0.2.0", "a report after the restart");
		expect((await jsm.consumers.info("HOSTS_UP", "hosts")).config.max_ack_pending).toBeGreaterThan(64);
	}, 60_000);

	test("deleted, it gets an empty document; gone, it is cut off and may come anew", async () => {
		await patch({ metadata: { finalizers: ["groundplane.io/host"] }, spec: { maintenance: true } });
		const before = Math.max(0, ...documents.map(({ generation }) => generation));
		await eventually(
			async () => documents.find(({ paused, generation }) => paused && generation > before),
			"maintenance",
		);
		const paused = last().generation;
		await world.kube.delete(hosts, { name, namespace: NAMESPACE });
		const empty = await nextDocument(paused);
		expect(empty).toMatchObject({ paused: false, roles: [] });
		acknowledge(empty);
		await statusWhere((h) => h.status?.roles?.length === 0, "no roles");
		const cuts = world.nc.subscribe(`hosts.${name}.cut`, { max: 1 });
		await patch({ metadata: { finalizers: [] } });
		for await (const cut of cuts) expect(cut.json()).toMatchObject({ reason: "CertificateRevoked" });
		await eventually(async () => (await rowsOf(name)) === 0, "the rows to go");
		const serial = new X509Certificate(enrolled.certificate).serialNumber;
		const admit = await world.nc.request("hosts.admit", JSON.stringify({ host: name, serial }));
		expect(admit.json()).toMatchObject({ admitted: false, reason: "CertificateRevoked" });
		const { token } = await world.joinToken();
		expect((await world.enrol(token, await request(name))).status).toBe(201);
	});
});

describe("a host that has two tunnels for a while", () => {
	const name = "two-tunnels";
	type Down = { type: string; jws?: string };
	const asked: Down[] = [];
	let subscription: Subscription;
	let enrolled: EnrollRequest;
	const reported = async () =>
		(
			await world.database.query<{ agent_version: string; accepted_epoch: string | null }>(
				"SELECT agent_version, accepted_epoch FROM hosts WHERE name = $1",
				[name],
			)
		).rows[0];
	const say = (agentVersion: string, epoch?: number) =>
		world.up(
			name,
			{ type: "facts", agentVersion, facts: enrolled.facts, checks, certificateNotAfter: "2027-01-01T00:00:00Z" },
			epoch,
		);
	const isKept = (agentVersion: string) =>
		eventually(async () => (await reported())?.agent_version === agentVersion, `${agentVersion} is kept`);
	const isAsked = () => eventually(async () => asked.splice(0).some(({ type }) => type === "report"), "asked anew");

	beforeAll(async () => {
		const { token } = await world.joinToken();
		enrolled = await request(name);
		expect((await world.enrol(token, enrolled)).status).toBe(201);
		subscription = world.nc.subscribe(`hosts.${name}.down`, {
			callback: (_error, message) => {
				if (message.string() !== "") asked.push(message.json<Down>());
			},
		});
	});
	afterAll(() => subscription.unsubscribe());

	test("what it said by the older one and comes late does not count, and it is asked for everything anew", async () => {
		say("1.0.0", 20);
		await isKept("1.0.0");
		// Nothing new but the tunnel: that one is newer counts all the same.
		say("1.0.0", 21);
		say("1.0.1", 21);
		await isKept("1.0.1");
		asked.length = 0;
		say("1.0.0", 20);
		await isAsked();
		expect((await reported())?.agent_version).toBe("1.0.1");
		say("1.0.2", 21);
		await isKept("1.0.2");
	});

	test("a document that it accepted by the older one is not taken for accepted by the newer", async () => {
		world.link(name, { state: "connected", gateway: "tunnel-1", epoch: 22 });
		const sent = await eventually(async () => asked.find(({ type }) => type === "desired-state"), "a document");
		const payload = Buffer.from(sent.jws?.split(".")[1] ?? "", "base64url").toString();
		const { generation } = JSON.parse(payload) as DesiredState;
		world.up(name, { type: "acknowledgement", epoch: 0, generation, accepted: true }, 21);
		await eventually(async () => (await reported())?.accepted_epoch === "21", "accepted by the older tunnel");
		world.up(name, { type: "acknowledgement", epoch: 0, generation, accepted: true }, 22);
		await eventually(async () => (await reported())?.accepted_epoch === "22", "accepted by the newer tunnel");
	});

	test("epochs that have fallen, and a gateway that does not tell them, keep nobody unheard", async () => {
		say("1.1.0");
		await isKept("1.1.0");
		world.link(name, { state: "connected", gateway: "tunnel-1", epoch: 3 });
		await eventually(async () => {
			say("1.1.1", 3);
			return (await reported())?.agent_version === "1.1.1";
		}, "heard by a tunnel whose epoch is lower than before");
	});
});

describe("evidence for where etcd should run", () => {
	test("a free host is told addresses of others, one that has a role is not; what it measures is in its status", async () => {
		const documents: DesiredState[] = [];
		const subscription = world.nc.subscribe("hosts.peer-a.down", {
			callback: (_error, message) => {
				if (message.string() === "") return;
				const { type, jws } = message.json<{ type: string; jws?: string }>();
				const payload = Buffer.from(jws?.split(".")[1] ?? "", "base64url").toString();
				if (type === "desired-state") documents.push(JSON.parse(payload) as DesiredState);
			},
		});
		const { token } = await world.joinToken({ uses: 2 });
		const at = async (name: string, primaryAddress: string) => {
			const body = await request(name);
			expect((await world.enrol(token, { ...body, facts: { ...body.facts, primaryAddress } })).status).toBe(201);
			return { ...body.facts, primaryAddress };
		};
		await at("peer-b", "192.0.2.22");
		const facts = await at("peer-a", "192.0.2.21");
		world.link("peer-a", { state: "connected" });
		const first = await eventually(async () => documents[0], "a document");
		expect(first).toMatchObject({ paused: false, roles: [] });
		expect(first.peers?.[0]).toBe("192.0.2.22");
		expect(first.peers).not.toContain("192.0.2.21");
		expect(first.peers?.length).toBeLessThanOrEqual(8);

		const measured = {
			fsync: { at: "2026-01-01T00:00:00Z", writes: 200, p50Ms: 1.25, p99Ms: 38.5 },
			clock: { at: "2026-01-01T00:00:00Z", offsetMs: -3, uncertaintyMs: 512 },
			peers: { at: "2026-01-01T00:00:00Z", medianMs: 0.4, roundTrips: [{ address: "192.0.2.22", ms: 0.4 }] },
		};
		world.up("peer-a", {
			type: "facts",
			agentVersion: "0.1.0",
			facts: { ...facts, measured },
			checks,
			certificateNotAfter: "2027-01-01T00:00:00Z",
		});
		await eventually(async () => (await world.host("peer-a"))?.status?.facts?.measured, "the figures");
		expect((await world.host("peer-a"))?.status?.facts?.measured).toEqual(measured);

		const count = documents.length;
		const roles = [{ name: "kubernetes", version: "v1.36.3", parameters: {} }];
		await world.kube.patch(hosts, { name: "peer-a", namespace: NAMESPACE }, { spec: { roles } });
		await eventually(async () => documents.slice(count).find((one) => one.roles.length > 0), "the role");
		expect(documents.at(-1)?.peers).toBeUndefined();
		subscription.unsubscribe();
	});
});

describe("what goes wrong in the middle", () => {
	const enrol = async (...names: string[]) => {
		const { token } = await world.joinToken({ uses: names.length });
		for (const name of names) expect((await world.enrol(token, await request(name))).status).toBe(201);
	};
	const linkOf = async (name: string) =>
		(await world.database.query("SELECT link FROM hosts WHERE name = $1", [name])).rows[0]?.link;
	/** Keeps a host's row, so that whoever wants to write to it waits until the transaction ends. */
	const hold = async (name: string) => {
		const transaction = await world.database.connect();
		await transaction.query("BEGIN");
		await transaction.query("SELECT FROM hosts WHERE name = $1 FOR UPDATE", [name]);
		return transaction;
	};
	const waiting = (count: number) =>
		eventually(async () => {
			const { rows } = await world.database.query(
				"SELECT count(*)::int AS count FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
			);
			return rows[0].count === count;
		}, `${count} statements wait`);
	const facts = (name: string, agentVersion: string): UpMessage => ({
		type: "facts",
		agentVersion,
		facts: { ...base, hostname: name },
		checks,
		certificateNotAfter: "2027-01-01T00:00:00Z",
	});
	let base: EnrollRequest["facts"];
	beforeAll(async () => {
		base = (await request("any")).facts;
	});

	test("an older tunnel's end and a newer one's beginning that are written at the same time leave the newer one", async () => {
		await enrol("racing");
		const held = world.nc.subscribe("hosts.racing.down", { callback: () => undefined });
		world.link("racing", { state: "connected", epoch: 30 });
		await eventually(async () => (await linkOf("racing"))?.epoch === 30, "the older tunnel");
		const transaction = await hold("racing");
		world.link("racing", { state: "disconnected", epoch: 30, reason: "TunnelClosed" });
		await waiting(1);
		await transaction.query(`UPDATE hosts SET link = link || '{"epoch": 31}' WHERE name = 'racing'`);
		await transaction.query("COMMIT");
		transaction.release();
		await waiting(0);
		await delay(500);
		expect(await linkOf("racing")).toMatchObject({ state: "connected", epoch: 31 });
		held.unsubscribe();
	});

	test("what is kept of a batch of which another part can't be kept is news all the same", async () => {
		await enrol("good-part", "bad-part", "before-them");
		const version = async () => (await world.host("good-part"))?.status?.agent?.version;
		await eventually(async () => (await version()) === "0.1.0", "its first status");
		await world.database.query(`
			CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
			CREATE TRIGGER refuse BEFORE UPDATE OF roles ON hosts FOR EACH ROW WHEN (NEW.name = 'bad-part') EXECUTE FUNCTION refuse()`);
		const transaction = await hold("before-them");
		world.up("before-them", facts("before-them", "2.0.0"));
		await waiting(1);
		world.up("good-part", facts("good-part", "2.0.0"));
		world.up("bad-part", { type: "roles", generation: 1, roles: [] });
		await world.nc.flush();
		await delay(300);
		await transaction.query("COMMIT");
		transaction.release();
		await eventually(async () => (await version()) === "2.0.0", "what was kept in the status");
		await world.database.query("DROP FUNCTION refuse CASCADE");
	});

	test("reports and tunnels of the same hosts that come in different orders don't wait for each other for ever", async () => {
		await enrol("order-a", "order-b", "order-c");
		await world.database.query(`
			CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
			CREATE TRIGGER linger BEFORE UPDATE ON hosts FOR EACH ROW WHEN (NEW.name LIKE 'order-%') EXECUTE FUNCTION linger()`);
		const transaction = await hold("order-c");
		world.up("order-c", facts("order-c", "2.0.0"));
		world.link("order-c", { state: "connected", epoch: 1 });
		await waiting(2);
		for (const name of ["order-b", "order-a"]) world.up(name, facts(name, "2.0.0"));
		for (const name of ["order-a", "order-b"]) world.link(name, { state: "connected", epoch: 1 });
		await world.nc.flush();
		await delay(300);
		await transaction.query("COMMIT");
		transaction.release();
		await eventually(async () => (await linkOf("order-b"))?.epoch === 1, "the last of them");
		await world.database.query("DROP FUNCTION linger CASCADE");
		await delay(2_000);
		const { rows } = await world.database.query(
			"SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()",
		);
		expect(rows[0].deadlocks).toBe(0);
	}, 30_000);

	test("a machine whose enrolment ends with the database has its Host when it asks again, not one that is going", async () => {
		await world.database.query(`
			CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
			CREATE TRIGGER die BEFORE INSERT ON enrolments FOR EACH ROW WHEN (NEW.host = 'unlucky') EXECUTE FUNCTION die()`);
		const { token } = await world.joinToken();
		const machineId = machine();
		expect((await world.enrol(token, await request("unlucky", { machineId }))).code).toBe("DatabaseUnavailable");
		await world.database.query("DROP FUNCTION die CASCADE");
		const uid = (await world.host("unlucky"))?.metadata.uid;
		expect(uid).toBeDefined();
		expect((await world.enrol(token, await request("unlucky", { machineId }))).status).toBe(201);
		expect((await world.host("unlucky"))?.metadata.uid).toBe(uid);
	});

	test("who asks for a certificate by a tunnel that the host has left gets none", async () => {
		await enrol("moved");
		const renewed: unknown[] = [];
		const held = world.nc.subscribe("hosts.moved.down", {
			callback: (_error, message) => {
				if (message.string().includes('"certificate"')) renewed.push(message);
			},
		});
		world.link("moved", { state: "connected", epoch: 41 });
		await eventually(async () => (await linkOf("moved"))?.epoch === 41, "the newer tunnel");
		world.up("moved", { type: "certificate-request", csr: await csrFor("moved") }, 40);
		await delay(1_000);
		expect(renewed).toEqual([]);
		world.up("moved", { type: "certificate-request", csr: await csrFor("moved") }, 41);
		await eventually(async () => renewed.length === 1, "a certificate by the newer one");
		held.unsubscribe();
	});

	test("a message that was cut off within a character, or holds a NUL, is told without it", async () => {
		await enrol("cut-off");
		const message = `${"😀".slice(1)} it failed: a\0b`;
		const role = { name: "kubernetes", version: "v1.36.3", phase: "Failed" as const, done: 1, total: 2, message };
		world.up("cut-off", { type: "roles", generation: 1, roles: [role] });
		const told = await eventually(async () => (await world.host("cut-off"))?.status?.roles?.[0]?.message, "the role");
		expect(told).toBe("\ufffd it failed: a\ufffdb");
	});

	test("a site whose hosts were all away for a moment keeps nobody waiting who goes or comes afterwards", async () => {
		const names = Array.from({ length: 600 }, (_, i) => `crowd-${i}`);
		const held = world.nc.subscribe("hosts.*.down", {
			callback: (_error, message) => {
				const name = message.subject.split(".")[1] ?? "";
				const { type, jws } = message.string() === "" ? {} : message.json<{ type?: string; jws?: string }>();
				if (type !== "desired-state" || !name.startsWith("crowd-")) return;
				const payload = Buffer.from(jws?.split(".")[1] ?? "", "base64url").toString();
				const { epoch, generation } = JSON.parse(payload) as DesiredState;
				world.up(name, { type: "acknowledgement", epoch, generation, accepted: true });
			},
		});
		const make = async (name: string) => {
			const { metadata } = await world.kube.create(hosts, {
				apiVersion: "groundplane.io/v1alpha1",
				kind: "Host",
				metadata: { name, namespace: NAMESPACE },
				spec: { approved: true, maintenance: false, roles: [] },
			});
			await world.database.query(
				`INSERT INTO hosts (name, machine_id, uid, enrolled_at, agent_version, facts, checks, certificate_not_after)
				VALUES ($1, $1, $2, now() - interval '1 hour', '0.1.0', $3, '[]', now() + interval '1 day')`,
				[name, metadata.uid, JSON.stringify({ ...base, hostname: name })],
			);
		};
		const work = names.values();
		await Promise.all(
			Array.from({ length: 8 }, async () => {
				for (const name of work) await make(name);
			}),
		);
		const say = (state: string) => {
			for (const name of names) world.link(name, { state, epoch: 1, ...(state === "disconnected" && { reason: "x" }) });
		};
		const shown = async (state: string) => {
			const { items } = await world.kube.list(hosts, { namespace: NAMESPACE });
			return items.filter(
				({ metadata, status }) => metadata.name.startsWith("crowd-") && status?.connection?.state === state,
			).length;
		};
		say("connected");
		await eventually(async () => (await shown("Connected")) === names.length, "all of them", 60_000);
		await delay(2_000);
		say("disconnected");
		// Until all are known to be away, and some are shown so.
		await delay(5_000);
		expect(await shown("Disconnected")).toBeGreaterThan(50);
		say("connected");
		const back = performance.now();
		await eventually(async () => (await shown("Connected")) === names.length, "all of them again", 60_000);
		expect(performance.now() - back).toBeLessThan(12_000);
		held.unsubscribe();
	}, 180_000);

	test("a host that is deleted while NATS is away is cut off when it is back, and nothing is left of it on the bus", async () => {
		await enrol("left-behind");
		world.link("left-behind", { state: "connected", epoch: 1 });
		await eventually(async () => (await linkOf("left-behind"))?.epoch === 1, "its tunnel");
		const cuts: unknown[] = [];
		const subscription = world.nc.subscribe("hosts.left-behind.cut", {
			callback: (_error, message) => void cuts.push(message.json()),
		});
		await world.nats.stop("kill");
		await world.kube.delete(hosts, { name: "left-behind", namespace: NAMESPACE });
		await eventually(async () => !(await world.host("left-behind")), "the Host to go");
		await delay(2_000);
		await world.nats.start();
		await eventually(async () => cuts.length > 0, "the cut", 40_000);
		await eventually(async () => (await rowsOf("left-behind")) === 0, "the rows to go", 40_000);
		const jsm = await jetstreamManager(world.nc);
		const { state } = await jsm.streams.info("HOSTS_LINK", { subjects_filter: "hosts.left-behind.link" });
		expect(state.subjects ?? {}).toEqual({});
		subscription.unsubscribe();
	}, 90_000);
});
