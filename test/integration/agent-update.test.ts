import { type ChildProcess, spawn } from "node:child_process";
import { createHash, generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { CompactSign } from "jose";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { Paths } from "../../agent/config.ts";
import { readStatus } from "../../agent/status.ts";
import type { Host } from "../../crds/host.ts";
import { getCondition } from "../../operator/kube/conditions.ts";
import { hosts } from "../../operator/kube/resources.ts";
import { RELEASE_MANIFEST_TYPE } from "../../protocol/release.ts";
import { VERSION } from "../../protocol/version.ts";
import { debianPackage } from "../../services/artifacts/debian-package.ts";
import { startSite, type TestSite } from "../support/site.ts";

/**
 * A region that changes its release, and a host whose launcher, agents and packages are real; a loop stands in for systemd. Only
 * the faults of versions are made up.
 */
vi.setConfig({ testTimeout: 240_000 });
const ROOT = join(import.meta.dirname, "../..");
const directory = mkdtempSync(join(tmpdir(), "gp-agent-update-"));
const packages = join(directory, "packages");
const paths = new Paths(join(directory, "host"));
const launcher = join(directory, "gp-agent");
const starts = join(directory, "starts");
const release = generateKeyPairSync("ed25519");
const releaseJwks = { keys: [{ ...release.publicKey.export({ format: "jwk" }), kid: "r", alg: "EdDSA" }] };
const env = { AGENT_ROLL_INTERVAL: "1s" };
let site: TestSite;
let service: { kill(): Promise<void>; stop(): Promise<void> } | undefined;

beforeAll(async () => {
	mkdirSync(packages);
	writeFileSync(join(directory, "release.jwks"), JSON.stringify(releaseJwks));
	writeLauncher(60);
	await publish("2.0.0", "");
	await publish("3.0.0", '[ "$1" = run ] && exit 3');
	await publish("4.0.0", "export GP_TEST_FAULT=no-way");
	await publish("5.0.0", '[ "$1" = run ] && exec sleep 600');
	site = await startSite({
		hosts: env,
		artifacts: { PACKAGES_DIR: packages, RELEASE_JWKS_FILE: join(directory, "release.jwks") },
	});
	site.install(paths, await site.joinToken(), { releaseJwks });
	service = supervise();
	await vi.waitFor(async () => expect((await host()).status?.agent?.version).toBe(VERSION), { timeout: 60_000 });
}, 180_000);

afterAll(async () => {
	await service?.stop();
	await site?.close();
	rmSync(directory, { recursive: true, force: true });
});

test("a host goes over to the region's version, and that is the one that starts from then on", async () => {
	await site.region.restart("hosts", { ...env, AGENT_VERSION: "2.0.0" });
	await runs("2.0.0", { status: "True", reason: "UpToDate" });
	expect(readlinkSync(join(paths.versions, "current"))).toBe("2.0.0");
	await service?.kill();
	await vi.waitFor(
		() => expect(readStatus(paths.status)).toMatchObject({ version: "2.0.0", link: { reconnects: 0 } }),
		waits,
	);
	await vi.waitFor(() => expect(startsOf("2.0.0")).toBe(2), waits);
});

test("a version that crashes is left at once, and is tried once only", async () => {
	await site.region.restart("hosts", { ...env, AGENT_VERSION: "3.0.0" });
	await runs("2.0.0", { status: "False", reason: "AgentUpdateFailed" });
	expect(await message()).toContain("version 3.0.0 ended before it had spoken with the region");
	expect(startsOf("3.0.0")).toBe(1);
});

test("it is tried once more when a person asks for it, and not again when the agent starts anew", async () => {
	const metadata = { annotations: { "groundplane.io/agent-update-retry": "1" } };
	await site.region.kube.patch(hosts, { name: "host-1", namespace: site.region.namespace }, { metadata }, {
		type: "merge",
	} as never);
	await vi.waitFor(() => expect(startsOf("3.0.0")).toBeGreaterThan(1), waits);
	await runs("2.0.0", { status: "False", reason: "AgentUpdateFailed" });
	await service?.kill();
	await connected("2.0.0");
	expect(startsOf("3.0.0")).toBe(2);
});

test("a version that finds no way to the region is left when its time is over", async () => {
	writeLauncher(6);
	await site.region.restart("hosts", { ...env, AGENT_VERSION: "4.0.0" });
	await vi.waitFor(() => expect(startsOf("4.0.0")).toBe(1), waits);
	await vi.waitFor(
		async () => expect(await message()).toContain("version 4.0.0 did not get to the region in time"),
		waits,
	);
	await runs("2.0.0", { status: "False", reason: "AgentUpdateFailed" });
});

test("a power cut in the middle of a try leaves the version before, which tries again later", async () => {
	writeLauncher(60);
	await site.region.restart("hosts", { ...env, AGENT_VERSION: "5.0.0" });
	await vi.waitFor(() => expect(startsOf("5.0.0")).toBe(1), waits);
	rmSync(join(directory, "host/run"), { recursive: true });
	await service?.kill();
	await connected("2.0.0");
	await vi.waitFor(
		() => expect(readStatus(paths.status)?.update).toMatchObject({ phase: "Waiting", version: "5.0.0" }),
		waits,
	);
	await runs("2.0.0", { status: "False", reason: "Updating" });
	expect(existsSync(join(paths.versions, "trying"))).toBe(false);
});

test("when the disk has lost a version, the package's own agent is started", async () => {
	writeFileSync(join(paths.versions, "2.0.0/bin/gp-agent"), "\0");
	await service?.kill();
	await connected(VERSION);
});

const waits = { timeout: 120_000, interval: 200 };
const host = () => site.region.kube.get<Host>(hosts, "host-1", site.region.namespace);
const condition = async () => getCondition((await host()).status?.conditions, "AgentUpToDate");
const message = async () => (await condition())?.message;
const startsOf = (version: string) =>
	existsSync(starts)
		? readFileSync(starts, "utf8")
				.split("\n")
				.filter((line) => line === version).length
		: 0;

async function connected(version: string): Promise<void> {
	await vi.waitFor(() => {
		const status = readStatus(paths.status);
		expect(status).toMatchObject({ version, link: { connected: true } });
	}, waits);
}

/** The region and the host agree that this version runs, and what became of the change. */
async function runs(version: string, outcome: { status: string; reason: string }): Promise<void> {
	await vi.waitFor(async () => {
		const { status } = await host();
		expect(status?.agent?.version).toBe(version);
		expect(await condition()).toMatchObject(outcome);
	}, waits);
	await connected(version);
}

/** The launcher of the package, at paths of this test's and with less patience. */
function writeLauncher(deadline: number): void {
	const text = readFileSync(join(ROOT, "agent/package/gp-agent"), "utf8");
	const settings = {
		"versions=/var/lib/groundplane/versions": `versions=${paths.versions}`,
		"state=/run/groundplane": `state=${join(directory, "host/run/groundplane")}`,
		"packaged=/usr/lib/groundplane/agent": `packaged=${join(directory, "packaged")}`,
		"deadline=120": `deadline=${deadline}`,
	};
	let changed = text;
	for (const [from, to] of Object.entries(settings)) {
		expect(text).toContain(`${from}\n`);
		changed = changed.replace(`${from}\n`, `${to}\n`);
	}
	// A file of its own: a shell reads its script bit by bit.
	rmSync(launcher, { force: true });
	writeFileSync(launcher, changed, { mode: 0o755 });
	mkdirSync(join(directory, "packaged/bin"), { recursive: true });
	writeFileSync(join(directory, "packaged/bin/gp-agent"), program(VERSION, ""), { mode: 0o755 });
	writeFileSync(
		join(directory, "version.mjs"),
		`import { registerHooks } from "node:module";
		const source = "export const VERSION = " + JSON.stringify(process.env.GP_TEST_VERSION);
		registerHooks({ load: (url, context, next) =>
			url.endsWith("/protocol/version.ts") ? { format: "module", shortCircuit: true, source } : next(url, context) });`,
	);
}

/** The agent of this repository under another version's name. */
const program = (version: string, fault: string) => `#!/bin/sh
[ "$1" = run ] && echo ${version} >>${starts}
${fault}
export GP_TEST_VERSION=${version} GP_TEST_ROOT=${join(directory, "host")}
PATH=${process.env.PATH}
exec ${process.execPath} --import ${join(directory, "version.mjs")} ${join(ROOT, "test/support/agent-process.ts")} "$@"
`;

/** Puts a version's package and its signed manifest where the region serves them. */
async function publish(version: string, fault: string): Promise<void> {
	const architecture = process.arch === "x64" ? "amd64" : "arm64";
	const path = `groundplane-agent_${version}_${architecture}.deb`;
	const deb = debianPackage({
		control: {
			Package: "groundplane-agent",
			Version: version,
			Architecture: architecture,
			Maintainer: "a",
			Description: "a",
		},
		files: [{ path: "/usr/lib/groundplane/agent/bin/gp-agent", content: program(version, fault), mode: 0o755 }],
		time: 0,
	});
	const sha256 = createHash("sha256").update(deb).digest("hex");
	const manifest = {
		schema: 1,
		name: "agent",
		version,
		architecture,
		createdAt: "2026-01-01T00:00:00Z",
		components: { agent: version },
		files: [{ path, sha256, size: deb.length, kind: "package" }],
	};
	const jws = await new CompactSign(Buffer.from(JSON.stringify(manifest)))
		.setProtectedHeader({ alg: "EdDSA", typ: RELEASE_MANIFEST_TYPE, kid: "r" })
		.sign(release.privateKey);
	mkdirSync(join(packages, "bundles/agent", version), { recursive: true });
	writeFileSync(join(packages, path), deb);
	writeFileSync(join(packages, "bundles/agent", version, "manifest.jws"), jws);
}

/** systemd as far as the unit asks for it: the service is started again whenever it ends, and nothing of it stays behind. */
function supervise() {
	let child: ChildProcess | undefined;
	let stopping = false;
	const kill = async (signal: NodeJS.Signals) => {
		const { pid, exitCode, signalCode } = child ?? {};
		if (pid === undefined || exitCode !== null || signalCode !== null) return;
		const ended = once(child as ChildProcess, "exit");
		process.kill(-pid, signal);
		await ended;
	};
	const running = (async () => {
		while (!stopping) {
			child = spawn(launcher, ["run"], { detached: true, stdio: process.env.DEBUG ? "inherit" : "ignore" });
			await once(child, "exit");
			try {
				process.kill(-(child.pid as number), "SIGKILL");
			} catch {
				// Nothing was left.
			}
			await delay(200);
		}
	})();
	return {
		kill: () => kill("SIGKILL"),
		async stop() {
			stopping = true;
			await kill("SIGKILL");
			await running;
		},
	};
}
