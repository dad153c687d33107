import { mkdir, open, readdir, readFile, readlink, rename, rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { BundleSource } from "../engine/bundles.ts";
import { namesIn, syncDirectory, writeDurable } from "../primitives/durable.ts";
import { type Exec, execute } from "../primitives/exec.ts";
import type { Attempt, Ending } from "./decide.ts";

/** Where the agent is in its package. */
const PACKAGED = "usr/lib/groundplane/agent";
/** It becomes the name of a directory. */
const GOOD_NAME = /^[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}$/;
const CHECK_MS = 60_000;

/**
 * Versions of the agent beside the package's own, and the links by which the launcher (agent/package/gp-agent) chooses:
 * `trial` is started once, as `trying`; `current` has proved itself. Every change of them is one rename, so that a power cut
 * leaves either choice whole.
 */
export class Versions {
	readonly #directory: string;
	readonly #exec: Exec;

	constructor(directory: string, exec: Exec = execute) {
		this.#directory = directory;
		this.#exec = exec;
	}

	/** Directory for downloads: what was begun is there for the next try. */
	get downloads(): string {
		return join(this.#directory, ".download");
	}

	/** Fetches a version, unpacks it, sees that it starts here, and keeps it. */
	async stage(version: string, bundles: BundleSource, signal: AbortSignal): Promise<void> {
		if (!GOOD_NAME.test(version)) throw unusable(version, "that is no name of a version");
		const unpacked = join(this.#directory, ".unpacked");
		await rm(unpacked, { recursive: true, force: true });
		await mkdir(unpacked, { recursive: true, mode: 0o755 });
		try {
			const manifest = await bundles.manifest("agent", version, signal);
			const file = manifest.files.find(({ kind }) => kind === "package");
			if (!file) throw unusable(version, "its bundle has no package");
			const path = await bundles.blob(file, signal);
			await this.#exec("dpkg-deb", ["--extract", path, unpacked], { signal });
			const tree = join(unpacked, PACKAGED);
			await this.#check(join(tree, "bin/gp-agent"), version, signal);
			await syncTree(tree);
			// A file that was just written costs more memory to run than one that is read again (agent/package/DEBIAN/postinst).
			const uncache = [`if=${join(tree, "bin/gp-agent")}`, "iflag=nocache", "count=0", "status=none"];
			await this.#exec("dd", uncache, { codes: true });
			const target = join(this.#directory, version);
			await rm(target, { recursive: true, force: true });
			await rename(tree, target);
			await syncDirectory(this.#directory);
			await rm(this.downloads, { recursive: true, force: true });
		} finally {
			await rm(unpacked, { recursive: true, force: true });
		}
	}

	/** The next start of the service is this version's only try. */
	async arm(version: string): Promise<void> {
		await this.#link(version, "trial");
	}

	/** The version that is on its try; undefined when there is none. */
	async trying(): Promise<string | undefined> {
		return readlink(join(this.#directory, "trying")).catch(() => undefined);
	}

	/** The version that is on its try has proved itself. */
	async settle(): Promise<void> {
		await rename(join(this.#directory, "trying"), join(this.#directory, "current"));
		await syncDirectory(this.#directory);
	}

	/** How the try of a version ended, if the launcher has written that down. */
	async ending(version: string): Promise<Ending | undefined> {
		const text = await readFile(join(this.#directory, "ended"), "utf8").catch(() => "");
		const [name, how] = text.trim().split(" ");
		return name === version && (how === "ended" || how === "deadline" || how === "lost") ? how : undefined;
	}

	async forgetEnding(): Promise<void> {
		await rm(join(this.#directory, "ended"), { force: true });
	}

	/** Removes all versions but the one that has proved itself, and whatever an interrupted update left. */
	async prune(): Promise<void> {
		const current = await readlink(join(this.#directory, "current")).catch(() => undefined);
		for (const name of await namesIn(this.#directory)) {
			if (!["current", current, ".download"].includes(name))
				await rm(join(this.#directory, name), { recursive: true, force: true });
		}
	}

	/** It must start on this host, and be what it says. */
	async #check(program: string, version: string, signal: AbortSignal): Promise<void> {
		const limit = AbortSignal.any([signal, AbortSignal.timeout(CHECK_MS)]);
		let found: string;
		try {
			found = (await this.#exec(program, ["--version"], { signal: limit })).stdout.trim();
		} catch (error) {
			signal.throwIfAborted();
			throw unusable(version, `it does not start on this host: ${asGroundplaneError(error).message}`, error);
		}
		if (found !== version) throw unusable(version, `it says of itself that it is ${found}`);
	}

	async #link(version: string, name: string): Promise<void> {
		const temporary = join(this.#directory, `.${name}`);
		await rm(temporary, { force: true });
		await symlink(version, temporary);
		await rename(temporary, join(this.#directory, name));
		await syncDirectory(this.#directory);
	}
}

const ATTEMPT = "update.json";

/** The last try, as it was kept; undefined when there is none that can be read. */
export async function readAttempt(stateDir: string): Promise<Attempt | undefined> {
	try {
		return JSON.parse(await readFile(join(stateDir, ATTEMPT), "utf8")) as Attempt;
	} catch {
		return undefined;
	}
}

export async function keepAttempt(stateDir: string, attempt: Attempt | undefined): Promise<void> {
	const path = join(stateDir, ATTEMPT);
	if (attempt) await writeDurable(path, JSON.stringify(attempt), 0o600);
	else await rm(path, { force: true });
}

/** Everything below is on disk when this resolves, so that no link can lead to a file that a power cut emptied. */
async function syncTree(directory: string): Promise<void> {
	for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
		const path = join(entry.parentPath, entry.name);
		if (entry.isDirectory()) await syncDirectory(path);
		else if (entry.isFile()) {
			const file = await open(path, "r");
			await file.sync().finally(() => file.close());
		}
	}
	await syncDirectory(directory);
}

const unusable = (version: string, why: string, cause?: unknown) =>
	new GroundplaneError("AgentUpdateFailed", `version ${version} of the agent can't be used: ${why}`, {
		next: "The agent stays what it is. Have the region offer another version.",
		cause,
	});
