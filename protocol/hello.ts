import { createHash, createPrivateKey, randomBytes, sign, verify, X509Certificate } from "node:crypto";
import { GroundplaneError } from "./errors.ts";

/**
 * Identity in HELLO, for hosts behind a proxy that opens up TLS: the client certificate ends at the proxy, so both ends
 * prove in HELLO that they hold the key of their certificate. Each signs both nonces, which are made for this one
 * connection, so nothing said once is good a second time.
 *
 * It proves who the ends are. It does not hide from such a proxy what passes, nor keep it from changing that: whoever opens
 * up TLS can do so, and the customer who adds the proxy's CA on the host decides so.
 */

/** Carries the host's nonce in the request for the WebSocket, and the gateway's in the 101 that answers it. */
export const NONCE_HEADER = "groundplane-nonce";

/** Certificate (PEM, leaf first) and a signature by its key (base64url). */
export interface HelloIdentity {
	certificate: string;
	signature: string;
}

/** What is signed, besides the certificate itself. Both ends know all of it. */
export interface HelloClaim {
	role: "host" | "gateway";
	region: string;
	/** `name` and `connectionId` of the HELLO that carries the signature. */
	name: string;
	connectionId: string;
	hostNonce: string;
	gatewayNonce: string;
}

const NONCE_BYTES = 32;

/** 32 random bytes in base64url. */
export const newNonce = (): string => randomBytes(NONCE_BYTES).toString("base64url");

/** Whether a header holds a nonce as {@link newNonce} makes them. */
export const isNonce = (value: unknown): value is string =>
	typeof value === "string" && /^[A-Za-z0-9_-]{43}$/.test(value);

/** Signs a HELLO. `certificate` and `key` are PEM; the key is ECDSA. */
export function signHello(
	claim: HelloClaim,
	{ certificate, key }: { certificate: string; key: string },
): HelloIdentity {
	const leaf = new X509Certificate(certificate);
	const signature = sign("sha256", toBeSigned(claim, leaf), createPrivateKey(key)).toString("base64url");
	return { certificate, signature };
}

/**
 * The certificate whose key signed exactly this claim. Who issued it, until when it is good and whom it names is the
 * caller's to judge. Throws `CertificateInvalid`.
 */
export function verifyHello(claim: HelloClaim, identity: HelloIdentity | undefined): X509Certificate {
	if (identity === undefined) throw invalid(`the ${claim.role} showed no certificate, in TLS or in HELLO`);
	let leaf: X509Certificate;
	let good: boolean;
	try {
		leaf = new X509Certificate(identity.certificate);
		const signature = Buffer.from(identity.signature, "base64url");
		good = verify("sha256", toBeSigned(claim, leaf), leaf.publicKey, signature);
	} catch (cause) {
		throw invalid(`the certificate in the ${claim.role}'s HELLO can't be read`, cause);
	}
	if (!good) throw invalid(`the ${claim.role} did not prove that it holds the key of its certificate`);
	return leaf;
}

/** Reads `identity` of a HELLO; undefined when there is none or it isn't one. */
export function parseHelloIdentity(value: unknown): HelloIdentity | undefined {
	if (typeof value !== "object" || value === null) return undefined;
	const { certificate, signature } = value as Record<string, unknown>;
	return typeof certificate === "string" && typeof signature === "string" ? { certificate, signature } : undefined;
}

/**
 * The form of TLS 1.3's CertificateVerify (RFC 8446 §4.4.3): 64 spaces, a context that nothing else signs under, a zero,
 * then what is signed. Fields go in with their lengths, so that no two claims read the same.
 */
function toBeSigned({ role, region, name, connectionId, hostNonce, gatewayNonce }: HelloClaim, leaf: X509Certificate) {
	const digest = createHash("sha256").update(leaf.raw).digest("hex");
	const fields = [region, name, connectionId, hostNonce, gatewayNonce, digest].flatMap((field) => {
		const bytes = Buffer.from(field, "utf8");
		const length = Buffer.alloc(4);
		length.writeUInt32BE(bytes.length);
		return [length, bytes];
	});
	return Buffer.concat([Buffer.from(`${" ".repeat(64)}groundplane tunnel hello v1, ${role}\0`), ...fields]);
}

function invalid(message: string, cause?: unknown): GroundplaneError {
	return new GroundplaneError("CertificateInvalid", message, {
		next: "Enrol the host again with a new join command; behind a proxy that opens up TLS add its CA in /etc/groundplane/proxy-ca.pem.",
		cause,
	});
}
