import { randomUUID } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { pipeline } from "node:stream/promises";
import { constants, createZstdCompress } from "node:zlib";
import { CompactSign, calculateJwkThumbprint, exportJWK, generateKeyPair, importJWK, type JWK } from "jose";
import { GroundplaneError } from "../../protocol/errors.ts";
import {
	RELEASE_MANIFEST_TYPE,
	type ReleaseFile,
	type ReleaseManifest,
	releaseManifest,
} from "../../protocol/release.ts";
import { cacheDirectory, cached, filesUnder, hashFile, locked } from "./cache.ts";
import { place } from "./images.ts";

/** Three times as fast as the next step that packs noticeably smaller. */
const LEVEL = 6;

/** One file to put into a bundle: what the manifest says of it, and where it is now. */
export interface BundleFile extends Pick<ReleaseFile, "path" | "kind" | "reference"> {
	readonly source: string;
}

export interface BundleContent extends Pick<ReleaseManifest, "name" | "version" | "components" | "createdAt"> {
	readonly files: readonly BundleFile[];
}

/** The key that signs bundles: an Ed25519 private JWK with its thumbprint as `kid`. */
export interface ReleaseKey {
	readonly privateJwk: JWK;
	readonly publicJwk: JWK;
}

/**
 * Writes a release bundle under `directory`: `blobs/sha256/HEX` for every file, `HEX.zst` beside it for programs, and
 * `bundles/NAME/VERSION/manifest.jws`, the signed list of them (docs/architecture.md, "Release bundles").
 */
export async function createBundle(
	directory: string,
	{ files, ...head }: BundleContent,
	key: ReleaseKey,
): Promise<ReleaseManifest> {
	const blobs = join(directory, "blobs/sha256");
	await mkdir(blobs, { recursive: true });
	const listed: ReleaseFile[] = [];
	for (const { source, ...file } of [...files].sort((a, b) => (a.path < b.path ? -1 : 1))) {
		const { sha256, size } = await hashFile(source);
		await place(source, join(blobs, sha256));
		// Programs pack to a quarter, and most of what a new node waits for is their way to it. Images are packed already.
		if (file.kind === "binary") await place(await packed(source, sha256), join(blobs, `${sha256}.zst`));
		listed.push({ ...file, sha256, size });
	}
	const twice = listed.find((file, index) => file.path === listed[index + 1]?.path);
	if (twice)
		throw new GroundplaneError("InvalidInput", `The bundle ${head.name} names ${twice.path} twice`, {
			next: "Give each file of the bundle a path of its own.",
		});
	const manifest = releaseManifest.parse({
		schema: 1,
		architecture: process.arch === "arm64" ? "arm64" : "amd64",
		...head,
		files: listed,
	} satisfies ReleaseManifest);
	const folder = join(directory, "bundles", manifest.name, manifest.version);
	await mkdir(folder, { recursive: true });
	await writeFile(join(folder, "manifest.jws"), await signManifest(manifest, key));
	return manifest;
}

/** A file packed (zstd, RFC 8878). */
async function packed(source: string, sha256: string): Promise<string> {
	const result = await cached(`packed/${basename(source)}`, [sha256, LEVEL], async (directory) => {
		const options = { params: { [constants.ZSTD_c_compressionLevel]: LEVEL } };
		await pipeline(createReadStream(source), createZstdCompress(options), createWriteStream(join(directory, "packed")));
	});
	return join(result, "packed");
}

/**
 * The same bundle without the files that are there packed too: what travels to regions and lies in them. Only a machine that
 * installs from the release's own directory needs them as they are.
 */
export async function packedBundle(bundle: string): Promise<string> {
	return cached("packed-bundle", [bundle], async (directory) => {
		const paths = await filesUnder(bundle);
		const kept = paths.filter((path) => !paths.includes(`${path}.zst`));
		for (const path of kept) await place(path, join(directory, relative(bundle, path)));
	});
}

/** A compact JWS (RFC 7515) over the JSON of a manifest. */
export async function signManifest(manifest: ReleaseManifest, { privateJwk }: ReleaseKey): Promise<string> {
	return new CompactSign(new TextEncoder().encode(JSON.stringify(manifest)))
		.setProtectedHeader({ alg: "EdDSA", typ: RELEASE_MANIFEST_TYPE, kid: privateJwk.kid ?? "" })
		.sign(await importJWK(privateJwk, "EdDSA"));
}

/**
 * The release key: the private JWK in the file that `GROUNDPLANE_RELEASE_KEY` names, else one that is made once and
 * kept in the cache, which is good for development: hosts trust what their region's chart was installed with.
 */
export async function releaseKey(env: NodeJS.ProcessEnv = process.env): Promise<ReleaseKey> {
	const given = env.GROUNDPLANE_RELEASE_KEY;
	if (given) return readKey(given);
	const path = join(cacheDirectory(env), "release-key");
	return locked("release-key", async () => {
		try {
			return await readKey(path);
		} catch (error) {
			if (!(error instanceof GroundplaneError && error.code === "NotFound")) throw error;
		}
		const { privateKey } = await generateKeyPair("EdDSA", { crv: "Ed25519", extractable: true });
		const temporary = join(dirname(path), `.release-key.${randomUUID()}`);
		await mkdir(dirname(path), { recursive: true });
		await writeFile(temporary, JSON.stringify(await exportJWK(privateKey)), { mode: 0o600 });
		await rename(temporary, path);
		return readKey(path);
	});
}

async function readKey(path: string): Promise<ReleaseKey> {
	const next = "Give the path of an Ed25519 private key as a JWK, or give none to have one made.";
	const text = await readFile(path, "utf8").catch((cause) => {
		throw new GroundplaneError("NotFound", `The release key ${path} can't be read`, { next, cause });
	});
	try {
		const { kty, crv, x, d } = JSON.parse(text) as Record<string, string>;
		if (kty !== "OKP" || crv !== "Ed25519" || !x || !d) throw new Error("not an Ed25519 private key");
		const kid = await calculateJwkThumbprint({ kty, crv, x });
		const publicJwk: JWK = { kty, crv, x, kid, alg: "EdDSA", use: "sig" };
		return { publicJwk, privateJwk: { ...publicJwk, d } };
	} catch (cause) {
		throw new GroundplaneError("InvalidConfiguration", `${path} is not an Ed25519 private key`, { next, cause });
	}
}
