import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { compactVerify, createLocalJWKSet, type JSONWebKeySet } from "jose";
import { GroundplaneError } from "../../protocol/errors.ts";
import {
	RELEASE_MANIFEST_TYPE,
	type ReleaseFile,
	type ReleaseManifest,
	releaseManifest,
} from "../../protocol/release.ts";

/** A bundle whose signature holds and whose files are all there. */
export interface Bundle {
	readonly manifest: ReleaseManifest;
	/** The signed manifest as it was published. */
	readonly jws: string;
}

/** A bundle that is on disk and not served, and why. */
export interface RefusedBundle {
	readonly name: string;
	readonly version: string;
	readonly error: GroundplaneError;
}

/** A file of a bundle on disk. */
export interface Blob {
	readonly path: string;
	/** Bytes of its content, unpacked. */
	readonly size: number;
	/** It lies packed (zstd, RFC 8878). */
	readonly packed: boolean;
}

/**
 * The release bundles under some roots, each with `bundles/NAME/VERSION/manifest.jws` and `blobs/sha256/HEX`, or
 * `HEX.zst` where a file is packed. Packages lie under their own names, since people download them too. What is not
 * signed by the release key is not served; blobs are served only when a good manifest names them. The content of blobs is
 * verified by whoever downloads them, against that manifest.
 */
export class Bundles {
	readonly #bundles = new Map<string, Bundle>();
	readonly #blobs = new Map<string, Blob>();
	readonly refused: RefusedBundle[] = [];

	/** Reads and verifies everything once: bundles come as image volumes, which change with the pod. */
	static async load(roots: readonly string[], jwks: JSONWebKeySet): Promise<Bundles> {
		const all = new Bundles();
		for (const root of roots) {
			for (const { name, version } of await versionsIn(root)) await all.#add(root, name, version, jwks);
		}
		return all;
	}

	/** Good bundles, by name and version. */
	list(): Bundle[] {
		return [...this.#bundles.values()].sort((a, b) =>
			`${a.manifest.name}/${a.manifest.version}`.localeCompare(`${b.manifest.name}/${b.manifest.version}`),
		);
	}

	/** @throws GroundplaneError BundleNotFound, or what is wrong with the bundle. */
	get(name: string, version: string): Bundle {
		const bundle = this.#bundles.get(`${name}/${version}`);
		if (bundle) return bundle;
		const refused = this.refused.find((other) => other.name === name && other.version === version);
		if (refused) throw refused.error;
		throw new GroundplaneError("BundleNotFound", `There is no bundle ${name} ${version} in this region.`, {
			next: `It has ${
				this.list()
					.map(({ manifest }) => `${manifest.name} ${manifest.version}`)
					.join(", ") || "none"
			}: choose one of these, or have the provider add it.`,
		});
	}

	/** @throws GroundplaneError BundleNotFound */
	blob(sha256: string): Blob {
		const blob = this.#blobs.get(sha256);
		if (blob) return blob;
		throw new GroundplaneError("BundleNotFound", "No bundle of this region has a file with that digest.", {
			next: "Fetch the bundle's manifest anew.",
		});
	}

	async #add(root: string, name: string, version: string, jwks: JSONWebKeySet): Promise<void> {
		try {
			const jws = (await readFile(join(root, "bundles", name, version, "manifest.jws"), "utf8")).trim();
			const manifest = await verifyManifest(jws, { name, version, jwks });
			const blobs = await Promise.all(
				manifest.files.map(async (file) => [file.sha256, await blobIn(root, file)] as const),
			);
			for (const [sha256, blob] of blobs) this.#blobs.set(sha256, blob);
			this.#bundles.set(`${name}/${version}`, { manifest, jws });
		} catch (cause) {
			const error =
				cause instanceof GroundplaneError
					? cause
					: new GroundplaneError("BundleNotFound", `The bundle ${name} ${version} can't be read.`, {
							next: "Check the bundle's image volume.",
							cause,
						});
			this.refused.push({ name, version, error });
		}
	}
}

/** The manifest behind a JWS, if the release key signed it and it is for this name and version. */
export async function verifyManifest(
	jws: string,
	{ name, version, jwks }: { name: string; version: string; jwks: JSONWebKeySet },
): Promise<ReleaseManifest> {
	const invalid = (why: string, cause?: unknown) =>
		new GroundplaneError("SignatureInvalid", `The manifest of bundle ${name} ${version} ${why}.`, {
			next: "Do not use this bundle: fetch it anew from where it was published.",
			cause,
		});
	let payload: Uint8Array;
	try {
		const verified = await compactVerify(jws, createLocalJWKSet(jwks), { algorithms: ["EdDSA", "Ed25519"] });
		if (verified.protectedHeader.typ !== RELEASE_MANIFEST_TYPE)
			throw new Error(`typ is ${verified.protectedHeader.typ}`);
		payload = verified.payload;
	} catch (cause) {
		throw invalid("is not signed by this platform's release key", cause);
	}
	const parsed = releaseManifest.safeParse(JSON.parse(Buffer.from(payload).toString("utf8")));
	if (!parsed.success) throw invalid("is of a form that this version does not know", parsed.error);
	if (parsed.data.name !== name || parsed.data.version !== version) {
		throw invalid(`is that of ${parsed.data.name} ${parsed.data.version}`);
	}
	return parsed.data;
}

async function versionsIn(root: string): Promise<{ name: string; version: string }[]> {
	const list = (path: string) => readdir(path).catch(() => [] as string[]);
	const names = await list(join(root, "bundles"));
	const versions = names.map(async (name) =>
		(await list(join(root, "bundles", name))).map((version) => ({ name, version })),
	);
	return (await Promise.all(versions)).flat();
}

async function blobIn(root: string, { path, sha256, size, kind }: ReleaseFile): Promise<Blob> {
	const file = kind === "package" ? join(root, path) : join(root, "blobs", "sha256", sha256);
	const sizeOf = async (name: string) => (await stat(name).catch(() => undefined))?.size;
	if ((await sizeOf(`${file}.zst`)) !== undefined) return { path: `${file}.zst`, size, packed: true };
	const found = await sizeOf(file);
	if (found === size) return { path: file, size, packed: false };
	const what = found === undefined ? "is missing" : `has ${found} bytes instead of ${size}`;
	throw new GroundplaneError("DigestMismatch", `The file ${path} of the bundle ${what}.`, {
		next: "Build or fetch the bundle's image anew.",
	});
}
