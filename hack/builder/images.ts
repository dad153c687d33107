import { constants, createReadStream, createWriteStream, existsSync } from "node:fs";
import { copyFile, cp, link, mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import { cacheDirectory, cached, hashTree, locked } from "./cache.ts";
import { needPackages } from "./packages.ts";
import { part, run, say } from "./run.ts";

/** One container image: a Containerfile under images/, and what its COPY lines name. */
export interface Image {
	/** Folder under images/. */
	readonly folder: string;
	/** Reference under which a container runtime knows the image. */
	readonly reference: string;
	/** Files and directories of the build context by their name there. Everything else in the folder is part of it too. */
	readonly files?: Readonly<Record<string, string>>;
	/** The image that its FROM line names, when that is one of ours. */
	readonly from?: Image;
	/** The content is compressed already: gzip would cost time and save nothing. */
	readonly compressed?: boolean;
}

const IMAGES = join(import.meta.dirname, "../../images");
const DEBIAN = "docker.io/library/debian:bookworm-slim";

/** Builds an image, or finds it in the cache: the path of a docker-archive that holds just this reference. */
export async function imageArchive(image: Image): Promise<string> {
	const folder = join(IMAGES, image.folder);
	const base = image.from && (await imageArchive(image.from));
	const files = await Promise.all(
		Object.entries(image.files ?? {}).map(async ([name, path]) => [name, await contentKey(path)]),
	);
	const containerfile = await readFile(join(folder, "Containerfile"), "utf8");
	// Debian's packages change under us: once a month everything made of them is made again, with its security updates.
	const debian = containerfile.includes(`FROM ${DEBIAN}`) ? month() : "";
	const slug = image.reference.replace(/:[^:/]*$/, "").replace(/^.*?\//, "");
	const version = /:([^:/]*)$/.exec(image.reference)?.[1] ?? "latest";
	const result = await cached(
		`image-${slug.replaceAll("/", "-")}${version.startsWith("v1.") ? version.slice(0, 5) : ""}`,
		["docker-archive, gzip 4", await hashTree(folder), image.reference, files, base ?? "", debian, process.arch],
		(directory) =>
			locked("buildah", () =>
				part(`image ${image.reference}`, async () => {
					await needPackages("buildah");
					const context = join(directory, "context");
					await cp(folder, context, { recursive: true });
					for (const [name, path] of Object.entries(image.files ?? {})) await place(path, join(context, name));
					// Containers and unnamed images that an interrupted build left behind.
					await buildah("rm", "--all");
					await buildah("rmi", "--prune");
					if (image.from !== undefined && base !== undefined) await provide(image.from, base);
					if (debian) await provideDebian(debian);
					await buildah(
						"build",
						"--pull-never",
						"--layers=false",
						// The same files make the same image, whenever it is built.
						"--timestamp=0",
						"--tag",
						image.reference,
						"--file",
						join(context, "Containerfile"),
						context,
					);
					const plain = join(directory, "plain.tar");
					await buildah("push", "--quiet", image.reference, `docker-archive:${plain}:${image.reference}`);
					await buildah("rmi", "--force", image.reference);
					await rm(context, { recursive: true });
					await repack(plain, join(directory, "image.tar"), image, base);
				}),
			),
	);
	return join(result, "image.tar");
}

async function buildah(command: string, ...args: string[]): Promise<string> {
	const store = join(cacheDirectory(), "buildah");
	return run("buildah", ["--root", join(store, "root"), "--runroot", join(store, "run"), command, ...args], {
		// chroot needs no namespaces or cgroups that a container, or a small virtual machine, may not have.
		env: { STORAGE_DRIVER: process.getuid?.() === 0 ? "overlay" : "vfs", BUILDAH_ISOLATION: "chroot" },
	});
}

/** Puts one of our images into buildah's store, for a FROM line. */
async function provide({ reference }: Image, archive: string): Promise<void> {
	await buildah("pull", "--quiet", `docker-archive:${archive}`);
	// Short names are looked up there first.
	await buildah("tag", fullReference(reference), `localhost/${reference}`);
}

/** A reference as container runtimes write it out. */
export function fullReference(reference: string): string {
	const named = /^[^/]+\.[^/]+\//.test(reference) ? reference : `docker.io/${reference}`;
	return /[:@][^/]*$/.test(named) ? named : `${named}:latest`;
}

/**
 * A docker-archive with one name and with gzipped layers, which containerd, docker and podman read as well: it goes over
 * the customer's line, where a third of the bytes matters more than the time to unpack.
 */
async function repack(from: string, to: string, image: Image, base: string | undefined): Promise<void> {
	const folder = `${to}.d`;
	await mkdir(folder);
	// The layers of the base are compressed already, under the names that they get here.
	if (base !== undefined) await run("tar", ["-xf", base, "-C", folder, "--wildcards", "*.gz"]);
	await run("tar", ["-xf", from, "-C", folder]);
	await rm(from);
	const manifest = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8"));
	const [{ Config, Layers }] = manifest as [{ Config: string; Layers: string[] }];
	const layers = await Promise.all(
		Layers.map(async (layer) => {
			if (image.compressed) return layer;
			const zipped = `${basename(layer)}.gz`;
			const path = join(folder, zipped);
			if (!existsSync(path))
				await pipeline(createReadStream(join(folder, layer)), createGzip({ level: 4 }), createWriteStream(path));
			return zipped;
		}),
	);
	await writeFile(
		join(folder, "manifest.json"),
		JSON.stringify([{ Config, RepoTags: [fullReference(image.reference)], Layers: layers }]),
	);
	const names = ["manifest.json", Config, ...new Set(layers)];
	await run("tar", ["--owner=0", "--group=0", "--mtime=@0", "-cf", to, "-C", folder, ...names]);
	await rm(folder, { recursive: true });
}

const month = () => new Date().toISOString().slice(0, 7);

/** Debian's own image from its registry or, where that can't be reached, the same made of Debian's packages. */
async function provideDebian(version: string): Promise<void> {
	const mark = `localhost/groundplane/debian:${version}`;
	if ((await buildah("images", "--quiet", "--filter", `reference=${mark}`)).trim() !== "") return;
	try {
		await buildah("pull", "--quiet", DEBIAN);
	} catch {
		say(`${DEBIAN} can't be pulled here: making it of Debian's packages`);
		const rootfs = await debianRoot(version);
		const container = (await buildah("from", "scratch")).trim();
		await buildah("add", "--quiet", container, rootfs, "/");
		await buildah("config", "--cmd", "bash", container);
		await buildah("commit", "--quiet", "--rm", "--timestamp=0", container, DEBIAN);
	}
	await buildah("tag", DEBIAN, mark);
}

async function debianRoot(version: string): Promise<string> {
	const options = ["--variant=minbase", "--components=main", "--aptopt=Apt::Install-Recommends false"];
	// What the official slim image leaves out.
	for (const path of ["doc", "man", "info", "locale", "groff", "lintian", "linda"])
		options.push(`--dpkgopt=path-exclude=/usr/share/${path}/*`);
	options.push("--dpkgopt=path-include=/usr/share/doc/*/copyright");
	const result = await cached("debian", [options, version, process.arch], (directory) =>
		part("Debian base system", async () => {
			await needPackages("mmdebstrap", "/usr/share/keyrings/debian-archive-keyring.gpg");
			await run("mmdebstrap", [...options, "bookworm", join(directory, "rootfs.tar")], {
				env: { SOURCE_DATE_EPOCH: "0" },
				next: "Check that Debian's package mirror can be reached; the build resumes when you run it again.",
			});
		}),
	);
	return join(result, "rootfs.tar");
}

/** What is in the cache never changes, so its path is its content. */
async function contentKey(path: string): Promise<string> {
	return path.startsWith(join(cacheDirectory(), "build")) ? path : hashTree(path);
}

/**
 * Puts a file or directory where it is needed. What comes from the cache never changes, so it is linked and costs no space;
 * anything else is copied, because a later edit of the source would change what was built from it.
 */
export async function place(from: string, to: string): Promise<void> {
	await mkdir(dirname(to), { recursive: true });
	if ((await stat(from)).isDirectory()) return cp(from, to, { recursive: true, dereference: true });
	await rm(to, { force: true });
	const copy = () => copyFile(from, to, constants.COPYFILE_FICLONE);
	await (from.startsWith(cacheDirectory()) ? link(from, to).catch(copy) : copy());
}
