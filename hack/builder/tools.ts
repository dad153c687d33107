import { randomUUID } from "node:crypto";
import { copyFile, link, mkdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { cacheDirectory } from "./cache.ts";
import { goProgram, moduleVersion } from "./go.ts";
import { toolPrograms } from "./programs.ts";

export type ToolName = keyof typeof toolPrograms;
export const toolNames = Object.keys(toolPrograms) as ToolName[];

/**
 * Path of a program that runs on this machine: `CACHE/tools/NAME-VERSION/NAME`, built when it isn't there yet.
 * Callers at the same time, in this process or others, wait for one build.
 */
export async function tool(name: ToolName): Promise<string> {
	const program = toolPrograms[name];
	const path = join(cacheDirectory(), "tools", `${name}-${await moduleVersion(program)}`, name);
	const binary = await goProgram(program);
	await publish(binary, path);
	return path;
}

/** Gives a cached file its well-known name; the content is shared where the file system can. */
async function publish(from: string, to: string): Promise<void> {
	const [source, target] = [await stat(from), await stat(to).catch(() => undefined)];
	if (target && (source.ino === target.ino || (source.size === target.size && source.mtimeMs <= target.mtimeMs)))
		return;
	await mkdir(dirname(to), { recursive: true });
	const temporary = join(dirname(to), `.${basename(to)}.${randomUUID()}`);
	try {
		await link(from, temporary).catch(() => copyFile(from, temporary));
		await rename(temporary, to);
	} finally {
		// When two callers made the same link, the second rename does nothing and leaves the temporary name.
		await rm(temporary, { force: true });
	}
}
