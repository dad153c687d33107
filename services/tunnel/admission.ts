import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { type ErrorCode, errorCodes, GroundplaneError } from "../../protocol/errors.ts";

const verdict = z.object({
	admitted: z.boolean(),
	reason: z
		.string()
		.transform((code): ErrorCode => (Object.hasOwn(errorCodes, code) ? (code as ErrorCode) : "Forbidden"))
		.optional(),
	message: z.string().optional(),
});
type Verdict = z.output<typeof verdict>;

/** How long a "yes" is good without asking again, and how long it stands in when the hosts service can't be asked. */
const FRESH_MS = 60_000;
const KNOWN_MS = 24 * 3_600_000;
/** How long to go on asking when nobody answers: the hosts service may be starting beside this gateway. */
const PATIENCE_MS = 3_000;
const ASK_AGAIN_MS = 150;
/** A "no" is kept a little while, so that a refused host that dials in a loop costs nothing. */
const REFUSED_MS = 5_000;

/**
 * Whether a host with a good certificate may connect: the hosts service knows what was revoked or deleted.
 * While it can't be asked, hosts that it admitted before stay welcome and unknown ones are told to come back.
 */
export class Admission {
	readonly #ask: (host: string, serial: string) => Promise<unknown>;
	readonly #now: () => number;
	readonly #pause: (ms: number) => Promise<unknown>;
	readonly #known = new Map<string, { verdict: Verdict; at: number }>();

	constructor(options: {
		ask: (host: string, serial: string) => Promise<unknown>;
		/** Milliseconds on a clock that only goes forward. */
		now?: () => number;
		pause?: (ms: number) => Promise<unknown>;
	}) {
		this.#ask = options.ask;
		this.#now = options.now ?? (() => performance.now());
		this.#pause = options.pause ?? ((ms) => delay(ms));
	}

	/**
	 * Throws what the host is to be told. `fresh` asks whatever is remembered. Answers whether it is known: false when nobody can be
	 * asked and an older yes stands in.
	 */
	async admit(host: string, serial: string, { fresh = false } = {}): Promise<boolean> {
		const key = `${host}/${serial}`;
		const known = this.#known.get(key);
		const age = known ? this.#now() - known.at : Number.POSITIVE_INFINITY;
		if (!fresh && known && age < (known.verdict.admitted ? FRESH_MS : REFUSED_MS)) return judge(host, known.verdict);
		let answer: Verdict;
		try {
			answer = await this.#askPatiently(host, serial, known?.verdict.admitted ? 0 : PATIENCE_MS);
		} catch (cause) {
			if (known?.verdict.admitted && age < KNOWN_MS) return false;
			throw new GroundplaneError("BusUnavailable", "the region can't check this host's certificate at the moment", {
				next: "Nothing: the agent tries again by itself. If it lasts, look at the pods hosts and nats of the region.",
				cause,
			});
		}
		this.#known.set(key, { verdict: answer, at: this.#now() });
		return judge(host, answer);
	}

	/** Asks until somebody answers or `ms` are over, ever more seldom and with jitter. */
	async #askPatiently(host: string, serial: string, ms: number): Promise<Verdict> {
		const end = this.#now() + ms;
		for (let attempt = 0; ; attempt++) {
			try {
				const answer = verdict.parse(await this.#ask(host, serial));
				if (answer.admitted || !isFault(answer.reason)) return answer;
				throw new Error(answer.message ?? answer.reason);
			} catch (error) {
				const pause = ASK_AGAIN_MS * 2 ** attempt * (0.5 + Math.random());
				if (this.#now() + pause > end) throw error;
				await this.#pause(pause);
			}
		}
	}

	/** Forgets what is known of a host. */
	forget(host: string): void {
		for (const key of this.#known.keys()) if (key.startsWith(`${host}/`)) this.#known.delete(key);
	}

	/** Forgets what is too old to be of use. */
	sweep(): void {
		for (const [key, { verdict, at }] of this.#known) {
			if (this.#now() - at > (verdict.admitted ? KNOWN_MS : REFUSED_MS)) this.#known.delete(key);
		}
	}
}

/** Whether a "no" says something of the one who was asked (its database is away), and nothing of the host. */
const isFault = (reason: ErrorCode = "Forbidden"): boolean => errorCodes[reason] >= 500;

function judge(host: string, { admitted, reason, message }: Verdict): true {
	if (admitted) return true;
	throw new GroundplaneError(reason ?? "Forbidden", message ?? `the region does not admit ${host}`, {
		next: "Enrol the host again with a new join command, if it should be part of this region.",
	});
}
