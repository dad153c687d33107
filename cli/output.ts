import { createInterface } from "node:readline/promises";
import { Writable } from "node:stream";
import { GroundplaneError } from "../protocol/errors.ts";

export const formats = ["table", "json", "yaml", "name"] as const;
export type Format = (typeof formats)[number];

/** A column of a table: its head and what stands in it. */
export type Column<T> = readonly [head: string, cell: (item: T) => string | number | undefined];

/** Where commands write: results to `out`, everything for the person's eyes only to `err`. */
export interface Terminal {
	out(text: string): void;
	err(text: string): void;
}

export const terminal: Terminal = {
	out: (text) => void process.stdout.write(text.endsWith("\n") ? text : `${text}\n`),
	err: (text) => void process.stderr.write(text.endsWith("\n") ? text : `${text}\n`),
};

/** Columns as wide as their widest cell, two spaces apart, heads in capitals. */
export function table<T>(items: readonly T[], columns: readonly Column<T>[]): string {
	const rows = items.map((item) => columns.map(([, cell]) => String(cell(item) ?? "") || "-"));
	const lines = [columns.map(([head]) => head.toUpperCase()), ...rows];
	const widths = columns.map((_, index) => Math.max(...lines.map((line) => line[index]?.length ?? 0)));
	return lines
		.map((line) =>
			line
				.map((cell, index) => cell.padEnd(widths[index] ?? 0))
				.join("  ")
				.trimEnd(),
		)
		.join("\n");
}

/** Prints a list in the format asked for. */
export async function printList<T>(
	items: readonly T[],
	{
		format,
		columns,
		name,
		empty,
	}: { format: Format; columns: readonly Column<T>[]; name: (item: T) => string; empty: string },
): Promise<void> {
	if (format === "table") return items.length > 0 ? terminal.out(table(items, columns)) : terminal.err(empty);
	if (format === "name") {
		for (const item of items) terminal.out(name(item));
		return;
	}
	await printData({ items }, format);
}

/** Prints one thing: as JSON or YAML, by name, or in words. */
export async function printOne(
	value: unknown,
	{ format, name, words }: { format: Format; name: string; words: () => string },
): Promise<void> {
	if (format === "table") return terminal.out(words());
	if (format === "name") return terminal.out(name);
	await printData(value, format);
}

async function printData(value: unknown, format: "json" | "yaml"): Promise<void> {
	if (format === "json") return terminal.out(JSON.stringify(value, null, 2));
	const { stringify } = await import("yaml");
	terminal.out(stringify(value, { lineWidth: 0 }));
}

/** Age of a time as kubectl writes it: 42s, 7m, 3h, 12d. */
export function age(time: string | undefined, now = Date.now()): string {
	if (time === undefined) return "";
	const seconds = Math.max(0, Math.floor((now - Date.parse(time)) / 1000));
	if (seconds < 120) return `${seconds}s`;
	if (seconds < 7_200) return `${Math.floor(seconds / 60)}m`;
	if (seconds < 172_800) return `${Math.floor(seconds / 3600)}h`;
	return `${Math.floor(seconds / 86_400)}d`;
}

export const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(bytes < 10 * 2 ** 30 ? 1 : 0)} GiB`;

/** Text under a heading, with its lines indented. */
export const section = (heading: string, lines: readonly string[]): string =>
	lines.length === 0 ? "" : `${heading}\n${lines.map((line) => `  ${line}`).join("\n")}\n`;

/** Exit codes: scripts tell by them whether trying again makes sense. */
export function exitCode({ code }: Pick<GroundplaneError, "code">): number {
	switch (code) {
		case "InvalidInput":
		case "InvalidConfiguration":
			return 2;
		case "Unauthenticated":
		case "Forbidden":
			return 3;
		case "NotFound":
			return 4;
		case "Unreachable":
		case "Overloaded":
		case "KubernetesUnavailable":
		case "DatabaseUnavailable":
		case "BusUnavailable":
			return 5;
		case "DeadlineExceeded":
			return 6;
		default:
			return 1;
	}
}

/** An error as a person reads it: what happened, its code, what to do. */
export const errorText = ({ code, message, next }: Pick<GroundplaneError, "code" | "message" | "next">): string =>
	`gp: ${message} (${code})\n    → ${next}`;

/** Reads standard input to its end: a password or a token, without the newline. */
export async function readSecret(what: string): Promise<string> {
	const text = process.stdin.isTTY ? await readHidden(what) : await readAll();
	const secret = text.replace(/\r?\n$/, "");
	if (secret === "") {
		throw new GroundplaneError("InvalidInput", `There is no ${what.toLowerCase()} on standard input.`, {
			next: "Pipe it in: gp … < file",
		});
	}
	return secret;
}

/** A line typed at a terminal, without showing it. */
async function readHidden(what: string): Promise<string> {
	const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
	const line = createInterface({ input: process.stdin, output: silent, terminal: true });
	process.stderr.write(`${what}: `);
	try {
		return await line.question("");
	} finally {
		line.close();
		process.stderr.write("\n");
	}
}

async function readAll(): Promise<string> {
	let text = "";
	for await (const chunk of process.stdin) text += chunk;
	return text;
}
