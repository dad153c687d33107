import "reflect-metadata";
import { webcrypto } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const DAY_MS = 86_400_000;

export interface IssuedCertificate {
	/** Certificate followed by its chain without the root, PEM. */
	readonly cert: string;
	readonly key: string;
	readonly ca: string;
}

/** A region's certificates as the operator mints them, with `localhost` and `127.0.0.1` added so that tests can dial them. */
export interface RegionCertificates {
	readonly caPem: string;
	/** The hosts-ca: certificate with chain, and key. */
	readonly hostsCa: IssuedCertificate;
	/** Writes `tls.crt`, `tls.key` and `ca.crt` of a service into `DIRECTORY/tls-NAME` and returns that directory. */
	service(name: string, extraNames?: string[]): Promise<string>;
	/** Issues a service's certificate without writing it. */
	issueService(name: string, extraNames?: string[]): Promise<IssuedCertificate>;
	/** Issues a host's certificate from the hosts-ca. */
	host(name: string): Promise<IssuedCertificate>;
}

/** Makes a region's CA and the intermediate for hosts. */
export async function regionCertificates(directory: string, region = "test"): Promise<RegionCertificates> {
	x509.cryptoProvider.set(webcrypto as Crypto);
	const notAfter = () => new Date(Date.now() + 30 * DAY_MS);
	const notBefore = () => new Date(Date.now() - 60_000);
	const newKeys = () => webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
	const keyPem = async (key: CryptoKey) =>
		x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY");

	const rootKeys = await newKeys();
	const root = await x509.X509CertificateGenerator.createSelfSigned({
		name: `CN=region-${region}-ca`,
		keys: rootKeys,
		notBefore: notBefore(),
		notAfter: notAfter(),
		signingAlgorithm: algorithm,
		extensions: [
			new x509.BasicConstraintsExtension(true, 1, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
			await x509.SubjectKeyIdentifierExtension.create(rootKeys.publicKey),
		],
	});
	const caPem = root.toString("pem");

	async function issue(options: {
		subject: string;
		issuer: string;
		issuerKey: CryptoKey;
		extensions: x509.Extension[];
		chain?: string;
	}): Promise<IssuedCertificate & { keys: webcrypto.CryptoKeyPair }> {
		const keys = await newKeys();
		const certificate = await x509.X509CertificateGenerator.create({
			subject: options.subject,
			issuer: options.issuer,
			publicKey: keys.publicKey,
			signingKey: options.issuerKey,
			notBefore: notBefore(),
			notAfter: notAfter(),
			signingAlgorithm: algorithm,
			extensions: options.extensions,
		});
		const cert = [certificate.toString("pem"), options.chain].filter(Boolean).join("\n");
		return { cert, key: await keyPem(keys.privateKey), ca: caPem, keys };
	}

	const hostsCa = await issue({
		subject: `CN=groundplane hosts ${region}`,
		issuer: root.subject,
		issuerKey: rootKeys.privateKey,
		extensions: [
			new x509.BasicConstraintsExtension(true, 0, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
		],
	});
	const leaf = [
		new x509.BasicConstraintsExtension(false, undefined, true),
		new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
		new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
	];
	const issueService = (name: string, extraNames: string[] = []) =>
		issue({
			subject: `CN=${name}`,
			issuer: root.subject,
			issuerKey: rootKeys.privateKey,
			extensions: [
				...leaf,
				new x509.SubjectAlternativeNameExtension([
					...[name, `${name}.region-${region}.svc`, "localhost", ...extraNames].map(
						(value) => ({ type: "dns", value }) as const,
					),
					{ type: "ip", value: "127.0.0.1" },
				]),
			],
		});

	return {
		caPem,
		hostsCa,
		issueService,
		async service(name, extraNames) {
			const target = join(directory, `tls-${name}`);
			const { cert, key, ca } = await issueService(name, extraNames);
			mkdirSync(target, { recursive: true });
			writeFileSync(join(target, "tls.crt"), cert);
			writeFileSync(join(target, "tls.key"), key, { mode: 0o600 });
			writeFileSync(join(target, "ca.crt"), ca);
			return target;
		},
		host: (name) =>
			issue({
				subject: `CN=${name},O=groundplane:hosts`,
				issuer: `CN=groundplane hosts ${region}`,
				issuerKey: hostsCa.keys.privateKey,
				extensions: [
					...leaf,
					new x509.SubjectAlternativeNameExtension([
						{ type: "dns", value: `${name}.hosts.${region}` },
						{ type: "url", value: `groundplane://${region}/hosts/${name}` },
					]),
				],
				chain: hostsCa.cert,
			}),
	};
}
