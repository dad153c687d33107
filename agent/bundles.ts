import { createHash, type Hash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { type IncomingMessage, request } from "node:http";
import { dirname, join } from "node:path";
import { Transform } from "node:stream";
import { text } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { JSONWebKeySet } from "jose";
import { asGroundplaneError, type ErrorCode, GroundplaneError } from "../protocol/errors.ts";
import type { Session } from "../protocol/mux.ts";
import type { ReleaseFile, ReleaseManifest } from "../protocol/release.ts";
import { type BundleSource, verifyManifest } from "./engine/bundles.ts";
import type { Log } from "./log.ts";
import { digestOf } from "./primitives/digest.ts";
import { syncDirectory, writeDurable } from "./primitives/durable.ts";

/** Tries without a single new byte before it is given up (the engine comes back later). */
const FRUITLESS_TRIES = 8;
/** A download on which nothing comes for this long is taken up anew. */
const STALL_MS = 30_000;

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
			const sha256 = name.replace(/\.part$/, "");
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
		const part = `${path}.part`;
		const found = await this.#patiently(
			`blob ${sha256.slice(0, 12)}`,
			signal,
			() => this.#fetchInto(part, sha256, size, signal),
			() => sizeOf(part),
		);
		if (found !== sha256) {
			await rm(part, { force: true });
			throw new GroundplaneError("DigestMismatch", `what came for ${sha256} has the digest ${found}`, {
				next: "It was thrown away and is fetched again. If it stays so, the region's bundle is damaged: load it anew.",
			});
		}
		await rename(part, path);
		await syncDirectory(this.#blobs);
		return path;
	}

	/** Fetches what is missing of a file, and gives the digest of all of it. */
	async #fetchInto(part: string, sha256: string, size: number, signal: AbortSignal): Promise<string> {
		let have = await sizeOf(part);
		if (have > size) {
			await rm(part, { force: true });
			have = 0;
		}
		let hash = createHash("sha256");
		if (have > 0)
			await pipeline(createReadStream(part, { highWaterMark: 1 << 20 }), async (chunks) => digest(chunks, hash));
		if (have === size && have > 0) return hash.digest("hex");
		const headers: Record<string, string> = have > 0 ? { range: `bytes=${have}-` } : {};
		const response = await this.#get(`/artifacts/v1/blobs/sha256/${sha256}`, headers, signal);
		await expectStatus(response, [200, 206], "BundleNotFound", `blob ${sha256}`);
		const resumed = response.statusCode === 206;
		if (!resumed) hash = createHash("sha256");
		let left = size - (resumed ? have : 0);
		const count = new Transform({
			transform(chunk: Buffer, _encoding, callback) {
				left -= chunk.length;
				if (left < 0) return callback(new Error("more came than the manifest says"));
				hash.update(chunk);
				callback(null, chunk);
			},
		});
		await pipeline(response, count, createWriteStream(part, { flags: resumed ? "a" : "w", mode: 0o644, flush: true }), {
			signal,
		});
		if (left > 0) throw new Error(`${left} bytes are missing`);
		return hash.digest("hex");
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

async function digest(chunks: AsyncIterable<Buffer>, hash: Hash): Promise<void> {
	for await (const chunk of chunks) hash.update(chunk);
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
