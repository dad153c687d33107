import type { Request, RequestHandler } from "express";
import { z } from "zod";
import { durationMs } from "../../protocol/duration.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type Auth, role } from "../kit/auth.ts";
import type { Log } from "../kit/log.ts";
import { Api } from "../kit/routes.ts";
import type { SignIn } from "./sign-in.ts";
import type { ApiTokens } from "./tokens.ts";
import type { UserRecord, Users } from "./users.ts";

const userName = z
	.string()
	.max(64)
	.regex(/^[a-z0-9]([a-z0-9._@-]*[a-z0-9])?$/, "lower-case letters, digits and . _ @ - in between")
	.describe("What the person signs in with, and the name that clusters see.");
const password = z.string().min(12, "at least 12 characters").max(1024);
const roles = z.array(role).max(4).describe("What the user may do; the highest counts.");
const id = z.object({ id: z.uuid() });
const user = z.object({ id: z.uuid(), name: z.string(), roles, disabled: z.boolean(), createdAt: z.iso.datetime() });
const apiToken = z.object({
	id: z.uuid(),
	userId: z.uuid(),
	name: z.string(),
	createdAt: z.iso.datetime(),
	expiresAt: z.iso.datetime(),
	lastUsedAt: z.iso.datetime().nullable(),
});

const MAX_TOKEN_MS = 366 * 86_400_000;

const shown = ({ createdAt, ...rest }: UserRecord) => ({ ...rest, createdAt: createdAt.toISOString() });
const shownToken = <Token extends { createdAt: Date; expiresAt: Date; lastUsedAt: Date | null }>(token: Token) => ({
	...token,
	createdAt: token.createdAt.toISOString(),
	expiresAt: token.expiresAt.toISOString(),
	lastUsedAt: token.lastUsedAt?.toISOString() ?? null,
});

/** Name and password of HTTP Basic (RFC 7617), the one way for a program to turn a password into an API token. */
function basicCredentials(request: Request): { name: string; password: string } | undefined {
	const encoded = /^Basic ([A-Za-z0-9+/=]+)$/i.exec(request.headers.authorization ?? "")?.[1];
	if (!encoded) return undefined;
	const text = Buffer.from(encoded, "base64").toString("utf8");
	const colon = text.indexOf(":");
	return colon < 0 ? undefined : { name: text.slice(0, colon), password: text.slice(colon + 1) };
}

/** Users and API tokens. Everything that changes something leaves an audit line. */
export function createApi(options: {
	users: Users;
	tokens: ApiTokens;
	signIn: SignIn;
	auth: Auth;
	log: Log;
	version: string;
}): Api {
	const { users, tokens, signIn, auth, log } = options;
	const audit = (request: Request, by: string, event: string, facts: Record<string, unknown>) =>
		log.info({ audit: true, event, by, ip: request.ip, ...facts }, event);

	return new Api({ title: "Groundplane: users and API tokens", version: options.version })
		.route({
			method: "get",
			path: "/auth/api/v1/users",
			summary: "List the region's users.",
			roles: ["admin"],
			answer: z.object({ items: z.array(user) }),
			handler: async () => ({ items: (await users.list()).map(shown) }),
		})
		.route({
			method: "post",
			path: "/auth/api/v1/users",
			summary: "Make a user.",
			roles: ["admin"],
			body: z.strictObject({ name: userName, password, roles }),
			answer: user,
			status: 201,
			handler: async ({ body, user: by, request }) => {
				const created = await users.create(body);
				audit(request, by.name, "user-created", { user: created.name, roles: created.roles });
				return shown(created);
			},
		})
		.route({
			method: "get",
			path: "/auth/api/v1/users/:id",
			summary: "Read a user.",
			roles: ["admin"],
			params: id,
			answer: user,
			handler: async ({ params }) => shown(await users.get(params.id)),
		})
		.route({
			method: "patch",
			path: "/auth/api/v1/users/:id",
			summary: "Change a user's roles, set a new password, or disable the user.",
			roles: ["admin"],
			params: id,
			body: z.strictObject({ password, roles, disabled: z.boolean() }).partial(),
			answer: user,
			handler: async ({ params, body, user: by, request }) => {
				const changed = await users.update(params.id, body);
				audit(request, by.name, "user-changed", {
					user: changed.name,
					roles: changed.roles,
					disabled: changed.disabled,
					newPassword: body.password !== undefined,
				});
				return shown(changed);
			},
		})
		.route({
			method: "delete",
			path: "/auth/api/v1/users/:id",
			summary: "Delete a user with all sessions and API tokens.",
			roles: ["admin"],
			params: id,
			handler: async ({ params, user: by, request }) => {
				await users.delete(params.id);
				audit(request, by.name, "user-deleted", { userId: params.id });
			},
		})
		.route({
			method: "get",
			path: "/auth/api/v1/me",
			summary: "Read who is signed in.",
			roles: [],
			answer: user,
			handler: async ({ user: by }) => shown(await users.get(by.id)),
		})
		.route({
			method: "put",
			path: "/auth/api/v1/me/password",
			summary: "Change one's own password. It ends every session; API tokens stay good.",
			roles: [],
			body: z.strictObject({ current: z.string().max(1024), new: password }),
			handler: async ({ body, user: by, request }) => {
				if (
					!(await signIn.attempt(by.name, body.current, { ip: request.ip ?? "unknown", client: "password-change" }))
				) {
					throw new GroundplaneError("Forbidden", "The current password is wrong.", {
						next: "Try again, or ask an administrator for a new password.",
					});
				}
				await users.update(by.id, { password: body.new });
				audit(request, by.name, "password-changed", { user: by.name });
			},
		})
		.route({
			method: "get",
			path: "/auth/api/v1/tokens",
			summary: "List API tokens: one's own, or everybody's as an administrator with ?all=true.",
			roles: [],
			query: z.object({ all: z.enum(["true", "false"]).default("false") }),
			answer: z.object({ items: z.array(apiToken) }),
			handler: async ({ query, user: by }) => {
				const everybody = query.all === "true" && by.roles.includes("admin");
				return { items: (await tokens.list(everybody ? undefined : by.id)).map(shownToken) };
			},
		})
		.route({
			method: "post",
			path: "/auth/api/v1/tokens",
			summary:
				"Make an API token for oneself, authenticated by an access token or by HTTP Basic. It is shown this once.",
			roles: "anyone",
			before: [refuseCrossSite],
			body: z.strictObject({
				name: z.string().min(1).max(100).describe("What it is for."),
				expiresIn: z
					.string()
					.regex(/^(?=\d)(\d+h)?(\d+m)?(\d+s)?$/, "must be a duration like 720h")
					.default("720h")
					.refine((text) => durationMs(text) > 0 && durationMs(text) <= MAX_TOKEN_MS, "at most 8784h"),
			}),
			answer: apiToken.extend({ token: z.string().describe("The token; only its hash is kept.") }),
			status: 201,
			handler: async ({ body, request }) => {
				const by = await whoever(request);
				const created = await tokens.create(by.id, body.name, durationMs(body.expiresIn));
				audit(request, by.name, "api-token-created", { tokenId: created.id, name: body.name });
				return shownToken(created);
			},
		})
		.route({
			method: "delete",
			path: "/auth/api/v1/tokens/:id",
			summary: "Revoke an API token: one's own, or anybody's as an administrator.",
			roles: [],
			params: id,
			handler: async ({ params, user: by, request }) => {
				await tokens.revoke(params.id, by.roles.includes("admin") ? undefined : by.id);
				audit(request, by.name, "api-token-revoked", { tokenId: params.id });
			},
		});

	async function whoever(request: Request): Promise<{ id: string; name: string }> {
		const credentials = basicCredentials(request);
		if (!credentials) return auth.verify(request.headers.authorization);
		const found = await signIn.attempt(credentials.name, credentials.password, {
			ip: request.ip ?? "unknown",
			client: "api-token",
		});
		if (found) return found;
		throw new GroundplaneError("Unauthenticated", "The user name or the password is wrong.", {
			next: "Check both; an administrator can set a new password.",
		});
	}
}

/** A browser sends cached Basic credentials along from any page; a program sends no Origin. */
const refuseCrossSite: RequestHandler = (request, _response, next) => {
	if (request.headers.origin && basicCredentials(request)) {
		throw new GroundplaneError("Forbidden", "Passwords are not taken from web pages here.", {
			next: "Sign in at the console.",
		});
	}
	next();
};
