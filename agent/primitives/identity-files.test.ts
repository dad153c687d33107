import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { keepIdentity, putBackIdentity } from "./identity-files.ts";

let root: string;
const at = (...path: string[]) => join(root, ...path);
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "identity-"));
	mkdirSync(at("kubernetes/pki/etcd"), { recursive: true });
	for (const name of ["admin.conf", "pki/apiserver.crt", "pki/apiserver.key", "pki/sa.pub", "pki/etcd/server.key"])
		writeFileSync(at("kubernetes", name), `old ${name}`);
	chmodSync(at("kubernetes/pki/apiserver.key"), 0o600);
	writeFileSync(at("kubernetes/pki/notes.txt"), "a person's own");
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

it("puts back what a renewal that was broken off has left: a new key with the old certificate, an empty file", async () => {
	await keepIdentity(at("before"), at("kubernetes"));
	writeFileSync(at("kubernetes/pki/apiserver.key"), "new key");
	writeFileSync(at("kubernetes/admin.conf"), "");
	rmSync(at("kubernetes/pki/etcd"), { recursive: true });
	writeFileSync(at("kubernetes/pki/notes.txt"), "changed since");
	await putBackIdentity(at("before"), at("kubernetes"));
	for (const name of ["admin.conf", "pki/apiserver.key", "pki/etcd/server.key"])
		expect(readFileSync(at("kubernetes", name), "utf8")).toBe(`old ${name}`);
	expect(statSync(at("kubernetes/pki/apiserver.key")).mode & 0o777).toBe(0o600);
	expect(readFileSync(at("kubernetes/pki/notes.txt"), "utf8")).toBe("changed since");
});

it("touches nothing where nothing was kept, and nothing that is as it was", async () => {
	await putBackIdentity(at("before"), at("kubernetes"));
	await keepIdentity(at("before"), at("kubernetes"));
	const { ino } = statSync(at("kubernetes/pki/apiserver.crt"));
	await putBackIdentity(at("before"), at("kubernetes"));
	expect(statSync(at("kubernetes/pki/apiserver.crt")).ino).toBe(ino);
});
