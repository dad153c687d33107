import { expect, test } from "vitest";
import { parseProxyHeader } from "./proxy-protocol.ts";

const header = (command: number, family: number, addresses: number[]): Buffer =>
	Buffer.from([
		...[0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x20 | command, family],
		addresses.length >> 8,
		addresses.length & 0xff,
		...addresses,
	]);
const v4 = header(1, 0x11, [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb]);

test("IPv4, IPv6 and a check of the front's own are read, with what follows left alone", () => {
	expect(parseProxyHeader(Buffer.concat([v4, Buffer.from("hello")]))).toEqual({ source: "192.0.2.7", length: 28 });
	const v6 = header(1, 0x21, [0x20, 1, 0xd, 0xb8, ...new Array(11).fill(0), 9, ...new Array(20).fill(0)]);
	expect(parseProxyHeader(v6)).toEqual({ source: "2001:db8::9", length: 52 });
	expect(parseProxyHeader(header(0, 0, []))).toEqual({ source: "", length: 16 });
});

test("a part of a header is waited for, anything else is refused", () => {
	for (let length = 0; length < v4.length; length++) expect(parseProxyHeader(v4.subarray(0, length))).toBeUndefined();
	expect(() => parseProxyHeader(Buffer.from([0x16, 3, 1, 0, 0xc8]))).toThrow(/no PROXY/);
	expect(() => parseProxyHeader(header(1, 0x11, new Array(600).fill(0)))).toThrow(/version 2/);
});
