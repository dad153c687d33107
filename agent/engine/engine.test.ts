import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { stringify } from "yaml";
import type { RoleStatus } from "../../protocol/facts.ts";
import type { ReleaseFile, ReleaseManifest } from "../../protocol/release.ts";
import { patience } from "../../test/support/patience.ts";
import type { Exec } from "../primitives/exec.ts";
import type { BundleSource } from "./bundles.ts";
import { type DesiredRoles, Engine } from "./engine.ts";

let root: string;
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "engine-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** A bundle made of texts: `pack/pack.yaml` from an object, everything else as it is. */
function bundle(pack: object, texts: Record<string, string> = {}): BundleSource {
	const contents = new Map(
		Object.entries({ ...texts, "pack/pack.yaml": stringify({ schema: 1, name: "r", ...pack }) }),
	);
	const files = [...contents].map(([path, text]): ReleaseFile => {
		const sha256 = createHash("sha256").update(text).digest("hex");
		writeFileSync(join(root, sha256), text);
		return { path, sha256, size: Buffer.byteLength(text), kind: path.startsWith("pack/") ? "pack" : "binary" };
	});
	return {
		manifest: async (name, version) =>
			({ schema: 1, name, version, architecture: "amd64", createdAt: "", components: {}, files }) as ReleaseManifest,
		blob: async ({ sha256 }) => join(root, sha256),
	};
}

const parameters = {
	type: "object",
	properties: { greeting: { type: "string", default: "hello" }, token: { type: "string" } },
};
const steps = () => [
	{ name: "place", use: "directory", with: { path: join(root, "host/etc/role"), purge: true } },
	{
		name: "greeting",
		use: "file",
		with: { path: join(root, "host/etc/role/greeting"), content: "{{parameters.greeting}}" },
	},
	{ name: "motd", use: "file", with: { path: join(root, "host/motd"), content: "changed", mode: "0600" } },
	{ name: "program", use: "binary", with: { path: join(root, "host/usr/bin/tool"), blob: "bin/tool" } },
	{ name: "call", use: "command", with: { run: ["tool", "go"] } },
];
const role = (version = "v1", more: Record<string, unknown> = {}): DesiredRoles => ({
	roles: [{ name: "r", version, parameters: more }],
	paused: false,
	validUntil: 1e12,
});
const none: DesiredRoles = { roles: [], paused: false, validUntil: 1e12 };

interface Harness {
	readonly engine: Engine;
	readonly seen: RoleStatus[][];
	readonly stop: () => Promise<void>;
}
let harnesses: Harness[] = [];
afterEach(async () => {
	for (const { stop } of harnesses) await stop();
	harnesses = [];
});

const warned = vi.fn<(fields: object, message: string) => void>();
function start(bundles: BundleSource, exec: Exec, desired?: DesiredRoles): Harness {
	const quiet = () => {};
	const engine = new Engine({
		stateDir: join(root, "state"),
		bundles,
		exec,
		random: () => 0,
		recheckMs: 50,
		log: { info: quiet, warn: warned, error: quiet },
		facts: () => ({ cgroup: "v2" }) as never,
	});
	const seen: RoleStatus[][] = [];
	engine.onStatus((roles) => seen.push(roles));
	if (desired) engine.setDesired(desired);
	const abort = new AbortController();
	const running = engine.run(abort.signal);
	const harness = {
		engine,
		seen,
		stop: async () => {
			abort.abort();
			await running;
		},
	};
	harnesses.push(harness);
	return harness;
}
const ok: Exec = async () => ({ code: 0, stdout: "", stderr: "" });
/** A program that never ends by itself. The step is named before its program begins, so the signal may have aborted already. */
const stuck = (signal: AbortSignal | undefined): Promise<never> =>
	new Promise((_, reject) => {
		const end = () => reject(signal?.reason);
		if (signal?.aborted) end();
		else signal?.addEventListener("abort", end);
	});
const reaches = (engine: Engine, phase: string | undefined) =>
	vi.waitFor(() => expect(engine.status()[0]?.phase).toBe(phase), { ...patience, interval: 5 });
const host = (path: string) => join(root, "host", path);

describe("Engine", () => {
	beforeEach(() => {
		mkdirSync(host(""));
		writeFileSync(host("motd"), "as found", { mode: 0o644 });
	});

	it("applies a role, repairs drift, follows a change, and leaves the host as it was found", async () => {
		const { engine, seen } = start(bundle({ parameters, steps: steps() }, { "bin/tool": "#!" }), ok, role());
		await reaches(engine, "Applied");
		expect(readFileSync(host("etc/role/greeting"), "utf8")).toBe("hello");
		expect(readFileSync(host("usr/bin/tool"), "utf8")).toBe("#!");
		expect(engine.status()[0]).toMatchObject({ done: 5, total: 5, version: "v1" });
		expect(seen.flat().map(({ step }) => step)).toContain("greeting");

		writeFileSync(host("motd"), "drifted");
		await vi.waitFor(() => expect(readFileSync(host("motd"), "utf8")).toBe("changed"), patience);

		engine.setDesired(role("v1", { greeting: "good day" }));
		await vi.waitFor(() => expect(readFileSync(host("etc/role/greeting"), "utf8")).toBe("good day"), patience);

		writeFileSync(host("etc/role/left-by-a-program"), "x");
		engine.setDesired(none);
		await reaches(engine, undefined);
		expect(readFileSync(host("motd"), "utf8")).toBe("as found");
		expect([existsSync(host("etc")), existsSync(host("usr"))]).toEqual([false, false]);
		expect(existsSync(join(root, "state/roles/r.before"))).toBe(false);
	});

	it("says what failed and why, goes on trying, and goes on when it is fixed", async () => {
		let broken = true;
		const exec: Exec = async () => {
			if (broken) throw new Error("the disk said no to s3cret");
			return { code: 0, stdout: "", stderr: "" };
		};
		const bundles = bundle({ parameters, secrets: ["token"], steps: steps() }, { "bin/tool": "#!" });
		const { engine } = start(bundles, exec, role("v1", { token: "s3cret" }));
		await reaches(engine, "Failed");
		expect(engine.status()[0]).toMatchObject({ step: "call", reason: "Internal", done: 4, total: 5 });
		expect(engine.status()[0]?.message).toContain("the disk said no to [secret]");
		expect(inspect(warned.mock.lastCall)).toMatch(/\[secret\]/);
		expect(inspect(warned.mock.lastCall)).not.toContain("s3cret");
		broken = false;
		await reaches(engine, "Applied");
	});

	it("goes on after a crash in the middle of a step, and still knows what was there before it", async () => {
		const crash: Exec = () => new Promise((_, reject) => setTimeout(() => reject(new Error("killed")), 20));
		const bundles = bundle({ parameters, steps: steps() }, { "bin/tool": "#!" });
		const first = start(bundles, crash, role());
		await vi.waitFor(() => expect(existsSync(host("usr/bin/tool"))).toBe(true), patience);
		await first.stop();
		const second = start(bundles, ok, role());
		await reaches(second.engine, "Applied");
		await second.stop();
		// The bundle is gone and the role with it: the journal is enough to undo it.
		const gone: BundleSource = {
			manifest: () => Promise.reject(new Error("no")),
			blob: () => Promise.reject(new Error("no")),
		};
		const third = start(gone, ok, none);
		await reaches(third.engine, undefined);
		await vi.waitFor(() => expect(readFileSync(host("motd"), "utf8")).toBe("as found"), patience);
		await vi.waitFor(() => expect(existsSync(host("usr"))).toBe(false), patience);
	});

	it("counts a role as applied after a restart, and finds drift all the same", async () => {
		const bundles = bundle({ parameters, steps: steps() }, { "bin/tool": "#!" });
		const first = start(bundles, ok, role());
		await reaches(first.engine, "Applied");
		await first.stop();
		const second = start(bundles, ok, role());
		await reaches(second.engine, "Applied");
		await second.stop();
		const afterwards = second.seen.flat().filter(({ step }) => step !== "fetch the role pack");
		expect(new Set(afterwards.map(({ phase }) => phase))).toEqual(new Set(["Applied"]));

		writeFileSync(host("motd"), "drifted");
		start(bundles, ok, role());
		await vi.waitFor(() => expect(readFileSync(host("motd"), "utf8")).toBe("changed"), patience);
	});

	it("asked to work once, ends when it has looked at everything, and not when the journal says that all was well", async () => {
		const bundles = bundle({ parameters, steps: steps() }, { "bin/tool": "#!" });
		const first = start(bundles, ok, role());
		await reaches(first.engine, "Applied");
		await first.stop();
		writeFileSync(host("motd"), "drifted");
		const { engine, stop } = start(bundles, ok);
		await stop();
		engine.setDesired(role());
		await engine.run(new AbortController().signal, { once: true });
		expect(readFileSync(host("motd"), "utf8")).toBe("changed");
		engine.setDesired(none);
		await engine.run(new AbortController().signal, { once: true });
		expect(readFileSync(host("motd"), "utf8")).toBe("as found");
	});

	it("changes nothing before it was told anything, while paused, and after the document ended", async () => {
		const bundles = bundle({ parameters, steps: steps() }, { "bin/tool": "#!" });
		const { engine } = start(bundles, ok);
		engine.setDesired({ ...role(), paused: true });
		await new Promise((resolve) => setTimeout(resolve, 50));
		engine.setDesired({ ...role(), validUntil: Date.now() / 1000 - 1 });
		await new Promise((resolve) => setTimeout(resolve, 50));
		await reaches(engine, "Pending");
		expect(readFileSync(host("motd"), "utf8")).toBe("as found");
		engine.setDesired(role());
		await reaches(engine, "Applied");
	});

	it("never says that it is done with what it has not looked at yet", async () => {
		const { engine } = start(bundle({ parameters, steps: steps() }, { "bin/tool": "#!" }), ok, role());
		await reaches(engine, "Applied");
		// A report goes up at once, under the number of the new document.
		engine.setDesired(role("v1", { greeting: "good day" }));
		expect(engine.status()[0]?.phase).toBe("Pending");
		await reaches(engine, "Applied");
		engine.setDesired(none);
		expect(engine.status()[0]?.phase).toBe("Removing");
	});

	it("does not wait for a step of a role that was taken away", async () => {
		const exec: Exec = (_file, _args, { signal } = {}) => stuck(signal);
		const { engine } = start(bundle({ parameters, steps: steps() }, { "bin/tool": "#!" }), exec, role());
		await vi.waitFor(() => expect(engine.status()[0]?.step).toBe("call"), patience);
		engine.setDesired(none);
		await reaches(engine, undefined);
		expect(readFileSync(host("motd"), "utf8")).toBe("as found");
	});

	it("does what it can while files still come, and a role that is taken away meanwhile leaves none of them", async () => {
		const whole = bundle(
			{
				parameters,
				steps: [...steps(), { name: "late", use: "binary", with: { path: join(root, "host/late"), blob: "bin/late" } }],
			},
			{ "bin/tool": "#!", "bin/late": "late" },
		);
		const late = createHash("sha256").update("late").digest("hex");
		const blob: BundleSource["blob"] = (file, signal) =>
			file.sha256 === late ? stuck(signal) : whole.blob(file, signal);
		const prune = vi.fn(async () => {});
		const { engine } = start({ ...whole, blob, prune }, ok, role());
		await vi.waitFor(
			() => expect(engine.status()[0]).toMatchObject({ step: "fetch files 1/2", done: 5, total: 6 }),
			patience,
		);
		expect(prune).not.toHaveBeenCalled();
		engine.setDesired(none);
		await vi.waitFor(() => expect(prune).toHaveBeenCalledWith(new Set()), patience);
		expect(engine.status()).toEqual([]);
	});

	it("a role that is taken away before its first step leaves nothing that was fetched", async () => {
		const one = [{ name: "program", use: "binary", with: { path: join(root, "host/tool"), blob: "bin/tool" } }];
		const whole = bundle({ parameters, steps: one }, { "bin/tool": "#!" });
		const tool = createHash("sha256").update("#!").digest("hex");
		const blob: BundleSource["blob"] = (file, signal) =>
			file.sha256 === tool ? stuck(signal) : whole.blob(file, signal);
		const prune = vi.fn(async () => {});
		const { engine } = start({ ...whole, blob, prune }, ok, role());
		await vi.waitFor(() => expect(engine.status()[0]).toMatchObject({ step: "fetch files 0/1", done: 0 }), patience);
		engine.setDesired(none);
		await vi.waitFor(() => expect(prune).toHaveBeenCalledWith(new Set()), patience);
	});

	it("leaves a step for another version, and keeps the files of the version before and nothing older", async () => {
		const tool = { path: join(root, "host/{{release.version}}/tool"), blob: "bin/tool", slot: "tool" };
		const program = { name: "program", use: "binary", with: tool };
		const first = bundle({ parameters, steps: [program] }, { "bin/tool": "one" });
		const second = bundle({ parameters, steps: [program, steps()[4]] }, { "bin/tool": "two" });
		const keeps: number[] = [];
		const bundles: BundleSource = {
			...first,
			manifest: (name, version, signal) => (version === "v1" ? first : second).manifest(name, version, signal),
			prune: async (keep) => void keeps.push(keep.size),
		};
		let isStuck = true;
		const exec: Exec = async (_file, _args, { signal } = {}) => {
			if (isStuck) await stuck(signal);
			return { code: 0, stdout: "", stderr: "" };
		};
		const { engine } = start(bundles, exec, role("v1"));
		await reaches(engine, "Applied");
		engine.setDesired(role("v2"));
		await vi.waitFor(() => expect(engine.status()[0]?.step).toBe("call"), patience);
		expect(["v1", "v2"].map((version) => readFileSync(host(`${version}/tool`), "utf8"))).toEqual(["one", "two"]);
		isStuck = false;
		engine.setDesired(role("v3"));
		await vi.waitFor(() => expect(engine.status()[0]).toMatchObject({ phase: "Applied", version: "v3" }), patience);
		expect(keeps).toEqual([4, 2]);
	});

	it("does not wait for the files of a version that is no longer wanted", async () => {
		const tool = { path: join(root, "host/{{release.version}}/tool"), blob: "bin/tool", slot: "tool" };
		const pack = { parameters, steps: [{ name: "program", use: "binary", with: tool }] };
		const first = bundle(pack, { "bin/tool": "one" });
		const second = bundle(pack, { "bin/tool": "two" });
		const two = createHash("sha256").update("two").digest("hex");
		const bundles: BundleSource = {
			manifest: (name, version, signal) => (version === "v1" ? first : second).manifest(name, version, signal),
			blob: (file, signal) => (file.sha256 === two ? stuck(signal) : first.blob(file, signal)),
		};
		const { engine } = start(bundles, ok, role("v1"));
		const shows = (status: Partial<RoleStatus>) =>
			vi.waitFor(() => expect(engine.status()[0]).toMatchObject(status), patience);
		await reaches(engine, "Applied");
		engine.setDesired(role("v2"));
		await shows({ version: "v2", step: "fetch files 0/1" });
		engine.setDesired(role("v1"));
		await shows({ version: "v1", phase: "Applied" });
		engine.setDesired(role("v2"));
		await shows({ version: "v2", step: "fetch files 0/1" });
		engine.setDesired(none);
		await reaches(engine, undefined);
		expect(existsSync(host("v1"))).toBe(false);
	});

	it("does not begin to fetch a version that was taken back while the fetching of another was being ended", async () => {
		const tool = { path: join(root, "host/tool"), blob: "bin/tool" };
		const pack = { parameters, steps: [{ name: "program", use: "binary", with: tool }] };
		const first = bundle(pack, { "bin/tool": "one" });
		const second = bundle(pack, { "bin/tool": "two" });
		const digests = ["one", "two"].map((text) => createHash("sha256").update(text).digest("hex"));
		const ended = Promise.withResolvers<never>();
		const asked: number[] = [];
		const bundles: BundleSource = {
			manifest: (name, version, signal) => (version === "v2" ? second : first).manifest(name, version, signal),
			blob: async (file, signal) => {
				const which = digests.indexOf(file.sha256);
				asked.push(which);
				if (which !== 0) return first.blob(file, signal);
				// The first that asks is the fetching; told to stop, it needs a moment. The second is the step.
				const isFetching = asked.filter((one) => one === 0).length === 1;
				return stuck(signal).catch((error) => (isFetching ? ended.promise : Promise.reject(error)));
			},
		};
		const { engine } = start(bundles, ok, role("v1"));
		await vi.waitFor(() => expect(engine.status()[0]?.step).toBe("fetch files 0/1"), patience);
		engine.setDesired(role("v2"));
		await delay(50);
		engine.setDesired(none);
		ended.reject(new Error("ended"));
		await reaches(engine, undefined);
		expect(asked).not.toContain(1);
	});

	it("changes nothing for a version of which a file is damaged, however often it tries, and goes there when that is mended", async () => {
		const tool = { path: join(root, "host/{{release.version}}/tool"), blob: "bin/tool", slot: "tool" };
		const greeting = (content: string) => ({ name: "motd", use: "file", with: { path: host("motd"), content } });
		const program = { name: "program", use: "binary", with: tool };
		const first = bundle({ parameters, steps: [greeting("one"), program] }, { "bin/tool": "one" });
		const second = bundle({ parameters, steps: [greeting("two"), program, steps()[4]] }, { "bin/tool": "two" });
		const two = createHash("sha256").update("two").digest("hex");
		const goOn = Promise.withResolvers<Awaited<ReturnType<Exec>>>();
		let tries = 0;
		let isDamaged = true;
		const bundles: BundleSource = {
			manifest: (name, version, signal) => (version === "v1" ? first : second).manifest(name, version, signal),
			blob: async (file, signal) => {
				if (file.sha256 === two) tries += 1;
				if (file.sha256 === two && isDamaged) throw new Error("damaged");
				return first.blob(file, signal);
			},
		};
		const { engine } = start(bundles, () => goOn.promise, role("v1"));
		const shows = (status: Partial<RoleStatus>) =>
			vi.waitFor(() => expect(engine.status()[0]).toMatchObject(status), patience);
		await reaches(engine, "Applied");
		engine.setDesired(role("v2"));
		await vi.waitFor(() => expect(tries).toBe(2), patience);
		expect(readFileSync(host("motd"), "utf8")).toBe("one");
		await shows({ version: "v2", phase: "Failed", step: "fetch files 0/1" });
		isDamaged = false;
		// Whoever reads the status would take it for a change that fails, and put the host back.
		await shows({ phase: "Applying", step: "call" });
		goOn.resolve({ code: 0, stdout: "", stderr: "" });
		await shows({ version: "v2", phase: "Applied" });
		expect(readFileSync(host("motd"), "utf8")).toBe("two");
	}, 30_000);

	it("names bad parameters", async () => {
		const { engine } = start(bundle({ parameters, steps: steps() }), ok, role("v1", { greeting: 7 }));
		await reaches(engine, "Failed");
		expect(engine.status()[0]).toMatchObject({ reason: "InvalidInput" });
		expect(engine.status()[0]?.message).toContain("greeting");
	});
});
