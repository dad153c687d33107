import { access, chmod, mkdir, mkdtemp, readdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { cached, hashTree, prune } from "./cache.ts";

let directory: string;
beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "cache-"));
	vi.stubEnv("GROUNDPLANE_CACHE", directory);
});
afterEach(async () => {
	vi.unstubAllEnvs();
	await rm(directory, { recursive: true });
});

test("the same inputs are built once, also by two at the same time; other inputs are built again", async () => {
	const build = vi.fn((result: string) => writeFile(join(result, "file"), "content"));
	const [first, second] = await Promise.all([cached("thing", [1], build), cached("thing", [1], build)]);
	expect(first).toBe(second);
	expect(await cached("thing", [1], build)).toBe(first);
	expect(build).toHaveBeenCalledOnce();
	expect(await cached("thing", [2], build)).not.toBe(first);
	expect(await readFile(join(first, "file"), "utf8")).toBe("content");
});

test("a build that failed leaves nothing, and the next one works", async () => {
	const fail = async (result: string) => {
		await writeFile(join(result, "half"), "");
		throw new Error("broken");
	};
	await expect(cached("thing", [1], fail)).rejects.toThrow("broken");
	expect(await readdir(join(directory, "build/thing"))).toEqual([]);
	await access(await cached("thing", [1], async () => {}));
});

test("what was used last stays, old results and leftovers of killed builds go", async () => {
	const now = Date.now();
	const hour = 3600_000;
	const ages = { a: 5 * hour, b: hour, c: 9 * hour, d: 2 * hour, "a.tmp-fresh": hour, "a.tmp-stale": 30 * hour };
	for (const [name, age] of Object.entries(ages)) {
		await mkdir(join(directory, name));
		await utimes(join(directory, name), new Date(now - age), new Date(now - age));
	}
	await prune(directory, now);
	expect((await readdir(directory)).sort()).toEqual(["a", "a.tmp-fresh", "b", "d"]);
});

test("the digest of a tree changes with a name, a content and the executable bit, and with nothing else", async () => {
	const tree = join(directory, "tree");
	await mkdir(join(tree, "sub"), { recursive: true });
	await writeFile(join(tree, "sub/file"), "1");
	const before = await hashTree(tree);
	await utimes(join(tree, "sub/file"), 1, 1);
	expect(await hashTree(tree)).toBe(before);
	await chmod(join(tree, "sub/file"), 0o755);
	const executable = await hashTree(tree);
	await writeFile(join(tree, "sub/file"), "2");
	const content = await hashTree(tree);
	await writeFile(join(tree, "sub/other"), "2");
	expect(new Set([before, executable, content, await hashTree(tree)]).size).toBe(4);
});
