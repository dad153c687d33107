import { type Duplex, pipeline } from "node:stream";

/** Carries bytes between two streams, each direction ending by itself; an error of either breaks both. */
export function splice(a: Duplex, b: Duplex): void {
	const finished = (error?: Error | null) => {
		if (!error) return;
		a.destroy(error);
		b.destroy(error);
	};
	pipeline(a, b, finished);
	pipeline(b, a, finished);
}
