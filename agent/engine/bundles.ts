import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { compactVerify, createLocalJWKSet, type JSONWebKeySet } from "jose";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import {
	RELEASE_MANIFEST_TYPE,
	type ReleaseFile,
	type ReleaseManifest,
	releaseManifest,
} from "../../protocol/release.ts";
import { digestOf } from "../primitives/digest.ts";
import { isMissing } from "../primitives/durable.ts";

/** Where the engine gets release bundles from. */
export interface BundleSource {
	/** The manifest of a bundle, its signature verified. */
	manifest(name: string, version: string, signal: AbortSignal): Promise<ReleaseManifest>;
	/** Path of a local copy whose digest was verified. */
	blob(file: Pick<ReleaseFile, "sha256" | "size">, signal: AbortSignal): Promise<string>;
	/** Deletes local copies that no role needs any more. */
	prune?(keep: ReadonlySet<string>): Promise<void>;
}

/** Verifies a bundle's `manifest.jws` and that it is the bundle asked for. */
export async function verifyManifest(
	jws: string,
	jwks: JSONWebKeySet,
	expected: { readonly name: string; readonly version: string; readonly architecture: string },
): Promise<ReleaseManifest> {
	const refuse = (what: string, cause?: unknown) =>
		new GroundplaneError("SignatureInvalid", `bundle ${expected.name} ${expected.version}: ${what}`, {
			next: "Get the bundle again from whom you trust; if the release key has changed, give the hosts the new one first.",
			cause,
		});
	let payload: unknown;
	try {
		const verified = await compactVerify(jws.trim(), createLocalJWKSet(jwks), { algorithms: ["EdDSA", "Ed25519"] });
		if (verified.protectedHeader.typ !== RELEASE_MANIFEST_TYPE)
			throw new Error(`typ is ${verified.protectedHeader.typ}`);
		payload = JSON.parse(new TextDecoder().decode(verified.payload));
	} catch (error) {
		throw refuse("its signature is not from a release key that this host trusts", error);
	}
	const manifest = releaseManifest.safeParse(payload);
	if (!manifest.success) throw refuse("its manifest is of a form that this version does not know", manifest.error);
	for (const key of ["name", "version", "architecture"] as const)
		if (manifest.data[key] !== expected[key])
			throw refuse(`it is ${key} ${manifest.data[key]}, and ${expected[key]} was asked for`);
	return manifest.data;
}

/** Bundles of a release directory: `bundles/NAME/VERSION/manifest.jws` and `blobs/sha256/HEX`. */
export class LocalBundles implements BundleSource {
	readonly #directory: string;
	readonly #jwks: JSONWebKeySet;
	readonly #architecture: string;

	constructor(directory: string, jwks: JSONWebKeySet, architecture = process.arch === "arm64" ? "arm64" : "amd64") {
		this.#directory = directory;
		this.#jwks = jwks;
		this.#architecture = architecture;
	}

	async manifest(name: string, version: string): Promise<ReleaseManifest> {
		const path = join(this.#directory, "bundles", name, version, "manifest.jws");
		const jws = await readFile(path, "utf8").catch((error: unknown) => {
			if (!isMissing(error)) throw asGroundplaneError(error);
			throw new GroundplaneError("BundleNotFound", `there is no bundle ${name} ${version} in ${this.#directory}`, {
				next: "Give the directory of a complete release, or a version that it holds.",
			});
		});
		return verifyManifest(jws, this.#jwks, { name, version, architecture: this.#architecture });
	}

	async blob({ sha256 }: Pick<ReleaseFile, "sha256">): Promise<string> {
		const path = join(this.#directory, "blobs", "sha256", sha256);
		const found = await digestOf(path).catch((error: unknown) => {
			throw new GroundplaneError("BundleNotFound", `${path} can't be read`, {
				next: "Copy the release again: it is incomplete.",
				cause: error,
			});
		});
		if (found !== sha256)
			throw new GroundplaneError("DigestMismatch", `${path} has the digest ${found}`, {
				next: "Copy the release again: this file was damaged.",
			});
		return path;
	}
}
