import { existsSync } from "node:fs";
import { chmod, cp, mkdir, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { build, type Plugin } from "esbuild";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type ReleaseManifest, releaseManifest } from "../../protocol/release.ts";
import { releaseKey, signManifest } from "./bundle.ts";
import { cached, filesUnder, hashFile, hashTree } from "./cache.ts";
import { place } from "./images.ts";
import { needPackages } from "./packages.ts";
import { part, run } from "./run.ts";

export const ROOT = join(import.meta.dirname, "../..");
const NODE = join(ROOT, "node_modules/node/bin/node");

/** Bundles programs by esbuild: a directory with NAME.js for each entry point. */
export async function bundleJavaScript(name: string, entryPoints: Readonly<Record<string, string>>): Promise<string> {
	const output = await esbuild(entryPoints);
	return cached(`javascript-${name}`, [output.map(({ path, hash }) => [path, hash])], async (directory) => {
		for (const { path, text } of output) await writeFile(join(directory, basename(path)), text);
		// Node takes a .js file as a module because of this.
		await writeFile(join(directory, "package.json"), '{"type":"module"}\n');
	});
}

async function esbuild(entryPoints: Readonly<Record<string, string>>, version?: string) {
	const { outputFiles } = await build({
		entryPoints: { ...entryPoints },
		outdir: "/",
		write: false,
		bundle: true,
		platform: "node",
		format: "esm",
		target: "node26",
		minifyWhitespace: true,
		// A stack trace shows the line of the fault.
		lineLimit: 160,
		legalComments: "none",
		logLevel: "silent",
		absWorkingDir: ROOT,
		external: ["pg-native"],
		plugins: [englishOnly, ...(version === undefined ? [] : [saying(version)])],
		// CommonJS dependencies call require, which a module does not have.
		banner: {
			js: 'import{createRequire as gpCreateRequire}from"node:module";const require=gpCreateRequire(import.meta.url);',
		},
	}).catch((cause: Error) => {
		throw new GroundplaneError("CommandFailed", cause.message, {
			next: "Correct the source file that it names.",
			cause,
		});
	});
	return outputFiles;
}

/** zod brings its messages in forty languages, a quarter of a megabyte of every program; ours are in English. */
const englishOnly: Plugin = {
	name: "english-only",
	setup(build) {
		build.onLoad({ filter: /zod\/v4\/locales\/index\.js$/ }, () => ({
			contents: 'export { default as en } from "./en.js";',
			loader: "js",
		}));
	},
};

/** Has a program say another version of itself than package.json: a second version to change to, for tests and trials. */
const saying = (version: string): Plugin => ({
	name: "saying",
	setup(build) {
		build.onLoad({ filter: /protocol\/version\.ts$/ }, () => ({
			contents: `export const VERSION = ${JSON.stringify(version)};`,
			loader: "js",
		}));
	},
});

/** The console's static files. */
export async function consoleFiles(): Promise<string> {
	const folder = join(ROOT, "services/console");
	const sources = (await filesUnder(folder)).filter((path) => !/\/(dist|node_modules)\//.test(path));
	const inputs = [
		await Promise.all(sources.map(async (path) => [path.slice(folder.length), (await hashFile(path)).sha256])),
		await hashTree(join(ROOT, "package-lock.json")),
	];
	const result = await cached("console", inputs, (directory) =>
		part("console", async () => {
			const out = join(directory, "console");
			await run(NODE, [join(ROOT, "node_modules/vite/bin/vite.js"), "build", folder, "--outDir", out], { cwd: ROOT });
		}),
	);
	return join(result, "console");
}

/** Node itself without its symbol tables: a third smaller, and the same at run time. */
export async function strippedNode(): Promise<string> {
	const result = await cached("node", [await hashFile(NODE)], async (directory) => {
		await needPackages("strip");
		await run("strip", ["-o", join(directory, "node"), NODE]);
	});
	return join(result, "node");
}

/** The library of GCC that Node needs and many servers lack. */
async function libatomic(): Promise<string> {
	const found = (await run("ldd", [NODE])).match(/libatomic\.so\.1 => (\/\S+)/)?.[1];
	if (found !== undefined && existsSync(found)) return realpath(found);
	throw new GroundplaneError("PrerequisiteNotMet", "libatomic.so.1, which Node needs, is not installed", {
		next: "apt-get install libatomic1",
	});
}

/**
 * A single executable of Node and one program (nodejs.org/api/single-executable-applications.html), as a directory with
 * `bin/NAME` and `lib/groundplane/libatomic.so.1`, which it finds beside itself.
 *
 * @param nodeOptions Options that Node is started with; not all of them can be given in NODE_OPTIONS.
 * @param version What the program says of itself, if that is not the version of this repository.
 */
export async function executable(
	name: string,
	entryPoint: string,
	nodeOptions: readonly string[] = [],
	version?: string,
): Promise<string> {
	const [output] = await esbuild({ [name]: entryPoint }, version);
	if (output === undefined) throw new Error("esbuild gave no output");
	const node = await strippedNode();
	const library = await libatomic();
	return cached(`executable-${name}`, [nodeOptions, output.hash, node, (await hashFile(library)).sha256], (directory) =>
		part(`executable ${name}`, async () => {
			await needPackages("patchelf");
			const [main, config, target] = [
				join(directory, "main.mjs"),
				join(directory, "sea.json"),
				join(directory, "bin", name),
			];
			await mkdir(join(directory, "bin"));
			await writeFile(main, output.text);
			await writeFile(
				config,
				JSON.stringify({
					main,
					mainFormat: "module",
					output: target,
					executable: node,
					disableExperimentalSEAWarning: true,
					execArgv: nodeOptions,
				}),
			);
			await run(NODE, ["--build-sea", config]);
			// After the injection: the other way round the result does not start.
			await run("patchelf", ["--set-rpath", "$ORIGIN/../lib/groundplane", target]);
			await place(library, join(directory, "lib/groundplane/libatomic.so.1"));
			await Promise.all([rm(main), rm(config), chmod(target, 0o755)]);
		}),
	);
}

/**
 * It is a guest on the host and mostly idle: a small heap. V8's compilers stay: without them what goes through the tunnel costs 1.7 times
 * the CPU, a keystroke takes three times as long, and 4 MB are saved.
 */
const agentOptions = ["--max-semi-space-size=1", "--max-old-space-size=128", "--optimize-for-size", "--v8-pool-size=1"];

/**
 * The agent's Debian package, from its executable and the files in agent/package, and beside it the signed manifest by which
 * hosts that have an older one trust it: as a directory with `NAME.deb` and `bundles/agent/VERSION/manifest.jws`.
 */
export async function agentPackages(version: string): Promise<string> {
	const deb = await agentPackage(version);
	const key = await releaseKey();
	return cached("agent-packages", [deb, key.publicJwk], async (directory) => {
		await place(deb, join(directory, basename(deb)));
		const manifest = releaseManifest.parse({
			schema: 1,
			name: "agent",
			version,
			architecture: architecture(),
			createdAt: new Date().toISOString(),
			components: { agent: version },
			files: [{ path: basename(deb), kind: "package", ...(await hashFile(deb)) }],
		} satisfies ReleaseManifest);
		const folder = join(directory, "bundles/agent", version);
		await mkdir(folder, { recursive: true });
		await writeFile(join(folder, "manifest.jws"), await signManifest(manifest, key));
	});
}

const architecture = () => (process.arch === "arm64" ? "arm64" : "amd64");

async function agentPackage(version: string): Promise<string> {
	const files = join(ROOT, "agent/package");
	const { version: own } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as { version: string };
	const agent = await executable("gp-agent", "agent/main.ts", agentOptions, version === own ? undefined : version);
	const file = `groundplane-agent_${version}_${architecture()}.deb`;
	const result = await cached("package", [agent, await hashTree(files), version], (directory) =>
		part(file, async () => {
			await needPackages("dpkg-deb");
			const root = join(directory, "root");
			await mkdir(root);
			await cp(join(files, "DEBIAN"), join(root, "DEBIAN"), { recursive: true });
			await place(join(files, "gp-agent.service"), join(root, "usr/lib/systemd/system/gp-agent.service"));
			for (const name of await readdir(join(root, "DEBIAN"))) {
				const path = join(root, "DEBIAN", name);
				const text = await readFile(path, "utf8");
				await writeFile(path, text.replaceAll("@VERSION@", version).replaceAll("@ARCHITECTURE@", architecture()));
				await chmod(path, text.startsWith("#!") ? 0o755 : 0o644);
			}
			await cp(agent, join(root, "usr/lib/groundplane/agent"), { recursive: true });
			await place(join(files, "gp-agent"), join(root, "usr/bin/gp-agent"));
			await chmod(join(root, "usr/bin/gp-agent"), 0o755);
			// zstd unpacks ten times faster than xz: a host is ready within seconds of the download.
			await run("dpkg-deb", ["--root-owner-group", "-Zzstd", "-z6", "--build", root, join(directory, file)], {
				env: { SOURCE_DATE_EPOCH: "0" },
			});
			await rm(root, { recursive: true });
		}),
	);
	return join(result, file);
}
