import "reflect-metadata";
import { webcrypto, X509Certificate } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";
import { expect, test } from "vitest";
import { regionCertificates } from "../../test/support/certificates.ts";
import { CertificateAuthority, readCertificateRequest } from "./certificate-authority.ts";

const HOUR = 3_600_000;

test.each([
	{ lifetimeMs: 720 * HOUR, what: "made by a clock that is set back by an hour, is good at once", at: -HOUR },
	{ lifetimeMs: HOUR, what: "of a short life is not due for renewal at once", due: true },
])("a host's certificate, $what", async ({ lifetimeMs, at = 0, due }) => {
	const directory = mkdtempSync(join(tmpdir(), "gp-authority-"));
	const { hostsCa, caPem } = await regionCertificates(directory);
	for (const [name, content] of Object.entries({ "tls.crt": hostsCa.cert, "tls.key": hostsCa.key, "ca.crt": caPem }))
		writeFileSync(join(directory, name), content);
	// Later than the issuer's own beginning.
	const now = Date.now() + 12 * HOUR;
	const authority = new CertificateAuthority({ directory, region: "test", lifetimeMs, now: () => now });
	const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
	const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
	const csr = await x509.Pkcs10CertificateRequestGenerator.create({
		name: "CN=a",
		keys: keys as never,
		signingAlgorithm: algorithm,
	});
	const { pem } = await authority.issue("a", await readCertificateRequest(csr.toString("pem")));
	const { validFromDate, validToDate } = new X509Certificate(pem);
	expect(validFromDate.getTime()).toBeLessThan(now + at);
	const life = validToDate.getTime() - validFromDate.getTime();
	if (due) expect(validFromDate.getTime() + (life * 2) / 3).toBeGreaterThan(now + lifetimeMs / 2);
	rmSync(directory, { recursive: true, force: true });
});
