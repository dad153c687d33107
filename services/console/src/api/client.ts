import { asProblem, Problem, problemOf } from "./problem.ts";
import type { Host, HostChange, JoinToken, JoinTokenRequest, Region } from "./types.ts";

/** Where access tokens come from. */
export interface TokenSource {
	/** A token that is good now; `renew` asks for a new one even if the old one looks good. */
	accessToken(options?: { renew?: boolean }): Promise<string>;
	/** Called when the region refuses even a fresh token. */
	end(): void;
}

const path = (kind: "hosts" | "clusters", name: string) => `/api/v1/${kind}/${encodeURIComponent(name)}`;

/** The region's API, as far as the console uses it. Every failure is a {@link Problem}. */
export class Api {
	readonly #tokens: TokenSource;

	constructor(tokens: TokenSource) {
		this.#tokens = tokens;
	}

	region = (signal: AbortSignal) => this.#json<Region>("GET", "/api/v1/region", { signal });

	changeHost = (name: string, change: HostChange) => this.#json<Host>("PATCH", path("hosts", name), { body: change });
	deleteHost = (name: string) => this.fetch(path("hosts", name), { method: "DELETE" });
	deleteCluster = (name: string) => this.fetch(path("clusters", name), { method: "DELETE" });

	async kubeconfig(name: string): Promise<string> {
		return (await this.fetch(`${path("clusters", name)}/kubeconfig`)).text();
	}

	createJoinToken = (request: JoinTokenRequest) =>
		this.#json<JoinToken>("POST", "/api/v1/join-tokens", { body: request });

	/** Public key of the front door, as curl's `--pinnedpubkey` takes it. */
	async pin(): Promise<string> {
		return (await this.#json<{ pin: string }>("GET", "/artifacts/v1/pin")).pin;
	}

	/** `fetch` as who is signed in. A refused token is renewed once; then the session is over. */
	async fetch(url: string, init: RequestInit = {}): Promise<Response> {
		const send = async (renew: boolean) => {
			const headers = new Headers(init.headers);
			headers.set("authorization", `Bearer ${await this.#tokens.accessToken({ renew })}`);
			return fetch(url, { ...init, headers });
		};
		try {
			let response = await send(false);
			if (response.status === 401) response = await send(true);
			if (response.status === 401) this.#tokens.end();
			if (!response.ok) throw await problemOf(response);
			return response;
		} catch (error) {
			if (init.signal?.aborted) throw error;
			throw asProblem(error);
		}
	}

	async #json<Answer>(
		method: string,
		url: string,
		{ body, signal }: { body?: unknown; signal?: AbortSignal } = {},
	): Promise<Answer> {
		const response = await this.fetch(url, {
			method,
			headers: { accept: "application/json", ...(body !== undefined && { "content-type": "application/json" }) },
			...(body !== undefined && { body: JSON.stringify(body) }),
			...(signal && { signal }),
		});
		try {
			return (await response.json()) as Answer;
		} catch (cause) {
			throw new Problem("Unreachable", "The region's answer can't be read.", {
				next: "Try again. Something between you and the region may be changing answers.",
				status: response.status,
				cause,
			});
		}
	}
}
