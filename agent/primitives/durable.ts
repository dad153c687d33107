import {
	constants,
	copyFile,
	type FileHandle,
	lstat,
	mkdir,
	open,
	readdir,
	readFile,
	readlink,
	rename,
	rm,
	rmdir,
} from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** Files that this process began to make: each has a name of its own. */
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
	return join(dirname(path), `.${basename(path)}.${await whoami()}.${made++}.groundplane`);
}

/** Removes what processes that were killed while they wrote a file left beside it. What another is writing stays. */
export async function removeUnfinished(path: string): Promise<void> {
	const start = `.${basename(path)}.`;
	for (const name of await namesIn(dirname(path))) {
		if (!name.startsWith(start)) continue;
		const by = /^([0-9a-f-]{36}\.\d+\.\d+\.\d+)\.\d+\.groundplane$/.exec(name.slice(start.length))?.[1];
		if (by && (await isGone(by))) await rm(join(dirname(path), name), { force: true });
	}
}

/** This process as no other was or will be on this host, by proc(5): `BOOT.PID-NAMESPACE.PID.START`. */
async function whoami(): Promise<string> {
	const boot = await readFile("/proc/sys/kernel/random/boot_id", "utf8");
	const namespace = /\d+/.exec(await readlink("/proc/self/ns/pid"))?.[0];
	return `${boot.trim()}.${namespace}.${await processAt("self")}`;
}

/**
 * Whether a process is gone for certain. One of another PID namespace, as of a container, can't be looked up: it counts as running
 * until the next boot. The age of its file says nothing: clocks jump, and after a crash the next try comes at once.
 */
async function isGone(process: string): Promise<boolean> {
	const [ownBoot, ownNamespace] = (await whoami()).split(".");
	const [boot, namespace, pid = "", started] = process.split(".");
	if (boot !== ownBoot) return true;
	return namespace === ownNamespace && (await processAt(pid)) !== `${pid}.${started}`;
}

/** `PID.START`, the start in clock ticks since the boot: numbers are given again. Undefined when there is no such process. */
async function processAt(pid: string): Promise<string | undefined> {
	try {
		const stat = await readFile(`/proc/${pid}/stat`, "latin1");
		// After the name, which may hold anything, from `state` on.
		const started = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
		return `${Number.parseInt(stat, 10)}.${started}`;
	} catch (error) {
		// ESRCH: it ended while it was read.
		if (isMissing(error) || (error as NodeJS.ErrnoException).code === "ESRCH") return undefined;
		throw error;
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
