import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { RoleStatus } from "../../protocol/facts.ts";
import { newestBundle, readRelease } from "./release.ts";
import { failureOf, merge, nodeNameOf, storedName } from "./server.ts";

const role = (more: Partial<RoleStatus>): RoleStatus => ({
	name: "kubernetes",
	version: "v1",
	phase: "Failed",
	done: 1,
	total: 2,
	step: "node",
	...more,
});

describe("failureOf", () => {
	it.each([
		["work", role({ phase: "Applying" }), undefined],
		["one failure of many to come", role({ reason: "CommandFailed", message: "no" }), undefined],
		["a third failure", role({ reason: "CommandFailed", message: "no (3 times). Look." }), /node: no/],
		["a machine that won't do", role({ reason: "PrerequisiteNotMet", message: "port 443 is taken" }), /443/],
	])("%s", (_what, status, expected) => {
		const failure = failureOf(status);
		if (expected === undefined) expect(failure).toBeUndefined();
		else expect(failure?.message).toMatch(expected);
	});
});

it.each([
	["groundplane/operator:0.1.0", "docker.io/groundplane/operator:0.1.0"],
	["registry.k8s.io/pause:3", "registry.k8s.io/pause:3"],
	["localhost:5000/x", "localhost:5000/x"],
	["debian", "docker.io/library/debian"],
])("containerd stores %s as %s", (reference, stored) => expect(storedName(reference)).toBe(stored));

it.each([
	["mgmt", "mgmt"],
	["NUC_1.example.com", "nuc-1"],
	["...", "server"],
])("the host %s is the node %s", (host, node) => expect(nodeNameOf(host)).toBe(node));

it("lays values over others", () => {
	expect(merge({ edge: { hostPort: 443, replicas: 1 }, bundles: [1] }, { edge: { replicas: 2 }, bundles: [] })).toEqual(
		{
			edge: { hostPort: 443, replicas: 2 },
			bundles: [],
		},
	);
});

describe("readRelease", () => {
	let directory: string;
	let state: string;
	beforeEach(() => {
		directory = mkdtempSync(join(tmpdir(), "release-"));
		state = join(directory, "state");
		const bundles = ["v1.9.1", "v1.36.3", "v1.35.4"].map((version) => ({ name: "kubernetes", version }));
		writeFileSync(join(directory, "release.json"), JSON.stringify({ version: "0.1.0", bundles, images: [] }));
		writeFileSync(join(directory, "release.jwks.json"), JSON.stringify({ keys: [{ kid: "one" }] }));
	});
	afterEach(() => rmSync(directory, { recursive: true, force: true }));

	it("takes the newest bundle, by number and not by letter", async () => {
		expect(newestBundle(await readRelease(directory, state, false), "kubernetes")).toBe("v1.36.3");
	});

	it("refuses another key than the first one, unless told", async () => {
		await readRelease(directory, state, false);
		writeFileSync(join(directory, "release.jwks.json"), JSON.stringify({ keys: [{ kid: "two" }] }));
		await expect(readRelease(directory, state, false)).rejects.toMatchObject({ code: "SignatureInvalid" });
		await readRelease(directory, state, true);
		await readRelease(directory, state, false);
	});

	it("says what is missing", async () => {
		rmSync(join(directory, "release.json"));
		await expect(readRelease(directory, state, false)).rejects.toMatchObject({ code: "NotFound" });
	});
});
