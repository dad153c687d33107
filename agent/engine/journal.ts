import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { syncDirectory, writeDurable } from "../primitives/durable.ts";

const entry = z.object({
	name: z.string(),
	use: z.string(),
	key: z.string(),
	/** `started`: it may have been done in part. `applied`: to the end, at least once. */
	state: z.enum(["started", "applied"]),
	/** Digest of what was last applied to the end. */
	digest: z.string().optional(),
	/** What undoes it. */
	memory: z.unknown(),
});
export type Entry = z.output<typeof entry>;

const journalSchema = z.object({
	schema: z.literal(1),
	role: z.string(),
	version: z.string(),
	identity: z.string(),
	entries: z.array(entry),
	/** What the role tells the plane, as last observed. */
	outputs: z.record(z.string(), z.string()).default({}),
});
/** What was done to the host for one role, in the order in which it was done: enough to undo it without the bundle. */
export type Journal = z.output<typeof journalSchema>;

/**
 * Journals in a directory, one file a role. Written before a step starts and after it is done, with fsync, so that
 * whatever was done to the host is known after a power cut.
 */
export class Journals {
	readonly #directory: string;

	constructor(stateDir: string) {
		this.#directory = join(stateDir, "roles");
	}

	async load(): Promise<Map<string, Journal>> {
		await mkdir(this.#directory, { recursive: true, mode: 0o700 });
		const journals = new Map<string, Journal>();
		for (const name of await readdir(this.#directory)) {
			if (!name.endsWith(".json") || name.startsWith(".")) continue;
			const journal = journalSchema.parse(JSON.parse(await readFile(join(this.#directory, name), "utf8")));
			journals.set(journal.role, journal);
		}
		return journals;
	}

	async save(journal: Journal): Promise<void> {
		await writeDurable(join(this.#directory, `${journal.role}.json`), JSON.stringify(journal, null, "\t"), 0o600);
	}

	async remove(role: string): Promise<void> {
		await rm(join(this.#directory, `${role}.json`), { force: true });
		await rm(this.backupDir(role), { recursive: true, force: true });
		await syncDirectory(this.#directory);
	}

	backupDir(role: string): string {
		return join(this.#directory, `${role}.before`);
	}
}
