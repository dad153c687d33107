import { execFile } from "node:child_process";
import { GroundplaneError } from "../../protocol/errors.ts";

export interface ExecOptions {
	readonly signal?: AbortSignal;
	readonly env?: Readonly<Record<string, string>>;
	/** Written to standard input. */
	readonly input?: string;
	/** Exit codes that are an answer and not a failure; 0 is always one. `true` takes any. */
	readonly codes?: readonly number[] | true;
}

export interface ExecResult {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

/** Runs a program without a shell and waits for it. */
export type Exec = (file: string, args: readonly string[], options?: ExecOptions) => Promise<ExecResult>;

const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** The real {@link Exec}: a clean environment, at most 8 MiB of output, killed when the signal aborts. */
export const execute: Exec = (file, args, { signal, env, input, codes = [] } = {}) =>
	new Promise((resolve, reject) => {
		const child = execFile(
			file,
			args,
			{
				env: { PATH, HOME: "/root", LC_ALL: "C.UTF-8", KUBECACHEDIR: "/run/groundplane-kubectl", ...env },
				maxBuffer: 8 * 1024 * 1024,
				killSignal: "SIGTERM",
				...(signal ? { signal } : {}),
			},
			(error, stdout, stderr) => {
				if (signal?.aborted) return reject(signal.reason);
				const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
				if (code === 0 || codes === true || (code > 0 && codes.includes(code)))
					return resolve({ code, stdout, stderr });
				const what = code > 0 ? `exited with ${code}` : (error?.message ?? "failed");
				reject(
					new GroundplaneError("CommandFailed", `${[file, ...args.slice(0, 3)].join(" ")}: ${what}: ${tail(stderr)}`, {
						next: "Look at the message; the step is tried again by itself.",
						cause: error,
					}),
				);
			},
		);
		child.stdin?.on("error", () => {}); // a program that doesn't read its input closes it: its exit code says the rest
		child.stdin?.end(input ?? "");
	});

/** The end of a program's complaint, short enough for a status. */
function tail(stderr: string): string {
	const lines = stderr
		.split("\n")
		.map((line) => line.trim())
		.filter((line) => line !== "");
	const text = lines.slice(-6).join(" | ");
	return text.length > 700 ? `…${text.slice(-700)}` : text || "no message";
}
