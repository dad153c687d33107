import { KeyObject } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import "reflect-metadata";
import { X509CertificateGenerator } from "@peculiar/x509";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { balancer } from "./balancer.ts";
import { directory } from "./directory.ts";
import { type Exec, execute } from "./exec.ts";
import { decide, type Found, isOlder } from "./kubeadm.ts";
import { checkHost, preflight } from "./preflight.ts";
import type { StepContext } from "./primitive.ts";
import { unit } from "./unit.ts";

let root: string;
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "primitives-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const context = (exec: Exec): StepContext => ({
	exec,
	blob: async () => "",
	file: () => {
		throw new Error("no files");
	},
	backupDir: join(root, "before"),
	signal: new AbortController().signal,
	now: Date.now,
	log: () => {},
});
const never = { last: undefined, now: "1" };
const once = { last: "1", now: "1" };

describe("kubeadm", () => {
	const nothing: Found = {
		etcdData: false,
		apiServerManifest: false,
		adminConfig: false,
		kubeletConfig: false,
		kubeletIdentity: false,
		anything: false,
	};
	const certificates = { ...nothing, anything: true };
	const manifests = { ...certificates, adminConfig: true, apiServerManifest: true };
	const started = { ...manifests, kubeletConfig: true, kubeletIdentity: true };
	const whole = { ...started, etcdData: true };

	it.each([
		["init", nothing, "fresh"],
		["init", certificates, "redo"],
		["init", manifests, "redo"],
		["init", started, "redo"],
		["init", whole, "resume"],
		["join-control-plane", started, "redo"],
		["join-control-plane", whole, "resume"],
		["join-worker", nothing, "fresh"],
		["join-worker", certificates, "redo"],
		["join-worker", { ...certificates, kubeletConfig: true, kubeletIdentity: true }, "resume"],
	] as const)("%s with %o → %s", (mode, found, decision) => expect(decide(mode, found)).toBe(decision));
});

it.each([
	["v1.35.4", "v1.36.3", true],
	["v1.9.10", "v1.10.0", true],
	["v1.36.3", "v1.36.3", false],
	["v1.36.3-rc.1", "v1.36.3", false],
	["v1.36.3", "v1.35.4", false],
])("%s is older than %s: %s", (version, than, older) => expect(isOlder(version, than)).toBe(older));

async function selfSigned(): Promise<{ key: string; cert: string }> {
	const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
	const keys = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
	const certificate = await X509CertificateGenerator.createSelfSigned({
		name: "CN=kubernetes",
		keys,
		signingAlgorithm: algorithm,
	});
	const key = KeyObject.from(keys.privateKey).export({ type: "pkcs8", format: "pem" });
	return { key: String(key), cert: certificate.toString("pem") };
}

describe("balancer", () => {
	/** A kernel that has the table it was last given. */
	function kernel() {
		let table: string | undefined;
		const exec: Exec = async (file, args, { input } = {}) => {
			if (file === "ip") return { code: 0, stdout: "1: lo    inet 169.254.99.1/32 scope global lo\n", stderr: "" };
			if (args[0] === "--file") table = input;
			return table === undefined ? { code: 1, stdout: "", stderr: "" } : { code: 0, stdout: table, stderr: "" };
		};
		return exec;
	}

	it("leads only to control planes that answer, and to all when none does", async () => {
		const server = createTlsServer(await selfSigned());
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
		const { port } = server.address() as { port: number };
		const want = { address: "169.254.99.1", port, table: "groundplane-api", backends: ["127.0.0.1", "127.0.0.2"] };
		const exec = kernel();
		expect((await balancer.observe(want, context(exec), never)).ok).toBe(false);
		await balancer.apply(want, context(exec), never);
		expect((await exec("nft", ["list"])).stdout).toContain("mod 1 map { 0 : 127.0.0.1 }");
		expect((await balancer.observe(want, context(exec), once)).ok).toBe(true);
		await new Promise((resolve) => server.close(resolve));
		expect((await balancer.observe(want, context(exec), once)).ok).toBe(false);
		await balancer.apply(want, context(exec), once);
		expect((await exec("nft", ["list"])).stdout).toContain("mod 2 map { 0 : 127.0.0.1, 1 : 127.0.0.2 }");
	});
});

describe("unit", () => {
	/** A systemd that does as it is told. */
	function systemd() {
		const state = { enabled: false, active: false, calls: [] as string[] };
		const exec: Exec = async (_file, args) => {
			const [verb = "", ...rest] = args;
			state.calls.push(args.join(" "));
			if (verb === "enable") state.enabled = true;
			if (verb === "disable") state.enabled = false;
			if (verb === "restart") state.active = true;
			if (verb === "stop" || rest.includes("--now") || (verb === "disable" && rest[0] === "--now"))
				state.active = false;
			const stdout = verb === "is-enabled" ? (state.enabled ? "enabled" : "") : state.active ? "active" : "inactive";
			return { code: 0, stdout, stderr: "" };
		};
		return { state, exec };
	}

	it("starts, restarts when what it reads changed, and leaves nothing", async () => {
		const { state, exec } = systemd();
		const want = unit.schema.parse({ name: "x.service", content: "[Service]", directory: root }) as never;
		const memory = await unit.remember(want, context(exec));
		await unit.apply(want, context(exec), never);
		expect(state).toMatchObject({ enabled: true, active: true });
		expect((await unit.observe(want, context(exec), once)).ok).toBe(true);
		expect((await unit.observe(want, context(exec), { last: "0", now: "1" })).why).toContain("restarted");
		await unit.undo(memory as never, context(exec));
		expect(state).toMatchObject({ enabled: false, active: false });
		expect(existsSync(join(root, "x.service"))).toBe(false);
	});

	it("puts back a unit that was there before, and its state", async () => {
		const { state, exec } = systemd();
		state.active = true;
		writeFileSync(join(root, "x.service"), "theirs");
		const want = unit.schema.parse({ name: "x.service", content: "ours", directory: root }) as never;
		const memory = await unit.remember(want, context(exec));
		await unit.apply(want, context(exec), never);
		await unit.undo(memory as never, context(exec));
		expect(readFileSync(join(root, "x.service"), "utf8")).toBe("theirs");
		expect(state).toMatchObject({ enabled: false, active: true });
	});
});

it("a directory that was there keeps what it held and its mode", async () => {
	const path = join(root, "etc");
	mkdirSync(path, { mode: 0o750 });
	writeFileSync(join(path, "theirs"), "");
	const want = directory.schema.parse({ path, purge: true }) as never;
	const memory = await directory.remember(want, context(execute));
	writeFileSync(join(path, "ours"), "");
	chmodSync(path, 0o700);
	await directory.undo(memory as never, context(execute));
	expect([existsSync(join(path, "theirs")), existsSync(join(path, "ours"))]).toEqual([true, false]);
	expect(statSync(path).mode & 0o777).toBe(0o750);
});

it("preflight names everything that is wrong at once", async () => {
	const server = createServer();
	await new Promise<void>((resolve) => server.listen(0, resolve));
	const { port } = server.address() as { port: number };
	const wants = {
		cores: 100_000,
		memoryMiB: 1e9,
		ports: [port],
		programs: { "no-such-program": "some-package" },
		absent: [root],
	};
	const wrong = (await checkHost(wants)).filter(({ ok, name }) => !ok && name !== "systemd" && name !== "root");
	expect(wrong.map(({ name }) => name)).toEqual([
		"cores",
		"memory",
		`port-${port}`,
		"program-no-such-program",
		`absent-${root}`,
	]);
	expect(wrong.every(({ next }) => next !== undefined)).toBe(true);
	const want = preflight.schema.parse(wants) as never;
	await expect(preflight.apply(want, context(execute), never)).rejects.toMatchObject({
		code: "PrerequisiteNotMet",
		message: expect.stringMatching(/cores.*memory.*port.*no-such-program/),
	});
	server.close();
});

describe("execute", () => {
	it("gives codes that were expected, and complains about others with the program's own words", async () => {
		expect((await execute("sh", ["-c", "exit 3"], { codes: [3] })).code).toBe(3);
		expect((await execute("cat", [], { input: "hello" })).stdout).toBe("hello");
		await expect(execute("sh", ["-c", "echo no space >&2; exit 2"])).rejects.toMatchObject({
			code: "CommandFailed",
			message: expect.stringContaining("exited with 2: no space"),
		});
		await expect(execute("no-such-program", [])).rejects.toMatchObject({ code: "CommandFailed" });
	});

	it("ends the program when its time is up", async () => {
		const started = Date.now();
		await expect(execute("sleep", ["30"], { signal: AbortSignal.timeout(100) })).rejects.toThrow(/timeout/);
		expect(Date.now() - started).toBeLessThan(5000);
	});
});
