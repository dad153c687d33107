import "reflect-metadata";
import { createHash, generateKeyPairSync, randomBytes, webcrypto } from "node:crypto";
import * as x509 from "@peculiar/x509";

// Imported only when something is minted: the ASN.1 library costs about 10 MB.

type CryptoKeyPair = webcrypto.CryptoKeyPair;

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const DAY_MS = 86_400_000;
const CA_DAYS = 3650;
const SERVICE_DAYS = 365;
/** Clocks of a site may be a little behind ours. */
const BACKDATE_MS = 300_000;

/** PEM of a certificate with what goes with it, under the names of a `kubernetes.io/tls` Secret. */
export interface KeyPair {
	"tls.crt": string;
	"tls.key": string;
}
export interface ServicePair extends KeyPair {
	"ca.crt": string;
}

/** The region's root. Its key never enters the region's namespace. */
export async function mintRoot(region: string, now: number): Promise<KeyPair> {
	const keys = await newKeys();
	const certificate = await x509.X509CertificateGenerator.createSelfSigned({
		serialNumber: serialNumber(),
		name: `CN=region-${region}-ca`,
		keys,
		...validity(now, CA_DAYS),
		signingAlgorithm: algorithm,
		extensions: [
			new x509.BasicConstraintsExtension(true, 1, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
			await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
		],
	});
	return { "tls.crt": `${certificate.toString("pem")}\n`, "tls.key": await privatePem(keys.privateKey) };
}

/** The intermediate that signs hosts' certificates; it can sign no further CA. */
export async function mintHostsCa(region: string, root: KeyPair, now: number): Promise<ServicePair> {
	const keys = await newKeys();
	const certificate = await signed(root, {
		subject: `CN=groundplane hosts ${region}`,
		keys,
		now,
		days: CA_DAYS,
		extensions: [
			new x509.BasicConstraintsExtension(true, 0, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
			await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
		],
	});
	return {
		"tls.crt": `${certificate}${root["tls.crt"]}`,
		"tls.key": await privatePem(keys.privateKey),
		"ca.crt": root["tls.crt"],
	};
}

/** A service's certificate, for both ends of TLS; CN is the service's name. `key` keeps an old private key (PKCS#8, PEM). */
export async function mintService(
	options: { name: string; dnsNames: readonly string[]; key?: string },
	root: KeyPair,
	now: number,
): Promise<ServicePair> {
	const keys = options.key === undefined ? await newKeys() : await keysFromPem(options.key);
	const certificate = await signed(root, {
		subject: `CN=${options.name}`,
		keys,
		now,
		days: SERVICE_DAYS,
		extensions: [
			new x509.BasicConstraintsExtension(false, undefined, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
			new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
			new x509.SubjectAlternativeNameExtension(options.dnsNames.map((value) => ({ type: "dns" as const, value }))),
			await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
		],
	});
	return { "tls.crt": certificate, "tls.key": await privatePem(keys.privateKey), "ca.crt": root["tls.crt"] };
}

/** Key that signs desired state: Ed25519 as JWK (RFC 8037), its id the thumbprint (RFC 7638). */
export function mintDesiredStateKey(): { "private.jwk": string; "public.jwks": string } {
	const { x, d } = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
	const kid = thumbprint({ crv: "Ed25519", kty: "OKP", x });
	const common = { kty: "OKP", crv: "Ed25519", x, kid, alg: "EdDSA", use: "sig" };
	return { "private.jwk": JSON.stringify({ ...common, d }), "public.jwks": JSON.stringify({ keys: [common] }) };
}

/** Keys of `auth`: ES256 for tokens, and what signs its cookies. */
export function mintAuthKeys(): { "jwks.json": string; "cookie-keys": string } {
	const { x, y, d } = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });
	const kid = thumbprint({ crv: "P-256", kty: "EC", x, y });
	return {
		"jwks.json": JSON.stringify({ keys: [{ kty: "EC", crv: "P-256", x, y, d, kid, alg: "ES256", use: "sig" }] }),
		"cookie-keys": `${randomBytes(32).toString("base64url")}\n`,
	};
}

/** A password of 192 bits. */
export const mintPassword = (): string => randomBytes(24).toString("base64url");

function thumbprint(members: Record<string, unknown>): string {
	return createHash("sha256").update(JSON.stringify(members)).digest("base64url");
}

async function signed(
	root: KeyPair,
	options: { subject: string; keys: CryptoKeyPair; now: number; days: number; extensions: x509.Extension[] },
): Promise<string> {
	const issuer = new x509.X509Certificate(root["tls.crt"]);
	const issuerKeys = await keysFromPem(root["tls.key"]);
	const { notBefore, notAfter } = validity(options.now, options.days);
	const certificate = await x509.X509CertificateGenerator.create({
		serialNumber: serialNumber(),
		subject: options.subject,
		issuer: issuer.subject,
		publicKey: options.keys.publicKey,
		signingKey: issuerKeys.privateKey,
		notBefore,
		// Nothing outlives the one that signed it.
		notAfter: new Date(Math.min(notAfter.getTime(), issuer.notAfter.getTime())),
		signingAlgorithm: algorithm,
		extensions: [...options.extensions, await x509.AuthorityKeyIdentifierExtension.create(issuerKeys.publicKey)],
	});
	return `${certificate.toString("pem")}\n`;
}

const validity = (now: number, days: number) => ({
	notBefore: new Date(now - BACKDATE_MS),
	notAfter: new Date(now + days * DAY_MS),
});

/** 127 random bits, positive (RFC 5280, 4.1.2.2). */
function serialNumber(): string {
	const bytes = randomBytes(16);
	bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
	return bytes.toString("hex");
}

const newKeys = (): Promise<CryptoKeyPair> =>
	webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]) as Promise<CryptoKeyPair>;

async function privatePem(key: CryptoKey): Promise<string> {
	return `${x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY")}\n`;
}

/** Both halves of a private key: WebCrypto gives the public one only by way of JWK. */
async function keysFromPem(pem: string): Promise<CryptoKeyPair> {
	const privateKey = await webcrypto.subtle.importKey("pkcs8", x509.PemConverter.decodeFirst(pem), algorithm, true, [
		"sign",
	]);
	const { d: _, key_ops: __, ...jwk } = await webcrypto.subtle.exportKey("jwk", privateKey);
	const publicKey = await webcrypto.subtle.importKey("jwk", jwk, algorithm, true, ["verify"]);
	return { privateKey, publicKey } as CryptoKeyPair;
}

x509.cryptoProvider.set(webcrypto as Crypto);
