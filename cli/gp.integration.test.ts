import "reflect-metadata";
import { execFile, spawn } from "node:child_process";
import { webcrypto } from "node:crypto";
import { readFile, stat, writeFile } from "node:fs/promises";
import { Agent, request } from "node:https";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parse } from "yaml";
import { clusters, hosts } from "../operator/kube/resources.ts";
import { startRegion, type TestRegion } from "../test/support/region.ts";

let region: TestRegion;
let environment: NodeJS.ProcessEnv;

beforeAll(async () => {
	region = await startRegion();
	environment = {
		PATH: process.env.PATH,
		HOME: region.directory,
		GROUNDPLANE_CONFIG: join(region.directory, "gp.json"),
	};
});
afterAll(async () => {
	await region?.close();
});

interface Result {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

/** Runs the real program in a process of its own. */
function run(program: string, args: readonly string[], input = "", env = environment): Promise<Result> {
	return new Promise((resolve) => {
		const child = execFile(program, args, { env }, (error, stdout, stderr) =>
			resolve({ code: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
		);
		child.stdin?.end(input);
	});
}
const main = join(import.meta.dirname, "main.ts");
const gp = (args: readonly string[], input?: string, env?: NodeJS.ProcessEnv) =>
	run("node", [main, ...args], input, env);

/** Runs gp and expects that it works. */
async function ok(args: readonly string[], input?: string): Promise<string> {
	const { code, stdout, stderr } = await gp(args, input);
	expect(code, `gp ${args.join(" ")}: ${stderr}`).toBe(0);
	return stdout;
}

const config = async () => JSON.parse(await readFile(environment.GROUNDPLANE_CONFIG ?? "", "utf8"));
const login = (...args: string[]) => ["login", "--server", region.server, "--ca-digest", region.caDigest, ...args];
const asAdmin = () => login("--username", region.admin.username, "--password-stdin");

test("before anything: what to do, and exit codes that tell", async () => {
	expect(await gp(["host", "list"])).toMatchObject({ code: 2, stderr: expect.stringContaining("gp login --server") });
	expect((await gp(["host", "frobnicate"])).code).toBe(2);
	const refused = await gp(["login", "--server", "https://localhost:1", "--ca-digest", "00"]);
	expect(refused).toMatchObject({ code: 5, stderr: expect.stringContaining("(Unreachable)") });
});

test("the region's CA is trusted by its digest alone, and never silently", async () => {
	const wrong = await gp(["login", "--server", region.server, "--ca-digest", "00".repeat(32)]);
	expect(wrong).toMatchObject({ code: 1, stderr: expect.stringContaining(region.caDigest) });
	const unasked = await gp(["login", "--server", region.server, "--token", "gpt_x"]);
	expect(unasked).toMatchObject({ code: 1, stderr: expect.stringContaining("--ca-digest") });
	expect((await gp(asAdmin(), "wrong password")).code).toBe(3);
	await ok(asAdmin(), `${region.admin.password}\n`);
	const path = environment.GROUNDPLANE_CONFIG ?? "";
	expect((await stat(path)).mode & 0o777).toBe(0o600);
	expect(await readFile(path, "utf8")).not.toContain(region.admin.password);
	expect(JSON.parse(await ok(["whoami", "-o", "json"]))).toMatchObject({ name: "admin", roles: ["admin"] });
	expect(await ok(["region", "get"])).toContain(region.domain);
});

test("users come, change and go; who may not is told so", async () => {
	await ok(["user", "create", "eve", "--role", "viewer"], "a long enough password");
	expect(await ok(["user", "list"])).toMatch(/eve +viewer +active/);
	const asEve = { ...environment, GROUNDPLANE_CONFIG: join(region.directory, "eve.json") };
	expect((await gp(login("--username", "eve", "--password-stdin"), "a long enough password", asEve)).code).toBe(0);
	expect(await gp(["host", "join-command"], "", asEve)).toMatchObject({
		code: 3,
		stderr: expect.stringContaining("Forbidden"),
	});
	await ok(["user", "update", "eve", "--role", "operator"]);
	const wrong = await gp(["password"], "not hers at all\na better password of hers\n", asEve);
	expect(wrong).toMatchObject({ code: 3, stderr: expect.stringContaining("current password is wrong") });
	const changed = await gp(["password"], "a long enough password\na better password of hers\n", asEve);
	expect(changed).toMatchObject({ code: 0, stderr: expect.stringContaining("The password of eve is changed") });
	const again = (password: string) => gp(login("--username", "eve", "--password-stdin"), password, asEve);
	expect((await again("a long enough password")).code).toBe(3);
	expect((await again("a better password of hers")).code).toBe(0);
	await ok(["user", "delete", "eve"]);
	expect((await gp(["user", "delete", "eve"])).code).toBe(4);
	expect((await gp(["whoami"], "", asEve)).code).not.toBe(0);
});

test("an API token signs in as well as a password, until it is revoked", async () => {
	const made = JSON.parse(await ok(["token", "create", "ci", "-o", "json"]));
	const other = { ...environment, GROUNDPLANE_CONFIG: join(region.directory, "other.json") };
	expect((await gp(login("--token", "-"), made.token, other)).code).toBe(0);
	expect(await ok(["token", "list"])).toContain(made.id);
	await ok(["token", "revoke", made.id]);
	const state = JSON.parse(await readFile(other.GROUNDPLANE_CONFIG, "utf8"));
	state.regions[region.domain].access.expiresAt = 0;
	await writeFile(other.GROUNDPLANE_CONFIG, JSON.stringify(state));
	expect(await gp(["whoami"], "", other)).toMatchObject({ code: 3, stderr: expect.stringContaining("gp login") });
});

test("the join command downloads the script with the front's key pinned; the host it names enrols and is managed", async () => {
	const line = (await ok(["host", "join-command", "--name", "host-1", "--no-approve"])).trim();
	expect(line).toMatch(
		/^curl -fsSLk --pinnedpubkey 'sha256\/\/[\w+/=]{44}' -H 'Authorization: Bearer gpj_[\w-]{43}' https:\S+ \| sh$/,
	);
	const script = await run("sh", ["-c", line.replace(/\| sh$/, "")]);
	expect(script.stdout).toMatch(/^#!\/bin\/sh\n# Joins this machine/);
	expect(await ok(["token", "list", "--join"])).toContain("host-1");

	await enrol("host-1", /Bearer (\S+)'/.exec(line)?.[1] ?? "");
	expect(await ok(["host", "list", "-o", "name"])).toBe("host/host-1\n");
	expect(await ok(["host", "get", "host-1"])).toContain("Debian GNU/Linux 12");
	const spec = async () => (await region.kube.get(hosts, "host-1", region.namespace)).spec;
	await ok(["host", "approve", "host-1"]);
	expect((await spec()).approved).toBe(true);
	await ok(["host", "maintenance", "host-1", "on"]);
	expect((await spec()).maintenance).toBe(true);
	expect((await gp(["host", "maintenance", "host-1", "maybe"])).code).toBe(2);
	await ok(["host", "delete", "host-1", "--wait", "--timeout", "10s"]);
	expect(await gp(["host", "get", "host-1"])).toMatchObject({ code: 4, stderr: expect.stringContaining("(NotFound)") });
	expect(await gp(["host", "list"])).toMatchObject({
		code: 0,
		stdout: "",
		stderr: expect.stringContaining("join-command"),
	});
});

const manifest = (hosts: string, schedulable = false) => `
apiVersion: groundplane.io/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  version: v1.36.3
  controlPlane: {hosts: [${hosts}]}
  controlPlaneSchedulable: ${schedulable}
`;

test("clusters are made, changed and refused as the file says, and waited for", async () => {
	const file = join(region.directory, "demo.yaml");
	await writeFile(file, manifest("a, b"));
	const refused = await gp(["cluster", "apply", "-f", file]);
	expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining("1, 3 or 5 hosts") });
	expect((await gp(["cluster", "apply", "-f", "-"], "kind: Pod")).stderr).toContain("not Cluster");
	expect(await ok(["cluster", "apply", "-f", "-"], manifest("a"))).toBe("demo is made.\n");
	expect(await ok(["cluster", "apply", "-f", "-"], manifest("a"))).toBe("demo is unchanged.\n");
	expect(await gp(["cluster", "apply", "-f", "-", "--wait", "--timeout", "1s"], manifest("a"))).toMatchObject({
		code: 6,
	});

	const waiting = gp(["cluster", "apply", "-f", "-", "--wait"], manifest("a", true));
	const status = (phase: string, ready: string, generation: number) =>
		region.kube.apply(
			clusters,
			{
				metadata: { name: "demo", namespace: region.namespace },
				status: {
					phase,
					progress: { step: "kubeadm init", host: "a" },
					conditions: [
						{
							type: "Ready",
							status: ready,
							reason: "Any",
							message: "any",
							observedGeneration: generation,
							lastTransitionTime: "2026-01-01T00:00:00Z",
						},
					],
				},
			},
			{ manager: "test", force: true, subresource: "status" },
		);
	// What was true of the earlier spec does not end the wait.
	await status("Ready", "True", 1);
	await new Promise((resolve) => setTimeout(resolve, 2_500));
	await status("Updating", "False", 2);
	await new Promise((resolve) => setTimeout(resolve, 2_500));
	await status("Ready", "True", 2);
	const done = await waiting;
	expect(done).toMatchObject({ code: 0, stdout: "demo is ready.\n" });
	expect(done.stderr).toMatch(/demo: Updating, kubeadm init on a/);
	expect(await ok(["cluster", "list"])).toMatch(/demo +Ready +v1\.36\.3/);
	expect(await ok(["cluster", "get", "demo", "-o", "yaml"])).toContain("podSubnet: 10.244.0.0/16");
});

test("another version: planned, refused, begun, waited for until it stops; and a deletion by force says its price first", async () => {
	const status = (more: object) =>
		region.kube.patch(
			clusters,
			{ name: "demo", namespace: region.namespace },
			{
				status: {
					version: "v1.36.3",
					members: [
						{ host: "a", role: "control-plane", phase: "Ready", version: "v1.36.3" },
						{ host: "b", role: "worker", phase: "NotReady", version: "v1.36.3" },
					],
					...more,
				},
			},
			{ subresource: "status" },
		);
	await status({});
	const plan = await ok(["cluster", "upgrade", "demo", "v1.37.1", "--dry-run"]);
	expect(plan).toMatch(/^demo: v1.36.3 → v1.37.1, about 2 min$/m);
	expect(plan).toMatch(
		/^1 +a +control-plane +50s +etcd snapshot, drain, v1.36.3 → v1.37.1, node, API server and etcd checked$/m,
	);
	expect(plan).toMatch(/^2 +b +worker /m);
	expect(plan).toContain("stands in the way: b is not well");
	expect(await ok(["cluster", "get", "demo", "-o", "json"])).toContain('"version": "v1.36.3"');
	expect(await gp(["cluster", "upgrade", "demo", "v1.38.0"])).toMatchObject({
		code: 2,
		stderr: expect.stringContaining("one minor version at a time"),
	});

	const waiting = gp(["cluster", "upgrade", "demo", "v1.37.1", "--wait"]);
	let generation: number | undefined;
	for (let i = 0; i < 60 && generation !== 3; i++) {
		await new Promise((resolve) => setTimeout(resolve, 500));
		generation = (await region.kube.get(clusters, "demo", region.namespace)).metadata.generation;
	}
	const at = new Date(Date.now() + 1000).toISOString();
	const message = "a failed to become v1.37.1 and was put back";
	await status({
		phase: "Degraded",
		upgrade: {
			from: "v1.36.3",
			to: "v1.37.1",
			since: at,
			hosts: [],
			stopped: { host: "a", to: "v1.37.1", at, message },
		},
		conditions: [
			{
				type: "Ready",
				status: "False",
				reason: "UpgradeStopped",
				message,
				observedGeneration: generation,
				lastTransitionTime: at,
			},
		],
	});
	expect(await waiting).toMatchObject({ stderr: expect.stringContaining(message) });
	expect((await waiting).code).not.toBe(0);

	const refused = await gp(["cluster", "delete", "demo", "--force"]);
	expect(refused.stderr).toMatch(/pods are killed without notice.*Not well now: b.*--force --yes/s);
	const demo = () => region.kube.get(clusters, "demo", region.namespace);
	expect((await demo()).metadata.annotations?.["groundplane.io/force-delete"]).toBeUndefined();
});

test("kubeconfig calls this very gp, which hands out access tokens", async () => {
	const kubeconfig = parse(await ok(["cluster", "kubeconfig", "demo"]));
	expect(kubeconfig.clusters[0].cluster.server).toBe(`${region.server}/k8s/clusters/demo`);
	expect(Buffer.from(kubeconfig.clusters[0].cluster["certificate-authority-data"], "base64").toString()).toBe(
		region.caPem,
	);
	const { command, args, env } = kubeconfig.users[0].user.exec;
	expect(command).toMatch(/^\//);
	const result = await run(command, args, "", { PATH: environment.PATH, [env[0].name]: env[0].value });
	const credential = JSON.parse(result.stdout);
	expect(credential).toMatchObject({ apiVersion: "client.authentication.k8s.io/v1", kind: "ExecCredential" });
	expect(Date.parse(credential.status.expirationTimestamp)).toBeGreaterThan(Date.now());
});

test("a sign-in in the browser lasts, also when many kubectls renew it at once", async () => {
	const child = spawn("node", [main, ...login()], { env: environment, stdio: ["ignore", "pipe", "pipe"] });
	let stderr = "";
	const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
	const url = await new Promise<string>((resolve) =>
		child.stderr.on("data", (chunk: Buffer) => {
			stderr += chunk;
			const found = /^ {2}(https:\S+)$/m.exec(stderr)?.[1];
			if (found) resolve(found);
		}),
	);
	await signInWithBrowser(url);
	expect(await ended, stderr).toBe(0);
	expect((await config()).regions[region.domain].credentials.type).toBe("session");

	const before = (await config()).regions[region.domain].credentials.refreshToken;
	const expired = await config();
	expired.regions[region.domain].access.expiresAt = 0;
	await writeFile(environment.GROUNDPLANE_CONFIG ?? "", JSON.stringify(expired));
	const results = await Promise.all(Array.from({ length: 6 }, () => gp(["cluster", "credential"])));
	expect(results.map(({ code, stderr }) => `${code}${stderr}`)).toEqual(Array(6).fill("0"));
	expect(new Set(results.map(({ stdout }) => JSON.parse(stdout).status.token)).size).toBe(1);
	expect((await config()).regions[region.domain].credentials.refreshToken).not.toBe(before);
	await ok(["whoami"]);
});

test("after signing out nothing works and nothing secret is left", async () => {
	await ok(["logout"]);
	expect(await gp(["whoami"])).toMatchObject({ code: 3 });
	expect(await readFile(environment.GROUNDPLANE_CONFIG ?? "", "utf8")).not.toMatch(/refreshToken|"token"/);
});

/** Enrols as the agent does. */
async function enrol(name: string, token: string): Promise<void> {
	const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
	const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
	const csr = await x509.Pkcs10CertificateRequestGenerator.create({
		name: `CN=${name}`,
		keys: keys as never,
		signingAlgorithm: algorithm,
	});
	const facts = {
		hostname: name,
		machineId: "0".repeat(64),
		architecture: "amd64",
		os: { id: "debian", versionId: "12", prettyName: "Debian GNU/Linux 12" },
		kernel: "6.1",
		cgroup: "v2",
		cpu: { cores: 2, model: "any" },
		memoryBytes: 2 ** 32,
		disks: [],
		filesystems: [],
		interfaces: [],
		primaryAddress: "192.0.2.10",
		bootId: "b",
	};
	const body = { csr: csr.toString("pem"), name, agentVersion: "0.1.0", time: Date.now() / 1000, facts, checks: [] };
	const answer = await https(`${region.server}/enroll/v1/hosts`, {
		method: "POST",
		headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
		body: JSON.stringify(body),
	});
	expect(answer.status, answer.body).toBe(201);
	for (let tries = 0; tries < 100; tries++) {
		if ((await region.kube.get(hosts, name, region.namespace)).status?.facts) return;
		await new Promise((resolve) => setTimeout(resolve, 50));
	}
	throw new Error("the Host shows no facts");
}

interface Exchange {
	readonly status: number;
	readonly headers: Record<string, string | string[] | undefined>;
	readonly body: string;
}

function https(
	url: string,
	{ body, ...options }: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Exchange> {
	return new Promise((resolve, reject) => {
		const outgoing = request(url, { ...options, agent: new Agent({ ca: region.caPem }) }, (incoming) => {
			let text = "";
			incoming.on("data", (chunk) => {
				text += chunk;
			});
			incoming.on("end", () => resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, body: text }));
		});
		outgoing.on("error", reject);
		outgoing.end(body);
	});
}

/** What a person does in a browser: follow redirects with cookies, fill in the form, end at the loopback of gp. */
async function signInWithBrowser(start: string): Promise<void> {
	const cookies = new Map<string, string>();
	const visit = async (url: string, form?: URLSearchParams): Promise<{ url: string; body: string }> => {
		if (url.startsWith("http:")) return { url, body: await (await fetch(url)).text() };
		const answer = await https(url, {
			method: form ? "POST" : "GET",
			headers: {
				cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join("; "),
				...(form && { "content-type": "application/x-www-form-urlencoded" }),
			},
			...(form && { body: form.toString() }),
		});
		for (const cookie of answer.headers["set-cookie"] ?? []) {
			const [, name = "", value = ""] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
			if (value) cookies.set(name, value);
			else cookies.delete(name);
		}
		const { location } = answer.headers;
		if (typeof location === "string") return visit(new URL(location, url).href);
		return { url, body: answer.body };
	};
	let page = await visit(start);
	for (let pages = 0; pages < 3 && page.url.includes("/auth/interaction/"); pages++) {
		const { username, password } = region.admin;
		const fields = page.body.includes('name="password"') ? { username, password } : {};
		page = await visit(page.url, new URLSearchParams(fields));
	}
	expect(page.body).toContain("close this page");
}
