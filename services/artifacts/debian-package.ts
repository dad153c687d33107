import { gzipSync } from "node:zlib";

/** A file of a package. Parent directories come by themselves. */
export interface PackageFile {
	/** Absolute path on the machine. */
	readonly path: string;
	readonly content: string | Buffer;
	readonly mode: number;
}

/**
 * A Debian binary package (deb(5)): an `ar` archive of `debian-binary`, `control.tar.gz` and `data.tar.gz`. The same input
 * gives the same bytes, so that a package made on demand has a digest that can be told beforehand.
 *
 * `time` is the modification time of all that is in it, seconds since the epoch.
 */
export function debianPackage(options: {
	control: Readonly<Record<string, string>>;
	scripts?: Readonly<Record<string, string>>;
	files: readonly PackageFile[];
	time: number;
}): Buffer {
	const { control, scripts = {}, files, time } = options;
	const fields = Object.entries(control).map(([field, value]) => `${field}: ${value}\n`);
	const controlTar = tar(
		[
			{ path: "/control", content: fields.join(""), mode: 0o644 },
			...Object.entries(scripts).map(([name, content]) => ({ path: `/${name}`, content, mode: 0o755 })),
		],
		time,
	);
	return ar(
		[
			["debian-binary", Buffer.from("2.0\n")],
			["control.tar.gz", gzipSync(controlTar)],
			["data.tar.gz", gzipSync(tar(files, time))],
		],
		time,
	);
}

function ar(members: readonly (readonly [name: string, content: Buffer])[], time: number): Buffer {
	const parts: Buffer[] = [Buffer.from("!<arch>\n")];
	for (const [name, content] of members) {
		const header = `${name.padEnd(16)}${String(time).padEnd(12)}${"0".padEnd(6)}${"0".padEnd(6)}${"100644".padEnd(8)}${String(content.length).padEnd(10)}\`\n`;
		parts.push(Buffer.from(header), content);
		if (content.length % 2 === 1) parts.push(Buffer.from("\n"));
	}
	return Buffer.concat(parts);
}

const BLOCK = 512;

function tar(files: readonly PackageFile[], time: number): Buffer {
	const parts: Buffer[] = [];
	const made = new Set<string>();
	const directory = (path: string) => {
		if (made.has(path)) return;
		made.add(path);
		parts.push(header({ name: `.${path}`, size: 0, mode: 0o755, type: "5", time }));
	};
	directory("/");
	for (const { path, content, mode } of files) {
		const names = path.split("/").slice(1, -1);
		for (const [index] of names.entries()) directory(`/${names.slice(0, index + 1).join("/")}/`);
		const data = Buffer.from(content);
		parts.push(header({ name: `.${path}`, size: data.length, mode, type: "0", time }), data);
		parts.push(Buffer.alloc((BLOCK - (data.length % BLOCK)) % BLOCK));
	}
	parts.push(Buffer.alloc(2 * BLOCK));
	return Buffer.concat(parts);
}

/** A ustar header (POSIX.1-1988) of a file or directory of root's. */
function header(entry: { name: string; size: number; mode: number; type: "0" | "5"; time: number }): Buffer {
	const block = Buffer.alloc(BLOCK);
	const octal = (value: number, length: number) => `${value.toString(8).padStart(length - 1, "0")}\0`;
	block.write(entry.name, 0, 100, "utf8");
	block.write(octal(entry.mode, 8), 100);
	block.write(octal(0, 8), 108);
	block.write(octal(0, 8), 116);
	block.write(octal(entry.size, 12), 124);
	block.write(octal(entry.time, 12), 136);
	block.write("        ", 148);
	block.write(entry.type, 156);
	block.write("ustar\x0000", 257, "latin1");
	block.write("root", 265);
	block.write("root", 297);
	const sum = block.reduce((total, byte) => total + byte, 0);
	block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
	return block;
}
