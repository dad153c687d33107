/**
 * Turns to dial, of which `most` are given at a time. Real hosts have a processor each. Thousands that share this one would keep each
 * other from ending a handshake before its time is over, and none would ever come in: so a few dial at a time, and the others wait
 * before they have begun. A turn is given back by what was answered, or after `longestMs`; who stops waiting holds nobody up.
 */
export function dialTurns(most = 32, longestMs = 2_000): (signal: AbortSignal) => Promise<() => void> {
	const waiting = new Set<() => void>();
	let free = most;
	const release = () => {
		const [next] = waiting;
		if (!next) free++;
		else {
			waiting.delete(next);
			next();
		}
	};
	return async (signal) => {
		if (free > 0) free--;
		else {
			const { promise, resolve } = Promise.withResolvers<void>();
			let hasLeft = false;
			const leave = () => {
				hasLeft = waiting.delete(resolve);
				if (hasLeft) resolve();
			};
			waiting.add(resolve);
			signal.addEventListener("abort", leave);
			if (signal.aborted) leave();
			await promise;
			signal.removeEventListener("abort", leave);
			if (hasLeft) return () => {};
		}
		let isHeld = true;
		const done = () => {
			clearTimeout(timer);
			if (isHeld) release();
			isHeld = false;
		};
		const timer = setTimeout(done, longestMs);
		return done;
	};
}
