import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { type IncomingMessage, request } from "node:http";
import { dirname, join } from "node:path";
import { Transform } from "node:stream";
import { text } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import { createZstdDecompress } from "node:zlib";
import type { JSONWebKeySet } from "jose";
import { asGroundplaneError, type ErrorCode, GroundplaneError } from "../protocol/errors.ts";
import type { Session } from "../protocol/mux.ts";
import type { ReleaseFile, ReleaseManifest } from "../protocol/release.ts";
import { type BundleSource, verifyManifest } from "./engine/bundles.ts";
import type { Log } from "./log.ts";
import { digestOf } from "./primitives/digest.ts";
import { writeDurable } from "./primitives/durable.ts";

/** Tries without a single new byte before it is given up (the engine comes back later). */
const FRUITLESS_TRIES = 8;
/** A download on which nothing comes for this long is taken up anew. */
const STALL_MS = 30_000;
/** What is read, unpacked or written at once. */
const WRITE_BYTES = 512 * 1024;

/** How a blob travels and lies until it is whole. */
type Encoding = "raw" | "zstd";

export interface RemoteBundlesOptions {
	/** `/var/lib/groundplane`: `blobs/sha256/HEX` and `bundles/NAME/VERSION/manifest.jws` come below it. */
	directory: string;
	releaseJwks: JSONWebKeySet;
	/** Resolves with a session once there is one. */
	session: (signal: AbortSignal) => Promise<Session>;
	log: Log;
	random?: () => number;
}

/** Release bundles from the region, through the tunnel: resumed where they stopped, verified, and kept. */
export class RemoteBundles implements BundleSource {
	readonly #options: RemoteBundlesOptions;
	readonly #underWay = new Map<string, Promise<string>>();

	constructor(options: RemoteBundlesOptions) {
		this.#options = options;
	}

	/** The verified manifest; the kept copy if there is one, so that a host that is cut off can go on repairing. */
	async manifest(name: string, version: string, signal: AbortSignal): Promise<ReleaseManifest> {
		const path = join(this.#options.directory, "bundles", name, version, "manifest.jws");
		const expected = { name, version, architecture: process.arch === "x64" ? "amd64" : process.arch };
		const verify = (jws: string) => verifyManifest(jws, this.#options.releaseJwks, expected);
		const kept = await readFile(path, "utf8").catch(() => undefined);
		if (kept !== undefined) {
			try {
				return await verify(kept);
			} catch {
				await rm(path, { force: true });
			}
		}
		const url = `/artifacts/v1/bundles/${encodeURIComponent(name)}/${encodeURIComponent(version)}/manifest.jws`;
		const jws = await this.#patiently(`bundle ${name} ${version}`, signal, async () => {
			const response = await this.#get(url, {}, signal);
			await expectStatus(response, [200], "BundleNotFound", `bundle ${name} ${version}`);
			return text(response);
		});
		const manifest = await verify(jws);
		await mkdir(dirname(path), { recursive: true });
		await writeDurable(path, jws);
		return manifest;
	}

	/** Path of a blob whose digest was verified. Callers at the same time wait for one download. */
	blob({ sha256, size }: Pick<ReleaseFile, "sha256" | "size">, signal: AbortSignal): Promise<string> {
		const known = this.#underWay.get(sha256);
		if (known) return known;
		const download = this.#download(sha256, size, signal).finally(() => this.#underWay.delete(sha256));
		this.#underWay.set(sha256, download);
		return download;
	}

	/** Deletes blobs that no role needs any more. */
	async prune(keep: ReadonlySet<string>): Promise<void> {
		if (keep.size === 0 && this.#underWay.size === 0) {
			// The host has no role left, so nothing of a bundle stays on it.
			for (const name of ["blobs", "bundles"]) {
				await rm(join(this.#options.directory, name), { recursive: true, force: true });
			}
			return;
		}
		const directory = this.#blobs;
		for (const name of await readdir(directory).catch(() => [])) {
			const sha256 = name.slice(0, 64);
			if (!keep.has(sha256) && !this.#underWay.has(sha256)) await rm(join(directory, name), { force: true });
		}
	}

	get #blobs(): string {
		return join(this.#options.directory, "blobs/sha256");
	}

	async #download(sha256: string, size: number, signal: AbortSignal): Promise<string> {
		const path = join(this.#blobs, sha256);
		if ((await sizeOf(path)) === size && (await digestOf(path)) === sha256) return path;
		await mkdir(this.#blobs, { recursive: true });
		const parts = { raw: `${path}.part`, zstd: `${path}.zst.part` };
		const fetched = await this.#patiently(
			`blob ${sha256.slice(0, 12)}`,
			signal,
			() => this.#fetchPart(parts, sha256, size, signal),
			async () => (await sizeOf(parts.raw)) + (await sizeOf(parts.zstd)),
		);
		const whole = `${path}.whole.part`;
		const found = fetched === "zstd" ? await unpack(parts.zstd, whole, size, signal) : await digestOf(parts.raw);
		if (found === sha256) await rename(fetched === "zstd" ? whole : parts.raw, path);
		for (const leftover of [parts.raw, parts.zstd, whole]) await rm(leftover, { force: true });
		if (found === sha256) return path;
		throw new GroundplaneError("DigestMismatch", `what came for ${sha256} has the digest ${found}`, {
			next: "It was thrown away and is fetched again. If it stays so, the region's bundle is damaged: load it anew.",
		});
	}

	/** Fetches what is missing of a file, as it is or packed, whatever the region has; tells which. */
	async #fetchPart(
		parts: Readonly<Record<Encoding, string>>,
		sha256: string,
		size: number,
		signal: AbortSignal,
	): Promise<Encoding> {
		const begun: Encoding = (await sizeOf(parts.zstd)) > 0 ? "zstd" : "raw";
		const most = { raw: size, zstd: size + (size >> 7) + 65_536 };
		let have = await sizeOf(parts[begun]);
		if (have > most[begun]) {
			await rm(parts[begun], { force: true });
			have = 0;
		}
		if (begun === "raw" && have === size && size > 0) return "raw";
		const headers: Record<string, string> = { "accept-encoding": "zstd" };
		if (have > 0) headers.range = `bytes=${have}-`;
		const response = await this.#get(`/artifacts/v1/blobs/sha256/${sha256}`, headers, signal);
		// Nothing is beyond what we have: all of it came before, and the agent was stopped before it could unpack it.
		if (response.statusCode === 416 && begun === "zstd") {
			response.destroy();
			return "zstd";
		}
		await expectStatus(response, [200, 206], "BundleNotFound", `blob ${sha256}`);
		const resumed = response.statusCode === 206;
		const encoding: Encoding = response.headers["content-encoding"] === "zstd" ? "zstd" : "raw";
		if (encoding !== begun || !resumed) await rm(parts[begun], { force: true });
		if (resumed && encoding !== begun) throw new Error("the region has it in another form now");
		const length = await append(response, parts[encoding], most[encoding], signal);
		if (encoding === "raw" && length < size) throw new Error(`${size - length} bytes are missing`);
		return encoding;
	}

	async #get(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<IncomingMessage> {
		const session = await this.#options.session(signal);
		const stream = await session.open("artifacts", { lane: "bulk", signal });
		const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
		const outgoing = request({
			createConnection: () => stream,
			path,
			headers: { host: "artifacts", connection: "close", ...headers },
			signal,
		});
		const stalled = setTimeout(() => outgoing.destroy(new Error("nothing came for a while")), STALL_MS);
		outgoing.once("response", (response) => {
			stream.on("data", () => stalled.refresh());
			resolve(response);
		});
		outgoing.once("error", reject);
		outgoing.once("close", () => clearTimeout(stalled));
		outgoing.end();
		return promise;
	}

	/** Tries again with growing pauses while something comes of it; gives up at what trying does not heal. */
	async #patiently<Result>(
		what: string,
		signal: AbortSignal,
		work: () => Promise<Result>,
		progress: () => Promise<number> = async () => 0,
	): Promise<Result> {
		let reached = await progress();
		for (let attempt = 0; ; attempt++) {
			try {
				return await work();
			} catch (error) {
				signal.throwIfAborted();
				const problem = asGroundplaneError(error);
				if (hopeless.has(problem.code)) throw problem;
				const now = await progress();
				if (now > reached) attempt = 0;
				reached = now;
				if (attempt >= FRUITLESS_TRIES) throw problem;
				this.#options.log.warn(
					{ code: problem.code, attempt, bytes: now },
					`${what}: ${problem.message}; trying again`,
				);
				await delay((this.#options.random ?? Math.random)() * Math.min(15_000, 500 * 2 ** attempt), undefined, {
					signal,
				});
			}
		}
	}
}

const hopeless: ReadonlySet<ErrorCode> = new Set(["BundleNotFound", "Forbidden", "DigestMismatch", "SignatureInvalid"]);

/**
 * Writes what comes to the end of a file, and gives the file's length. Many small pieces are one write: each of its own costs
 * more than all the rest of a download. Nothing is synced, since whatever a power cut leaves is judged by its digest.
 */
async function append(source: AsyncIterable<Buffer>, path: string, most: number, signal: AbortSignal): Promise<number> {
	const file = await open(path, "a", 0o644);
	try {
		let length = (await file.stat()).size;
		let waiting: Buffer[] = [];
		let bytes = 0;
		const flush = async () => {
			if (waiting.length > 0) await file.writev(waiting);
			waiting = [];
			bytes = 0;
		};
		try {
			for await (const chunk of source) {
				signal.throwIfAborted();
				length += chunk.length;
				if (length > most) throw new Error("more came than the manifest says");
				waiting.push(chunk);
				bytes += chunk.length;
				if (bytes >= WRITE_BYTES) await flush();
			}
		} finally {
			await flush();
		}
		return length;
	} finally {
		await file.close();
	}
}

/** Unpacks a file (RFC 8878), up to the size that it should have, and gives the digest of what was in it. */
async function unpack(from: string, to: string, size: number, signal: AbortSignal): Promise<string> {
	const hash = createHash("sha256");
	let left = size;
	const judge = new Transform({
		highWaterMark: WRITE_BYTES,
		transform(chunk: Buffer, _encoding, callback) {
			left -= chunk.length;
			if (left < 0) return callback(new Error("more is in it than the manifest says"));
			hash.update(chunk);
			callback(null, chunk);
		},
	});
	const source = createReadStream(from, { highWaterMark: WRITE_BYTES });
	const target = createWriteStream(to, { mode: 0o644, highWaterMark: WRITE_BYTES });
	try {
		await pipeline(source, createZstdDecompress({ chunkSize: WRITE_BYTES }), judge, target, { signal });
	} catch (error) {
		signal.throwIfAborted();
		if ((error as NodeJS.ErrnoException).code === "ENOSPC") throw error;
		return `none: it can't be unpacked (${(error as Error).message})`;
	}
	return hash.digest("hex");
}

async function sizeOf(path: string): Promise<number> {
	return stat(path).then(
		({ size }) => size,
		() => 0,
	);
}

async function expectStatus(
	response: IncomingMessage,
	good: readonly number[],
	missing: ErrorCode,
	what: string,
): Promise<void> {
	const status = response.statusCode ?? 0;
	if (good.includes(status)) return;
	const body = (await text(response)).slice(0, 500);
	throw new GroundplaneError(
		status === 404 ? missing : status === 401 || status === 403 ? "Forbidden" : "Overloaded",
		`${what}: the region answered ${status} ${body}`,
		{
			next:
				status === 404
					? "Ask for a version that the region offers: gp cluster releases."
					: "Look at the pod artifacts of the region.",
		},
	);
}
