import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import type { EventEmitter } from "node:events";
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, readlinkSync, rmSync, writeSync } from "node:fs";
import { hostname, userInfo } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { StringDecoder } from "node:string_decoder";
import { setTimeout as delay } from "node:timers/promises";
import { asGroundplaneError, GroundplaneError } from "../protocol/errors.ts";
import type { IncomingStream } from "../protocol/mux.ts";
import {
	Channel,
	encodeShell,
	parseShell,
	readShell,
	type ShellExit,
	type ShellFrame,
	type ShellOpen,
	shellCaller,
	shellOpen,
	shellSize,
} from "../protocol/shell.ts";
import type { Log } from "./log.ts";

/** What holds every shell in bounds. */
const defaults = {
	/** At a time. */
	shells: 2,
	/** Without a byte in either direction. */
	idleMs: 15 * 60_000,
	longestMs: 60 * 60_000,
	/** Until the caller has said what it wants. */
	openMs: 10_000,
	/** Between being told to end and being killed. */
	graceMs: 2_000,
	/** The newest are kept. */
	transcripts: 20,
	transcriptBytes: 16 * 1024 * 1024,
};

export interface SupportShellsOptions {
	/** For transcripts; made when the first shell is opened. */
	readonly directory: string;
	readonly log: Log;
	readonly limits?: Partial<typeof defaults>;
	/** Milliseconds since the epoch. */
	readonly now?: () => number;
}

/**
 * Shells for the region's support, as the agent's user, on hosts whose owner allows them. Each is recorded on this host before
 * a byte of it leaves; no record, no shell. It ends with its stream, after a time without a byte, and after its longest time,
 * and everything that it started ends with it.
 */
export class SupportShells {
	readonly #options: SupportShellsOptions;
	readonly #limits: typeof defaults;
	readonly #now: () => number;
	#open = 0;

	constructor(options: SupportShellsOptions) {
		this.#options = options;
		this.#limits = { ...defaults, ...options.limits };
		this.#now = options.now ?? Date.now;
	}

	/** Takes a stream of the tunnel. Throws Overloaded while as many are open as may be. */
	serve(incoming: Pick<IncomingStream, "accept">): void {
		if (this.#open >= this.#limits.shells) {
			throw new GroundplaneError(
				"Overloaded",
				`${this.#open} support shells are open on this host, the most it takes`,
				{
					next: "Wait until one of them has ended.",
				},
			);
		}
		const stream = incoming.accept();
		this.#open++;
		void this.#attend(stream)
			.catch((error: unknown) => {
				const { code, message } = asGroundplaneError(error);
				this.#options.log.warn({ code }, `support shell: ${message}`);
			})
			.finally(() => {
				this.#open--;
			});
	}

	/** From the first frame to the end of the last process. */
	async #attend(stream: Duplex): Promise<void> {
		stream.on("error", () => {}); // Its close says all that matters here.
		const id = randomBytes(4).toString("hex");
		const frames = readShell(stream);
		const late = setTimeout(() => stream.destroy(), this.#limits.openMs);
		let exit: ShellExit;
		try {
			const next = async () => (await frames.next()).value as ShellFrame | undefined;
			const { user, requestId } = parseShell(await next(), Channel.caller, shellCaller);
			const wanted = parseShell(await next(), Channel.open, shellOpen);
			clearTimeout(late);
			exit = await this.#run({ id, by: user, requestId, wanted, stream, frames });
		} catch (error) {
			const { code, message, next } = asGroundplaneError(error);
			this.#options.log.warn({ shell: id, code, next }, `support shell not opened: ${message}`);
			exit = { error: { code, message, next } };
		} finally {
			clearTimeout(late);
		}
		if (!stream.destroyed) stream.end(encodeShell(Channel.exit, exit));
		// What the caller may still say goes nowhere; whoever doesn't close is closed.
		stream.resume();
		setTimeout(() => stream.destroy(), this.#limits.openMs).unref();
	}

	async #run({
		id,
		by,
		requestId,
		wanted,
		stream,
		frames,
	}: {
		id: string;
		by: string;
		requestId: string;
		wanted: ShellOpen;
		stream: Duplex;
		frames: AsyncGenerator<ShellFrame>;
	}): Promise<ShellExit> {
		const { log, directory } = this.#options;
		const { idleMs, longestMs, graceMs, transcripts, transcriptBytes } = this.#limits;
		const since = this.#now();
		const transcript = new Transcript({
			directory,
			name: `${new Date(since).toISOString().replaceAll(":", "-")}-${id}.cast`,
			keep: transcripts,
			maxBytes: transcriptBytes,
			since,
			now: this.#now,
			title: `${by} on ${hostname()}, request ${requestId}`,
			wanted,
		});
		const what = "command" in wanted ? { command: JSON.stringify(wanted.command).slice(0, 500) } : { terminal: true };
		log.info({ shell: id, by, requestId, ...what, transcript: transcript.path }, "support shell opened");

		let child: ChildProcess;
		try {
			child = start(id, wanted);
		} catch (error) {
			transcript.close((error as Error).message);
			throw error;
		}

		const ending = Promise.withResolvers<GroundplaneError | undefined>();
		const end = (
			code: "DeadlineExceeded" | "TunnelClosed" | "Overloaded" | "Internal",
			message: string,
			next: string,
		) => ending.resolve(new GroundplaneError(code, message, { next }));
		const again = "Open another one if you have more to do.";
		const idle = setTimeout(() => end("DeadlineExceeded", `the shell was idle for ${minutes(idleMs)}`, again), idleMs);
		const longest = setTimeout(
			() => end("DeadlineExceeded", `the shell was open for ${minutes(longestMs)}, the longest that one may be`, again),
			longestMs,
		);
		const gone = () => end("TunnelClosed", "the caller's connection ended", again);
		stream.once("close", gone);

		child.once("exit", () => ending.resolve(undefined));
		child.once("error", ({ message }) => {
			if (!stream.destroyed) stream.write(encodeShell(Channel.stderr, Buffer.from(`gp-agent: ${message}\n`)));
			ending.resolve(undefined);
		});
		const record = (kind: "i" | "o" | "r", from: Channel, bytes: Buffer | string) => {
			idle.refresh();
			try {
				transcript.write(kind, from, bytes);
				return true;
			} catch (error) {
				end("Overloaded", `what happens can't be recorded any more: ${(error as Error).message}`, again);
				return false;
			}
		};
		for (const [channel, output] of [
			[Channel.stdout, child.stdout],
			[Channel.stderr, child.stderr],
		] as const) {
			output?.on("data", (bytes: Buffer) => {
				if (!record("o", channel, bytes) || stream.destroyed || stream.writableEnded) return;
				if (stream.write(encodeShell(channel, bytes))) return;
				output.pause();
				stream.once("drain", () => output.resume());
			});
		}
		child.stdin?.on("error", () => {}); // A program that doesn't read its input closes it.
		let isOver = false;
		const listening = (async () => {
			for await (const { channel, payload } of frames) {
				if (isOver) continue;
				if (channel === Channel.stdin) {
					if (payload.length === 0) child.stdin?.end();
					else if (record("i", channel, payload) && child.stdin?.write(payload) === false) await drained(child);
				} else if (channel === Channel.resize && "terminal" in wanted) {
					const to = parseShell({ channel, payload }, Channel.resize, shellSize);
					if (record("r", channel, `${to.columns}x${to.rows}`)) resize(id, child, to);
				}
			}
			gone();
		})();
		listening.catch((error: unknown) => (stream.destroyed ? gone() : ending.resolve(asGroundplaneError(error))));

		const closed = once(child, "close");
		const reason = await ending.promise;
		isOver = true;
		clearTimeout(idle);
		clearTimeout(longest);
		stream.off("close", gone);
		const left = await endAll(id, graceMs);
		// Its last words, as fast as the caller takes them; who else held its output open has been ended above.
		await Promise.race([closed, once(stream, "close"), delay(reason ? 0 : LAST_WORDS_MS, undefined, { ref: false })]);
		const exit: ShellExit = reason
			? { error: { code: reason.code, message: reason.message, next: reason.next } }
			: { exitCode: exitCodeOf(child) };
		const seconds = Math.round((this.#now() - since) / 1000);
		const how = "error" in exit ? exit.error.message : `exit code ${exit.exitCode}`;
		transcript.close(how);
		log.info(
			{ shell: id, by, seconds, left: left || undefined, transcript: transcript.path },
			`support shell ended: ${how}`,
		);
		return exit;
	}
}

const LAST_WORDS_MS = 60_000;

const once = (emitter: EventEmitter, event: string): Promise<void> =>
	new Promise((resolve) => emitter.once(event, () => resolve()));

const minutes = (ms: number) => (ms >= 60_000 ? `${Math.round(ms / 60_000)} min` : `${ms} ms`);

/** Resolves when the program has taken its input, or is gone. */
const drained = (child: ChildProcess): Promise<void> =>
	new Promise((resolve) => {
		child.stdin?.once("drain", resolve);
		child.stdin?.once("close", resolve);
	});

/** By this in its environment a process is known as one of a shell's, whatever it has done to its parent and session. */
const MARK = "GROUNDPLANE_SHELL";

/**
 * What runs within the terminal that script(1) makes, instead of a program with arguments, which it doesn't take everywhere. It never
 * changes: sizes come by the environment.
 */
const AT_TERMINAL =
	'stty echo rows "$GROUNDPLANE_ROWS" cols "$GROUNDPLANE_COLUMNS"; unset GROUNDPLANE_ROWS GROUNDPLANE_COLUMNS; exec "$SHELL" -l';

/** Node can't make a terminal; script(1) of bsdutils can, which every Debian has. The recording is the agent's own: `script` bounds none. */
function start(id: string, wanted: ShellOpen): ChildProcess {
	const { username, homedir, shell } = userInfo();
	const env = {
		PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		HOME: homedir,
		USER: username,
		LOGNAME: username,
		SHELL: shell?.startsWith("/") ? shell : "/bin/sh",
		LANG: "C.UTF-8",
		[MARK]: id,
	};
	// A session of its own, so that all of it can be told from the agent.
	const options = { cwd: "/", detached: true, stdio: "pipe" } as const;
	if ("command" in wanted) {
		const [file = "", ...args] = wanted.command;
		return spawn(file, args, { ...options, env });
	}
	const { rows, columns, type } = wanted.terminal;
	const size = { TERM: type, GROUNDPLANE_ROWS: String(rows), GROUNDPLANE_COLUMNS: String(columns) };
	return spawn("/usr/bin/script", ["-q", "-e", "-f", "-c", AT_TERMINAL, "/dev/null"], {
		...options,
		env: { ...env, ...size },
	});
}

/** As a shell says it: 127 for a program that isn't there, 128 and the number for a signal. */
function exitCodeOf({ exitCode, signalCode, pid }: ChildProcess): number {
	if (pid === undefined) return 127;
	if (signalCode !== null) return 128 + (SIGNALS[signalCode] ?? 0);
	return exitCode ?? 1;
}

/** signal(7), those that end programs most. */
const SIGNALS: Partial<Record<NodeJS.Signals, number>> = {
	SIGHUP: 1,
	SIGINT: 2,
	SIGABRT: 6,
	SIGKILL: 9,
	SIGPIPE: 13,
	SIGTERM: 15,
};

/** Sets the size of a shell's terminal; the kernel tells who is at it (SIGWINCH). */
function resize(id: string, { pid: script }: ChildProcess, { rows, columns }: { rows: number; columns: number }): void {
	const [pid] = processesOf(id).filter((one) => one !== script && terminalOf(one));
	if (pid === undefined) return;
	const sized = spawn("stty", ["-F", `/proc/${pid}/fd/0`, "rows", String(rows), "cols", String(columns)], {
		stdio: "ignore",
	});
	sized.on("error", () => {}); // It keeps its size.
}

function terminalOf(pid: number): boolean {
	try {
		return readlinkSync(`/proc/${pid}/fd/0`).startsWith("/dev/pts/");
	} catch {
		return false;
	}
}

/**
 * Ends every process of a shell: those with its mark, and those of their sessions. First as a terminal does that is closed (SIGHUP, after
 * which the kernel wakes who is stopped), then for good. Gives how many are left, which is 0.
 */
async function endAll(id: string, graceMs: number): Promise<number> {
	const tell = (signal: NodeJS.Signals) => {
		const found = processesOf(id);
		for (const pid of found) {
			try {
				process.kill(pid, signal);
			} catch {
				// It has just ended.
			}
		}
		return found.length;
	};
	let left = tell("SIGHUP");
	tell("SIGCONT");
	for (let waited = 0; left > 0 && waited < graceMs; waited += 50) {
		await delay(50);
		left = processesOf(id).length;
	}
	// Again, since one may have started another meanwhile.
	for (let tries = 0; left > 0 && tries < 40; tries++) {
		left = tell("SIGKILL");
		if (left > 0) await delay(50);
	}
	return left;
}

/** Process numbers of a shell, those that have ended and wait for their parent aside. proc(5). */
function processesOf(id: string): number[] {
	const mark = Buffer.from(`${MARK}=${id}\0`);
	const all = readdirSync("/proc")
		.filter((name) => /^\d+$/.test(name))
		.flatMap((name) => {
			try {
				const stat = readFileSync(`/proc/${name}/stat`, "latin1");
				// After the name, which may hold anything: state, parent, group, session.
				const [state, , , session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
				if (state === "Z" || state === "X") return [];
				return [{ pid: Number(name), session, isMarked: readFileSync(`/proc/${name}/environ`).includes(mark) }];
			} catch {
				return []; // It has ended, or is another user's.
			}
		});
	const sessions = new Set(all.filter(({ isMarked }) => isMarked).map(({ session }) => session));
	return all.filter(({ session }) => sessions.has(session)).map(({ pid }) => pid);
}

/**
 * What went over a shell, as an asciicast (v2, docs.asciinema.org/manual/asciicast/v2): a line of JSON for each piece, with the time. For root
 * alone, and bounded: the newest files are kept, and a full one ends its shell.
 */
export class Transcript {
	readonly path: string;
	readonly #file: number;
	readonly #since: number;
	readonly #now: () => number;
	readonly #decoders = new Map<Channel, StringDecoder>();
	#room: number;
	#isClosed = false;

	constructor({
		directory,
		name,
		keep,
		maxBytes,
		since,
		now,
		title,
		wanted,
	}: {
		directory: string;
		name: string;
		keep: number;
		maxBytes: number;
		since: number;
		now: () => number;
		title: string;
		wanted: ShellOpen;
	}) {
		mkdirSync(directory, { recursive: true, mode: 0o700 });
		const old = readdirSync(directory)
			.filter((one) => one.endsWith(".cast"))
			.sort();
		for (const one of old.slice(0, Math.max(0, old.length + 1 - keep))) rmSync(join(directory, one), { force: true });
		this.path = join(directory, name);
		this.#since = since;
		this.#now = now;
		this.#room = maxBytes;
		this.#file = openSync(this.path, "wx", 0o600);
		const { columns, rows } = "terminal" in wanted ? wanted.terminal : { columns: 80, rows: 24 };
		const command = "command" in wanted && { command: JSON.stringify(wanted.command) };
		const header = { version: 2, width: columns, height: rows, timestamp: Math.floor(since / 1000), title, ...command };
		try {
			this.#line(header);
		} catch (error) {
			closeSync(this.#file);
			throw error;
		}
	}

	/** Throws when it is full, or can't be written. */
	write(kind: "i" | "o" | "r", from: Channel, said: Buffer | string): void {
		let decoder = this.#decoders.get(from);
		if (!decoder) {
			decoder = new StringDecoder("utf8");
			this.#decoders.set(from, decoder);
		}
		const text = typeof said === "string" ? said : decoder.write(said);
		if (text !== "") this.#event(kind, text);
	}

	/** The last line says how it ended, full or not. */
	close(how: string): void {
		this.#room = Number.MAX_SAFE_INTEGER;
		try {
			this.#event("m", how);
		} catch {
			// The disk is full: the journal says it.
		}
		this.#isClosed = true;
		closeSync(this.#file);
	}

	#event(kind: "i" | "o" | "r" | "m", text: string): void {
		this.#line([(this.#now() - this.#since) / 1000, kind, text]);
	}

	#line(value: unknown): void {
		if (this.#isClosed) return; // Its number may be another file's by now.
		const line = Buffer.from(`${JSON.stringify(value)}\n`);
		if (line.length > this.#room) throw new Error("the transcript is full");
		// Written before what it says goes on, so that nothing is shown that isn't recorded.
		writeSync(this.#file, line);
		this.#room -= line.length;
	}
}
