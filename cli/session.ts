import type { Duplex } from "node:stream";
import { GroundplaneError } from "../protocol/errors.ts";
import type { ConfigStore, Credentials, RegionConfig } from "./config.ts";
import { type Answer, errorOf, RegionHttp } from "./http.ts";

export const CLIENT_ID = "gp";
export const TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
const API_TOKEN_TYPE = "urn:groundplane:params:oauth:token-type:api-token";

/** An access token is renewed this long before it ends, so that it outlives the request it is for. */
const EARLY_MS = 60_000;

export interface AccessToken {
	readonly token: string;
	/** Milliseconds since the epoch. */
	readonly expiresAt: number;
}

const signIn = (domain: string) => `Sign in again: gp login --server https://${domain}`;

/** A signed-in person's way to one region: renews access tokens by itself and calls its API. */
export class Session {
	readonly domain: string;
	readonly region: RegionConfig;
	readonly #store: ConfigStore;
	readonly http: RegionHttp;

	constructor(store: ConfigStore, domain: string, region: RegionConfig) {
		this.#store = store;
		this.domain = domain;
		this.region = region;
		this.http = new RegionHttp(region.server, { ca: region.ca });
	}

	/**
	 * An access token that is good for a minute at least. A new one is fetched under the configuration's lock: of many gp's at
	 * once (kubectl starts one per call) only the first uses the refresh token, which would be void for the second.
	 */
	async accessToken(): Promise<AccessToken> {
		const isGood = (access: AccessToken | undefined) =>
			access !== undefined && access.expiresAt - EARLY_MS > Date.now();
		const known = (await this.#store.read()).regions[this.domain]?.access;
		if (known && isGood(known)) return known;
		return this.#store.update(async ({ regions }) => {
			const region = regions[this.domain];
			if (region?.access && isGood(region.access)) return region.access;
			if (!region?.credentials) {
				throw new GroundplaneError("Unauthenticated", `Nobody is signed in to ${this.domain}.`, {
					next: signIn(this.domain),
				});
			}
			const { access, credentials } = await renew(this.http, region.server, region.credentials, this.domain);
			region.access = access;
			region.credentials = credentials;
			return access;
		});
	}

	/** Calls the region's API. Errors of the region are thrown as what they are. */
	async call<T = unknown>(method: string, path: string, json?: unknown): Promise<T> {
		const { token } = await this.accessToken();
		const answer = await this.http.send(path, {
			method,
			headers: {
				authorization: `Bearer ${token}`,
				...(json !== undefined && { "content-type": "application/json" }),
			},
			...(json !== undefined && { body: JSON.stringify(json) }),
		});
		if (answer.status >= 400) throw errorOf(answer);
		return (isJson(answer) ? JSON.parse(answer.text) : answer.text) as T;
	}

	/** Upgrades a connection to the region's API to another protocol. */
	async upgrade(path: string, protocol: string): Promise<Duplex> {
		const { token } = await this.accessToken();
		return this.http.upgrade(path, protocol, { authorization: `Bearer ${token}` });
	}

	close(): void {
		this.http.close();
	}
}

const isJson = ({ headers }: Answer) => /\bjson\b/.test(String(headers["content-type"] ?? ""));

/** Turns credentials into an access token; a refresh token comes back as another one. */
export async function renew(
	http: RegionHttp,
	server: string,
	credentials: Credentials,
	domain: string,
): Promise<{ access: AccessToken; credentials: Credentials }> {
	const grant =
		credentials.type === "session"
			? { grant_type: "refresh_token", refresh_token: credentials.refreshToken }
			: { grant_type: TOKEN_EXCHANGE, subject_token: credentials.token, subject_token_type: API_TOKEN_TYPE };
	const form = new URLSearchParams({ ...grant, client_id: CLIENT_ID, resource: `${server}/api` });
	const answer = await http.send("/auth/token", {
		method: "POST",
		headers: { "content-type": "application/x-www-form-urlencoded" },
		body: form.toString(),
	});
	if (answer.status === 400 || answer.status === 401) {
		const { error_description: why } = parseObject(answer.text);
		throw new GroundplaneError("Unauthenticated", `The sign-in to ${domain} is over${why ? ` (${why})` : ""}.`, {
			next: signIn(domain),
		});
	}
	if (answer.status !== 200) throw errorOf(answer);
	return accept(parseObject(answer.text), credentials);
}

/** What a token endpoint answered (RFC 6749, 5.1). */
export function accept(
	body: Record<string, unknown>,
	credentials: Credentials | undefined,
): { access: AccessToken; credentials: Credentials } {
	const { access_token: token, expires_in: seconds, refresh_token: refreshToken } = body;
	const renewed = typeof refreshToken === "string" ? ({ type: "session", refreshToken } as const) : credentials;
	if (typeof token !== "string" || !renewed) {
		throw new GroundplaneError("Internal", "The region's sign-in answered without a token.", {
			next: "Look at the log of the region's service auth.",
		});
	}
	return {
		access: { token, expiresAt: Date.now() + (typeof seconds === "number" ? seconds : 300) * 1000 },
		credentials: renewed,
	};
}

function parseObject(text: string): Record<string, unknown> {
	try {
		return JSON.parse(text) as Record<string, unknown>;
	} catch {
		return {};
	}
}
