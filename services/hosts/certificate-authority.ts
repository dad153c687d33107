import "reflect-metadata";
import { createHash, createPrivateKey, randomBytes, X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";
import { GroundplaneError } from "../../protocol/errors.ts";

/** A certificate request whose signature holds, so that the sender has the key. */
export interface CertificateRequest {
	/** Common name of the subject. */
	readonly name: string;
	/** SHA-256 of the request, hex. */
	readonly digest: string;
	readonly publicKey: x509.PublicKey;
}

export interface IssuedCertificate {
	/** Lower-case hex without leading zeros. */
	readonly serial: string;
	readonly notBefore: Date;
	readonly notAfter: Date;
	/** The certificate and its chain, PEM. */
	readonly pem: string;
}

interface Issuer {
	readonly cert: string;
	readonly key: string;
	readonly certificate: x509.X509Certificate;
	readonly signingKey: CryptoKey;
	readonly curve: string;
	/** What follows a host's certificate, PEM. */
	readonly chain: string;
}

/** Serial numbers compare as lower-case hex without separators and leading zeros. */
export const normalSerial = (serial: string): string => serial.toLowerCase().replaceAll(":", "").replace(/^0+/, "");

/**
 * Clocks of others may be this far behind ours, and ours may be set back by an hour: a certificate that is not good yet would keep a
 * host out for so long. Of a short life it is a part, or the host would ask for another at once.
 */
const BACKDATE_MS = 65 * 60 * 1000;
const BACKDATE_PART = 1 / 10;

const invalid = (message: string, cause?: unknown) =>
	new GroundplaneError("CertificateInvalid", message, {
		next: "Let the agent make a new key and request: restart gp-agent.service on the host.",
		cause,
	});

/** Reads a PKCS#10 request (RFC 2986) and verifies that its sender holds the key. */
export async function readCertificateRequest(pem: string): Promise<CertificateRequest> {
	let request: x509.Pkcs10CertificateRequest;
	try {
		request = new x509.Pkcs10CertificateRequest(pem);
	} catch (cause) {
		throw invalid("The certificate request is not PKCS#10 in PEM.", cause);
	}
	const { name, namedCurve } = request.publicKey.algorithm as { name: string; namedCurve?: string };
	const strong = name === "Ed25519" || (name === "ECDSA" && (namedCurve === "P-256" || namedCurve === "P-384"));
	if (!strong)
		throw invalid(`A key of kind ${namedCurve ?? name} is not accepted: it must be P-256, P-384 or Ed25519.`);
	const holds = await request.verify().catch(() => false);
	if (!holds) throw invalid("The signature of the certificate request does not hold.");
	const names = request.subjectName.getField("CN");
	if (names.length !== 1 || names[0] === undefined) throw invalid("The certificate request must name exactly one CN.");
	return {
		name: names[0],
		digest: createHash("sha256").update(Buffer.from(request.rawData)).digest("hex"),
		publicKey: request.publicKey,
	};
}

/**
 * Signs host certificates with the region's intermediate `hosts-ca`. Its files are read at each use: that is rare, and a
 * renewed Secret is picked up without more ado.
 */
export class CertificateAuthority {
	readonly #directory: string;
	readonly #region: string;
	readonly #lifetimeMs: number;
	readonly #now: () => number;
	/** The issuer as last read from these files: taking a certificate and a key apart costs more than signing. */
	#issuer: Issuer | undefined;

	constructor(options: { directory: string; region: string; lifetimeMs: number; now: () => number }) {
		this.#directory = options.directory;
		this.#region = options.region;
		this.#lifetimeMs = options.lifetimeMs;
		this.#now = options.now;
	}

	/** The region's root, PEM. */
	async roots(): Promise<string> {
		return (await this.#files()).ca;
	}

	/** A certificate for `host`, whatever else the request asks for. */
	async issue(host: string, request: CertificateRequest): Promise<IssuedCertificate> {
		const { certificate: issuer, signingKey, curve, chain } = await this.#readIssuer();
		const serial = randomBytes(16);
		// Positive, and no leading zero, so that every library prints it the same way.
		serial[0] = ((serial[0] ?? 0) & 0x3f) | 0x40;
		const now = this.#now();
		const backdateMs = Math.min(BACKDATE_MS, this.#lifetimeMs * BACKDATE_PART);
		const notBefore = new Date(Math.max(now - backdateMs, issuer.notBefore.getTime()));
		const notAfter = new Date(Math.min(now + this.#lifetimeMs, issuer.notAfter.getTime()));
		const certificate = await x509.X509CertificateGenerator.create({
			serialNumber: serial.toString("hex"),
			subject: [{ CN: [host] }, { O: ["groundplane:hosts"] }],
			issuer: issuer.subjectName,
			notBefore,
			notAfter,
			publicKey: request.publicKey,
			signingKey,
			signingAlgorithm: { name: "ECDSA", hash: curve === "P-384" ? "SHA-384" : "SHA-256" },
			extensions: [
				new x509.BasicConstraintsExtension(false, undefined, true),
				new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
				new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth]),
				new x509.SubjectAlternativeNameExtension([
					{ type: "dns", value: `${host}.hosts.${this.#region}` },
					{ type: "url", value: `groundplane://${this.#region}/hosts/${host}` },
				]),
				await x509.SubjectKeyIdentifierExtension.create(request.publicKey),
				await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
			],
		});
		return {
			serial: normalSerial(certificate.serialNumber),
			notBefore,
			notAfter,
			pem: `${certificate.toString("pem")}\n${chain}`,
		};
	}

	async #readIssuer(): Promise<Issuer> {
		const { cert, key } = await this.#files();
		if (this.#issuer?.cert === cert && this.#issuer.key === key) return this.#issuer;
		const certificate = new x509.X509Certificate(cert);
		const curve = (certificate.publicKey.algorithm as { namedCurve?: string }).namedCurve ?? "P-256";
		const signingKey = createPrivateKey(key).toCryptoKey({ name: "ECDSA", namedCurve: curve }, false, ["sign"]);
		const chain = new X509Certificate(cert).toString();
		this.#issuer = { cert, key, certificate, curve, chain, signingKey: signingKey as CryptoKey };
		return this.#issuer;
	}

	async #files(): Promise<{ cert: string; key: string; ca: string }> {
		try {
			const read = (name: string) => readFile(join(this.#directory, name), "utf8");
			const [cert, key, ca] = await Promise.all([read("tls.crt"), read("tls.key"), read("ca.crt")]);
			return { cert, key, ca };
		} catch (cause) {
			throw new GroundplaneError("InvalidConfiguration", "The hosts CA can't be read.", {
				next: "Check that Secret hosts-ca exists and is mounted into the hosts service.",
				cause,
			});
		}
	}
}
