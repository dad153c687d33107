import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

const EVERY_BYTES = 4 * 1024 * 1024;

let dropped = 0;
let planned = false;
let collect: ((options: { type: "minor" }) => void) | undefined;

/**
 * Notes that so much memory outside of V8's heap was passed on and will soon be garbage, and every few megabytes has V8 look for it
 * among its young objects.
 *
 * Left to itself V8 sees only the small objects that such memory hangs on. It lets more than 40 MB come together, and then, since they are too
 * many bytes, goes through everything that lives: 5 to 15 ms, twenty times a second at full speed, in which nobody is answered. Young
 * objects alone take it 0.4 ms. There is no function of Node's for that; V8's own is given to contexts that are made while
 * its flag is set.
 */
export function passedOn(bytes: number): void {
	dropped += bytes;
	if (dropped < EVERY_BYTES || planned) return;
	planned = true;
	// When what was read has been dealt with: what is still in use would only grow old.
	setImmediate(() => {
		planned = false;
		dropped = 0;
		collect ??= minorCollector();
		collect({ type: "minor" });
	});
}

function minorCollector(): (options: { type: "minor" }) => void {
	setFlagsFromString("--expose-gc");
	return runInNewContext("gc");
}
