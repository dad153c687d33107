import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";
import { cached, hashTree, locked } from "./cache.ts";
import { part, run } from "./run.ts";

/** A program that is built from Go modules at the versions that `hack/builder/go/MODULE/go.mod` pins. */
export interface GoProgram {
	/** Folder under hack/builder/go. */
	readonly module: string;
	/** Import path of its main package. */
	readonly package: string;
	/** Name of the binary. By default the last element of the import path. */
	readonly name?: string;
	/** Needs C: libseccomp for runc. */
	readonly cgo?: boolean;
	readonly tags?: readonly string[];
	/** Links C libraries in, so that the program runs on any distribution. */
	readonly static?: boolean;
	/** Values set at link time (`-X`). */
	readonly set?: Readonly<Record<string, string>>;
}

const MODULES = join(import.meta.dirname, "go");

/** Builds a program, or finds it in the cache, and gives the path of the binary. */
export async function goProgram(program: GoProgram): Promise<string> {
	const folder = join(MODULES, program.module);
	const name = program.name ?? basename(program.package);
	const values = Object.entries(program.set ?? {}).map(([key, value]) => `-X ${key}=${value}`);
	const arguments_ = [
		"build",
		"-trimpath",
		...(program.tags ? ["-tags", program.tags.join(",")] : []),
		"-ldflags",
		["-s -w", ...(program.static ? ["-linkmode external -extldflags -static"] : []), ...values].join(" "),
	];
	const result = await cached(
		`go-${program.module}-${name}`,
		[await hashTree(folder), program.package, arguments_, program.cgo ?? false, process.arch],
		(directory) =>
			// Go uses all cores by itself: two builds at once only fight for memory.
			locked("go", () =>
				part(`build ${name} (${program.module})`, async () => {
					await requireGo();
					await run("go", [...arguments_, "-o", join(directory, name), program.package], {
						cwd: folder,
						env: { CGO_ENABLED: program.cgo ? "1" : "0", GOFLAGS: "-mod=readonly -buildvcs=false" },
						next: "Read what the compiler said. A download that broke off resumes when you run this again.",
					});
				}),
			),
	);
	return join(result, name);
}

/** The version at which a program's module is pinned, such as `v1.36.3`. */
export async function moduleVersion(program: GoProgram): Promise<string> {
	const text = await readFile(join(MODULES, program.module, "go.mod"), "utf8");
	const versions = new Map(
		[...text.matchAll(/^(?:require\s+|\s+)(\S+)\s+(v\S+)/gm)].map(([, path = "", version = ""]) => [path, version]),
	);
	// An import path starts with the path of its module.
	const path = [...versions.keys()]
		.filter((key) => `${program.package}/`.startsWith(`${key}/`))
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
