import { argon2, randomBytes, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import { z } from "zod";

const derive = promisify(argon2);

/** Second of the settings that OWASP's password storage cheat sheet gives for Argon2id: 19 MiB, two passes, one lane. */
const current = { memory: 19_456, passes: 2, parallelism: 1 };

/** PHC string format, as every Argon2 library writes it: `$argon2id$v=19$m=…,t=…,p=…$SALT$HASH`. */
const stored = z
	.string()
	.regex(/^\$argon2id\$v=19\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$/)
	.transform((text) => {
		const [, , , parameters = "", salt = "", hash = ""] = text.split("$");
		const [memory = 0, passes = 0, parallelism = 0] = parameters.split(",").map((part) => Number(part.slice(2)));
		return { memory, passes, parallelism, nonce: Buffer.from(salt, "base64"), hash: Buffer.from(hash, "base64") };
	});

const base64 = (bytes: Buffer) => bytes.toString("base64").replace(/=+$/, "");

/** Hashes a password with Argon2id (RFC 9106) and a salt of its own. Takes some 50 ms and 19 MiB. */
export async function hashPassword(password: string): Promise<string> {
	const nonce = randomBytes(16);
	const { memory, passes, parallelism } = current;
	const hash = await derive("argon2id", { message: password, nonce, tagLength: 32, ...current });
	return `$argon2id$v=19$m=${memory},t=${passes},p=${parallelism}$${base64(nonce)}$${base64(hash)}`;
}

/** Whether a password is the one that was hashed. */
export async function verifyPassword(phc: string, password: string): Promise<boolean> {
	const { hash, ...parameters } = stored.parse(phc);
	const derived = await derive("argon2id", { message: password, tagLength: hash.length, ...parameters });
	return timingSafeEqual(derived, hash);
}
