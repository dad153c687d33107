import type { DesiredState } from "../../protocol/desired-state.ts";

/** The version that the region wants the agent to have. */
export type Wanted = NonNullable<DesiredState["agent"]>;

/** The last try of another version, on disk from before its start until it has proved itself. */
export interface Attempt extends Wanted {
	readonly outcome: "trying" | "waiting" | "failed";
	/** Tries in a row that said nothing of the version. */
	readonly inconclusive: number;
	/** Before this it is not tried again; milliseconds since the epoch. */
	readonly notBefore: number;
	readonly message?: string;
}

/** How a try ended, as the launcher saw it; `lost` also when it saw nothing. */
export type Ending = "ended" | "deadline" | "lost";

/** Whether the region could be reached again at once by the version before, in this time. */
export const REACHED_WITHIN_MS = 30_000;
const FIRST_PAUSE_MS = 10 * 60_000;
const LONGEST_PAUSE_MS = 24 * 3_600_000;

/** What to do about the version that is wanted, as milliseconds until it is to be tried; undefined when it is not. Pure. */
export function tryIn({
	wanted,
	running,
	attempt,
	now,
}: {
	wanted: Wanted | undefined;
	running: string;
	attempt: Attempt | undefined;
	now: number;
}): number | undefined {
	if (!wanted || wanted.version === running) return undefined;
	if (attempt?.version !== wanted.version || attempt.retry !== wanted.retry) return 0;
	if (attempt.outcome === "failed") return undefined;
	// A clock that was set back must not make it wait for longer than the longest pause.
	return Math.min(Math.max(0, attempt.notBefore - now), LONGEST_PAUSE_MS);
}

/**
 * What a try that ended badly says of the version, judged by the version before. One that crashed is no good, and neither is one
 * that found no way to the region which the version before found at once. All else may be the region's doing, or that of whoever
 * stopped the machine: it is tried again, later each time. Pure.
 */
export function judge(
	attempt: Attempt,
	ending: Ending,
	{
		reached,
		lastError,
		now,
		random,
	}: { reached: boolean; lastError?: string | undefined; now: number; random: number },
): Attempt {
	const { version } = attempt;
	if (ending === "ended") return failed(attempt, `version ${version} ended before it had spoken with the region`);
	if (ending === "deadline" && reached) {
		const why = lastError ? ` (${lastError})` : "";
		return failed(
			attempt,
			`version ${version} did not get to the region in time${why}, and the version before did at once`,
		);
	}
	const pause = Math.min(FIRST_PAUSE_MS * 2 ** Math.min(attempt.inconclusive, 20), LONGEST_PAUSE_MS);
	const what =
		ending === "deadline"
			? `the region was out of reach while version ${version} was tried`
			: `the machine or the service was stopped while version ${version} was tried`;
	return {
		...attempt,
		outcome: "waiting",
		inconclusive: attempt.inconclusive + 1,
		notBefore: now + pause * (0.5 + random / 2),
		message: `${what}; it is tried again`,
	};
}

const failed = (attempt: Attempt, message: string): Attempt => ({
	...attempt,
	outcome: "failed",
	notBefore: 0,
	message,
});
