import * as oauth from "oauth4webapi";

/** Who signed in, by the ID token. */
export interface User {
	readonly id: string;
	readonly name: string;
	readonly roles: readonly string[];
}

export interface Tokens {
	readonly accessToken: string;
	/** When the access token ends, by this machine's clock (ms). */
	readonly expiresAt: number;
	readonly refreshToken: string | undefined;
	readonly idToken: string;
	readonly user: User;
}

/** What must be remembered between leaving for the sign-in page and coming back from it. */
export interface PendingSignIn {
	readonly state: string;
	readonly nonce: string;
	readonly verifier: string;
	/** Path in the console to go back to. */
	readonly returnTo: string;
}

/** The refresh token or the session behind it is no longer good: only a new sign-in helps. */
export class SessionEnded extends Error {}

const client: oauth.Client = { client_id: "console", [oauth.clockTolerance]: 300 };
const SCOPE = "openid profile";

/**
 * The region's issuer as the browser uses it: authorization code with PKCE (RFC 9700, section 2.1.1), refresh tokens that
 * rotate. A public client: nothing is kept but in memory.
 */
export class Oidc {
	readonly #origin: string;
	#server: Promise<oauth.AuthorizationServer> | undefined;

	constructor(origin: string) {
		this.#origin = origin;
	}

	/** Where to send the person to sign in, and what to remember meanwhile. */
	async signInRequest(returnTo: string): Promise<{ url: URL; pending: PendingSignIn }> {
		const server = await this.#discover();
		const pending = {
			state: oauth.generateRandomState(),
			nonce: oauth.generateRandomNonce(),
			verifier: oauth.generateRandomCodeVerifier(),
			returnTo,
		};
		const url = new URL(server.authorization_endpoint ?? "");
		url.search = new URLSearchParams({
			client_id: client.client_id,
			response_type: "code",
			redirect_uri: this.#redirectUri,
			scope: SCOPE,
			state: pending.state,
			nonce: pending.nonce,
			code_challenge: await oauth.calculatePKCECodeChallenge(pending.verifier),
			code_challenge_method: "S256",
		}).toString();
		return { url, pending };
	}

	/** Turns the code that the person came back with into tokens. */
	async redeem(callback: URL, pending: PendingSignIn): Promise<Tokens> {
		const server = await this.#discover();
		const parameters = oauth.validateAuthResponse(server, client, callback, pending.state);
		const response = await oauth.authorizationCodeGrantRequest(
			server,
			client,
			oauth.None(),
			parameters,
			this.#redirectUri,
			pending.verifier,
		);
		return tokensOf(
			await oauth.processAuthorizationCodeResponse(server, client, response, {
				expectedNonce: pending.nonce,
				requireIdToken: true,
			}),
		);
	}

	/** New tokens for a refresh token, which is used up by that. Throws {@link SessionEnded} when it is no longer good. */
	async refresh(tokens: Tokens): Promise<Tokens> {
		if (!tokens.refreshToken) throw new SessionEnded("there is no refresh token");
		const server = await this.#discover();
		const response = await oauth.refreshTokenGrantRequest(server, client, oauth.None(), tokens.refreshToken);
		try {
			return tokensOf(await oauth.processRefreshTokenResponse(server, client, response), tokens);
		} catch (error) {
			if (error instanceof oauth.ResponseBodyError && error.error === "invalid_grant") {
				throw new SessionEnded("the session is over", { cause: error });
			}
			throw error;
		}
	}

	/** Where to send the person to sign out (OpenID Connect RP-Initiated Logout). */
	async signOutUrl(idToken: string): Promise<URL> {
		const { end_session_endpoint } = await this.#discover();
		const url = new URL(end_session_endpoint ?? "/auth/sign-out", this.#origin);
		url.search = new URLSearchParams({
			client_id: client.client_id,
			id_token_hint: idToken,
			post_logout_redirect_uri: `${this.#origin}/`,
		}).toString();
		return url;
	}

	get #redirectUri(): string {
		return `${this.#origin}/callback`;
	}

	/** The issuer's metadata; asked for again after a failure. */
	#discover(): Promise<oauth.AuthorizationServer> {
		const issuer = new URL(`${this.#origin}/auth`);
		this.#server ??= (async () => oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer)))();
		this.#server.catch(() => {
			this.#server = undefined;
		});
		return this.#server;
	}
}

function tokensOf(response: oauth.TokenEndpointResponse, before?: Tokens): Tokens {
	const claims = oauth.getValidatedIdTokenClaims(response);
	const user = claims ? userOf(claims) : before?.user;
	if (!user) throw new Error("the issuer sent no ID token");
	return {
		accessToken: response.access_token,
		expiresAt: Date.now() + (response.expires_in ?? 60) * 1000,
		refreshToken: response.refresh_token ?? before?.refreshToken,
		idToken: response.id_token ?? before?.idToken ?? "",
		user,
	};
}

function userOf({ sub, name, roles }: oauth.IDToken): User {
	return {
		id: sub,
		name: typeof name === "string" ? name : sub,
		roles: Array.isArray(roles) ? roles.filter((role) => typeof role === "string") : [],
	};
}
