import type { ErrorCode } from "../../protocol/errors.ts";

const FIRST_MS = 300;
const MOST_MS = 30_000;
/** Tries that come quickly, for the outage that is over at once. */
const QUICK_TRIES = 3;
/** What a person has to heal is tried again seldom. */
const NEEDS_A_PERSON_MS = 60_000;

const needsAPerson: ReadonlySet<ErrorCode> = new Set([
	"CertificateInvalid",
	"CertificateRevoked",
	"HostNameMismatch",
	"HostAlreadyEnrolled",
	"Forbidden",
	"Unauthenticated",
	"Conflict",
]);

/**
 * Pause before try number `attempt` (from 0): full jitter, so that a thousand hosts don't come back in step.
 * A hint of the gateway counts as it is.
 */
export function pauseBefore(
	attempt: number,
	{ random, hintMs, code }: { random: () => number; hintMs?: number | undefined; code?: ErrorCode | undefined },
): number {
	if (hintMs !== undefined) return hintMs;
	if (code !== undefined && needsAPerson.has(code)) return NEEDS_A_PERSON_MS * (0.5 + random());
	const most = attempt < QUICK_TRIES ? FIRST_MS : Math.min(MOST_MS, FIRST_MS * 2 ** (attempt - QUICK_TRIES + 1));
	return random() * most;
}
