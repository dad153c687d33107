import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { zstdDecompressSync } from "node:zlib";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { LocalBundles } from "../../agent/engine/bundles.ts";
import { createBundle, packedBundle, type ReleaseKey, releaseKey, signManifest } from "./bundle.ts";

let directory: string;
let key: ReleaseKey;
beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "bundle-"));
	vi.stubEnv("GROUNDPLANE_CACHE", join(directory, "cache"));
	key = await releaseKey({ GROUNDPLANE_CACHE: directory });
});
afterEach(async () => {
	vi.unstubAllEnvs();
	await rm(directory, { recursive: true });
});

const head = { name: "demo", version: "v1.0.0", components: {}, createdAt: "2026-01-01T00:00:00.000Z" };

async function bundle() {
	const source = join(directory, "program");
	await writeFile(source, "#!/bin/sh\nexit 0\n", { mode: 0o755 });
	const manifest = await createBundle(
		directory,
		{
			...head,
			files: [
				{ path: "bin/program", kind: "binary", source },
				{ path: "bin/again", kind: "binary", source },
			],
		},
		key,
	);
	return { manifest, path: join(directory, "bundles/demo/v1.0.0/manifest.jws") };
}

const onHost = (keys = [key.publicJwk]) => new LocalBundles(directory, { keys } as never);

test("a host takes what was built, and the same content is kept once", async () => {
	const { manifest } = await bundle();
	expect(await onHost().manifest("demo", "v1.0.0")).toEqual(manifest);
	expect(manifest.files.map((file) => file.path)).toEqual(["bin/again", "bin/program"]);
	const [file] = manifest.files;
	expect(await readFile(await onHost().blob(file as never), "utf8")).toContain("exit 0");
	expect(await readdir(join(directory, "blobs/sha256"))).toEqual([file?.sha256, `${file?.sha256}.zst`]);
});

test("what travels holds a program packed and nothing twice", async () => {
	const { manifest } = await bundle();
	const sha256 = manifest.files[0]?.sha256 ?? "";
	const bundleDirectory = join(directory, "bundle");
	await cp(join(directory, "blobs"), join(bundleDirectory, "blobs"), { recursive: true });
	await cp(join(directory, "bundles"), join(bundleDirectory, "bundles"), { recursive: true });
	const result = await packedBundle(bundleDirectory);
	expect(await readdir(join(result, "blobs/sha256"))).toEqual([`${sha256}.zst`]);
	expect(await readdir(join(result, "bundles/demo/v1.0.0"))).toEqual(["manifest.jws"]);
	const content = zstdDecompressSync(await readFile(join(result, "blobs/sha256", `${sha256}.zst`)));
	expect(content.toString()).toContain("exit 0");
});

test("one flipped bit in a blob is found", async () => {
	const { manifest } = await bundle();
	const [file] = manifest.files;
	const path = join(directory, "blobs/sha256", file?.sha256 ?? "");
	const bytes = await readFile(path);
	bytes[3] = (bytes[3] ?? 0) ^ 1;
	await writeFile(path, bytes);
	await expect(onHost().blob(file as never)).rejects.toMatchObject({ code: "DigestMismatch" });
});

test.each(["header", "payload", "signature"])("one flipped bit in the manifest's %s is found", async (part) => {
	const { path } = await bundle();
	const parts = (await readFile(path, "utf8")).split(".").map((text) => Buffer.from(text, "base64url"));
	const bytes = parts[["header", "payload", "signature"].indexOf(part)] as Buffer;
	const middle = bytes.length >> 1;
	bytes[middle] = (bytes[middle] ?? 0) ^ 1;
	await writeFile(path, parts.map((bytes) => bytes.toString("base64url")).join("."));
	await expect(onHost().manifest("demo", "v1.0.0")).rejects.toMatchObject({ code: "SignatureInvalid" });
});

test("a manifest of another key, or of another bundle, is refused", async () => {
	const { manifest, path } = await bundle();
	const other = await releaseKey({ GROUNDPLANE_CACHE: join(directory, "other") });
	await writeFile(path, await signManifest(manifest, other));
	await expect(onHost().manifest("demo", "v1.0.0")).rejects.toMatchObject({ code: "SignatureInvalid" });
	await writeFile(path, await signManifest({ ...manifest, version: "v0.9.0" }, key));
	await expect(onHost().manifest("demo", "v1.0.0")).rejects.toThrow();
});

test("a path that is named twice is refused", async () => {
	const source = join(directory, "program");
	await writeFile(source, "");
	const file = { path: "bin/program", kind: "binary", source } as const;
	await expect(createBundle(directory, { ...head, files: [file, file] }, key)).rejects.toMatchObject({
		code: "InvalidInput",
	});
});

test("the release key is made once, kept private, and can be given", async () => {
	expect((await releaseKey({ GROUNDPLANE_CACHE: directory })).publicJwk).toEqual(key.publicJwk);
	expect(key.publicJwk).not.toHaveProperty("d");
	const path = join(directory, "given");
	await writeFile(path, JSON.stringify(key.privateJwk));
	expect((await releaseKey({ GROUNDPLANE_RELEASE_KEY: path })).publicJwk.kid).toBe(key.publicJwk.kid);
	await writeFile(path, JSON.stringify({ kty: "EC" }));
	await expect(releaseKey({ GROUNDPLANE_RELEASE_KEY: path })).rejects.toMatchObject({ code: "InvalidConfiguration" });
});
