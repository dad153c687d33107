import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { copyDurable, writeDurable } from "./durable.ts";
import { restorePath } from "./file.ts";

let root: string;
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "durable-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** Whose file in the making it is, as its name says. */
type Maker = Record<"boot" | "namespace" | "pid" | "started", string>;

/** A file in the making as another process has it, which is this one but for what is given; its name. */
async function inTheMaking(path: string, other: Partial<Maker>): Promise<string> {
	let name = "";
	await writeDurable(path, async () => {
		name = readdirSync(root).find((entry) => entry.startsWith(`.${basename(path)}.`)) ?? "";
	});
	rmSync(path);
	const [boot, namespace, pid, started, ...rest] = name.slice(`.${basename(path)}.`.length).split(".");
	const maker = Object.values({ boot, namespace, pid, started, ...other });
	const left = ["", basename(path), ...maker, ...rest].join(".");
	expect(left).not.toBe(name);
	writeFileSync(join(root, left), "half");
	return left;
}

const EARLIER_BOOT = { boot: "00000000-0000-4000-8000-000000000000" };
const goneSince = () => ({ pid: String(spawnSync("true").pid) });

it.each([
	["written", (path: string) => writeDurable(path, "whole")],
	["copied", (path: string) => copyDurable("/etc/hostname", path, 0o755)],
])("takes away what a process that was killed left of a file that is %s again", async (_how, again) => {
	const path = join(root, "kubelet");
	await inTheMaking(path, goneSince());
	await again(path);
	expect(readdirSync(root)).toEqual(["kubelet"]);
});

it.each<[string, "goes" | "stays", Partial<Maker>]>([
	["process that has ended", "goes", goneSince()],
	["process of which another has the number by now", "goes", { started: "1" }],
	["process before a power cut of which another has number and start by now", "goes", EARLIER_BOOT],
	["container before a power cut", "goes", { ...EARLIER_BOOT, namespace: "1", pid: "1" }],
	["container, whose processes have other numbers there", "stays", { namespace: "1", ...goneSince() }],
])("what a %s was making %s", async (_who, outcome, other) => {
	const path = join(root, "kubelet");
	const left = await inTheMaking(path, other);
	await writeDurable(path, "whole");
	expect(readdirSync(root)).toEqual(outcome === "goes" ? ["kubelet"] : [left, "kubelet"]);
});

it("leaves alone what another program is writing, until that is killed", async () => {
	const path = join(root, "identity.json");
	const forever = `import { writeDurable } from ${JSON.stringify(import.meta.resolve("./durable.ts"))};
		await writeDurable(${JSON.stringify(path)}, () => new Promise(() => setInterval(() => {}, 1000)));`;
	const other = spawn(process.execPath, ["--input-type=module", "-e", forever], { stdio: "inherit" });
	try {
		await expect.poll(() => readdirSync(root)).toHaveLength(1);
		const theirs = readdirSync(root);
		await writeDurable(path, "ours");
		expect(readdirSync(root)).toEqual([...theirs, "identity.json"]);
	} finally {
		other.kill("SIGKILL");
		await once(other, "exit");
	}
	await writeDurable(path, "ours again");
	expect(readdirSync(root)).toEqual(["identity.json"]);
});

it("takes it away with the file, and leaves that of other files alone", async () => {
	const path = join(root, "kubelet");
	await inTheMaking(path, goneSince());
	const other = await inTheMaking(join(root, "kubelet.conf"), goneSince());
	await restorePath({ path, createdDirectories: [], before: { kind: "nothing" } });
	expect(readdirSync(root)).toEqual([other]);
});

it("lets two writes of a file go on beside each other", async () => {
	const path = join(root, "status.json");
	await Promise.all(["a", "b", "c"].map((text) => writeDurable(path, text)));
	expect(readdirSync(root)).toEqual(["status.json"]);
});
