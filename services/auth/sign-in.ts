import type { Log } from "../kit/log.ts";
import { Counter, type Metrics } from "../kit/metrics.ts";
import { Throttle } from "./throttle.ts";
import type { UserRecord, Users } from "./users.ts";

/** Checks passwords, for the page and for programs: slows down guessing, and leaves an audit line each time. */
export class SignIn {
	readonly #users: Users;
	readonly #log: Log;
	readonly #attempts: Counter<"outcome">;
	// Guessing from one address is stopped early; guessing one name from many addresses, later. An address alone is not
	// counted: a whole company may sit behind one.
	readonly #byNameAndAddress = new Throttle({ limit: 10, windowMs: 5 * 60_000 });
	readonly #byName = new Throttle({ limit: 100, windowMs: 60 * 60_000 });

	constructor({ users, log, metrics }: { users: Users; log: Log; metrics: Metrics }) {
		this.#users = users;
		this.#log = log;
		this.#attempts = new Counter({
			name: "groundplane_sign_ins_total",
			help: "Attempts to sign in with a password.",
			labelNames: ["outcome"],
			registers: [metrics.registry],
		});
	}

	/**
	 * The user when name and password are right, otherwise nothing.
	 *
	 * @throws GroundplaneError Overloaded after too many failures.
	 */
	async attempt(
		name: string,
		password: string,
		facts: { ip: string; client: string },
	): Promise<UserRecord | undefined> {
		const key = name.trim().toLowerCase().slice(0, 128);
		const keyWithAddress = `${key} ${facts.ip}`;
		try {
			this.#byNameAndAddress.check(keyWithAddress);
			this.#byName.check(key);
		} catch (error) {
			this.#record("throttled", key, facts);
			throw error;
		}
		// Counted before the answer is known, so that many attempts at once don't slip past the limit.
		this.#byNameAndAddress.failed(keyWithAddress);
		this.#byName.failed(key);
		const user = await this.#users.authenticate(key, password);
		if (user) {
			this.#byNameAndAddress.succeeded(keyWithAddress);
			this.#byName.succeeded(key);
		}
		this.#record(user ? "ok" : "refused", key, facts);
		return user;
	}

	#record(outcome: "ok" | "refused" | "throttled", user: string, facts: { ip: string; client: string }): void {
		this.#attempts.inc({ outcome });
		this.#log[outcome === "ok" ? "info" : "warn"](
			{ audit: true, event: "sign-in", outcome, user, ...facts },
			"sign-in",
		);
	}
}
