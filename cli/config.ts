import { chmod, mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { GroundplaneError } from "../protocol/errors.ts";

/** How access tokens are got. */
const credentials = z.discriminatedUnion("type", [
	/** A refresh token of a sign-in in the browser; it changes with every use. */
	z.object({ type: z.literal("session"), refreshToken: z.string() }),
	/** An API token; `id` when gp made it itself and may revoke it. */
	z.object({ type: z.literal("api-token"), token: z.string(), id: z.string().optional() }),
]);
export type Credentials = z.output<typeof credentials>;

const region = z.object({
	/** `https://DOMAIN` of the region. */
	server: z.string(),
	/** The region's own name. */
	name: z.string().optional(),
	/** The region's root, PEM; what the machine trusts anyway when empty. */
	ca: z.string().optional(),
	user: z.string().optional(),
	credentials: credentials.optional(),
	/** The last access token, and when it ends (milliseconds since the epoch). */
	access: z.object({ token: z.string(), expiresAt: z.number() }).optional(),
});
export type RegionConfig = z.output<typeof region>;

/** Regions by their domain. */
const file = z.object({ current: z.string().optional(), regions: z.record(z.string(), region) });
export type ConfigFile = z.output<typeof file>;

const LOCK_WAIT_MS = 45_000;
/** A lock this old belongs to a gp that was killed. */
const LOCK_STALE_MS = 60_000;

/** gp's configuration: the regions it knows and its credentials there. One file, readable by its owner alone. */
export class ConfigStore {
	readonly path: string;

	constructor(environment: Readonly<Record<string, string | undefined>>) {
		const base = environment.XDG_CONFIG_HOME || join(homedir(), ".config");
		this.path = environment.GROUNDPLANE_CONFIG || join(base, "groundplane", "config.json");
	}

	async read(): Promise<ConfigFile> {
		try {
			return file.parse(JSON.parse(await readFile(this.path, "utf8")));
		} catch (cause) {
			if ((cause as NodeJS.ErrnoException).code === "ENOENT") return { regions: {} };
			throw new GroundplaneError("InvalidConfiguration", `${this.path} can't be read.`, {
				next: "Correct or remove it, then sign in again: gp login --server https://DOMAIN",
				cause,
			});
		}
	}

	/** Changes the file under a lock, so that several gp's at once lose nothing. Returns what `change` returns. */
	async update<T>(change: (config: ConfigFile) => Promise<T> | T): Promise<T> {
		await mkdir(dirname(this.path), { recursive: true, mode: 0o700 });
		const lock = `${this.path}.lock`;
		await takeLock(lock);
		try {
			const config = await this.read();
			const result = await change(config);
			const draft = `${this.path}.new`;
			await writeFile(draft, `${JSON.stringify(config, null, "\t")}\n`, { mode: 0o600 });
			await chmod(draft, 0o600);
			await rename(draft, this.path);
			return result;
		} finally {
			await rm(lock, { force: true });
		}
	}

	/** The region to work with, by its name or domain; the one signed in to last when none is given. */
	async region(wanted: string | undefined): Promise<{ domain: string; region: RegionConfig }> {
		const { current, regions } = await this.read();
		const domain = wanted === undefined ? current : domainOf(regions, wanted);
		const region = domain === undefined ? undefined : regions[domain];
		if (domain !== undefined && region) return { domain, region };
		const known = Object.keys(regions).join(", ");
		throw new GroundplaneError(
			"InvalidConfiguration",
			wanted === undefined ? "No region is known yet." : `No region ${wanted} is known.`,
			{
				next:
					wanted !== undefined && known
						? `Choose one of ${known}, or sign in to it: gp login --server https://DOMAIN`
						: "Sign in: gp login --server https://DOMAIN",
			},
		);
	}
}

/** The domain of the region that goes by this name or domain. */
export function domainOf(regions: ConfigFile["regions"], wanted: string): string | undefined {
	if (regions[wanted]) return wanted;
	return Object.keys(regions).find((domain) => regions[domain]?.name === wanted);
}

async function takeLock(path: string): Promise<void> {
	const end = performance.now() + LOCK_WAIT_MS;
	for (;;) {
		try {
			await (await open(path, "wx", 0o600)).close();
			return;
		} catch (cause) {
			if ((cause as NodeJS.ErrnoException).code !== "EEXIST") throw cause;
			const age = await stat(path).then(
				({ mtimeMs }) => Date.now() - mtimeMs,
				() => 0,
			);
			if (age > LOCK_STALE_MS) await rm(path, { force: true });
			else if (performance.now() > end) {
				throw new GroundplaneError("DeadlineExceeded", `Another gp holds ${path}.`, {
					next: "Wait for it to end, or remove the file when no gp runs.",
					cause,
				});
			} else await delay(20 + Math.random() * 80);
		}
	}
}
