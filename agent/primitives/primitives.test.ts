import { spawn } from "node:child_process";
import { KeyObject } from "node:crypto";
import { once as emitted } from "node:events";
import {
	chmodSync,
	existsSync,
	mkdirSync,
	mkdtempSync,
	readFileSync,
	rmdirSync,
	rmSync,
	statSync,
	writeFileSync,
} from "node:fs";
import { createServer as createHttpsServer, type Server } from "node:https";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import "reflect-metadata";
import { X509CertificateGenerator } from "@peculiar/x509";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { compareVersions, minorsBetween } from "../../protocol/versions.ts";
import { balancer } from "./balancer.ts";
import { directory } from "./directory.ts";
import { endpointsOfOthers, membersIn, takeOut } from "./etcd-members.ts";
import { type Exec, execute } from "./exec.ts";
import { superseded } from "./image.ts";
import { decide, type Found } from "./kubeadm.ts";
import { checkHost, preflight } from "./preflight.ts";
import type { StepContext } from "./primitive.ts";
import { processesIn, residue } from "./residue.ts";
import { unit } from "./unit.ts";
import {
	type Change,
	complaintIn,
	endedWith,
	manifestConfiguration,
	mayGoOnToEtcd,
	mayReturnToEtcd,
	nodeProblem,
	routeOf,
	runningTasks,
	staticPodProblem,
} from "./version-change.ts";

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
])("%s is older than %s: %s", (version, than, older) => expect(compareVersions(version, than) < 0).toBe(older));

describe("a change of version", () => {
	const now = 1_000_000;
	const up: Change = { from: "v1.35.4", to: "v1.36.3" };
	const failedAt = (at: number): Change => ({ ...up, failure: { at, message: "" } });

	it.each([
		["at the version", "v1.35.4", undefined, "v1.35.4", true, "none"],
		["at the version, the link is another", "v1.35.4", undefined, "v1.35.4", false, "kubelet"],
		["another is wanted", "v1.35.4", undefined, "v1.36.3", true, "forward"],
		["down from a finished change", "v1.36.3", undefined, "v1.35.4", true, "forward"],
		["stopped amid it", "v1.35.4", up, "v1.36.3", true, "forward"],
		["back amid it", "v1.35.4", up, "v1.35.4", true, "back"],
		["it failed a moment ago", "v1.35.4", failedAt(now - 1000), "v1.36.3", true, "held"],
		["it failed a while ago", "v1.35.4", failedAt(now - 301_000), "v1.36.3", true, "forward"],
		["back after it failed", "v1.35.4", failedAt(now - 1000), "v1.35.4", true, "back"],
		["a third one after it failed", "v1.35.4", failedAt(now - 1000), "v1.36.4", true, "forward"],
	] as const)("%s", (_what, current, change, wanted, linked, route) =>
		expect(routeOf(current, change, wanted, { linked, now })).toBe(route),
	);

	it.each([
		["v1.35.4", "v1.36.3", 1],
		["v1.36.3", "v1.35.4", 1],
		["v1.36.3", "v1.36.9", 0],
		["v1.34.0", "v1.36.3", 2],
		["v1.36.3", "v2.36.3", Number.POSITIVE_INFINITY],
	])("from %s to %s: %d minors", (from, to, minors) => expect(minorsBetween(from, to)).toBe(minors));

	it("takes etcd back within a minor only, and on to newer versions only", () => {
		const etcd = (tag: string) => `  containers:\n  - command: [etcd]\n    image: registry.k8s.io/etcd:${tag}\n`;
		expect(mayReturnToEtcd(etcd("3.6.8-0"), etcd("3.6.6-0"))).toBe(true);
		expect(mayReturnToEtcd(etcd("3.7.1-0"), etcd("3.6.6-0"))).toBe(false);
		expect(mayReturnToEtcd("", etcd("3.6.6-0"))).toBe(true);
		expect(mayGoOnToEtcd(etcd("3.6.6-0"), etcd("3.6.8-0"))).toBe(true);
		expect(mayGoOnToEtcd(etcd("3.6.8-0"), etcd("3.6.8-0"))).toBe(false);
		expect(mayGoOnToEtcd(etcd("3.6.8-0"), etcd("3.6.6-0"))).toBe(false);
		expect(mayGoOnToEtcd(etcd("3.6.8-0"), "")).toBe(false);
	});

	const all = ["etcd.yaml", "kube-apiserver.yaml", "kube-scheduler.yaml"];
	it.each([
		["only what changes", ["kube-scheduler.yaml"], false, ["kube-scheduler.yaml"]],
		["all that stand on etcd when that one changes", ["etcd.yaml"], false, all],
		["all when the kubelet is one of another minor", [], true, all],
		["nothing when nothing changes", [], false, []],
	])("ends %s", (_what, changed, another, expected) => expect(endedWith(changed, all, another)).toEqual(expected));

	it("makes manifests of the cluster's own configuration, for another version and this node", () => {
		const cluster =
			"apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.35.4\nproxy: {}\n";
		const node = { version: "v1.36.3", nodeName: "host-1", patches: "/patches" };
		const [first = "", second] = manifestConfiguration(cluster, node, "10.0.0.1:6443").split("\n---\n");
		expect(JSON.parse(first)).toMatchObject({
			kind: "InitConfiguration",
			localAPIEndpoint: { advertiseAddress: "10.0.0.1", bindPort: 6443 },
			nodeRegistration: { name: "host-1" },
		});
		expect(second).toBe(cluster.replace("v1.35.4", "v1.36.3"));
	});

	it("knows which of ctr's tasks run", () => {
		const table =
			"TASK    PID     STATUS    \nab12    101     RUNNING\ncd34    102     STOPPED\nef56    0       CREATED\n";
		expect(runningTasks(table)).toEqual(["ab12"]);
	});

	it("sees whether static pods run as their manifests say, and go on running", () => {
		const manifests = new Map([["etcd.yaml", "spec:\n  containers:\n  - image: registry.k8s.io/etcd:3.6.8-0\n"]]);
		const now = Date.parse("2026-01-01T00:01:00Z");
		const since = (startedAt: string) => ({ running: { startedAt } });
		const problem = (name: string, image: string, phase: string, state: object = since("2026-01-01T00:00:50Z")) => {
			const spec = { containers: [{ image: `registry.k8s.io/etcd:${image}` }] };
			const pod = { metadata: { name }, spec, status: { phase, containerStatuses: [{ state }] } };
			return staticPodProblem({ items: [pod] }, manifests, "host-1", now);
		};
		expect(problem("etcd-host-1", "3.6.8-0", "Running")).toBeUndefined();
		expect(problem("etcd-host-1", "3.6.6-0", "Running")).toBe("pod etcd-host-1 is not made anew");
		expect(problem("etcd-host-2", "3.6.8-0", "Running")).toBe("pod etcd-host-1 is not made anew");
		expect(problem("etcd-host-1", "3.6.8-0", "Pending")).toBe("pod etcd-host-1 is Pending");
		expect(problem("etcd-host-1", "3.6.8-0", "Running", { waiting: { reason: "CrashLoopBackOff" } })).toBe(
			"pod etcd-host-1 does not run: CrashLoopBackOff",
		);
		expect(problem("etcd-host-1", "3.6.8-0", "Running", since("2026-01-01T00:00:59Z"))).toBe(
			"pod etcd-host-1 was started a moment ago",
		);
	});

	it.each([
		["Error: unknown flag: --no-such-flag\n", "Error: unknown flag: --no-such-flag"],
		["I0101 all is well\nE0101 the disk is full\nI0101 bye\n\n", "E0101 the disk is full"],
		["Started kubelet.service\nbye\nkubelet.service: Failed with result 'exit-code'.\n", "bye"],
		["", "it said nothing"],
	])("finds in %j why a program ended", (text, expected) => expect(complaintIn(text)).toBe(expected));

	it("says what keeps a node from its version", () => {
		const node = (kubeletVersion: string, status: string) => ({
			status: { nodeInfo: { kubeletVersion }, conditions: [{ type: "Ready", status, message: "no network" }] },
		});
		expect(nodeProblem(node("v1.36.3", "True"), "v1.36.3")).toBeUndefined();
		expect(nodeProblem(node("v1.35.4", "True"), "v1.36.3")).toBe("the node is at v1.35.4, not v1.36.3");
		expect(nodeProblem(node("v1.36.3", "False"), "v1.36.3")).toBe("the node is not ready: no network");
		expect(nodeProblem({}, "v1.36.3")).toContain("undefined");
	});
});

it("keeps the images that ways back lead to, and drops older tags", () => {
	const name = "registry.k8s.io/kube-proxy";
	const others = ["registry.k8s.io/pause:3.10", "sha256:aa", "", `${name}-arm:v1.1.0`];
	const tags = (...versions: string[]) => versions.map((version) => `${name}:${version}`);
	expect(superseded([...others, ...tags("v1.35.4", "v1.36.3")], `${name}:v1.36.3`)).toEqual([]);
	expect(superseded([...others, ...tags("v1.9.1", "v1.36.3", "v1.35.4", "v1.37.0")], `${name}:v1.37.0`)).toEqual(
		tags("v1.9.1"),
	);
});

it("reads etcd's members", () => {
	const list =
		"8e9e05c52164694d, started, host-1, https://10.0.0.11:2380, https://10.0.0.11:2379, false\n" +
		"91bc3c398fb3c146, unstarted, , https://10.0.0.12:2380, , true\n";
	expect(membersIn(list)).toEqual([
		{ id: "8e9e05c52164694d", name: "host-1", clientUrls: ["https://10.0.0.11:2379"] },
		{ id: "91bc3c398fb3c146", name: "", clientUrls: [] },
	]);
});

describe("taking a member out of etcd", () => {
	const members = (...names: string[]) =>
		names.map((name) => `id-${name}, started, ${name}, https://${name}:2380, https://${name}:2379, false\n`).join("");
	const run = async (list: string, isOwnDead = false) => {
		const removals: string[][] = [];
		const exec: Exec = async (_program, args) => {
			const isOwn = args.filter((arg) => arg.startsWith("--endpoints")).join() === "--endpoints=https://127.0.0.1:2379";
			if (isOwn && isOwnDead) throw new Error("connection refused");
			if (args.includes("remove")) removals.push(args.filter((arg) => /^(--endpoints|id-)/.test(arg)));
			return { code: 0, stdout: list, stderr: "" };
		};
		const isDone = await takeOut("host-1", ["https://host-2:2379", "https://host-3:2379"], context(exec));
		return { isDone, removals };
	};
	const byOthers = {
		isDone: true,
		removals: [["--endpoints=https://host-2:2379,https://host-3:2379", "id-host-1"]],
	};

	it("is done by the others, since its own stops while it answers", async () => {
		expect(await run(members("host-1", "host-2"))).toEqual(byOthers);
		expect(await run(members("host-1", "host-2"), true)).toEqual(byOthers);
	});

	it("is left out for the last one, and for one that is out already", async () => {
		expect(await run(members("host-1"))).toEqual({ isDone: true, removals: [] });
		expect(await run(members("host-2", "host-3"), true)).toEqual({ isDone: true, removals: [] });
	});

	it.each([
		["etcd tells where its others are", members("host-1", "host-2"), ["https://host-2:2379"]],
		["etcd tells that it is alone", members("host-1"), []],
		["etcd has lost its majority", undefined, undefined],
	])("when no API server answers, and %s", async (_name, list, expected) => {
		const exec: Exec = async (program) => {
			if (program === "kubectl") return { code: 1, stdout: "", stderr: "connection refused" };
			if (list === undefined) throw new Error("context deadline exceeded");
			return { code: 0, stdout: list, stderr: "" };
		};
		expect(await endpointsOfOthers("host-1", context(exec))).toEqual(expected);
	});

	it("is left to kubeadm, which knows it by its address, when one has never started", async () => {
		const unstarted = "id, unstarted, , https://host-1:2380, , true\n";
		expect(await run(`${members("host-2", "host-3")}${unstarted}`, true)).toEqual({ isDone: false, removals: [] });
	});
});

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

	/** An API server that answers `/readyz` with this status. */
	async function apiServer(host: string, port: number, status: number): Promise<Server> {
		const server = createHttpsServer(await selfSigned(), (_request, response) => response.writeHead(status).end());
		await new Promise<void>((resolve) => server.listen(port, host, resolve));
		return server;
	}
	const stop = (server: Server) => new Promise((resolve) => server.close(resolve));
	const portOf = (server: Server) => (server.address() as { port: number }).port;

	it("leads to control planes that are ready, else to those that answer, and to all when none does", async () => {
		const ready = await apiServer("127.0.0.1", 0, 200);
		const port = portOf(ready);
		const starting = await apiServer("127.0.0.2", port, 500);
		const backends = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
		const want = { address: "169.254.99.1", port, table: "groundplane-api", backends };
		const exec = kernel();
		let time = 0;
		const later = () => ({ ...context(exec), now: () => (time += 60_000) });
		const map = async () => /map \{ (.*) \}/.exec((await exec("nft", ["list"])).stdout)?.[1];

		expect((await balancer.observe(want, later(), never)).ok).toBe(false);
		await balancer.apply(want, later(), never);
		expect(await map()).toBe("0 : 127.0.0.1");
		expect((await balancer.observe(want, later(), once)).ok).toBe(true);
		await stop(ready);
		expect((await balancer.observe(want, later(), once)).ok).toBe(false);
		await balancer.apply(want, later(), once);
		expect(await map()).toBe("0 : 127.0.0.2");
		await stop(starting);
		await balancer.apply(want, later(), once);
		expect(await map()).toBe("0 : 127.0.0.1, 1 : 127.0.0.2, 2 : 127.0.0.3");
	});

	it("asks once for a look and what is done about it, and with the TLS session of the time before", async () => {
		const server = await apiServer("127.0.0.1", 0, 200);
		const reused: boolean[] = [];
		server.on("secureConnection", (socket) => reused.push(socket.isSessionReused()));
		const want = { address: "169.254.99.1", port: portOf(server), table: "once", backends: ["127.0.0.1", "127.0.0.9"] };
		const exec = kernel();
		await exec("nft", ["--file", "-"], { input: "table" });
		expect((await balancer.observe(want, context(exec), never)).ok).toBe(false);
		await balancer.apply(want, context(exec), never);
		expect((await balancer.observe(want, context(exec), once)).ok).toBe(true);
		expect(reused).toEqual([false]);
		expect((await balancer.observe(want, context(exec), once)).ok).toBe(true);
		expect(reused).toEqual([false, true]);
		await stop(server);
	});

	it("has not failed when a control plane goes in the moment after it was made", async () => {
		const server = await apiServer("127.0.0.1", 0, 200);
		const want = {
			address: "169.254.99.1",
			port: portOf(server),
			table: "a-moment",
			backends: ["127.0.0.1", "127.0.0.2"],
		};
		const exec = kernel();
		let time = 1000;
		const later = { ...context(exec), now: () => time };
		await balancer.apply(want, later, never);
		await stop(server);
		// Ever so long on a busy host.
		time += 30_000;
		expect((await balancer.observe(want, later, once)).ok).toBe(true);
		expect((await balancer.observe(want, later, once)).ok).toBe(false);
		const others = { ...want, backends: ["127.0.0.2", "127.0.0.3"] };
		await balancer.apply(others, later, once);
		expect((await balancer.observe(want, later, once)).ok).toBe(false);
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

describe("residue", () => {
	const cgroup = `groundplane-test-${process.pid}`;
	const hierarchy = existsSync("/sys/fs/cgroup/cgroup.controllers") ? "/sys/fs/cgroup" : "/sys/fs/cgroup/pids";
	const place = join(hierarchy, cgroup);
	const want = residue.schema.parse({ cgroups: [cgroup] });
	const silent: Exec = async () => ({ code: 0, stdout: "", stderr: "" });

	it.skipIf(process.getuid?.() !== 0)(
		"ends processes that nobody ended, and removes their control groups",
		async () => {
			const memory = await residue.remember(want, context(silent));
			mkdirSync(join(place, "below"), { recursive: true });
			const left = spawn("sleep", ["60"], { stdio: "ignore" });
			const gone = emitted(left, "exit");
			writeFileSync(join(place, "below", "cgroup.procs"), `${left.pid}`);
			await residue.undo(memory, context(silent));
			expect(await gone).toEqual([null, "SIGKILL"]);
			expect(existsSync(place)).toBe(false);
		},
	);

	it("takes no process of another PID namespace, which has no number here, for its own group", async () => {
		mkdirSync(join(root, "below"));
		writeFileSync(join(root, "cgroup.procs"), "0\n12\n");
		writeFileSync(join(root, "below", "cgroup.procs"), "34\n0\n");
		expect(await processesIn(root)).toEqual([12, 34]);
	});

	it.skipIf(process.getuid?.() !== 0)("lets control groups be that were there before", async () => {
		mkdirSync(place);
		try {
			await residue.undo(await residue.remember(want, context(silent)), context(silent));
			expect(existsSync(place)).toBe(true);
		} finally {
			rmdirSync(place);
		}
	});
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
