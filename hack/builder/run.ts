import { type ChildProcess, spawn } from "node:child_process";
import { GroundplaneError } from "../../protocol/errors.ts";

export interface RunOptions {
	readonly cwd?: string;
	readonly env?: Readonly<Record<string, string>>;
	/** What to do when the command is not there or fails. */
	readonly next?: string;
}

const TAIL = 4000;

/** What must not outlive us when the build fails or is interrupted. */
const running = new Set<ChildProcess>();
process.once("exit", () => {
	for (const child of running) child.kill();
});
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));

/** Runs a command to its end and gives its standard output. On failure the error carries the end of what it said. */
export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
	const child = spawn(command, args, {
		cwd: options.cwd,
		env: { ...process.env, ...options.env },
		stdio: ["ignore", "pipe", "pipe"],
	});
	running.add(child);
	child.once("close", () => running.delete(child));
	let output = "";
	let said = "";
	child.stdout.setEncoding("utf8").on("data", (text: string) => {
		output += text;
		said = (said + text).slice(-TAIL);
	});
	child.stderr.setEncoding("utf8").on("data", (text: string) => {
		said = (said + text).slice(-TAIL);
	});
	const [code, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
		child.once("error", (cause: NodeJS.ErrnoException) =>
			reject(
				new GroundplaneError("CommandFailed", `${command} could not be started (${cause.code})`, {
					next: options.next ?? `Install ${command} and run this again.`,
					cause,
				}),
			),
		);
		child.once("close", (...result) => resolve(result));
	});
	if (code !== 0)
		throw new GroundplaneError(
			"CommandFailed",
			`${command} ${args.find((argument) => /^\w/.test(argument)) ?? ""} ended with ${signal ?? code}:\n${said}`,
			{
				next: options.next ?? `Read what ${command} said above.`,
			},
		);
	return output;
}

const started = performance.now();

/** Runs one part of a build and tells what it took. Says nothing of parts that took no time, which came from the cache. */
export async function part<T>(title: string, work: () => Promise<T>): Promise<T> {
	const begin = performance.now();
	const slow = setTimeout(() => say(`${title} ...`), 1500);
	try {
		const result = await work();
		const took = performance.now() - begin;
		if (took > 1500) say(`${title}: ${(took / 1000).toFixed(1)} s`);
		return result;
	} catch (error) {
		say(`${title}: failed`);
		throw error;
	} finally {
		clearTimeout(slow);
	}
}

/** One line of progress, with the time since the start, on standard error. */
export function say(text: string): void {
	const seconds = Math.floor((performance.now() - started) / 1000);
	const clock = `${String(Math.floor(seconds / 60)).padStart(2, "0")}:${String(seconds % 60).padStart(2, "0")}`;
	process.stderr.write(`${clock}  ${text}\n`);
}
