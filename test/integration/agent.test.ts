import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { loadConfig, Paths } from "../../agent/config.ts";
import { loadIdentity } from "../../agent/identity.ts";
import { createLog } from "../../agent/log.ts";
import { run } from "../../agent/run.ts";
import { type AgentStatus, readStatus } from "../../agent/status.ts";
import type { Host } from "../../crds/host.ts";
import { hosts } from "../../operator/kube/resources.ts";
import { patience } from "../support/patience.ts";
import type { TestRegion } from "../support/region.ts";
import { startSite, type TestSite } from "../support/site.ts";

/** The real agent with a root directory of its own, and a real region for it. */
const directory = mkdtempSync(join(tmpdir(), "gp-agent-run-"));
const paths = new Paths(directory);
let site: TestSite;
let region: TestRegion;
let stopAgent: () => Promise<void> = async () => {};

beforeAll(async () => {
	site = await startSite();
	region = site.region;
}, 120_000);

afterAll(async () => {
	await stopAgent();
	await site?.close();
	rmSync(directory, { recursive: true, force: true });
});

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
	site.install(paths, "gpj_forged.forged");
	const lines = await startAgent();
	await vi.waitFor(() => expect(status()?.problem?.code).toBe("JoinTokenInvalid"), patience);
	expect(lines.join("")).toContain("code=JoinTokenInvalid next=");
	expect(status()?.enrolled).toBe(false);
	site.install(paths, await site.joinToken());
	await vi.waitFor(() => expect(status()?.link?.connected).toBe(true), patience);
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
	const { status: code, body } = await site.call("GET", `https://127.0.0.1:${site.proxyPort}`, {
		tls: { ...tls, path: "http://metrics.host-1/metrics", servername: "tunnel" },
	});
	expect(code).toBe(200);
	expect(body).toMatch(/^groundplane_agent_info\{version="[\d.]+"\} 1$/m);
	expect(body).toContain('groundplane_agent_role_phase{role="kubernetes",phase="Failed"} 1');
});

test("after a restart it goes on with its identity and its last desired state, without a token", async () => {
	await startAgent();
	await vi.waitFor(() => expect(status()).toMatchObject({ enrolled: true, link: { connected: true } }), patience);
	expect(status()?.desiredState?.generation).toBeGreaterThan(0);
});

test("past two thirds of its life the certificate is renewed, and the tunnel goes over to it", async () => {
	const before = loadIdentity(paths.state);
	await startAgent({ ahead: 21 * 86_400_000 });
	await vi.waitFor(() => expect(status()?.link).toMatchObject({ connected: true, reconnects: 1 }), patience);
	const after = loadIdentity(paths.state);
	expect(after?.certificate).not.toBe(before?.certificate);
	expect(after?.key).not.toBe(before?.key);
	await startAgent();
	await vi.waitFor(() => expect(status()?.link?.connected).toBe(true), patience);
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
