import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { GroundplaneError } from "../../protocol/errors.ts";

export interface ExecResult {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

export interface RunOptions {
	/** What the command reads. A stream is piped. */
	readonly input?: string | Buffer | Readable;
	readonly env?: NodeJS.ProcessEnv;
	readonly cwd?: string;
	/** Milliseconds until the command is killed; none by default. */
	readonly timeoutMs?: number;
	/** Whether an exit code other than 0 throws. True by default. */
	readonly check?: boolean;
	readonly signal?: AbortSignal;
	/** Called with each line of standard output and standard error as it comes. */
	readonly onLine?: (line: string) => void;
}

/**
 * Runs a command without a shell and collects what it prints.
 * Throws `CommandFailed` when it can't be started, ends with another code than 0 (unless `check` is false) or takes too long.
 */
export async function run(file: string, args: readonly string[], options: RunOptions = {}): Promise<ExecResult> {
	const { input, env, cwd, timeoutMs, check = true, signal, onLine } = options;
	const shown = [file, ...args].join(" ").slice(0, 300);
	const child = spawn(file, args, { env, cwd, signal, stdio: ["pipe", "pipe", "pipe"] });
	let timedOut = false;
	const timer =
		timeoutMs === undefined
			? undefined
			: setTimeout(() => {
					timedOut = true;
					child.kill("SIGKILL");
				}, timeoutMs);
	const out: Buffer[] = [];
	const err: Buffer[] = [];
	child.stdout.on("data", (chunk: Buffer) => out.push(chunk));
	child.stderr.on("data", (chunk: Buffer) => err.push(chunk));
	if (onLine !== undefined) {
		for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on("line", onLine);
	}
	const ended = new Promise<number>((resolve, reject) => {
		child.once("error", reject);
		// `exit`, not `close`: a daemon that the command leaves behind may hold the pipes for ever.
		child.once("exit", (code, killedBy) => {
			const finish = () => resolve(code ?? (killedBy === null ? 1 : 137));
			const patience = setTimeout(finish, 1000);
			child.once("close", () => {
				clearTimeout(patience);
				finish();
			});
		});
	});
	try {
		const fed = feed(child.stdin, input);
		const code = await ended;
		await fed;
		const result = { code, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() };
		if (timedOut) {
			throw new GroundplaneError("DeadlineExceeded", `${shown} took longer than ${timeoutMs} ms`, {
				next: `Run it by hand to see where it hangs. Its last words: ${lastWords(result)}`,
			});
		}
		if (check && code !== 0) {
			throw new GroundplaneError("CommandFailed", `${shown} ended with ${code}: ${lastWords(result)}`, {
				next: "Read the command's message above; running the same command again repeats it.",
				details: { code },
			});
		}
		return result;
	} catch (error) {
		if (error instanceof GroundplaneError) throw error;
		throw new GroundplaneError("CommandFailed", `${file} could not be run: ${(error as Error).message}`, {
			next: `Check that ${file} is installed and can be executed.`,
			cause: error,
		});
	} finally {
		clearTimeout(timer);
	}
}

/** A command may stop reading early; that is told by its exit code, not by our broken pipe. */
async function feed(stdin: Writable, input: RunOptions["input"]): Promise<void> {
	if (input === undefined || typeof input === "string" || Buffer.isBuffer(input)) {
		stdin.on("error", () => {});
		stdin.end(input ?? "");
		return;
	}
	await pipeline(input, stdin).catch((error: NodeJS.ErrnoException) => {
		if (error.code !== "EPIPE" && error.code !== "ERR_STREAM_PREMATURE_CLOSE") throw error;
	});
}

function lastWords({ stdout, stderr }: ExecResult): string {
	return (stderr.trim() || stdout.trim() || "(it printed nothing)").slice(-1500);
}
