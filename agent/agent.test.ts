import "reflect-metadata";
import { generateKeyPairSync } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { Pkcs10CertificateRequest } from "@peculiar/x509";
import { CompactSign } from "jose";
import { afterAll, expect, test } from "vitest";
import { DESIRED_STATE_TYPE } from "../protocol/desired-state.ts";
import { type ErrorCode, GroundplaneError } from "../protocol/errors.ts";
import { hostFacts } from "../protocol/facts.ts";
import { Paths, policyAllows, proxyFor } from "./config.ts";
import { verifyDesiredState } from "./desired.ts";
import { mayPass } from "./enroll.ts";
import { parseOsRelease, readFacts } from "./facts.ts";
import { certificateRequest, newKey } from "./identity.ts";
import { createLog } from "./log.ts";
import { renderMetrics } from "./metrics.ts";
import { evaluate, listeningPorts, type Probe, probe } from "./preflight.ts";

const directory = mkdtempSync(join(tmpdir(), "gp-agent-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

test("a certificate request is one that others can read, for lengths of names that change the encoding", async () => {
	for (const name of ["h", "host-1", "a".repeat(63)]) {
		const request = new Pkcs10CertificateRequest(certificateRequest(newKey(), name));
		expect(request.subjectName.getField("CN")).toEqual([name]);
		expect(await request.verify()).toBe(true);
	}
});

test.each<[ErrorCode, boolean]>([
	// The Host of a machine that comes anew is still on its way out: the region says that the agent tries again.
	["Conflict", true],
	["Overloaded", true],
	["KubernetesUnavailable", true],
	["Unauthenticated", false],
	["HostAlreadyEnrolled", false],
])("an enrolment that ends in %s is tried again by itself: %s", (code, again) => {
	expect(mayPass(new GroundplaneError(code, "", { next: "" }))).toBe(again);
});

const good: Probe = {
	root: true,
	systemd: true,
	memoryBytes: 4e9,
	cores: 2,
	diskBytes: 5e10,
	swaps: [],
	cgroup: "v2",
	kernel: "6.1.0-18-amd64",
	missingFeatures: [],
	missingCommands: [],
	portsTaken: [],
	installed: false,
	clockSkewSeconds: 0,
};

test.each<[Partial<Probe>, string, "error" | "warning"]>([
	[{ root: false }, "root", "error"],
	[{ systemd: false }, "systemd", "error"],
	[{ memoryBytes: 1e9 }, "memory", "error"],
	[{ cores: 1 }, "cpu", "warning"],
	[{ diskBytes: 1e9 }, "disk", "error"],
	[{ diskBytes: 1e10 }, "disk", "warning"],
	[{ swaps: ["/dev/sda2"] }, "swap", "error"],
	[{ cgroup: "v1" }, "cgroup", "warning"],
	[{ kernel: "4.19.0" }, "kernel", "error"],
	[{ kernel: "5.10.0-33-amd64" }, "kernel", "error"],
	[{ missingFeatures: ["vxlan"] }, "kernel-features", "error"],
	[{ missingCommands: ["nft"] }, "commands", "error"],
	[{ portsTaken: [6443] }, "ports", "error"],
	[{ portsTaken: [6443], foreignNode: "srv-1" }, "ports", "error"],
	// Its kubelet may just be down.
	[{ foreignNode: "srv-1" }, "ports", "error"],
	[{ clockSkewSeconds: -3600 }, "clock", "error"],
	[{ clockSkewSeconds: 60 }, "clock", "warning"],
])("%j is found by check %s as %s", (change, name, severity) => {
	const bad = evaluate({ ...good, ...change }).filter(({ ok }) => !ok);
	expect(bad).toMatchObject([{ name, severity, next: expect.any(String) }]);
});

test("a good host has nothing to complain of, and ports of its own role are its own", () => {
	expect(evaluate(good).every(({ ok, next }) => ok && next === undefined)).toBe(true);
	expect(evaluate({ ...good, portsTaken: [6443], installed: true }).every(({ ok }) => ok)).toBe(true);
	expect(evaluate(probe())).toHaveLength(evaluate(good).length);
});

test("listening ports are read from /proc/net/tcp and tcp6", () => {
	const table = [
		"  sl  local_address rem_address   st tx_queue rx_queue",
		"   0: 0100007F:192B 00000000:0000 0A 00000000:00000000",
		"   1: 0100007F:C350 0100007F:192B 01 00000000:00000000",
		"   0: 00000000000000000000000000000000:280A 00000000000000000000000000000000:0000 0A 00000000:00000000",
	].join("\n");
	expect(listeningPorts(table)).toEqual([6443, 10250]);
});

test("facts are what the schema says and do not disclose the machine id", () => {
	const facts = readFacts();
	expect(hostFacts.parse(facts)).toEqual(facts);
	expect(facts.machineId).toMatch(/^[0-9a-f]{64}$/);
	expect(parseOsRelease('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')).toEqual({
		id: "debian",
		versionId: "12",
		prettyName: "Debian GNU/Linux 12 (bookworm)",
	});
});

test("metrics fit a line that is paid by the byte", () => {
	const text = renderMetrics({
		checks: evaluate(good),
		roles: [{ name: "kubernetes", version: "v1.36.3", phase: "Applied", done: 40, total: 40 }],
		certificateNotAfter: 1_800_000_000,
		reconnects: 3,
	});
	expect(text).toContain('groundplane_agent_check_ok{check="swap"} 1\n');
	expect(text).toContain('groundplane_agent_role_phase{role="kubernetes",phase="Applied"} 1\n');
	expect(text).toMatch(/^node_cpu_seconds_total\{mode="idle"\} \d+/m);
	expect(text).toMatch(/^node_memory_MemAvailable_bytes \d+$/m);
	const zipped = gzipSync(text, { level: 9 });
	expect(zipped.length).toBeLessThan(1000);
	expect(gunzipSync(zipped).toString()).toBe(text);
});

test("a proxy from the environment counts unless no_proxy names the region", () => {
	const env = { https_proxy: "http://proxy:3128", no_proxy: "localhost,.example.com" };
	expect(proxyFor("demo.test:443", env)).toBe("http://proxy:3128");
	expect(proxyFor("demo.example.com:443", env)).toBeUndefined();
	expect(proxyFor("demo.test:443", {})).toBeUndefined();
});

test.each<[string, string, string, boolean]>([
	["demo.test:443", "proxy:3128", "", true],
	["demo.test:443", "192.0.2.1:3128", "10.0.0.0/8", true],
	["demo.example.com:443", "proxy:3128", "localhost, *.example.com", false],
	["10.1.2.3:443", "proxy:3128", "10.0.0.0/8", false],
	["11.1.2.3:443", "proxy:3128", "10.0.0.0/8,fd00::/8", true],
	["[fd00::1]:443", "proxy:3128", "10.0.0.0/8,fd00::/8", false],
	["[fd00::1]:443", "proxy:3128", "fd00::1", false],
	["10.1.2.3:443", "proxy:3128", "10.0.0.0/99,/8,::/0", true],
	["demo.test:443", "not a proxy", "", false],
])("to %s by https_proxy=%s with no_proxy=%s: through it is %s", (address, https_proxy, no_proxy, through) => {
	expect(proxyFor(address, { https_proxy, no_proxy })).toBe(through ? https_proxy : undefined);
});

test("the customer's policy has the last word, and one that can't be read allows nothing", () => {
	const paths = new Paths(directory);
	expect(policyAllows(paths, "metrics")).toBe(true);
	mkdirSync(join(directory, "etc/groundplane"), { recursive: true });
	writeFileSync(paths.policy, '{"allow": {"services": ["metrics"]}}');
	expect(["metrics", "kube-apiserver"].map((service) => policyAllows(paths, service))).toEqual([true, false]);
	writeFileSync(paths.policy, "{");
	expect(policyAllows(paths, "metrics")).toBe(false);
});

test.each([
	["", "metrics kube-apiserver"],
	['{"supportShell": true}', "metrics kube-apiserver shell"],
	['{"supportShell": false}', "metrics kube-apiserver"],
	['{"supportShell": "true"}', ""],
	['{"allow": {"services": ["metrics", "shell"]}}', "metrics"],
	['{"allow": {"services": ["metrics"]}, "supportShell": true}', "metrics shell"],
	['{"allow": {"services": []}, "supportShell": true}', "shell"],
	['{"alow": {"services": []}, "supportShell": true}', ""],
	["{}", ""],
	["[]", ""],
])("the policy %s allows the services %s: a shell when its owner says so, and no other way", (policy, allowed) => {
	const paths = { policy: join(directory, "a-policy.json") };
	rmSync(paths.policy, { force: true });
	if (policy !== "") writeFileSync(paths.policy, policy);
	const services = ["metrics", "kube-apiserver", "shell"].filter((service) => policyAllows(paths, service));
	expect(services.join(" ")).toBe(allowed);
});

test("log lines are for people, one line each", () => {
	const lines: string[] = [];
	const log = createLog({ write: (line) => lines.push(line), journal: true });
	log.warn({ code: "ClockSkew", next: "set the clock", skew: 3 }, "two\nlines");
	log.debug({}, "not shown");
	expect(lines).toEqual(['<4>two lines code=ClockSkew next="set the clock" skew=3\n']);
});

const { privateKey, publicKey } = generateKeyPairSync("ed25519");
const jwks = { keys: [{ ...publicKey.export({ format: "jwk" }), alg: "EdDSA" } as never] };
const state = {
	region: "demo",
	host: "host-1",
	epoch: 3,
	generation: 10,
	issuedAt: 1000,
	validUntil: 2000,
	paused: false,
	roles: [],
};
const sign = (change: object = {}, typ = DESIRED_STATE_TYPE, key = privateKey) =>
	new CompactSign(Buffer.from(JSON.stringify({ ...state, ...change })))
		.setProtectedHeader({ alg: "EdDSA", typ })
		.sign(key);
const last = { epoch: 3, generation: 10, issuedAt: 1000 };
const judge = async (jws: string) => verifyDesiredState(jws, { jwks, region: "demo", host: "host-1", last, now: 1500 });

test.each([
	["another key", () => sign({}, DESIRED_STATE_TYPE, generateKeyPairSync("ed25519").privateKey), "SignatureInvalid"],
	["another kind of document", () => sign({}, "JWT"), "SignatureInvalid"],
	["another host", () => sign({ host: "host-2" }), "SignatureInvalid"],
	["another region", () => sign({ region: "other" }), "SignatureInvalid"],
	["the past", () => sign({ validUntil: 1499 }), "DesiredStateExpired"],
	["an older generation", () => sign({ generation: 9 }), "DesiredStateStale"],
	["an older epoch", () => sign({ epoch: 2, generation: 99 }), "DesiredStateStale"],
	["an older signature of the same", () => sign({ issuedAt: 999 }), "DesiredStateStale"],
	["nowhere", async () => "not.a.jws", "SignatureInvalid"],
])("a document from %s is refused", async (_name, make, code) => {
	await expect(judge(await make())).rejects.toMatchObject({ code });
});

test.each([[{}], [{ issuedAt: 1100, validUntil: 2100 }], [{ generation: 11 }], [{ epoch: 4, generation: 1 }]])(
	"a document that is newer, or the same again, is accepted: %j",
	async (change) => {
		expect(await judge(await sign(change))).toEqual({ ...state, ...change });
	},
);
