import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { digestOf } from "../../agent/primitives/digest.ts";
import { isMissing, writeDurable } from "../../agent/primitives/durable.ts";
import { GroundplaneError } from "../../protocol/errors.ts";

/** `release.json`: what a release of the platform holds. */
const releaseSchema = z.object({
	version: z.string(),
	/** Bundles for hosts, newest first where there are several versions. */
	bundles: z.array(
		z.object({
			name: z.string(),
			version: z.string(),
			tag: z.string().optional(),
			extras: z.array(z.string()).optional(),
		}),
	),
	/** Archives to import where there is no registry. */
	images: z.array(z.object({ reference: z.string(), path: z.string(), sha256: z.string().regex(/^[0-9a-f]{64}$/) })),
	/** The core's chart and Helm itself, as paths inside the release. */
	chart: z.string().default("charts/groundplane"),
	helm: z.string().default("bin/helm"),
});
export type Release = z.output<typeof releaseSchema> & {
	readonly directory: string;
	/** Keys that sign bundles (RFC 7517). */
	readonly jwks: { keys: Record<string, unknown>[] };
};
export type ReleaseImage = Release["images"][number];

/**
 * Reads a release. The first one that a server takes tells the keys to trust (kept in `stateDir`); from then on a release
 * with other keys is refused unless `trust` says that they are meant.
 */
export async function readRelease(directory: string, stateDir: string, trust: boolean): Promise<Release> {
	const read = async (path: string) => {
		try {
			return JSON.parse(await readFile(path, "utf8")) as unknown;
		} catch (error) {
			throw new GroundplaneError(isMissing(error) ? "NotFound" : "InvalidInput", `${path} can't be read as JSON`, {
				next: "Give the directory of a complete release: it has release.json, bundles/, blobs/, images/ and charts/.",
				cause: error,
			});
		}
	};
	const release = releaseSchema.safeParse(await read(join(directory, "release.json")));
	const keys = z.object({ keys: z.array(z.record(z.string(), z.unknown())).min(1) });
	const jwks = keys.safeParse(await read(join(directory, "release.jwks.json")));
	if (!release.success || !jwks.success)
		throw new GroundplaneError("InvalidInput", `${directory} is not a release that this gp understands`, {
			next: "Use the gp of the same release: bin/gp in its directory.",
			cause: release.error ?? jwks.error,
		});
	const pinned = join(stateDir, "release.jwks.json");
	const known = await readFile(pinned, "utf8").catch((error: unknown) => {
		if (isMissing(error)) return undefined;
		throw error;
	});
	const offered = JSON.stringify(jwks.data);
	if (known !== undefined && known !== offered && !trust)
		throw new GroundplaneError(
			"SignatureInvalid",
			"this release is signed by another key than the one installed here",
			{
				next: "If the release key was changed on purpose, add --trust-release-key; otherwise do not use this release.",
			},
		);
	await mkdir(stateDir, { recursive: true, mode: 0o700 });
	if (known !== offered) await writeDurable(pinned, offered, 0o600);
	return { ...release.data, jwks: jwks.data, directory };
}

/** The version of a bundle that a new installation takes. */
export function newestBundle({ bundles, directory }: Release, name: string): string {
	const parts = (version: string) => version.replace(/^v/, "").split(".").map(Number);
	const compare = (a: number[], b: number[]) => a.reduce((order, part, index) => order || part - (b[index] ?? 0), 0);
	const [newest] = bundles
		.filter((bundle) => bundle.name === name)
		.map(({ version }) => version)
		.sort((a, b) => compare(parts(b), parts(a)));
	if (newest !== undefined) return newest;
	throw new GroundplaneError("BundleNotFound", `${directory} has no bundle ${name}`, {
		next: "Give the directory of a complete release.",
	});
}

/** Path of an image's archive, its digest verified. */
export async function imageArchive({ directory }: Release, { path, sha256 }: ReleaseImage): Promise<string> {
	const archive = join(directory, path);
	if ((await digestOf(archive)) !== sha256)
		throw new GroundplaneError("DigestMismatch", `${archive} is damaged`, { next: "Copy the release again." });
	return archive;
}
