import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { GroundplaneError } from "../../protocol/errors.ts";

/** A process, told apart from a later one with the same number by when it started (clock ticks since boot). */
export interface ProcessId {
	readonly pid: number;
	readonly started: string;
}

/** Fields of /proc/PID/stat after the name, from `state` on (proc(5)); undefined when the process is gone. */
function stat(pid: number): string[] | undefined {
	try {
		const text = readFileSync(`/proc/${pid}/stat`, "utf8");
		return text.slice(text.lastIndexOf(")") + 2).split(" ");
	} catch {
		return undefined;
	}
}

export function processId(pid: number): ProcessId {
	return { pid, started: stat(pid)?.[19] ?? "" };
}

/** True while the very process runs. A zombie is dead. */
export function isAlive(process: ProcessId | undefined): boolean {
	if (process === undefined) return false;
	const fields = stat(process.pid);
	return fields !== undefined && fields[0] !== "Z" && fields[19] === process.started;
}

export function kill(process: ProcessId | undefined, signal: NodeJS.Signals = "SIGKILL"): void {
	if (process === undefined || !isAlive(process)) return;
	try {
		globalThis.process.kill(process.pid, signal);
	} catch {
		// It ended in between.
	}
}

/** Waits until processes are gone. Returns those that are still there after `patienceMs`. */
export async function gone(processes: readonly ProcessId[], patienceMs: number): Promise<ProcessId[]> {
	const deadline = Date.now() + patienceMs;
	let left = processes.filter(isAlive);
	while (left.length > 0 && Date.now() < deadline) {
		await sleep(10);
		left = left.filter(isAlive);
	}
	return left;
}

/** Kills processes and waits until they are gone. */
export async function killAll(processes: readonly ProcessId[]): Promise<void> {
	for (const process of processes) kill(process);
	const [left] = await gone(processes, 10_000);
	if (left === undefined) return;
	throw new GroundplaneError("DeadlineExceeded", `Process ${left.pid} does not die`, {
		next: `Look what it waits for: cat /proc/${left.pid}/stack. A process stuck in the kernel goes only with the machine.`,
	});
}

export function allPids(): number[] {
	return readdirSync("/proc")
		.filter((name) => /^\d+$/.test(name))
		.map(Number);
}

export function children(pid: number): number[] {
	try {
		return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number);
	} catch {
		return [];
	}
}

export function commandLine(pid: number): string[] {
	try {
		return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
	} catch {
		return [];
	}
}

/** The inode number of a process's network namespace. */
export function networkNamespace(pid: number): string | undefined {
	try {
		return /\[(\d+)\]/.exec(readlinkSync(`/proc/${pid}/ns/net`))?.[1];
	} catch {
		return undefined;
	}
}

/** True when the process is the first of a PID namespace of its own. */
export function isNamespaceInit(pid: number): boolean {
	try {
		const ids = /^NSpid:\s*(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]?.split(/\s+/) ?? [];
		return ids.length > 1 && ids.at(-1) === "1";
	} catch {
		return false;
	}
}
