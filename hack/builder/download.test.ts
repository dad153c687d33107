import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { digestIn, download } from "./download.ts";

const content = "#!/bin/sh\n";
const digest = createHash("sha256").update(content).digest("hex");
let directory: string;
let server: Server;
let base: string;
let failures = 0;
const served: Record<string, string> = {
	"/program": content,
	"/program.sha256": `${digest}\n`,
	"/wrong": "0".repeat(64),
};

beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "download-"));
	server = createServer((request, response) => {
		if (failures-- > 0) return response.writeHead(503).end();
		const body = served[request.url ?? ""];
		response.writeHead(body === undefined ? 404 : 200).end(body);
	}).listen(0, "127.0.0.1");
	await new Promise((resolve) => server.once("listening", resolve));
	base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(async () => {
	server.close();
	await rm(directory, { recursive: true });
});

test("what is published arrives, executable, also when the server fails once", async () => {
	failures = 1;
	const target = join(directory, "program");
	expect(await download({ url: `${base}/program`, checksums: `${base}/program.sha256` }, target)).toBe(true);
	expect(await readFile(target, "utf8")).toBe(content);
	expect((await stat(target)).mode & 0o777).toBe(0o755);
});

test("another digest is refused, and nothing is left under the name", async () => {
	const target = join(directory, "program");
	const wrong = download({ url: `${base}/program`, checksums: `${base}/wrong` }, target);
	await expect(wrong).rejects.toMatchObject({ code: "DigestMismatch" });
	await expect(stat(target)).rejects.toThrow();
});

test("what is not published is said to be missing", async () => {
	const target = join(directory, "program");
	expect(await download({ url: `${base}/none`, checksums: `${base}/none.sha256` }, target)).toBe(false);
	expect(await download({ url: `${base}/none`, checksums: `${base}/program.sha256` }, target)).toBe(false);
});

test.each([
	["the digest alone", `${digest}\n`, digest],
	["one line", `${digest}  program\n`, digest],
	["a list", `${"1".repeat(64)}  other\n${digest} *./program\n`, digest],
	["a list without it", `${"1".repeat(64)}  other\n`, undefined],
	["a page", "<html>", undefined],
])("the digest in %s", (_, text, expected) => expect(digestIn(text, "program")).toBe(expected));
