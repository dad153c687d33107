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

/** What a process that was killed leaves: a file in the making, as it is seen from a write that goes on. */
async function killedWhileWriting(path: string): Promise<string> {
	let name = "";
	await writeDurable(path, async () => {
		name = readdirSync(root).find((entry) => entry.startsWith(`.${basename(path)}.`)) ?? "";
	});
	rmSync(path);
	const left = name.replace(/[0-9a-f]{12}(?=-\d+\.groundplane$)/, "0123456789ab");
	expect(left).not.toBe(name);
	writeFileSync(join(root, left), "half");
	return left;
}

it.each([
	["written", (path: string) => writeDurable(path, "whole")],
	["copied", (path: string) => copyDurable("/etc/hostname", path, 0o755)],
])("takes away what a process that was killed left of a file that is %s again", async (_how, again) => {
	const path = join(root, "kubelet");
	await killedWhileWriting(path);
	await again(path);
	expect(readdirSync(root)).toEqual(["kubelet"]);
});

it("takes it away with the file, and leaves that of other files alone", async () => {
	const path = join(root, "kubelet");
	await killedWhileWriting(path);
	const other = await killedWhileWriting(join(root, "kubelet.conf"));
	await restorePath({ path, createdDirectories: [], before: { kind: "nothing" } });
	expect(readdirSync(root)).toEqual([other]);
});

it("lets two writes of a file go on beside each other", async () => {
	const path = join(root, "status.json");
	await Promise.all(["a", "b", "c"].map((text) => writeDurable(path, text)));
	expect(readdirSync(root)).toEqual(["status.json"]);
});
