import { existsSync } from "node:fs";
import { mkdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { packageCharts } from "../../charts/package.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { packedBundle, releaseKey } from "./bundle.ts";
import { cached, filesUnder, hashFile, hashTree, locked } from "./cache.ts";
import { goProgram } from "./go.ts";
import { type Image, imageArchive, place } from "./images.ts";
import { agentPackages, bundleJavaScript, consoleFiles, executable, ROOT, strippedNode } from "./javascript.ts";
import { kubernetesBundle } from "./kubernetes.ts";
import { localPathProgram, localPathVersion, minors } from "./programs.ts";
import { run, say } from "./run.ts";
import { tool } from "./tools.ts";

/** What one part of a release puts into dist/release: files by their path there, images, bundles. */
interface Part {
	readonly files?: Readonly<Record<string, string>>;
	readonly images?: readonly { reference: string; archive: string }[];
	readonly bundles?: readonly Bundle[];
}

interface Bundle {
	readonly name: string;
	readonly version: string;
	/** Of the image that carries it. */
	readonly tag: string;
	/** What it holds of that which not every release holds: prometheus, calico. */
	readonly extras: readonly string[];
}

const bundleImage = ({ name, tag }: Pick<Bundle, "name" | "tag">) => `groundplane/bundle-${name}:${tag}`;

/** `release.json`, which `gp server init` reads. */
interface ReleaseJson {
	version: string;
	bundles: Bundle[];
	images: { reference: string; path: string; sha256: string }[];
	chart: string;
	helm: string;
}

const OUT = join(ROOT, "dist/release");

/** The region's services that a release must hold. */
const serviceNames = ["auth", "clusters", "hosts", "tunnel", "artifacts"];

/** Parts of a release by the name that `--only` takes. */
const parts: Readonly<Record<string, (version: string, newest: boolean) => Promise<Part>>> = {
	async tools() {
		return { files: { "bin/helm": await tool("helm"), "bin/kubectl": await tool("kubectl") } };
	},
	async cli() {
		return executableFiles(await executable("gp", "cli/main.ts"));
	},
	async agent(version) {
		return { files: await packageFiles(version) };
	},
	async charts(version) {
		const charts = await packagedCharts(version);
		const entries = (await filesUnder(charts)).map((path) => [`charts/${relative(charts, path)}`, path]);
		return { files: Object.fromEntries(entries) };
	},
	async services(version) {
		const entryPoints = serviceNames
			.map((name) => [name, `services/${name}/main.ts`] as const)
			.filter(([name, path]) => {
				const exists = existsSync(join(ROOT, path));
				if (!exists) say(`left out: the service ${name}, which has no ${path} yet`);
				return exists;
			});
		return ownImage("services", version, await nodeImage(), {
			services: await bundleJavaScript("services", Object.fromEntries(entryPoints)),
			console: await consoleFiles(),
			...(await packageFiles(version)),
		});
	},
	async operator(version) {
		return ownImage("operator", version, await nodeImage(), {
			"operator.js": join(await bundleJavaScript("operator", { operator: "operator/main.ts" }), "operator.js"),
			helm: await tool("helm"),
			region: join(await packagedCharts(version), "region"),
		});
	},
	postgresql: (version) => ownImage("postgresql", version),
	prometheus: (version) => ownImage("prometheus", version),
	haproxy: (version) => ownImage("haproxy", version),
	async nats(version) {
		return ownImage("nats", version, undefined, { "nats-server": await tool("nats-server") });
	},
	async storage(version) {
		const reference = `docker.io/rancher/local-path-provisioner:${localPathVersion}`;
		const files = { "local-path-provisioner": await goProgram(localPathProgram) };
		const archive = await imageArchive({ folder: "local-path-provisioner", reference, files });
		const helper = await ownImage("local-path-helper", version);
		return { images: [{ reference, archive }, ...(helper.images ?? [])] };
	},
	async bundles(_version, newest) {
		const present = new Set((await readRelease())?.bundles.map(({ version }) => version));
		const wanted = minors.filter((minor) => !newest || minor === minors[0] || present.has(minor.kubernetes));
		const files: Record<string, string> = {};
		const bundles: Bundle[] = [];
		const archives: { reference: string; archive: string }[] = [];
		for (const minor of wanted) {
			const { directory, extras } = await kubernetesBundle(minor, newest);
			for (const path of await filesUnder(directory)) files[relative(directory, path)] = path;
			// What changes has another name: nodes keep an image that they have under a tag, and hold a volume of it open.
			const manifest = await hashFile(join(directory, "bundles/kubernetes", minor.kubernetes, "manifest.jws"));
			const tag = `${minor.kubernetes}-${manifest.sha256.slice(0, 12)}`;
			const reference = bundleImage({ name: "kubernetes", tag });
			const image: Image = {
				folder: "bundle",
				reference,
				files: { bundle: await packedBundle(directory) },
				compressed: true,
			};
			archives.push({ reference, archive: await imageArchive(image) });
			bundles.push({ name: "kubernetes", version: minor.kubernetes, tag, extras });
		}
		return { files, bundles, images: archives };
	},
};
export const partNames = Object.keys(parts);

/** The agent's package and its manifest, by their paths in the release. */
async function packageFiles(version: string): Promise<Record<string, string>> {
	const directory = await agentPackages(version);
	const paths = await filesUnder(directory);
	return Object.fromEntries(paths.map((path) => [`packages/${relative(directory, path)}`, path]));
}

async function nodeImage(): Promise<Image> {
	return { folder: "node", reference: "groundplane/node:latest", files: { node: await strippedNode() } };
}

async function ownImage(
	name: string,
	version: string,
	from?: Image,
	files: Readonly<Record<string, string>> = {},
): Promise<Part> {
	const reference = `groundplane/${name}:${version}`;
	const image: Image = { folder: name, reference, files, ...(from && { from }) };
	return { images: [{ reference, archive: await imageArchive(image) }] };
}

async function executableFiles(directory: string): Promise<Part> {
	const paths = await filesUnder(directory);
	return { files: Object.fromEntries(paths.map((path) => [relative(directory, path), path])) };
}

/** Both charts, as directories and as Helm packages. */
async function packagedCharts(version: string): Promise<string> {
	const helm = await tool("helm");
	const inputs = [await hashTree(join(ROOT, "charts")), await hashTree(join(ROOT, "crds/generated")), version, helm];
	return cached("charts", inputs, async (directory) => {
		const { groundplane, region } = await packageCharts({ out: directory, version });
		for (const chart of [groundplane, region]) await run(helm, ["package", chart, "--destination", directory]);
	});
}

/**
 * Builds the named parts, or all of them, into dist/release. With `newest`, an older minor of Kubernetes is left out
 * unless the release holds it already.
 *
 * What is there changes file by file, each by a rename, so that a directory that is mounted elsewhere stays the same
 * directory and a run that was interrupted leaves old or new files, never half of one.
 */
export async function buildRelease(only: readonly string[], newest: boolean): Promise<void> {
	const { version } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as { version: string };
	const names = only.length > 0 ? only : partNames;
	const built = await Promise.all(names.map((name) => (parts[name] ?? unknownPart(name))(version, newest)));
	const { publicJwk } = await releaseKey();
	await locked("release", async () => {
		const before = only.length > 0 ? await readRelease() : undefined;
		const files = new Map(built.flatMap((part) => Object.entries(part.files ?? {})));
		const images = new Map(before?.images.map((image) => [image.reference, image]));
		for (const { reference, archive } of built.flatMap((part) => part.images ?? [])) {
			const path = `images/${reference.replace(/^.*?\//, "").replaceAll(/[/:]/g, "-")}.tar`;
			files.set(path, archive);
			images.set(reference, { reference, path, sha256: await archiveDigest(archive) });
		}
		for (const [path, source] of files) await publish(source, join(OUT, path));
		const bundles = mergeBundles(
			before?.bundles,
			built.flatMap((part) => part.bundles ?? []),
		);
		const isCurrent = (reference: string) =>
			!reference.startsWith("groundplane/bundle-") || bundles.some((bundle) => bundleImage(bundle) === reference);
		const release: ReleaseJson = {
			version,
			bundles,
			images: [...images.values()]
				.filter(({ reference }) => isCurrent(reference))
				.sort((a, b) => (a.reference < b.reference ? -1 : 1)),
			chart: "charts/groundplane",
			helm: "bin/helm",
		};
		await publishText("release.jwks.json", { keys: [publicJwk] });
		await publishText("release.json", release);
		if (only.length === 0) await removeOthers(new Set([...files.keys(), "release.json", "release.jwks.json"]));
	});
	say(`dist/release is complete (${names.join(", ")})`);
}

function unknownPart(name: string): never {
	throw new GroundplaneError("InvalidInput", `There is no part "${name}"`, {
		next: `Name some of ${partNames.join(", ")}.`,
	});
}

async function readRelease(): Promise<ReleaseJson | undefined> {
	const text = await readFile(join(OUT, "release.json"), "utf8").catch(() => undefined);
	return text === undefined ? undefined : (JSON.parse(text) as ReleaseJson);
}

function mergeBundles(before: ReleaseJson["bundles"] = [], built: ReleaseJson["bundles"]): ReleaseJson["bundles"] {
	const others = before.filter(
		(old) => !built.some(({ name, version }) => name === old.name && version === old.version),
	);
	return [...built, ...others];
}

/** An archive in the cache never changes: its digest is worked out once and kept beside it. */
async function archiveDigest(archive: string): Promise<string> {
	const path = `${archive}.sha256`;
	const known = await readFile(path, "utf8").catch(() => undefined);
	if (known !== undefined) return known;
	const { sha256 } = await hashFile(archive);
	await writeFile(`${path}.${process.pid}`, sha256);
	await rename(`${path}.${process.pid}`, path);
	return sha256;
}

/** Puts a file into place by a rename, unless it is there already. */
async function publish(source: string, target: string): Promise<void> {
	const [from, to] = [await stat(source), await stat(target).catch(() => undefined)];
	if (to && (from.ino === to.ino || (from.size === to.size && from.mtimeMs === to.mtimeMs))) return;
	const temporary = join(dirname(target), `.${basename(target)}.tmp`);
	await place(source, temporary);
	// A copy (on another file system) is known again by its time.
	await utimes(temporary, from.atime, from.mtime);
	await rename(temporary, target);
}

async function publishText(name: string, value: unknown): Promise<void> {
	await mkdir(OUT, { recursive: true });
	await writeFile(join(OUT, `.${name}.tmp`), `${JSON.stringify(value, null, "\t")}\n`);
	await rename(join(OUT, `.${name}.tmp`), join(OUT, name));
}

async function removeOthers(wanted: ReadonlySet<string>): Promise<void> {
	for (const path of await filesUnder(OUT)) if (!wanted.has(relative(OUT, path))) await rm(path);
}
