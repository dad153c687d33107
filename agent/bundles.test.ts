import { createHash, generateKeyPairSync, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type RequestListener } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { duplexPair } from "node:stream";
import { zstdCompressSync } from "node:zlib";
import { CompactSign } from "jose";
import { afterEach, beforeEach, expect, test } from "vitest";
import { duplexTransport, Session } from "../protocol/mux.ts";
import { RELEASE_MANIFEST_TYPE } from "../protocol/release.ts";
import { RemoteBundles } from "./bundles.ts";
import { createLog } from "./log.ts";

const content = randomBytes(3_000_000);
const sha256 = createHash("sha256").update(content).digest("hex");
const file = { sha256, size: content.length };
const { privateKey, publicKey } = generateKeyPairSync("ed25519");
const signal = new AbortController().signal;
let directory: string;
let close: () => void = () => {};

beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "gp-bundles-"));
});
afterEach(async () => {
	close();
	await rm(directory, { recursive: true, force: true });
});

/** Bundles over a real session, with an artifacts service of the test's own at its other end. */
function bundles(artifacts: RequestListener): RemoteBundles {
	const [left, right] = duplexPair();
	const hello = (name: string) => ({ name, software: "1", bootId: "b", connectionId: "c" });
	const agent = new Session(duplexTransport(left), { role: "client", hello: hello("host-1") });
	const gateway = new Session(duplexTransport(right), { role: "server", hello: hello("gateway") });
	const server = createServer(artifacts);
	gateway.on("stream", (incoming) => void server.emit("connection", incoming.accept()));
	close = () => agent.destroy();
	return new RemoteBundles({
		directory,
		releaseJwks: { keys: [{ ...publicKey.export({ format: "jwk" }), alg: "EdDSA" } as never] },
		session: async () => agent,
		log: createLog({ write: () => {} }),
		random: () => 0,
	});
}

test("a download that breaks goes on where it stopped, and is kept once its digest is right", async () => {
	const ranges: (string | undefined)[] = [];
	const source = bundles((request, response) => {
		ranges.push(request.headers.range);
		const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
		response.writeHead(from > 0 ? 206 : 200, { "content-length": content.length - from });
		if (ranges.length < 3) response.write(content.subarray(from, from + 1_000_000), () => response.destroy());
		else response.end(content.subarray(from));
	});
	const path = await source.blob(file, signal);
	expect(path).toBe(join(directory, "blobs/sha256", sha256));
	expect((await readFile(path)).equals(content)).toBe(true);
	const starts = ranges.map((range) => Number(/bytes=(\d+)-/.exec(range ?? "")?.[1] ?? 0));
	expect(starts).toHaveLength(3);
	expect(starts[0]).toBe(0);
	expect(starts[1]).toBeGreaterThan(100_000);
	expect(starts[2]).toBeGreaterThan((starts[1] as number) + 100_000);
	expect(await source.blob(file, signal)).toBe(path);
	expect(ranges).toHaveLength(3);
});

test("what comes packed is resumed as it came, unpacked, and judged by its content", async () => {
	const packed = zstdCompressSync(content);
	let ranges: (string | undefined)[] = [];
	let served = packed;
	let breaks = 1;
	const source = bundles((request, response) => {
		ranges.push(request.headers.range);
		expect(request.headers["accept-encoding"]).toBe("zstd");
		const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
		if (from >= served.length) return void response.writeHead(416).end();
		const head = { "content-encoding": "zstd", "content-length": served.length - from };
		response.writeHead(from > 0 ? 206 : 200, head);
		if (breaks-- > 0) response.write(served.subarray(from, from + 1_500_000), () => response.destroy());
		else response.end(served.subarray(from));
	});
	const blobs = join(directory, "blobs/sha256");
	const path = await source.blob(file, signal);
	expect((await readFile(path)).equals(content)).toBe(true);
	expect(ranges).toHaveLength(2);
	expect(ranges[1]).toMatch(/^bytes=[1-9]/);
	expect(await readdir(blobs)).toEqual([sha256]);

	// Stopped after the last byte had come, before it was unpacked.
	await rm(path);
	await writeFile(`${path}.zst.part`, packed);
	ranges = [];
	expect((await readFile(await source.blob(file, signal))).equals(content)).toBe(true);
	expect(ranges).toEqual([`bytes=${packed.length}-`]);

	// More in it than it should be, or no such form at all: nothing of it stays.
	for (const wrong of [zstdCompressSync(Buffer.concat([content, Buffer.alloc(1000)])), packed.toReversed()]) {
		await rm(path, { force: true });
		served = wrong as Buffer<ArrayBuffer>;
		await expect(source.blob(file, signal)).rejects.toMatchObject({ code: "DigestMismatch" });
		expect(await readdir(blobs)).toEqual([]);
	}
});

test("a flipped bit is found, and nothing of it is kept", async () => {
	const flipped = Buffer.from(content);
	flipped[1_234_567] = (flipped[1_234_567] as number) ^ 1;
	const source = bundles((_request, response) => void response.end(flipped));
	await expect(source.blob(file, signal)).rejects.toMatchObject({ code: "DigestMismatch" });
	expect(existsSync(join(directory, "blobs/sha256", sha256))).toBe(false);
	expect(existsSync(join(directory, "blobs/sha256", `${sha256}.part`))).toBe(false);
});

test("a blob that was damaged on disk is fetched again", async () => {
	const source = bundles((_request, response) => void response.end(content));
	const path = await source.blob(file, signal);
	await writeFile(path, Buffer.concat([Buffer.from("x"), content.subarray(1)]));
	await source.blob(file, signal);
	expect((await readFile(path)).equals(content)).toBe(true);
});

test("several callers share one download; what is not there is said at once; the rest is pruned", async () => {
	let asked = 0;
	const source = bundles((request, response) => {
		asked++;
		if (request.url?.endsWith(sha256)) response.end(content);
		else response.writeHead(404).end("{}");
	});
	const paths = await Promise.all([source.blob(file, signal), source.blob(file, signal)]);
	expect(new Set(paths).size).toBe(1);
	expect(asked).toBe(1);
	await expect(source.blob({ sha256: "0".repeat(64), size: 1 }, signal)).rejects.toMatchObject({
		code: "BundleNotFound",
	});
	expect(asked).toBe(2);
	await source.prune(new Set());
	expect(existsSync(paths[0] as string)).toBe(false);
});

test("a manifest must be signed by the release key, and is kept for the time without the region", async () => {
	const manifest = {
		schema: 1,
		name: "kubernetes",
		version: "v1.36.3",
		architecture: process.arch === "x64" ? "amd64" : process.arch,
		createdAt: new Date().toISOString(),
		components: {},
		files: [],
	};
	const sign = (key: typeof privateKey) =>
		new CompactSign(Buffer.from(JSON.stringify(manifest)))
			.setProtectedHeader({ alg: "EdDSA", typ: RELEASE_MANIFEST_TYPE })
			.sign(key);
	let jws = await sign(generateKeyPairSync("ed25519").privateKey);
	let online = true;
	const source = bundles((_request, response) => void (online ? response.end(jws) : response.destroy()));
	await expect(source.manifest("kubernetes", "v1.36.3", signal)).rejects.toMatchObject({ code: "SignatureInvalid" });
	jws = await sign(privateKey);
	expect(await source.manifest("kubernetes", "v1.36.3", signal)).toMatchObject({ version: "v1.36.3" });
	online = false;
	expect(await source.manifest("kubernetes", "v1.36.3", signal)).toMatchObject({ version: "v1.36.3" });
});
