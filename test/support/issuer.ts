import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { SignJWT } from "jose";
import type { RegionCertificates } from "./certificates.ts";

/** In the place of a region's auth service: its published key is all of it that other services need. */
export interface TestIssuer {
	/** Where its keys are published (`JWKS_URL`). */
	readonly url: string;
	/** An access token as auth signs it, for a person with these roles. `lifetime` in seconds. */
	token(name: string, roles: readonly string[], options?: { lifetime?: number; audience?: string }): Promise<string>;
	close(): void;
}

/** Starts an issuer for the region of this domain. */
export async function startIssuer(domain: string, certificates: RegionCertificates): Promise<TestIssuer> {
	const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
	const keys = [{ ...publicKey.export({ format: "jwk" }), kid: "a", alg: "ES256", use: "sig" }];
	const server = createServer(await certificates.issueService("auth"), (_request, response) => {
		response.setHeader("content-type", "application/json").end(JSON.stringify({ keys }));
	});
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	return {
		url: `https://127.0.0.1:${(server.address() as AddressInfo).port}/`,
		token: (name, roles, { lifetime = 600, audience = `https://${domain}/api` } = {}) =>
			new SignJWT({ name, roles })
				.setProtectedHeader({ alg: "ES256", typ: "at+jwt", kid: "a" })
				.setIssuer(`https://${domain}/auth`)
				.setAudience(audience)
				.setSubject(`id-of-${name}`)
				.setIssuedAt()
				.setExpirationTime(Math.floor(Date.now() / 1000) + lifetime)
				.sign(privateKey),
		close() {
			server.closeAllConnections();
			server.close();
		},
	};
}
