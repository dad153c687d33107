import { readFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Growth that is worth a collection. */
const GROWTH_BYTES = 3 * 1024 * 1024;

/**
 * Gives memory back after work. The buffers of a download stay until a full collection, which a process that is idle again
 * has no occasion for: up to 64 MB, for days. The kernel for its part keeps what was read once, a start's code and a
 * gigabyte of bundles, in the unit's account until the host is short of memory. Call the returned function now and then.
 */
export function memoryKeeper(): () => void {
	let collect: (() => void) | undefined;
	let least = Number.NEGATIVE_INFINITY;
	return () => {
		const anonymous = anonymousBytes();
		if (anonymous <= least + GROWTH_BYTES) {
			least = Math.min(least, anonymous);
			return;
		}
		collect ??= garbageCollector();
		collect();
		least = anonymousBytes();
		void reclaim();
	};
}

/** What the process itself keeps, without the pages of its program, which the kernel takes and brings back as it likes. */
function anonymousBytes(): number {
	const [, kilobytes] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8")) ?? [];
	return Number(kilobytes ?? 0) * 1024;
}

/**
 * V8's collection for want of memory: an ordinary one leaves the pages that it has emptied to the heap, six megabytes after a
 * role was made; this one compacts and gives them back.
 */
function garbageCollector(): () => void {
	setFlagsFromString("--expose-gc");
	const collect = runInNewContext("gc") as (options: object) => void;
	return () => collect({ type: "major", flavor: "last-resort", execution: "sync" });
}

/** Asks the kernel for the clean pages of the agent's own unit: half of what the agent's memory shows is code that only a start needs. */
async function reclaim(): Promise<void> {
	const file = reclaimFile(await readFile("/proc/self/cgroup", "utf8").catch(() => ""));
	// A kernel without it (before 5.19 on cgroup v2), or with less to give than was asked for, is no fault of anybody.
	if (file !== undefined) await writeFile(file.path, file.value).catch(() => {});
}

/**
 * Where a unit's memory is reclaimed: `memory.reclaim` of cgroup v2, `memory.force_empty` of v1 (the kernel's
 * admin-guide/cgroup-v2 and cgroup-v1/memory). Undefined outside of our own unit: others' pages are not ours to drop.
 *
 * @param membership Content of `/proc/self/cgroup`.
 */
export function reclaimFile(membership: string): { path: string; value: string } | undefined {
	for (const line of membership.split("\n")) {
		const [, controllers, path] = /^\d+:([^:]*):(.*\/gp-agent\.service)$/.exec(line) ?? [];
		if (controllers?.split(",").includes("memory"))
			return { path: `/sys/fs/cgroup/memory${path}/memory.force_empty`, value: "0" };
		if (controllers === "" && !/^\d+:[^:]*\bmemory\b/m.test(membership))
			return { path: `/sys/fs/cgroup${path}/memory.reclaim`, value: "1G" };
	}
	return undefined;
}
