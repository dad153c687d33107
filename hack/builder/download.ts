import { createWriteStream } from "node:fs";
import { chmod, rename, rm } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { ReadableStream } from "node:stream/web";
import { GroundplaneError } from "../../protocol/errors.ts";
import { hashFile } from "./cache.ts";
import { run, say } from "./run.ts";

/** What a project publishes of a program. */
export interface Upstream {
	readonly url: string;
	/** File with its SHA-256: the digest alone, or lines of `DIGEST  NAME`. */
	readonly checksums: string;
	/** Path inside, when the download is a tar archive. */
	readonly member?: string;
}

const PROBE = "https://dl.k8s.io/";
const PROBE_MS = 3_000;
const ATTEMPTS = 3;

let reachable: Promise<boolean> | undefined;

/** Whether the internet can be reached, asked once a run. */
export function online(): Promise<boolean> {
	reachable ??= fetch(PROBE, { method: "HEAD", signal: AbortSignal.timeout(PROBE_MS) }).then(
		() => true,
		() => false,
	);
	return reachable;
}

/**
 * Downloads a program and checks its published digest; false when it isn't published there.
 *
 * @throws GroundplaneError DigestMismatch when what came is not what was published.
 */
export async function download({ url, checksums, member }: Upstream, target: string): Promise<boolean> {
	const digests = await attempt(checksums, (response) => response.text());
	if (digests === undefined) return false;
	const expected = digestIn(digests, basename(url));
	const file = `${target}.download`;
	const found = await attempt(url, async (response) => {
		await pipeline(Readable.fromWeb(response.body as ReadableStream), createWriteStream(file));
		return true;
	});
	if (!found) return false;
	const { sha256 } = await hashFile(file);
	if (sha256 !== expected)
		throw new GroundplaneError(
			"DigestMismatch",
			`${url} has SHA-256 ${sha256}, and ${expected ?? "none"} is published`,
			{
				next: "Something on the way changes downloads, or the publisher changed the file: find out before you go on.",
			},
		);
	if (member === undefined) await rename(file, target);
	else {
		await run("tar", ["-xf", file, "-C", dirname(target), "--transform", `s|.*|${basename(target)}|`, member]);
		await rm(file);
	}
	await chmod(target, 0o755);
	return true;
}

/** The digest of a file in a list of checksums, or the only one there is. */
export function digestIn(text: string, name: string): string | undefined {
	const lines = text
		.split("\n")
		.map((line) => /^([0-9a-f]{64})(?:\s+[*]?(?:\.\/)?(\S+))?\s*$/i.exec(line))
		.filter((match) => match !== null);
	const line = lines.find(([, , file]) => file === name) ?? (lines.length === 1 ? lines[0] : undefined);
	return line?.[2] === undefined || line[2] === name ? line?.[1]?.toLowerCase() : undefined;
}

/** One GET, again a few times when the connection or the server fails; undefined when it isn't there. */
async function attempt<T>(url: string, read: (response: Response) => Promise<T>): Promise<T | undefined> {
	for (let left = ATTEMPTS - 1; ; left--) {
		try {
			const response = await fetch(url);
			if (response.ok) return await read(response);
			await response.body?.cancel();
			if (response.status < 500) return undefined;
			throw new Error(`HTTP ${response.status}`);
		} catch (error) {
			if (left === 0) {
				say(`${url} can't be downloaded (${(error as Error).message})`);
				return undefined;
			}
			await new Promise((resolve) => setTimeout(resolve, 500 + Math.random() * 2_000));
		}
	}
}
