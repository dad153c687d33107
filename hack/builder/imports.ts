import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { isMap, parse, parseAllDocuments } from "yaml";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { BundleFile } from "./bundle.ts";
import { cached, hashFile } from "./cache.ts";
import { fullReference, place } from "./images.ts";
import { run } from "./run.ts";

const origin = z.strictObject({
	/** Its path, relative to the list's. */
	file: z.string().min(1),
	sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

const imported = z.strictObject({
	version: z.string().min(1),
	/** Kubernetes objects as upstream publishes them; where several projects belong together, those of each. */
	manifest: z.union([origin, z.array(origin).min(1)]),
	/** Archives as `docker save`, `skopeo copy` and `crane pull` write them. */
	images: z.array(origin.extend({ reference: z.string().min(1) })).min(1),
});

/** The list that `GROUNDPLANE_IMPORTS` names: what upstream publishes as images alone, and how to know that it is just that. */
const importList = z.strictObject({ calico: imported.optional(), sriov: imported.optional() });

/** What a cluster can switch off: its objects bear the label by which the role pack takes add-ons away. */
const ADDONS: readonly string[] = ["sriov"] satisfies (keyof z.output<typeof importList>)[];

/** What a part of a release that can't be built from source brings into a bundle. */
export interface Import {
	readonly name: string;
	readonly version: string;
	readonly files: readonly BundleFile[];
}

/**
 * What is imported into a release: nothing where `GROUNDPLANE_IMPORTS` is not set.
 *
 * @throws GroundplaneError DigestMismatch when a file is not the one of the list; InvalidInput when the list or what it names can't be used.
 */
export async function imports(env: NodeJS.ProcessEnv = process.env): Promise<Import[]> {
	const path = env.GROUNDPLANE_IMPORTS;
	if (!path) return [];
	const list = await readList(path);
	const entries = Object.entries(list).filter((entry) => entry[1] !== undefined);
	return Promise.all(
		entries.map(([name, one]) => take(name, one as z.output<typeof imported>, dirname(resolve(path)))),
	);
}

async function take(
	name: string,
	{ version, manifest, images }: z.output<typeof imported>,
	directory: string,
): Promise<Import> {
	const source = await objectsOf(name, [manifest].flat(), directory);
	checkReferences(
		name,
		referencesIn(await readFile(source, "utf8")),
		images.map(({ reference }) => reference),
	);
	const files: BundleFile[] = [{ path: `pack/imports/${name}.yaml`, kind: "pack", source }];
	for (const { reference, ...image } of images) {
		const archive = await bring(image, directory);
		await checkArchive(archive, reference);
		const base = basename(reference).replace(/[:@].*$/, "");
		files.push({
			path: `imports/${name}/${base}.tar`,
			kind: "image",
			reference: fullReference(reference),
			source: archive,
		});
	}
	return { name, version, files };
}

/** The objects of an import in one file: upstream's own where it is one, and nothing has to be added to it. */
async function objectsOf(
	name: string,
	manifests: readonly z.output<typeof origin>[],
	directory: string,
): Promise<string> {
	const sources = await Promise.all(manifests.map((one) => bring(one, directory)));
	const isAddon = ADDONS.includes(name);
	const [only] = sources;
	if (only !== undefined && sources.length === 1 && !isAddon) return only;
	const inputs = [name, isAddon ? "labelled" : "as they are", manifests.map(({ sha256 }) => sha256)];
	const result = await cached(`import-${name}`, inputs, async (target) => {
		const texts = await Promise.all(sources.map((source) => readFile(source, "utf8")));
		const text = texts.join("\n---\n");
		await writeFile(join(target, "objects.yaml"), isAddon ? labelled(text, name) : text);
	});
	return join(result, "objects.yaml");
}

/**
 * The objects with the label of an add-on, by which hosts take them away when it is switched off. Definitions of resources
 * go without: they would take with them what people made of them.
 */
export function labelled(manifest: string, addon: string): string {
	const objects = parseAllDocuments(manifest).filter((document) => isMap(document.contents));
	for (const object of objects)
		if (object.get("kind") !== "CustomResourceDefinition")
			object.setIn(["metadata", "labels", "groundplane.io/addon"], addon);
	return objects.map((object) => object.toString({ lineWidth: 0 }).replace(/^---\n/, "")).join("---\n");
}

/** A file whose digest is known, in the cache. */
async function bring({ file, sha256 }: z.output<typeof origin>, directory: string): Promise<string> {
	const result = await cached(`import-${sha256.slice(0, 16)}`, [sha256], async (target) => {
		const taken = join(target, "file");
		await place(resolve(directory, file), taken);
		const found = await hashFile(taken).then((one) => one.sha256);
		if (found !== sha256)
			throw new GroundplaneError(
				"DigestMismatch",
				`${file} has SHA-256 ${found}, and the list of imports says ${sha256}`,
				{
					next: "Compare with what upstream publishes; correct the list only when the file is the one that you mean.",
				},
			);
	});
	return join(result, "file");
}

/** Every image that the objects of a manifest name, as container runtimes write it out. */
export function referencesIn(manifest: string): string[] {
	const found = new Set<string>();
	const visit = (value: unknown): void => {
		if (Array.isArray(value)) for (const one of value) visit(one);
		else if (typeof value === "object" && value !== null)
			for (const [key, one] of Object.entries(value))
				if (key === "image" && typeof one === "string") found.add(fullReference(one));
				else visit(one);
	};
	for (const document of parseAllDocuments(manifest)) {
		const object = document.toJS() as { kind?: string; spec?: unknown } | null;
		// What a definition says of fields is no use of them.
		if (object?.kind !== "CustomResourceDefinition") visit(object?.spec);
	}
	return [...found].sort();
}

function checkReferences(name: string, wanted: readonly string[], given: readonly string[]): void {
	const present = given.map(fullReference);
	const missing = wanted.filter((reference) => !present.includes(reference));
	const needless = present.filter((reference) => !wanted.includes(reference));
	if (missing.length + needless.length === 0) return;
	const said = [
		...(missing.length > 0 ? [`asks for ${missing.join(", ")}, which the list does not have`] : []),
		...(needless.length > 0 ? [`does not ask for ${needless.join(", ")}`] : []),
	];
	throw new GroundplaneError("InvalidInput", `The manifest of ${name} ${said.join(" and ")}`, {
		next: "Take manifest and images of the same version of upstream, and name each image as the manifest does.",
	});
}

/** An archive must hold the image under its name, for this machine's kind of processor. */
async function checkArchive(archive: string, reference: string): Promise<void> {
	const next = "Make it with: docker save --output FILE IMAGE, or: crane pull --platform linux/ARCH IMAGE FILE";
	const read = async (path: string) =>
		JSON.parse(await run("tar", ["--extract", "--to-stdout", "--file", archive, path], { next })) as unknown;
	const [entry] = z
		.array(z.object({ Config: z.string(), RepoTags: z.array(z.string()).nullable() }))
		.parse(await read("manifest.json"));
	const names = (entry?.RepoTags ?? []).map(fullReference);
	if (entry === undefined || !names.includes(fullReference(reference)))
		throw new GroundplaneError("InvalidInput", `The archive of ${reference} holds ${names.join(", ") || "no name"}`, {
			next,
		});
	const { architecture } = z.object({ architecture: z.string() }).parse(await read(entry.Config));
	const ours = process.arch === "arm64" ? "arm64" : "amd64";
	if (architecture !== ours)
		throw new GroundplaneError(
			"InvalidInput",
			`The archive of ${reference} is for ${architecture}, and this release for ${ours}`,
			{ next },
		);
}

async function readList(path: string): Promise<z.output<typeof importList>> {
	const next = "Write the list as docs/development.md shows it.";
	const text = await readFile(path, "utf8").catch((cause) => {
		throw new GroundplaneError("NotFound", `The list of imports ${path} can't be read`, { next, cause });
	});
	const list = importList.safeParse(parse(text));
	if (list.success) return list.data;
	throw new GroundplaneError("InvalidInput", `The list of imports ${path} is wrong: ${z.prettifyError(list.error)}`, {
		next,
	});
}
