import { chmod, readdir, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { makeDirectories, missingDirectories, removeEmptyDirectories, statOf } from "./durable.ts";
import { fileMode } from "./file.ts";
import type { Primitive } from "./primitive.ts";

const directoryWant = z.object({
	path: z.string().startsWith("/"),
	mode: fileMode.prefault("0755"),
	/** What the role's programs leave in it goes with the role, if nothing was in it before. */
	purge: z.boolean().default(false),
});

const directoryMemory = z.object({
	path: z.string(),
	createdDirectories: z.array(z.string()),
	purge: z.boolean(),
	/** Entries that were in it before us: they stay. */
	entries: z.array(z.string()),
	/** Its mode before us, if it was there. */
	mode: z.int().optional(),
});

/** A directory; with `purge` everything that appeared in it since is removed again, mounts included. */
export const directory: Primitive<z.output<typeof directoryWant>, z.output<typeof directoryMemory>> = {
	schema: directoryWant,
	key: ({ path }) => path,
	async observe({ path }) {
		const found = await statOf(path);
		return found?.isDirectory() ? { ok: true } : { ok: false, why: `${path} is missing` };
	},
	async remember({ path, purge }) {
		const createdDirectories = await missingDirectories(path);
		if (createdDirectories.length > 0) return { path, createdDirectories, purge, entries: [] };
		const { mode } = await stat(path);
		return { path, createdDirectories, purge, entries: await readdir(path), mode: mode & 0o7777 };
	},
	async apply({ path, mode }) {
		if (await statOf(path)) return;
		await makeDirectories(path);
		await chmod(path, mode);
	},
	async undo({ path, createdDirectories, purge, entries, mode }, { exec, signal }) {
		if (purge && (await statOf(path))?.isDirectory()) {
			for (const mount of await mountsBelow(path)) await exec("umount", ["--lazy", mount], { signal, codes: true });
			for (const name of await readdir(path))
				if (!entries.includes(name)) await rm(join(path, name), { recursive: true, force: true, maxRetries: 3 });
		}
		await removeEmptyDirectories(createdDirectories);
		if (mode !== undefined) await chmod(path, mode);
	},
};

/** Mount points strictly below a path, innermost first (proc_pid_mountinfo(5), field 5). */
async function mountsBelow(path: string): Promise<string[]> {
	const table = await readFile("/proc/self/mountinfo", "utf8");
	return table
		.split("\n")
		.map((line) => line.split(" ")[4] ?? "")
		.map((point) =>
			point.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
		)
		.filter((point) => point.startsWith(`${path}/`))
		.sort((a, b) => b.length - a.length);
}
