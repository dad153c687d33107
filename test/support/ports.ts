import { randomInt } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { createServer } from "node:net";

/** Below those that the kernel gives to outgoing connections (32768 and up): a busy test would take one before its listener comes. */
const FIRST = 15_000;
const LAST = 30_999;
/** Test files that run side by side; each has a part of the range, so that none takes what another was just told is free. */
const PARTS = 8;
const SIZE = (LAST + 1 - FIRST) / PARTS;

const part = process.env.VITEST_POOL_ID === undefined ? randomInt(PARTS) : Number(process.env.VITEST_POOL_ID) % PARTS;
let next = randomInt(SIZE);

/** A port that nobody listens on at the moment, and that this process has not been given yet. */
export async function freePort(): Promise<number> {
	for (let attempt = 0; attempt < SIZE; attempt++) {
		const port = FIRST + part * SIZE + next;
		next = (next + 1) % SIZE;
		if (await isFree(port)) return port;
	}
	throw new Error(`no free port between ${FIRST + part * SIZE} and ${FIRST + (part + 1) * SIZE - 1}`);
}

/** Whether it is this process that listens on a TCP port: its file descriptors name the socket that proc_net(5) shows there. */
export function listensOn(pid: number, port: number): boolean {
	const LISTEN = "0A";
	const hex = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
	const sockets = new Set<string>();
	for (const table of ["tcp", "tcp6"]) {
		for (const line of readFileSync(`/proc/net/${table}`, "utf8").split("\n")) {
			const [, local, , state, , , , , , inode] = line.trim().split(/\s+/);
			if (state === LISTEN && local?.endsWith(hex)) sockets.add(`socket:[${inode}]`);
		}
	}
	try {
		return readdirSync(`/proc/${pid}/fd`).some((fd) => {
			try {
				return sockets.has(readlinkSync(`/proc/${pid}/fd/${fd}`));
			} catch {
				// Closed meanwhile.
				return false;
			}
		});
	} catch {
		// The process has ended.
		return false;
	}
}

async function isFree(port: number): Promise<boolean> {
	const server = createServer();
	const free = await new Promise<boolean>((resolve) => {
		server.once("error", () => resolve(false));
		server.listen(port, () => resolve(true));
	});
	if (free) await new Promise((resolve) => server.close(resolve));
	return free;
}
