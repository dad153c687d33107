import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type IssuedCertificate, regionCertificates } from "../test/support/certificates.ts";
import {
	type HelloClaim,
	isNonce,
	NONCE_HEADER,
	newNonce,
	parseHelloIdentity,
	signHello,
	verifyHello,
} from "./hello.ts";

const directory = mkdtempSync(join(tmpdir(), "gp-hello-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let host: IssuedCertificate;
let stranger: IssuedCertificate;
beforeAll(async () => {
	const certificates = await regionCertificates(directory);
	host = await certificates.host("host-1");
	stranger = await certificates.host("host-2");
});

const claim: HelloClaim = {
	role: "host",
	region: "demo",
	name: "host-1",
	connectionId: "c1",
	hostNonce: newNonce(),
	gatewayNonce: newNonce(),
};
const own = () => ({ certificate: host.cert, key: host.key });

test("a signed HELLO gives the certificate whose key signed it", () => {
	const leaf = verifyHello(claim, signHello(claim, own()));
	expect(leaf.subject).toContain("CN=host-1");
});

test.each<[string, Partial<HelloClaim>]>([
	["the other end's role", { role: "gateway" }],
	["another region", { region: "other" }],
	["another name", { name: "host-2" }],
	["another connection", { connectionId: "c2" }],
	["an older nonce of the gateway: a replay", { gatewayNonce: newNonce() }],
	["an older nonce of the host", { hostNonce: newNonce() }],
	["fields that run together in the same bytes", { name: "host-1c", connectionId: "1" }],
])("a signature does not pass for %s", (_what, change) => {
	const identity = signHello(claim, own());
	expect(() => verifyHello({ ...claim, ...change }, identity)).toThrow(/did not prove/);
});

test("the wire form stays: what the first version signed is still good", () => {
	const base64 =
		"MIIByzCCAXGgAwIBAgIRALPJ2oQimtNgB1RckeXlL+cwCgYIKoZIzj0EAwIwITEfMB0GA1UEAxMWZ3JvdW5kcGxhbmUgaG9zdHMgdGVzdDAeFw0yNjExMjExODIzNDBaFw0yNjEyMjExODI0NDBaMC0xDzANBgNVBAMTBmhvc3QtMTEaMBgGA1UEChMRZ3JvdW5kcGxhbmU6aG9zdHMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQs1EFT1Pun0p6Hk2rxfYA1O2E9ek75ELvwDXVrROEIHkNup3fN+dw8DMdUyxZpk8+zDK57CIPy0bvzfwlANNXSo34wfDAMBgNVHRMBAf8EAjAAMA4GA1UdDwEB/wQEAwIHgDAdBgNVHSUEFjAUBggrBgEFBQcDAQYIKwYBBQUHAwIwPQYDVR0RBDYwNIIRaG9zdC0xLmhvc3RzLnRlc3SGH2dyb3VuZHBsYW5lOi8vdGVzdC9ob3N0cy9ob3N0LTEwCgYIKoZIzj0EAwIDSAAwRQIhAI7KHI+Q1BhLW/d5brCxk0L6Yu5qm7Z+gR7vAOMH8K7kAiAU5qXiSAwjrJJB8xk3pDW5i2eAbE5zNJrQ5QF4Hl7ZTg==";
	const identity = {
		certificate: `-----BEGIN CERTIFICATE-----\n${base64}\n-----END CERTIFICATE-----`,
		signature: "MEYCIQDj2FPLq3FexJgiV4K-HnqN5w4od_jwCZQygBesWKT2ngIhAM1CAi2cK0rYXic1E-tZcfgMb4XcZr7qV2ls-lozgBje",
	};
	const said = { ...claim, hostNonce: "h".repeat(43), gatewayNonce: "g".repeat(43) };
	expect(verifyHello(said, identity).subject).toContain("CN=host-1");
	expect(NONCE_HEADER).toBe("groundplane-nonce");
});

test("a certificate without its key, another key's signature, and rubbish are refused with a code", () => {
	const identity = signHello(claim, own());
	const other = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ type: "pkcs8", format: "pem" });
	for (const bad of [
		undefined,
		{ ...identity, signature: "" },
		{ ...identity, signature: "AAAA" },
		{ ...identity, certificate: stranger.cert },
		{ ...identity, certificate: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----" },
		signHello(claim, { certificate: host.cert, key: other as string }),
	]) {
		expect(() => verifyHello(claim, bad)).toThrow(expect.objectContaining({ code: "CertificateInvalid" }));
	}
});

test("nonces are new each time, and what is no nonce or no identity is seen", () => {
	expect(newNonce()).not.toBe(newNonce());
	expect([newNonce(), "", "a", undefined, ["x"], `${newNonce()}=`].map(isNonce)).toEqual([
		true,
		false,
		false,
		false,
		false,
		false,
	]);
	const identity = { certificate: "c", signature: "s" };
	expect([{ ...identity, more: 1 }, { certificate: 1, signature: "s" }, null, "x"].map(parseHelloIdentity)).toEqual([
		identity,
		undefined,
		undefined,
		undefined,
	]);
});
