import type { ErrorCode } from "../../protocol/errors.ts";

/** Tries that come quickly, for the outage that is over at once. */
const QUICK_TRIES = 3;
const FIRST_MS = 300;
const MOST_MS = 30_000;
/**
 * A pause is at most this part of how long the link has been away: after 3 s of outage a host is back within 0.3 s of its end,
 * after 30 s within 1.2 s, and a day's outage costs two tries a minute.
 */
const PART_OF_OUTAGE = 1 / 25;
/**
 * A gateway that has no time even for a handshake has many hosts before it. Nobody knows how many, so each time in a row that it says
 * so doubles the pause: a thousand that it turns away once are in as soon as its handshakes allow; ten thousand, which by their usual
 * pauses would be turned away 800,000 times and all be in after three minutes, are after 80 s (of which handshakes take 60) and 42,000.
 */
const CROWD_FIRST_MS = 2_000;
const SPARE_FIRST_MS = 20_000;
/** Tries for a spare tunnel that may well have ended at the wrong one of two gateways: 31 of 32 hosts have one after these. */
const SPARE_TRIES = 5;
const SPARE_LEAST_MS = 1_000;
/** A region whose other gateways are away for long is asked for little. */
const SPARE_MOST_MS = 20 * 60_000;
/** What a person has to heal is tried more and more seldom, down to about once a minute. */
const PERSON_FIRST_MS = 5_000;
const PERSON_MOST_MS = 60_000;
const PERSON_PART_OF_OUTAGE = 1 / 4;
/** A hint is a promise not to come sooner; hosts that were given the same one spread over this part of it. */
const HINT_SPREAD = 0.25;
const HINT_MOST_MS = 300_000;

const needsAPerson: ReadonlySet<ErrorCode> = new Set([
	"CertificateInvalid",
	"CertificateRevoked",
	"HostNameMismatch",
	"HostAlreadyEnrolled",
	"Forbidden",
	"Unauthenticated",
	"Conflict",
]);

/** What is known of an outage when the next try is planned. */
export interface Outage {
	/** Number of the coming try, from 0. */
	attempt: number;
	/** How long the link has been away. */
	outageMs: number;
	/** Why the last try failed, or the link broke. */
	code?: ErrorCode | undefined;
	/** When to come back, as the gateway said. */
	hintMs?: number | undefined;
	/** How often in a row the gateway had no time for this host, the last try included. */
	turnedAway?: number;
}

/**
 * Pause before the next try: full jitter (Brooker, "Exponential Backoff and Jitter"), so that a thousand hosts don't come back
 * in step. It grows with the outage instead of doubling, which would let a host sleep through the end of a short one.
 */
export function pauseBefore({ attempt, outageMs, code, hintMs, turnedAway = 0 }: Outage, random: () => number): number {
	if (hintMs !== undefined) return Math.min(hintMs, HINT_MOST_MS) * (1 + HINT_SPREAD * random());
	if (code !== undefined && needsAPerson.has(code)) {
		return clamp(outageMs * PERSON_PART_OF_OUTAGE, PERSON_FIRST_MS, PERSON_MOST_MS) * (0.5 + random() / 2);
	}
	if (turnedAway > 0) return random() * Math.min(MOST_MS, CROWD_FIRST_MS * 2 ** (turnedAway - 1));
	if (attempt < QUICK_TRIES) return random() * FIRST_MS;
	return random() * clamp(outageMs * PART_OF_OUTAGE, FIRST_MS, MOST_MS);
}

/**
 * Pause before a try for a spare tunnel, after `attempt` that came to nothing: nobody waits for one, so hosts that have just come back
 * by the thousand must not come a second time. Of two gateways every other try ends at the one that holds the host already.
 */
export function pauseBeforeSpare(
	{ attempt, hintMs = 0 }: { attempt: number; hintMs?: number | undefined },
	random: () => number,
): number {
	const least = Math.max(attempt > 0 ? SPARE_LEAST_MS : 0, Math.min(hintMs, SPARE_MOST_MS));
	return least + random() * Math.min(SPARE_MOST_MS, SPARE_FIRST_MS * 2 ** Math.max(0, attempt - SPARE_TRIES + 1));
}

const clamp = (value: number, least: number, most: number): number => Math.min(most, Math.max(least, value));
