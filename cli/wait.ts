import { setTimeout as delay } from "node:timers/promises";
import { GroundplaneError } from "../protocol/errors.ts";
import { terminal } from "./output.ts";

const POLL_MS = 1_000;
/** A region that is away for a moment does not end a wait. */
const TRANSIENT = new Set(["Unreachable", "Overloaded", "DeadlineExceeded", "KubernetesUnavailable", "Internal"]);

/**
 * Looks again and again until `look` says that it is done, printing each new line of progress once. Throws DeadlineExceeded
 * after `timeoutMs`, which leaves the work itself alone: it goes on in the region.
 */
export async function waitFor(
	what: string,
	timeoutMs: number,
	look: () => Promise<{ isDone: boolean; progress: string }>,
): Promise<void> {
	const end = performance.now() + timeoutMs;
	let last = "";
	for (;;) {
		const { isDone, progress } = await look().catch((error: unknown) => {
			if (!(error instanceof GroundplaneError) || !TRANSIENT.has(error.code)) throw error;
			return { isDone: false, progress: `${error.message} Trying again.` };
		});
		if (progress !== last && progress !== "") {
			terminal.err(`${new Date().toTimeString().slice(0, 8)}  ${progress}`);
			last = progress;
		}
		if (isDone) return;
		if (performance.now() > end) {
			throw new GroundplaneError(
				"DeadlineExceeded",
				`${what} is not there yet after ${Math.round(timeoutMs / 1000)} s.`,
				{
					next: `It goes on in the region; last seen: ${last || "nothing"}. Wait longer with --timeout.`,
				},
			);
		}
		await delay(POLL_MS);
	}
}
