import { readdirSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { Account } from "./ledger.ts";

/** What an end of the soak takes at rest. */
export interface EndReport extends Account {
	/** Objects and buffers that are in use, after garbage collection; bytes. */
	memory: number;
	resident: number;
	/** What the event loop waits for, and open file descriptors. */
	handles: number;
	/** CPU so far, µs. */
	cpu: number;
}

/** Looks at this process, after a garbage collection when it is to be compared (`--expose-gc`). */
export async function lookAtMyself(account: () => Account, settle: boolean): Promise<EndReport> {
	if (settle) {
		// What the first collection finalizes, the second one frees.
		globalThis.gc?.();
		await delay(100);
		globalThis.gc?.();
	}
	const { heapUsed, external, rss } = process.memoryUsage();
	const { user, system } = process.cpuUsage();
	return {
		...account(),
		memory: heapUsed + external,
		resident: rss,
		handles: process.getActiveResourcesInfo().length + readdirSync("/proc/self/fd").length,
		cpu: user + system,
	};
}
