import type { Command } from "commander";
import { GroundplaneError } from "../../protocol/errors.ts";
import {
	Channel,
	encodeShell,
	parseShell,
	readShell,
	SHELL_PROTOCOL,
	type ShellOpen,
	shellExit,
} from "../../protocol/shell.ts";
import { type CommonOptions, command, withSession } from "../command.ts";
import { terminal } from "../output.ts";
import type { Session } from "../session.ts";

/** `gp host shell HOST [-- COMMAND ARGS]`. */
export function shellCommand(): Command {
	return command("shell", "open a shell on a host, where its owner allows that", { output: false })
		.argument("<name>")
		.argument("[command...]", "after --: a program and its arguments, instead of a login shell at a terminal")
		.addHelpText("after", HELP)
		.action(async (name: string, program: string[], options: CommonOptions) =>
			withSession(options, async (session) => {
				process.exitCode = await shell(session, name, wanted(program, process));
			}),
		);
}

const HELP = `
It takes the role admin here, and on the host {"supportShell": true} in /etc/groundplane/policy.json, which is its
owner's to write. What is typed and shown is recorded on the host. It ends with this command, after 15 minutes without a
byte, and after an hour; so does all that it started. A program's exit code becomes gp's.

Examples:
  gp host shell web-1
  gp host shell web-1 -- journalctl -u kubelet -n 50
  gp host shell web-1 < script.sh`;

/** What to ask for: a terminal when there is one here and no program is named; without one, a shell that reads its commands. */
export function wanted(
	program: readonly string[],
	{
		stdin,
		stdout,
		env,
	}: {
		stdin: { isTTY?: boolean };
		stdout: { isTTY?: boolean; rows?: number; columns?: number };
		env: Readonly<Record<string, string | undefined>>;
	},
): ShellOpen {
	if (program.length > 0) return { command: [...program] };
	if (!stdin.isTTY || !stdout.isTTY) return { command: ["/bin/sh"] };
	const type = /^[\w.+-]{1,32}$/.exec(env.TERM ?? "")?.[0] ?? "dumb";
	return { terminal: { ...sizeOf(stdout), type } };
}

/** A terminal's size as the host takes it; some have none at first. */
function sizeOf({ rows, columns }: { rows?: number; columns?: number }): { rows: number; columns: number } {
	const within = (count: number | undefined, otherwise: number) => Math.min(1_000, count || otherwise);
	return { rows: within(rows, 24), columns: within(columns, 80) };
}

/** Carries this process's terminal, or its standard streams, until the shell has ended; gives the exit code. */
async function shell(session: Session, host: string, open: ShellOpen): Promise<number> {
	const { stdin, stdout, stderr } = process;
	const stream = await session.upgrade(`/api/v1/hosts/${encodeURIComponent(host)}/shell`, SHELL_PROTOCOL);
	let broken: Error | undefined;
	stream.on("error", (error) => {
		broken = error;
	});
	stream.write(encodeShell(Channel.open, open));
	const isTerminal = "terminal" in open;
	if (isTerminal) {
		terminal.err(`What you type and see is recorded on ${host}.`);
		stdin.setRawMode(true);
	}
	stdin.on("data", (bytes: Buffer) => {
		if (stream.destroyed || stream.write(encodeShell(Channel.stdin, bytes))) return;
		stdin.pause();
		stream.once("drain", () => stdin.resume());
	});
	stdin.once("end", () => {
		if (!stream.destroyed) stream.write(encodeShell(Channel.stdin, Buffer.alloc(0)));
	});
	const onResize = () => stream.write(encodeShell(Channel.resize, sizeOf(stdout)));
	if (isTerminal) stdout.on("resize", onResize);
	try {
		for await (const frame of readShell(stream)) {
			const { channel, payload } = frame;
			if (channel === Channel.stdout) await written(stdout, payload);
			else if (channel === Channel.stderr) await written(stderr, payload);
			else if (channel === Channel.exit) {
				const exit = parseShell(frame, Channel.exit, shellExit);
				if ("exitCode" in exit) return exit.exitCode;
				const { code, message, next } = exit.error;
				throw new GroundplaneError(code, `${host}: ${message}`, { next });
			}
		}
	} catch (error) {
		if (error instanceof GroundplaneError && !broken) throw error;
	} finally {
		stdout.off("resize", onResize);
		if (isTerminal) stdin.setRawMode(false);
		stdin.destroy();
		stream.destroy();
	}
	throw new GroundplaneError("TunnelClosed", `The connection to ${host} broke; the shell there has ended.`, {
		next: `Look at it: gp host link ${host}`,
		cause: broken,
	});
}

/** Writes, and waits while the reader is slower. */
const written = (to: NodeJS.WriteStream, bytes: Buffer): Promise<void> =>
	to.write(bytes) ? Promise.resolve() : new Promise((resolve) => to.once("drain", () => resolve()));
