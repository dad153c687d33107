import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { pipeline } from "node:stream/promises";

const known = new Map<string, { readonly identity: string; readonly sha256: string }>();

/** SHA-256 of a file. Read once: as long as inode, size and change time stay, so does the content. */
export async function digestOf(path: string): Promise<string> {
	const { ino, size, ctimeNs, mtimeNs } = await stat(path, { bigint: true });
	const identity = `${ino}:${size}:${mtimeNs}:${ctimeNs}`;
	const cached = known.get(path);
	if (cached?.identity === identity) return cached.sha256;
	const hash = createHash("sha256");
	await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
	const sha256 = hash.digest("hex");
	known.set(path, { identity, sha256 });
	return sha256;
}
