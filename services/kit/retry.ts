import { setTimeout as delay } from "node:timers/promises";

/** Pause before try number `attempt` (from 0): full jitter up to `baseMs · 2^attempt`, at most `maxMs`. */
export const backoffMs = (attempt: number, { baseMs = 200, maxMs = 15_000, random = Math.random } = {}): number =>
	random() * Math.min(maxMs, baseMs * 2 ** attempt);

/**
 * Tries until it works, `deadlineMs` is over, `signal` aborts or `when` says that trying again is no use; `onError` hears
 * of every failed try that is followed by another.
 * Throws the last error.
 */
export async function retry<Result>(
	attemptOnce: () => Promise<Result>,
	options: {
		signal: AbortSignal;
		deadlineMs: number;
		when?: (error: unknown) => boolean;
		onError?: (error: unknown, attempt: number) => void;
	},
): Promise<Result> {
	const end = performance.now() + options.deadlineMs;
	for (let attempt = 0; ; attempt++) {
		try {
			return await attemptOnce();
		} catch (error) {
			const pause = backoffMs(attempt);
			if (options.signal.aborted || performance.now() + pause > end || options.when?.(error) === false) throw error;
			options.onError?.(error, attempt);
			await delay(pause, undefined, { signal: options.signal }).catch(() => {
				throw error;
			});
		}
	}
}
