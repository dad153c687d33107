import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { GroundplaneError } from "../../protocol/errors.ts";
import { cached, hashTree, isCached, locked } from "./cache.ts";
import { download, online, type Upstream } from "./download.ts";
import { type Needed, needPackages } from "./packages.ts";
import { part, run, say } from "./run.ts";

/** A program that is built from Go modules at the versions that `hack/builder/go/MODULE/go.mod` pins. */
export interface GoProgram {
	/** Folder under hack/builder/go. */
	readonly module: string;
	/** Import path of its main package; `.` for one that stands in the folder itself. */
	readonly package: string;
	/** Path of the module that gives it its version. By default the one that holds `package`. */
	readonly of?: string;
	/** Name of the binary. By default the last element of the import path. */
	readonly name?: string;
	/** It is the test binary of its package (`go test -c`). */
	readonly test?: boolean;
	/** A part of it is C. */
	readonly cgo?: boolean;
	/** Debian packages that the C part needs. */
	readonly needs?: readonly Needed[];
	readonly tags?: readonly string[];
	/** Links C libraries in, so that the program runs on any distribution. */
	readonly static?: boolean;
	/** Values set at link time (`-X`). */
	readonly set?: Readonly<Record<string, string>>;
	/** Where its project publishes the same program. */
	readonly upstream?: Upstream;
}

const MODULES = join(import.meta.dirname, "go");

/**
 * The path of a program's binary: from the cache, downloaded from its project where the internet can be reached, else
 * built from its Go modules.
 */
export async function goProgram(program: GoProgram): Promise<string> {
	const folder = join(MODULES, program.module);
	const name = nameOf(program);
	const result = await cached(...(await resultOf(program)), async (directory) => {
		const target = join(directory, name);
		if (program.upstream && (await online())) {
			const upstream = program.upstream;
			if (await part(`download ${name}`, () => download(upstream, target))) return;
			say(`${upstream.url} is not there: building ${name} from Go modules`);
		}
		// Go uses all cores by itself: two builds at once only fight for memory.
		await locked("go", () => part(`build ${name} (${program.module})`, () => build(program, folder, target)));
	});
	return join(result, name);
}

/** Whether a program can be had without compiling it: it was built before, or is published where the internet can be reached. */
export async function isAtHand(program: GoProgram): Promise<boolean> {
	return (await isCached(...(await resultOf(program)))) || (program.upstream !== undefined && (await online()));
}

const nameOf = (program: GoProgram) => program.name ?? basename(program.package);

/** Name and inputs of what the cache has of a program. */
async function resultOf(program: GoProgram): Promise<[string, unknown[]]> {
	const sources = await hashTree(join(MODULES, program.module));
	const inputs = [sources, program.package, buildArguments(program), program.cgo ?? false, process.arch];
	return [`go-${program.module}-${nameOf(program)}`, inputs];
}

async function build(program: GoProgram, folder: string, target: string): Promise<void> {
	await requireGo();
	if (program.cgo) await needPackages("gcc", "/usr/include/stdlib.h", ...(program.needs ?? []));
	const compile = () =>
		run("go", [...buildArguments(program), "-o", target, program.package], {
			cwd: folder,
			env: { CGO_ENABLED: program.cgo ? "1" : "0", GOFLAGS: "-mod=readonly -buildvcs=false" },
			next: "Read what the compiler said. A download that broke off resumes when you run this again.",
		});
	// Go gives up at the first module that a busy proxy refuses; what it compiled until then is kept.
	for (const pauseMs of PAUSES_MS) {
		try {
			await compile();
			return;
		} catch (error) {
			if (!isPassing((error as Error).message)) throw error;
			say(`a module could not be downloaded: once more in ${pauseMs / 1000} s`);
			await delay(pauseMs);
		}
	}
	await compile();
}

const PAUSES_MS = [5_000, 20_000, 60_000];

/** Whether what Go said is a download that may well succeed later: the server or the way to it failed, not the answer. */
export function isPassing(said: string): boolean {
	return /reading https?:\S+: (429|5\d\d)\b|: dial tcp\b|connection reset|TLS handshake timeout|i\/o timeout|unexpected EOF|stream error/.test(
		said,
	);
}

function buildArguments(program: GoProgram): string[] {
	const values = Object.entries(program.set ?? {}).map(([key, value]) => `-X ${key}=${value}`);
	const linking = program.static ? ["-linkmode external -extldflags -static"] : [];
	return [
		...(program.test ? ["test", "-c", "-vet=off"] : ["build"]),
		"-trimpath",
		...(program.tags ? ["-tags", program.tags.join(",")] : []),
		"-ldflags",
		["-s -w", ...linking, ...values].join(" "),
	];
}

/** Where Go has the sources of a module that a program is built of. */
export async function moduleFolder(program: GoProgram, path: string): Promise<string> {
	await requireGo();
	const cwd = join(MODULES, program.module);
	const folder = await run("go", ["list", "-m", "-f", "{{.Dir}}", path], { cwd });
	return folder.trim();
}

/** The version at which a program's module is pinned, such as `v1.36.3`. */
export async function moduleVersion(program: GoProgram): Promise<string> {
	const text = await readFile(join(MODULES, program.module, "go.mod"), "utf8");
	const versions = new Map(
		[...text.matchAll(/^(?:require\s+|\s+)(\S+)\s+(v\S+)/gm)].map(([, path = "", version = ""]) => [path, version]),
	);
	// An import path starts with the path of its module.
	const path = [...versions.keys()]
		.filter((key) => `${program.of ?? program.package}/`.startsWith(`${key}/`))
		.sort()
		.at(-1);
	const version = path && versions.get(path);
	if (!version)
		throw new GroundplaneError(
			"NotFound",
			`hack/builder/go/${program.module}/go.mod requires no module of ${program.package}`,
			{
				next: `Run "go get ${program.package}" there and commit go.mod and go.sum.`,
			},
		);
	return version;
}

let goChecked: Promise<void> | undefined;

async function requireGo(): Promise<void> {
	goChecked ??= checkGo();
	await goChecked;
}

/** Go from 1.21 on fetches the toolchain that a go.mod asks for by itself. */
async function checkGo(): Promise<void> {
	// The place where Go's own installer puts it is often not in root's PATH.
	if (existsSync("/usr/local/go/bin/go")) process.env.PATH = `${process.env.PATH}:/usr/local/go/bin`;
	const next = "Install Go 1.21 or newer (https://go.dev/dl): what can't be downloaded is built from Go modules.";
	const version = await run("go", ["env", "GOVERSION"], { next });
	const [, minor = "0"] = /^go1\.(\d+)/.exec(version) ?? [];
	if (Number(minor) < 21) throw new GroundplaneError("PrerequisiteNotMet", `Go ${version.trim()} is too old`, { next });
}
