import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { parseAllDocuments, stringify } from "yaml";
import { imports, labelled, referencesIn } from "./imports.ts";

const ours = process.arch === "arm64" ? "arm64" : "amd64";
const reference = "quay.io/example/node:v1";
const objects = [
	{
		kind: "DaemonSet",
		spec: { template: { spec: { initContainers: [{ image: reference }], containers: [{ image: reference }] } } },
	},
	{ kind: "CustomResourceDefinition", spec: { image: "no reference" } },
];
const manifest = objects.map((one) => stringify(one)).join("---\n");

let directory: string;
beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "imports-"));
	vi.stubEnv("GROUNDPLANE_CACHE", join(directory, "cache"));
});
afterEach(async () => {
	vi.unstubAllEnvs();
	await rm(directory, { recursive: true });
});

describe("imports into a release", () => {
	it("are none where nobody names a list", async () => {
		expect(await imports({})).toEqual([]);
	});

	it("bring the manifest and the images, by the names that a bundle has for them", async () => {
		const path = await list({});
		const [calico] = await imports({ GROUNDPLANE_IMPORTS: path });
		expect(calico).toMatchObject({ name: "calico", version: "v1" });
		expect(calico?.files.map(({ source: _, ...file }) => file)).toEqual([
			{ path: "pack/imports/calico.yaml", kind: "pack" },
			{ path: "imports/calico/node.tar", kind: "image", reference },
		]);
		expect(await readFile(calico?.files[0]?.source ?? "", "utf8")).toBe(manifest);
	});

	it("bring what several projects publish together in one file, with the label by which it is taken away again", async () => {
		const [sriov] = await imports({ GROUNDPLANE_IMPORTS: await list({ name: "sriov", parts: 2 }) });
		expect(sriov?.files.map(({ path }) => path)).toEqual(["pack/imports/sriov.yaml", "imports/sriov/node.tar"]);
		const text = await readFile(sriov?.files[0]?.source ?? "", "utf8");
		expect(text).toBe(labelled([manifest, manifest].join("---\n"), "sriov"));
	});

	it.each([
		[
			"a file that is another one",
			{ digest: "0".repeat(64) },
			/SHA-256 [0-9a-f]{64}, and the list of imports says 0{64}/,
		],
		["an archive of another image", { tag: "quay.io/example/other:v1" }, /holds quay.io\/example\/other:v1/],
		["an archive for other processors", { architecture: "s390x" }, /is for s390x/],
		[
			"an image that the manifest does not name",
			{ reference: "quay.io/example/more:v1" },
			/asks for quay.io\/example\/node:v1.*does not ask for quay.io\/example\/more:v1/,
		],
		["a list with a word that it does not know", { more: { url: "x" } }, /list of imports .* is wrong/],
	])("refuse %s", async (_what, wrong, text) => {
		await expect(imports({ GROUNDPLANE_IMPORTS: await list(wrong) })).rejects.toThrow(text);
	});

	it("say that a list is not there", async () => {
		await expect(imports({ GROUNDPLANE_IMPORTS: join(directory, "none.yaml") })).rejects.toThrow(/can't be read/);
	});
});

it("finds the images of all containers, written out", () => {
	expect(
		referencesIn(
			stringify({ kind: "Pod", spec: { containers: [{ image: "example/a:v1" }, { image: "quay.io/b@sha256:1" }] } }),
		),
	).toEqual(["docker.io/example/a:v1", "quay.io/b@sha256:1"]);
	expect(referencesIn(stringify({ spec: { containers: [{ image: "quay.io/a/b" }] } }))).toEqual(["quay.io/a/b:latest"]);
});

it("labels the objects of an add-on, and leaves their text and definitions of resources as they are", () => {
	const config = '{\n  "a": "x"\n}\n';
	const given = [
		{ kind: "ConfigMap", metadata: { name: "a", labels: { app: "x" } }, data: { config } },
		{ kind: "DaemonSet", metadata: { name: "b" }, spec: { template: { metadata: { labels: { app: "x" } } } } },
		{ kind: "CustomResourceDefinition", metadata: { name: "c" } },
	];
	const text = `---\n# Upstream says something.\n${given.map((one) => stringify(one)).join("---\n")}---\n`;
	const label = { "groundplane.io/addon": "sriov" };
	expect(parseAllDocuments(labelled(text, "sriov")).map((one) => one.toJS())).toEqual([
		{ ...given[0], metadata: { name: "a", labels: { app: "x", ...label } } },
		{ ...given[1], metadata: { name: "b", labels: label } },
		given[2],
	]);
});

interface Wrong {
	readonly name?: string;
	/** How often the manifest is named. */
	readonly parts?: number;
	readonly digest?: string;
	readonly tag?: string;
	readonly architecture?: string;
	readonly reference?: string;
	readonly more?: object;
}

/** A list with a manifest and an archive as `docker save` writes it, with this one fault. */
async function list({
	name = "calico",
	parts,
	digest,
	tag = reference,
	architecture = ours,
	reference: named = reference,
	more,
}: Wrong): Promise<string> {
	await writeFile(join(directory, "calico.yaml"), manifest);
	await writeFile(join(directory, "config.json"), JSON.stringify({ architecture }));
	await writeFile(
		join(directory, "manifest.json"),
		JSON.stringify([{ Config: "config.json", RepoTags: [tag], Layers: [] }]),
	);
	execFileSync("tar", ["-cf", "node.tar", "manifest.json", "config.json"], { cwd: directory });
	const of = async (file: string) =>
		createHash("sha256")
			.update(await readFile(join(directory, file)))
			.digest("hex");
	const one = { file: "calico.yaml", sha256: digest ?? (await of("calico.yaml")) };
	const imported = {
		version: "v1",
		manifest: parts === undefined ? one : Array.from({ length: parts }, () => one),
		images: [{ reference: named, file: "node.tar", sha256: await of("node.tar") }],
		...more,
	};
	const path = join(directory, "imports.yaml");
	await writeFile(path, stringify({ [name]: imported }));
	return path;
}
