import { randomInt } from "node:crypto";
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

async function isFree(port: number): Promise<boolean> {
	const server = createServer();
	const free = await new Promise<boolean>((resolve) => {
		server.once("error", () => resolve(false));
		server.listen(port, () => resolve(true));
	});
	if (free) await new Promise((resolve) => server.close(resolve));
	return free;
}
