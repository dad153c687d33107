import { expect, test } from "vitest";
import { refusal, splitAddress, splitProxy, tlsError } from "./dial.ts";

test.each([
	["demo.example.com:443", { host: "demo.example.com", port: 443 }],
	["[2001:db8::1]:8443", { host: "2001:db8::1", port: 8443 }],
])("%s is an address", (address, parts) => {
	expect(splitAddress(address)).toEqual(parts);
});

test.each(["demo", "demo:", "2001:db8::1:443", ":443", "a:123456"])("%s is none", (address) => {
	expect(() => splitAddress(address)).toThrow(expect.objectContaining({ code: "InvalidConfiguration" }));
});

test.each([
	["http://proxy:3128", "proxy:3128", undefined],
	["http://proxy", "proxy:3128", undefined],
	["http://proxy:80/", "proxy:80", undefined],
	["http://user:p%40ss@proxy:80", "proxy:80", "user:p@ss"],
	["http://user:50%off@proxy:80", "proxy:80", "user:50%off"],
	["proxy.example.com:3128", "proxy.example.com:3128", undefined],
	["user:p%40ss@192.0.2.1:80", "192.0.2.1:80", "user:p@ss"],
	["http://user@[2001:db8::1]:8080", "[2001:db8::1]:8080", "user:"],
])("the proxy %s is at %s", (proxy, at, credentials) => {
	const parts = splitProxy(proxy);
	expect(parts.at).toBe(at);
	expect(parts.credentials && Buffer.from(parts.credentials, "base64").toString()).toBe(credentials);
});

const problem = (more: object = {}) => JSON.stringify({ code: "Overloaded", detail: "busy", next: "wait", ...more });
test.each<[number, string, string | undefined, string, number | undefined]>([
	[503, problem({ retryAfterMs: 250 }), "7", "Overloaded", 250],
	[503, problem(), "7", "Overloaded", 7_000],
	[503, problem(), undefined, "Overloaded", undefined],
	[503, problem({ retryAfterMs: -1 }), "Wed, 21 Oct 2026 07:28:00 GMT", "Overloaded", undefined],
	[503, problem({ retryAfterMs: "soon" }), "-3", "Overloaded", undefined],
	[502, "<html>Bad Gateway</html>", "5", "TunnelProtocolError", 5_000],
	[403, JSON.stringify({ code: "toString", detail: "x", next: "y" }), undefined, "TunnelProtocolError", undefined],
	[403, "null", undefined, "TunnelProtocolError", undefined],
])("HTTP %s with %s and Retry-After %s is %s, again after %s ms", (status, body, retryAfter, code, retryAfterMs) => {
	const error = refusal(status, body, retryAfter);
	expect(error.code).toBe(code);
	expect(error.details?.retryAfterMs).toBe(retryAfterMs);
});

test.each([
	["ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_EXPIRED", "CertificateInvalid"],
	["ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED", "CertificateInvalid"],
	["ERR_SSL_TLSV1_ALERT_UNKNOWN_CA", "CertificateInvalid"],
	["ERR_SSL_TLSV1_ALERT_INTERNAL_ERROR", "Overloaded"],
	["ERR_SSL_TLSV1_UNRECOGNIZED_NAME", "TunnelProtocolError"],
	["ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION", "TunnelProtocolError"],
	["ERR_SSL_WRONG_VERSION_NUMBER", "TunnelProtocolError"],
	["ERR_SSL_BAD_RECORD_TYPE", "TunnelProtocolError"],
	["ECONNRESET", "TunnelClosed"],
])("%s in TLS is %s: only what is about the certificate waits for a person", (code, expected) => {
	const error = tlsError(Object.assign(new Error(), { code }), "demo:443", "tunnel.demo");
	expect(error.code).toBe(expected);
	expect(error.next).toMatch(/\S/);
});
