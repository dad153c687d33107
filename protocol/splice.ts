import type { Duplex } from "node:stream";

/** For so long an end that is told nothing more may go on with taking what it was sent. */
const LINGER_MS = 60_000;

/**
 * Carries bytes between two streams, each direction ending by itself. Who breaks off breaks the other; but what somebody said before
 * it ended still arrives, also when it has closed for good meanwhile, as a server does after its last words. (`stream.pipeline` of
 * both directions would not do: it destroys a stream that is still being written because nobody takes what it says.)
 */
export function splice(a: Duplex, b: Duplex): void {
	carry(a, b);
	carry(b, a);
}

function carry(from: Duplex, to: Duplex): void {
	let failure: Error | undefined;
	from.on("error", (error) => {
		failure = error;
	});
	from.once("close", () => {
		if (from.readableEnded) letGo(to);
		else to.destroy(failure);
	});
	from.pipe(to);
}

/** Its last bytes are under way, and nobody listens to it any more: it is closed when it has closed, or has had its time. */
function letGo(stream: Duplex): void {
	if (stream.destroyed) return;
	stream.resume();
	const timer = setTimeout(() => stream.destroy(), LINGER_MS);
	timer.unref();
	stream.once("close", () => clearTimeout(timer));
}
