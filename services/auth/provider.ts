import Provider, {
	type AccountClaims,
	type Configuration,
	errors,
	type JWKS,
	type KoaContextWithOIDC,
	type ResourceServer,
} from "oidc-provider";
import type { Kysely } from "../kit/database.ts";
import type { Log } from "../kit/log.ts";
import { postgresAdapter } from "./adapter.ts";
import { deviceCodePage, deviceConfirmPage, messagePage, pageHeaders, signOutPage } from "./pages.ts";
import type { AuthTables } from "./store.ts";
import type { ApiTokens } from "./tokens.ts";
import type { Users } from "./users.ts";

export const TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
export const API_TOKEN_TYPE = "urn:groundplane:params:oauth:token-type:api-token";
const ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token";
const DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code";

export interface ProviderOptions {
	readonly issuer: string;
	readonly audience: string;
	readonly domain: string;
	readonly jwks: JWKS;
	readonly cookieKeys: string[];
	readonly accessTokenLifetimeMs: number;
	readonly sessionLifetimeMs: number;
	readonly db: Kysely<AuthTables>;
	readonly users: Users;
	readonly tokens: ApiTokens;
	readonly log: Log;
}

/**
 * The region's OpenID provider. Two public clients: `console` (the page, a session that ends with the browser's) and `gp`
 * (the CLI: loopback redirect of RFC 8252, or the device flow of RFC 8628). Both need PKCE. Access tokens are JWTs
 * (RFC 9068) for the region's API, whether or not the client names the resource.
 */
export function createProvider(options: ProviderOptions): Provider {
	const { issuer, audience, domain, users, log } = options;
	const accessTokenLifetime = Math.floor(options.accessTokenLifetimeMs / 1000);
	const sessionLifetime = Math.floor(options.sessionLifetimeMs / 1000);
	/** Seconds until the person has to sign in again. */
	const restOfSession = (authTime: number | undefined) => Math.max(1, (authTime ?? now()) + sessionLifetime - now());

	const findAccount: Configuration["findAccount"] = async (_ctx, id) => {
		const user = await users.find(id);
		if (!user || user.disabled) return undefined;
		return {
			accountId: id,
			claims: (): AccountClaims => ({ sub: id, name: user.name, preferred_username: user.name, roles: user.roles }),
		};
	};

	const show = (ctx: KoaContextWithOIDC, html: string) => {
		ctx.set(pageHeaders());
		ctx.body = html;
	};

	const configuration: Configuration = {
		adapter: postgresAdapter(options.db),
		jwks: options.jwks,
		cookies: {
			keys: options.cookieKeys,
			long: { httpOnly: true, secure: true, sameSite: "lax", signed: true },
			short: { httpOnly: true, secure: true, sameSite: "lax", signed: true },
		},
		clients: [
			{
				client_id: "gp",
				client_name: "the command line (gp)",
				application_type: "native",
				token_endpoint_auth_method: "none",
				// Any port of the loopback: RFC 8252 section 7.3.
				redirect_uris: ["http://127.0.0.1/callback", "http://[::1]/callback"],
				grant_types: ["authorization_code", "refresh_token", DEVICE_CODE, TOKEN_EXCHANGE],
				response_types: ["code"],
			},
			{
				client_id: "console",
				client_name: "the console",
				application_type: "web",
				token_endpoint_auth_method: "none",
				redirect_uris: [`https://${domain}/callback`],
				post_logout_redirect_uris: [`https://${domain}/`],
				grant_types: ["authorization_code", "refresh_token"],
				response_types: ["code"],
			},
		],
		clientDefaults: { id_token_signed_response_alg: "ES256" },
		enabledJWA: { idTokenSigningAlgValues: ["ES256"] },
		scopes: ["openid", "profile", "offline_access"],
		claims: { openid: ["sub"], profile: ["name", "preferred_username", "roles"] },
		conformIdTokenClaims: false,
		findAccount,
		extraTokenClaims: async (_ctx, token) => {
			const user = "accountId" in token && token.accountId ? await users.find(token.accountId) : undefined;
			if (!user || user.disabled) throw new errors.InvalidGrant("the user is gone or disabled");
			return { name: user.name, roles: user.roles };
		},
		features: {
			devInteractions: { enabled: false },
			userinfo: { enabled: false },
			dPoP: { enabled: false },
			pushedAuthorizationRequests: { enabled: false },
			clientCredentials: { enabled: false },
			revocation: { enabled: true },
			resourceIndicators: {
				enabled: true,
				defaultResource: async () => audience,
				useGrantedResource: async () => true,
				getResourceServerInfo: async (_ctx, resource) => {
					if (resource !== audience) throw new errors.InvalidTarget();
					return apiResource(options);
				},
			},
			deviceFlow: {
				enabled: true,
				charset: "base-20",
				mask: "****-****",
				userCodeInputSource: (ctx, form, _out, error) =>
					show(ctx, deviceCodePage(form, error && "That code is not known, or was used already.")),
				userCodeConfirmSource: (ctx, form, client, deviceInfo, userCode) =>
					show(
						ctx,
						deviceConfirmPage({
							form,
							code: userCode,
							client: client.clientName ?? client.clientId,
							address: String(deviceInfo.ip ?? "an unknown address"),
						}),
					),
				successSource: (ctx) =>
					show(ctx, messagePage("Connected", "You can close this page and go back to the device.")),
			},
			rpInitiatedLogout: {
				enabled: true,
				logoutSource: (ctx, form) => show(ctx, signOutPage(form)),
				postLogoutSuccessSource: (ctx) => show(ctx, messagePage("Signed out", "You can close this page.")),
			},
		},
		// Both clients are our own: who signs in agrees.
		loadExistingGrant: async (ctx) => {
			const { client, session, provider } = ctx.oidc;
			if (!client || !session?.accountId) return undefined;
			const known = ctx.oidc.result?.consent?.grantId ?? session.grantIdFor(client.clientId);
			const existing = known ? await provider.Grant.find(known) : undefined;
			if (existing?.accountId === session.accountId) return existing;
			const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
			grant.addOIDCScope("openid profile offline_access");
			grant.addResourceScope(audience, "");
			await grant.save();
			return grant;
		},
		expiresWithSession: (ctx) => ctx.oidc.client?.clientId === "console",
		issueRefreshToken: (_ctx, client) => client.grantTypeAllowed("refresh_token"),
		pkce: { required: () => true },
		interactions: { url: (_ctx, interaction) => `/auth/interaction/${interaction.uid}` },
		renderError: (ctx, out, error) => {
			if (!(error instanceof errors.OIDCProviderError)) log.error({ err: error }, "the provider failed");
			show(ctx, messagePage("That did not work", out.error_description ?? out.error));
		},
		ttl: {
			AccessToken: accessTokenLifetime,
			AuthorizationCode: 60,
			DeviceCode: 600,
			IdToken: accessTokenLifetime,
			Interaction: 900,
			Session: sessionLifetime,
			Grant: sessionLifetime,
			RefreshToken: (_ctx, token) => restOfSession(token.authTime),
		},
		routes: {
			authorization: "/authorize",
			token: "/token",
			jwks: "/jwks",
			revocation: "/revoke",
			end_session: "/sign-out",
			device_authorization: "/device/authorize",
			code_verification: "/device",
		},
	};

	const provider = new Provider(issuer, configuration);
	// `front` tells who asked.
	provider.proxy = true;
	registerTokenExchange(provider, options);
	const onError = (ctx: KoaContextWithOIDC, error: Error) => {
		const expected = error instanceof errors.OIDCProviderError && error.statusCode < 500;
		const facts = { client: ctx.oidc?.client?.clientId, err: error };
		if (expected) log.info(facts, "refused");
		else log.error(facts, "the provider failed");
	};
	provider.on("server_error", onError);
	provider.on("grant.error", onError);
	provider.on("authorization.error", onError);
	return provider;
}

/** The region's API as a resource server (RFC 8707). */
const apiResource = ({ audience, accessTokenLifetimeMs }: ProviderOptions): ResourceServer => ({
	scope: "",
	audience,
	accessTokenTTL: Math.floor(accessTokenLifetimeMs / 1000),
	accessTokenFormat: "jwt",
	jwt: { sign: { alg: "ES256" } },
});

/** Token exchange (RFC 8693): an API token in, an access token of the usual lifetime out. */
function registerTokenExchange(provider: Provider, options: ProviderOptions): void {
	const { audience, users, tokens, log } = options;
	provider.registerGrantType<{ subject_token?: string; subject_token_type?: string }>(
		TOKEN_EXCHANGE,
		async (ctx) => {
			const { subject_token: subjectToken, subject_token_type: type, resource } = ctx.oidc.params;
			if (!subjectToken || type !== API_TOKEN_TYPE) {
				throw new errors.InvalidRequest(`subject_token must be given with subject_token_type ${API_TOKEN_TYPE}`);
			}
			if (resource !== undefined && resource !== audience) throw new errors.InvalidTarget();
			const used = await tokens.use(subjectToken);
			const user = used && (await users.find(used.userId));
			if (!used || !user || user.disabled) {
				log.warn({ audit: true, event: "token-exchange", outcome: "refused", ip: ctx.ip }, "API token refused");
				throw new errors.InvalidGrant("the API token is unknown, expired or revoked");
			}
			const accessToken = new provider.AccessToken({
				accountId: user.id,
				client: ctx.oidc.client,
				gty: TOKEN_EXCHANGE,
				grantId: `api-token:${used.id}`,
			} as ConstructorParameters<typeof provider.AccessToken>[0]);
			accessToken.resourceServer = new provider.ResourceServer(audience, apiResource(options));
			ctx.oidc.entity("AccessToken", accessToken);
			ctx.body = {
				access_token: await accessToken.save(),
				issued_token_type: ACCESS_TOKEN_TYPE,
				token_type: accessToken.tokenType,
				expires_in: accessToken.expiration,
			};
			log.info(
				{ audit: true, event: "token-exchange", outcome: "ok", user: user.name, tokenId: used.id, ip: ctx.ip },
				"API token used",
			);
		},
		["subject_token", "subject_token_type", "resource"],
	);
}

const now = () => Math.floor(Date.now() / 1000);
