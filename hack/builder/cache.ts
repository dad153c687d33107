import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, readFile, readlink, rename, rm, stat, utimes } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, relative } from "node:path";
import { pipeline } from "node:stream/promises";
import { GroundplaneError } from "../../protocol/errors.ts";

/** How many results of one name are kept: the current one, and what another branch or a revert will ask for again. */
const KEPT_RESULTS = 3;
/** What a killed build left behind is removed when it is older than this. */
const STALE_MS = 24 * 3600_000;

/** Where builds are kept between runs and shared between clones: `$GROUNDPLANE_CACHE`, else the XDG cache directory. */
export function cacheDirectory(env: NodeJS.ProcessEnv = process.env): string {
	return env.GROUNDPLANE_CACHE ?? join(env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "groundplane");
}

/**
 * The result of `build` for these inputs, as a directory that nobody changes any more.
 *
 * The key is the digest of all inputs, so a result is found again by any clone. It appears by rename, so an interrupted
 * build leaves nothing that looks complete, and two runs at once build once: the second one waits for the first.
 */
export async function cached(
	name: string,
	inputs: readonly unknown[],
	build: (directory: string) => Promise<void>,
): Promise<string> {
	const result = resultPath(name, inputs);
	const parent = dirname(result);
	if (await touch(result)) return result;
	return locked(name, async () => {
		if (await touch(result)) return result;
		await mkdir(parent, { recursive: true });
		const temporary = await mkdtemp(`${result}.tmp-`);
		try {
			await build(temporary);
			// mkdtemp makes it private; images and packages carry these modes to where other users read.
			await chmod(temporary, 0o755);
			await rename(temporary, result);
		} finally {
			await rm(temporary, { recursive: true, force: true });
		}
		await prune(parent, Date.now());
		return result;
	});
}

/** Whether that result is there already. */
export const isCached = (name: string, inputs: readonly unknown[]): Promise<boolean> => touch(resultPath(name, inputs));

const resultPath = (name: string, inputs: readonly unknown[]): string =>
	join(cacheDirectory(), "build", name, digestOf(inputs).slice(0, 32));

/** The digest that names a result: of the JSON of its inputs. */
export function digestOf(inputs: readonly unknown[]): string {
	return createHash("sha256").update(JSON.stringify(inputs)).digest("hex");
}

const queues = new Map<string, Promise<unknown>>();

/**
 * Runs `work` alone: nobody else holds the lock of this name, in this process or another one.
 *
 * The kernel frees the lock when this process ends, however it ends, so there are no stale locks.
 */
export function locked<T>(name: string, work: () => Promise<T>): Promise<T> {
	const before = queues.get(name) ?? Promise.resolve();
	const mine = before.then(async () => {
		const free = await lockFile(join(cacheDirectory(), "locks", `${name.replaceAll("/", "-")}.lock`));
		try {
			return await work();
		} finally {
			free();
		}
	});
	queues.set(
		name,
		mine.catch(() => {}),
	);
	return mine;
}

/** flock(2), which Node does not offer: a child holds it and ends with our end of the pipe. */
async function lockFile(path: string): Promise<() => void> {
	await mkdir(dirname(path), { recursive: true });
	const holder = spawn("flock", [path, "sh", "-c", "echo locked; exec cat"], {
		stdio: ["pipe", "pipe", "inherit"],
		// Ctrl-C is ours to handle: the lock must outlive the signal until the work has stopped.
		detached: true,
	});
	await new Promise<void>((resolve, reject) => {
		holder.stdout.once("data", () => resolve());
		holder.once("error", reject);
		holder.once("exit", (code) =>
			reject(
				new GroundplaneError("CommandFailed", `flock ${path} ended with ${code}`, {
					next: "Check that the cache directory can be written and that util-linux is installed.",
				}),
			),
		);
	});
	return () => holder.stdin.end();
}

/** Marks a result as used now; false when there is none. */
async function touch(path: string): Promise<boolean> {
	try {
		const now = new Date();
		await utimes(path, now, now);
		return true;
	} catch {
		return false;
	}
}

/** Removes all but the results used last, and what killed builds left. */
export async function prune(parent: string, now: number): Promise<void> {
	const entries = await Promise.all(
		(await readdir(parent)).map(async (name) => {
			const path = join(parent, name);
			return { path, temporary: name.includes(".tmp-"), usedAt: (await stat(path)).mtimeMs };
		}),
	);
	const results = entries.filter((entry) => !entry.temporary).sort((a, b) => b.usedAt - a.usedAt);
	const leftovers = entries.filter((entry) => entry.temporary && now - entry.usedAt > STALE_MS);
	for (const { path } of [...results.slice(KEPT_RESULTS), ...leftovers])
		await rm(path, { recursive: true, force: true });
}

/** SHA-256 (hex) and size of a file. */
export async function hashFile(path: string): Promise<{ sha256: string; size: number }> {
	const hash = createHash("sha256");
	let size = 0;
	await pipeline(createReadStream(path), async (chunks) => {
		for await (const chunk of chunks) {
			hash.update(chunk);
			size += chunk.length;
		}
	});
	return { sha256: hash.digest("hex"), size };
}

/** Digest of files and directories by relative path, mode and content: an input of {@link cached}. */
export async function hashTree(root: string): Promise<string> {
	const lines: string[] = [];
	for (const path of await filesUnder(root)) {
		const info = await stat(path);
		const content = createHash("sha256").update(await readFile(path));
		lines.push(`${relative(root, path)} ${(info.mode & 0o111) !== 0} ${content.digest("hex")}`);
	}
	return digestOf(lines);
}

/** Every file under a path (or the file itself), sorted, so that the order is the same on every machine. */
export async function filesUnder(path: string): Promise<string[]> {
	const info = await stat(path).catch(() => undefined);
	if (info === undefined) {
		const target = await readlink(path).catch(() => undefined);
		throw new GroundplaneError("NotFound", target ? `${path} points at nothing` : `${path} does not exist`, {
			next: "Restore the file, or take it off the list in hack/builder.",
		});
	}
	if (!info.isDirectory()) return [path];
	const names = (await readdir(path)).sort();
	return (await Promise.all(names.map((name) => filesUnder(join(path, name))))).flat();
}
