import { createPrivateKey, createPublicKey, generateKeyPairSync, sign, X509Certificate } from "node:crypto";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { GroundplaneError } from "../protocol/errors.ts";
import { writeDurable } from "./primitives/durable.ts";

/** Who this host is: key and certificate belong together, so they are one file, replaced at once. */
export const identity = z.object({
	region: z.string(),
	host: z.string(),
	key: z.string(),
	certificate: z.string(),
	caBundle: z.string(),
	desiredStateJwks: z.object({ keys: z.array(z.record(z.string(), z.unknown())) }),
});
export type Identity = z.output<typeof identity>;

const FILE = "identity.json";

export function loadIdentity(stateDir: string): Identity | undefined {
	let text: string;
	try {
		text = readFileSync(join(stateDir, FILE), "utf8");
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
		throw error;
	}
	try {
		return identity.parse(JSON.parse(text));
	} catch (cause) {
		throw new GroundplaneError("InvalidConfiguration", `${join(stateDir, FILE)} is damaged`, {
			next: "Enrol the host again with a new join command.",
			cause,
		});
	}
}

export async function saveIdentity(stateDir: string, value: Identity): Promise<void> {
	mkdirSync(stateDir, { recursive: true, mode: 0o700 });
	await writeDurable(join(stateDir, FILE), JSON.stringify(value), 0o600);
}

/** From when on a certificate is to be renewed: two thirds of its life. Milliseconds since the epoch. */
export function renewAt(certificate: string): number {
	const { validFromDate, validToDate } = new X509Certificate(certificate);
	return validFromDate.getTime() + ((validToDate.getTime() - validFromDate.getTime()) * 2) / 3;
}

/** A new key, ECDSA P-256, in PEM. */
export function newKey(): string {
	return generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({
		type: "pkcs8",
		format: "pem",
	}) as string;
}

/**
 * A certificate request (PKCS#10, RFC 2986) for a key and a common name. Written out by hand, since it is a fixed form of a
 * few lines and an ASN.1 library takes a quarter of the agent's memory.
 */
export function certificateRequest(keyPem: string, commonName: string): string {
	const key = createPrivateKey(keyPem);
	const publicKey = createPublicKey(key).export({ type: "spki", format: "der" });
	const name = sequence(set(sequence(oid("550403"), der(0x0c, Buffer.from(commonName, "utf8")))));
	const info = sequence(der(0x02, Buffer.from([0])), name, publicKey, der(0xa0, Buffer.alloc(0)));
	const ecdsaWithSha256 = sequence(oid("2a8648ce3d040302"));
	const signature = sign("sha256", info, key);
	const request = sequence(info, ecdsaWithSha256, der(0x03, Buffer.concat([Buffer.from([0]), signature])));
	const base64 = request.toString("base64").replace(/.{64}/g, "$&\n").trimEnd();
	return `-----BEGIN CERTIFICATE REQUEST-----\n${base64}\n-----END CERTIFICATE REQUEST-----\n`;
}

/** Whether a certificate is for this key. */
export function belongsTogether(certificate: string, keyPem: string): boolean {
	return new X509Certificate(certificate).checkPrivateKey(createPrivateKey(keyPem));
}

function der(tag: number, content: Buffer): Buffer {
	const length =
		content.length < 0x80
			? [content.length]
			: content.length < 0x100
				? [0x81, content.length]
				: [0x82, content.length >> 8, content.length & 0xff];
	return Buffer.concat([Buffer.from([tag, ...length]), content]);
}

const sequence = (...parts: Buffer[]) => der(0x30, Buffer.concat(parts));
const set = (...parts: Buffer[]) => der(0x31, Buffer.concat(parts));
const oid = (hex: string) => der(0x06, Buffer.from(hex, "hex"));
