import type { TokenSource } from "../api/client.ts";
import { asProblem, Problem } from "../api/problem.ts";
import { Oidc, type PendingSignIn, SessionEnded, type Tokens, type User } from "./oidc.ts";

export type SessionState =
	| { readonly phase: "starting" }
	| { readonly phase: "signed-in"; readonly user: User }
	/** Was signed in; the page stays as it is until the person signs in again. */
	| { readonly phase: "ended"; readonly user: User }
	| { readonly phase: "failed"; readonly problem: Problem };

const PENDING = "groundplane.sign-in";
/** A token this close to its end is not used any more. */
const MARGIN_MS = 20_000;
const RETRY_MS = 5_000;

/**
 * The person's session in this tab. Tokens live in memory alone: a reload goes by way of the issuer, whose own session
 * (an HttpOnly cookie) brings the person straight back.
 */
export class Session implements TokenSource {
	readonly #oidc = new Oidc(location.origin);
	readonly #listeners = new Set<() => void>();
	#state: SessionState = { phase: "starting" };
	#tokens: Tokens | undefined;
	#refreshing: Promise<Tokens> | undefined;
	#timer: ReturnType<typeof setTimeout> | undefined;

	readonly subscribe = (listener: () => void): (() => void) => {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	};
	readonly snapshot = (): SessionState => this.#state;

	/** Finishes a sign-in that is under way, or begins one. */
	async start(): Promise<void> {
		try {
			const pending = takePending();
			if (location.pathname !== "/callback") return await this.signIn();
			if (!pending) return await this.signIn("/");
			const callback = new URL(location.href);
			history.replaceState(null, "", pending.returnTo);
			this.#use(await this.#oidc.redeem(callback, pending));
		} catch (error) {
			this.#set({ phase: "failed", problem: signInProblem(error) });
		}
	}

	/** Leaves for the sign-in page; the person comes back to `returnTo`. */
	async signIn(returnTo = location.pathname + location.search): Promise<void> {
		try {
			const { url, pending } = await this.#oidc.signInRequest(returnTo === "/callback" ? "/" : returnTo);
			sessionStorage.setItem(PENDING, JSON.stringify(pending));
			location.assign(url);
		} catch (error) {
			this.#set({ phase: "failed", problem: signInProblem(error) });
		}
	}

	async signOut(): Promise<void> {
		const url = await this.#oidc.signOutUrl(this.#tokens?.idToken ?? "");
		this.#forget();
		location.assign(url);
	}

	async accessToken({ renew = false } = {}): Promise<string> {
		if (!this.#tokens) throw sessionOver();
		if (!renew && this.#tokens.expiresAt - Date.now() > MARGIN_MS) return this.#tokens.accessToken;
		try {
			return (await this.#refresh()).accessToken;
		} catch (error) {
			if (error instanceof SessionEnded) throw sessionOver();
			throw asProblem(error);
		}
	}

	end(): void {
		if (this.#state.phase === "signed-in") this.#set({ phase: "ended", user: this.#state.user });
		this.#forget();
	}

	/** One refresh at a time: a refresh token used twice looks like theft, and ends the session. */
	#refresh(): Promise<Tokens> {
		this.#refreshing ??= (async () => {
			try {
				if (!this.#tokens) throw new SessionEnded("signed out");
				const tokens = await this.#oidc.refresh(this.#tokens);
				this.#use(tokens);
				return tokens;
			} catch (error) {
				if (error instanceof SessionEnded) this.end();
				else this.#renewIn(RETRY_MS * (1 + Math.random()));
				throw error;
			} finally {
				this.#refreshing = undefined;
			}
		})();
		return this.#refreshing;
	}

	#use(tokens: Tokens): void {
		this.#tokens = tokens;
		this.#renewIn((tokens.expiresAt - Date.now()) * (0.7 + 0.1 * Math.random()));
		this.#set({ phase: "signed-in", user: tokens.user });
	}

	#renewIn(ms: number): void {
		clearTimeout(this.#timer);
		// A failure is told by whoever needs a token; here it is only tried again.
		this.#timer = setTimeout(() => void this.#refresh().catch(() => undefined), ms);
	}

	#forget(): void {
		clearTimeout(this.#timer);
		this.#tokens = undefined;
	}

	#set(state: SessionState): void {
		this.#state = state;
		for (const listener of this.#listeners) listener();
	}
}

function takePending(): PendingSignIn | undefined {
	const text = sessionStorage.getItem(PENDING);
	sessionStorage.removeItem(PENDING);
	return text === null ? undefined : (JSON.parse(text) as PendingSignIn);
}

const sessionOver = () =>
	new Problem("Unauthenticated", "Your session has ended.", { next: "Sign in again.", status: 401 });

function signInProblem(error: unknown): Problem {
	const problem = asProblem(error);
	if (problem.code !== "Internal") return problem;
	return new Problem("Unauthenticated", `Signing in did not work: ${problem.message}`, {
		next: "Try again. If it stays, check that this machine's clock is right, and tell your administrator.",
		cause: error,
	});
}
