import { randomBytes } from "node:crypto";
import { constants, copyFile, type FileHandle, lstat, mkdir, open, readdir, rename, rm, rmdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** Whose files in the making are whose: another process that left some was killed. */
const PROCESS = randomBytes(6).toString("hex");
let made = 0;

/** What stands at a path, without following a link; undefined when nothing does. */
export async function statOf(path: string) {
	try {
		return await lstat(path);
	} catch (error) {
		if (isMissing(error)) return undefined;
		throw error;
	}
}

/** Names in a directory; none when it is not there. */
export async function namesIn(path: string): Promise<string[]> {
	try {
		return await readdir(path);
	} catch (error) {
		if (isMissing(error)) return [];
		throw error;
	}
}

export function isMissing(error: unknown): boolean {
	const code = (error as NodeJS.ErrnoException).code;
	return code === "ENOENT" || code === "ENOTDIR";
}

/** Writes a file so that after a power cut there is either the old content or the new one (rename(2), fsync(2)). */
export async function writeDurable(
	path: string,
	content: string | Uint8Array | ((file: FileHandle) => Promise<void>),
	mode = 0o644,
): Promise<void> {
	const temporary = await temporaryFor(path);
	try {
		const file = await open(temporary, "wx", mode);
		try {
			if (typeof content === "function") await content(file);
			else await file.writeFile(content);
			await file.chmod(mode);
			await file.sync();
		} finally {
			await file.close();
		}
		await rename(temporary, path);
	} catch (error) {
		await rm(temporary, { force: true });
		throw error;
	}
	await syncDirectory(dirname(path));
}

/** Copies a file like {@link writeDurable}, in the kernel: as a reflink where the file system has them. */
export async function copyDurable(from: string, to: string, mode: number): Promise<void> {
	const temporary = await temporaryFor(to);
	try {
		await copyFile(from, temporary, constants.COPYFILE_FICLONE);
		const file = await open(temporary, "r");
		try {
			await file.chmod(mode);
			await file.sync();
		} finally {
			await file.close();
		}
		await rename(temporary, to);
	} catch (error) {
		await rm(temporary, { force: true });
		throw error;
	}
	await syncDirectory(dirname(to));
}

/** Where a file is made before it takes its place. Nobody else uses the name, and what was left of earlier tries goes. */
async function temporaryFor(path: string): Promise<string> {
	await removeUnfinished(path);
	return join(dirname(path), `.${basename(path)}.${PROCESS}-${made++}.groundplane`);
}

/** Removes what processes that were killed while they wrote a file left beside it. */
export async function removeUnfinished(path: string): Promise<void> {
	const start = `.${basename(path)}.`;
	for (const name of await namesIn(dirname(path))) {
		const by = name.startsWith(start) && /^([0-9a-f]{12})-\d+\.groundplane$/.exec(name.slice(start.length))?.[1];
		if (by && by !== PROCESS) await rm(join(dirname(path), name), { force: true });
	}
}

export async function syncDirectory(path: string): Promise<void> {
	const directory = await open(path, "r");
	try {
		await directory.sync();
	} finally {
		await directory.close();
	}
}

/** Directories of a path that do not exist yet, outermost first. */
export async function missingDirectories(path: string): Promise<string[]> {
	const missing: string[] = [];
	for (let at = path; at !== dirname(at); at = dirname(at)) {
		if (await statOf(at)) break;
		missing.unshift(at);
	}
	return missing;
}

export async function makeDirectories(path: string, mode = 0o755): Promise<void> {
	await mkdir(path, { recursive: true, mode });
}

/** Removes directories that we made, innermost first, as far as they are empty. */
export async function removeEmptyDirectories(paths: readonly string[]): Promise<void> {
	for (const path of [...paths].reverse()) {
		try {
			await rmdir(path);
		} catch (error) {
			const code = (error as NodeJS.ErrnoException).code;
			if (code !== "ENOENT" && code !== "ENOTEMPTY" && code !== "EEXIST" && code !== "EBUSY") throw error;
		}
	}
}
