import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Growth that is worth a collection. */
const GROWTH_BYTES = 3 * 1024 * 1024;

/**
 * Gives memory back after work. The buffers of a download stay until a full collection, which a process that is idle again
 * has no occasion for: up to 64 MB, for days. Call the returned function now and then.
 */
export function memoryKeeper(): () => void {
	let collect: (() => void) | undefined;
	let least = Number.POSITIVE_INFINITY;
	return () => {
		const before = process.memoryUsage.rss();
		if (before > least + GROWTH_BYTES || least === Number.POSITIVE_INFINITY) {
			collect ??= garbageCollector();
			collect();
		}
		least = Math.min(before, process.memoryUsage.rss());
	};
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
