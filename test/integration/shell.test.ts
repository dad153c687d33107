import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Duplex, duplexPair } from "node:stream";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { loadConfig, Paths } from "../../agent/config.ts";
import { createLog } from "../../agent/log.ts";
import { run } from "../../agent/run.ts";
import { SupportShells, type SupportShellsOptions } from "../../agent/shell.ts";
import { readStatus } from "../../agent/status.ts";
import { Channel, encodeShell, readShell, type ShellOpen } from "../../protocol/shell.ts";
import { startSite, type TestSite } from "../support/site.ts";

const WAIT = { timeout: 30_000, interval: 50 };
const directory = mkdtempSync(join(tmpdir(), "gp-shell-"));
const isAlive = (pid: number) => {
	try {
		// One that waits for its parent has ended.
		return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
	} catch {
		return false;
	}
};

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** gp, gateway, services and agent, all real. */
describe("gp host shell", () => {
	const paths = new Paths(join(directory, "host"));
	const journal: string[] = [];
	const stop = new AbortController();
	let site: TestSite;
	let agent: Promise<void>;

	beforeAll(async () => {
		site = await startSite();
		site.install(paths, await site.joinToken());
		const log = createLog({ write: (line) => journal.push(line), journal: false });
		agent = run({ config: loadConfig(paths, {}), paths, log, signal: stop.signal });
		await vi.waitFor(() => expect(readStatus(paths.status)?.link?.connected).toBe(true), WAIT);
		const { server, caDigest, admin } = site.region;
		const login = ["login", "--server", server, "--ca-digest", caDigest, "--password-stdin", "--username"];
		expect(await gp([...login, admin.username], admin.password)).toMatchObject({ code: 0 });
		await gp(["user", "create", "olga", "--role", "operator"], "a long enough password");
		expect(await gp([...login, "olga"], "a long enough password", "olga")).toMatchObject({ code: 0 });
	}, 120_000);

	afterAll(async () => {
		stop.abort();
		await agent;
		await site?.close();
	});

	const main = join(import.meta.dirname, "../../cli/main.ts");
	const environment = (who: string) => ({
		PATH: process.env.PATH,
		HOME: directory,
		TERM: "xterm",
		GROUNDPLANE_CONFIG: join(directory, `${who}.json`),
	});
	const gp = (args: readonly string[], input = "", who = "admin") =>
		new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
			const child = execFile(process.execPath, [main, ...args], { env: environment(who) }, (error, stdout, stderr) =>
				resolve({ code: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
			);
			child.stdin?.end(input);
		});
	const allow = () => writeFileSync(paths.policy, '{"supportShell": true}');
	const transcripts = () =>
		readdirSync(paths.shells)
			.sort()
			.map((name) => ({ path: join(paths.shells, name), text: readFileSync(join(paths.shells, name), "utf8") }));

	test("is refused until the host's owner allows it, and to whoever is no administrator", async () => {
		expect(await gp(["host", "shell", "host-1", "--", "id"])).toEqual({
			code: 1,
			stdout: "",
			stderr: expect.stringMatching(/host-1: this host allows no support shell.*\(ServiceNotAllowed\)\n.*supportShell/),
		});
		expect(journal.join("")).toContain("support shell refused");
		expect(existsSync(paths.shells)).toBe(false);
		allow();
		const asOperator = await gp(["host", "shell", "host-1", "--", "id"], "", "olga");
		expect(asOperator).toMatchObject({ code: 3, stderr: expect.stringContaining("(Forbidden)") });
		expect(await gp(["host", "shell", "host-9", "--", "id"])).toMatchObject({ code: 4 });
		expect(existsSync(paths.shells)).toBe(false);
	});

	test("runs a program: input, output, exit code; and writes down on the host who did what", async () => {
		allow();
		const odd = "$(id) `id` 'it''s' \"quoted\" ; * \\";
		const program = ["sh", "-c", 'cat; printf "%s\\n" "$1"; echo oops >&2; exit 7', "sh", odd];
		expect(await gp(["host", "shell", "host-1", "--", ...program], "hello\n")).toEqual({
			code: 7,
			stdout: `hello\n${odd}\n`,
			stderr: "oops\n",
		});
		expect((await gp(["host", "shell", "host-1", "--", "no-such-program"])).code).toBe(127);
		expect(await gp(["host", "shell", "host-1"], "echo from a script\nexit 3\n")).toMatchObject({
			code: 3,
			stdout: "from a script\n",
		});
		const { path, text } = transcripts()[0] as { path: string; text: string };
		expect(statSync(path).mode & 0o777).toBe(0o600);
		expect(statSync(paths.shells).mode & 0o777).toBe(0o700);
		const [header, ...events] = text
			.trim()
			.split("\n")
			.map((line) => JSON.parse(line));
		expect(header).toMatchObject({ version: 2, title: expect.stringMatching(/^admin on /) });
		const said = (kind: string) => events.flatMap(([, what, words]) => (what === kind ? [words] : [])).join("");
		expect(said("i")).toBe("hello\n");
		expect(said("o")).toContain("hello\n");
		expect(said("o")).toContain("oops\n");
		expect(said("m")).toBe("exit code 7");
		await vi.waitFor(() => expect(journal.join("")).toMatch(/support shell ended: exit code 7 .*by=admin/), WAIT);
		expect(journal.join("")).toMatch(/support shell opened .*by=admin .*command=.*transcript=/);
	});

	test("is a terminal where there is one", async () => {
		allow();
		const at = `stty rows 33 cols 99; exec "${process.execPath}" "${main}" host shell host-1`;
		const child = spawn("/usr/bin/script", ["-q", "-e", "-f", "-c", at, "/dev/null"], { env: environment("admin") });
		let seen = "";
		child.stdout.on("data", (bytes: Buffer) => {
			seen += bytes;
		});
		const ended = new Promise((resolve) => child.once("close", resolve));
		await vi.waitFor(() => expect(seen).toContain("recorded on host-1"), WAIT);
		child.stdin.write("stty size; exit 5\r");
		expect(await ended, seen).toBe(5);
		expect(seen).toMatch(/^33 99\r?$/m);
		expect(transcripts().at(-1)?.text).toContain("33 99");
	});

	test("ends with its caller, and all that it started with it", async () => {
		allow();
		const program = "setsid sleep 1000 & echo $! $$; exec sleep 1000";
		const caller: ChildProcess = spawn(process.execPath, [main, "host", "shell", "host-1", "--", "sh", "-c", program], {
			env: environment("admin"),
			stdio: ["pipe", "pipe", "inherit"],
		});
		let seen = "";
		caller.stdout?.on("data", (bytes: Buffer) => {
			seen += bytes;
		});
		await vi.waitFor(() => expect(seen).toMatch(/^\d+ \d+\n$/), WAIT);
		const pids = seen.trim().split(" ").map(Number);
		expect(pids.map(isAlive)).toEqual([true, true]);
		caller.kill("SIGKILL");
		await vi.waitFor(() => expect(pids.map(isAlive)).toEqual([false, false]), WAIT);
		await vi.waitFor(
			() => expect(journal.join("")).toContain("support shell ended: the caller's connection ended"),
			WAIT,
		);
	});
});

/** The agent's side alone, with limits that a test can wait for. */
describe("a support shell", () => {
	const journal: string[] = [];
	const log = createLog({ write: (line) => journal.push(line), journal: false });
	let made = 0;
	const shells = (limits: SupportShellsOptions["limits"] = {}) => {
		const own = join(directory, `shells-${++made}`);
		return { own, shells: new SupportShells({ directory: own, log, limits: { graceMs: 500, ...limits } }) };
	};
	const open = (to: SupportShells, wanted: ShellOpen | object) => {
		const [caller, stream] = duplexPair();
		to.serve({ accept: () => stream as never });
		caller.on("error", () => {});
		caller.write(encodeShell(Channel.caller, { user: "admin", requestId: "r" }));
		caller.write(encodeShell(Channel.open, wanted));
		return caller;
	};
	const read = async (caller: Duplex) => {
		const said = { out: "", exit: {} as unknown };
		for await (const { channel, payload } of readShell(caller)) {
			if (channel === Channel.exit) said.exit = JSON.parse(payload.toString());
			else said.out += payload;
		}
		return said;
	};

	test.each([
		["idle", { idleMs: 300 }, "sleep 1000", "idle for"],
		["open too long", { longestMs: 300 }, "while :; do echo busy; sleep 0.05; done", "the longest that one may be"],
		["more than its transcript holds", { transcriptBytes: 100_000 }, "yes", "can't be recorded"],
	])("ends when it is %s", async (_what, limits, program, why) => {
		const { own, shells: some } = shells(limits);
		const { exit } = await read(open(some, { command: ["sh", "-c", `trap '' HUP; ${program}`] }));
		expect(exit).toMatchObject({ error: { message: expect.stringContaining(why) } });
		const [transcript] = readdirSync(own).map((name) => readFileSync(join(own, name), "utf8"));
		expect(transcript?.length).toBeLessThan(101_000);
		expect(transcript?.trim().split("\n").at(-1)).toContain(why);
	});

	test("is one of a few at a time, and what can't be understood opens none", async () => {
		const { shells: some } = shells({ shells: 1 });
		const first = open(some, { command: ["cat"] });
		expect(() => open(some, { command: ["cat"] })).toThrow(/the most it takes/);
		first.write(encodeShell(Channel.stdin, Buffer.alloc(0)));
		expect((await read(first)).exit).toEqual({ exitCode: 0 });
		for (const wrong of [
			{},
			{ command: [] },
			{ command: ["a\0b"] },
			{ terminal: { rows: 1, columns: 1, type: "$(id)" } },
		]) {
			await vi.waitFor(async () => {
				expect((await read(open(some, wrong))).exit).toMatchObject({ error: { code: "TunnelProtocolError" } });
			}, WAIT);
		}
	});

	test("changes the size of its terminal, and keeps the newest transcripts only", async () => {
		const { own, shells: some } = shells({ transcripts: 2 });
		for (let count = 0; count < 3; count++) await read(open(some, { command: ["true"] }));
		const caller = open(some, { terminal: { rows: 20, columns: 80, type: "dumb" } });
		const said = read(caller);
		const newest = () => readFileSync(join(own, readdirSync(own).sort().at(-1) as string), "utf8");
		caller.write(encodeShell(Channel.stdin, Buffer.from("stty size\r")));
		await vi.waitFor(() => expect(newest()).toContain("20 80"), WAIT);
		caller.write(encodeShell(Channel.resize, { rows: 50, columns: 132 }));
		await vi.waitFor(() => {
			caller.write(encodeShell(Channel.stdin, Buffer.from("stty size\r")));
			expect(newest()).toContain("50 132");
		}, WAIT);
		caller.write(encodeShell(Channel.stdin, Buffer.from("exit 4\r")));
		expect((await said).exit).toEqual({ exitCode: 4 });
		expect(readdirSync(own)).toHaveLength(2);
		expect(newest()).toContain('"r","132x50"');
	});
});
