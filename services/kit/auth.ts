import type { IncomingMessage } from "node:http";
import type { TLSSocket } from "node:tls";
import type { RequestHandler } from "express";
import { createRemoteJWKSet, customFetch, errors, type JWTVerifyGetKey, jwtVerify } from "jose";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { InternalFetch } from "./internal.ts";
import type { TlsFiles } from "./tls.ts";

/** What a person may do in a region, most first. */
export const roles = ["admin", "operator", "developer", "viewer"] as const;
export const role = z.enum(roles);
export type Role = z.output<typeof role>;

/** Who is asking, by an access token. */
export interface User {
	readonly id: string;
	readonly name: string;
	readonly roles: readonly Role[];
	/** When the access token ends, in milliseconds since the epoch: long streams end with it. */
	readonly expiresAt: number;
}

export interface Auth {
	/** Verifies an `Authorization` header. Throws Unauthenticated. */
	verify(authorization: string | undefined): Promise<User>;
	/** Lets through who has one of these roles (`admin` always); with none given, whoever is signed in. */
	requireUser(...allowed: Role[]): RequestHandler;
}

const users = new WeakMap<IncomingMessage, User>();

/** The user of a request that passed `requireUser`. */
export function userOf(request: IncomingMessage): User {
	const user = users.get(request);
	if (user) return user;
	throw new GroundplaneError("Unauthenticated", "This route has no user.", { next: "Put requireUser before it." });
}

export const mayDo = (user: User, allowed: readonly Role[]): boolean =>
	user.roles.some((held) => held === "admin" || allowed.length === 0 || allowed.includes(held));

const claims = z.object({ sub: z.string(), name: z.string(), roles: z.array(z.string()), exp: z.number() });

/** The region's published keys, fetched from auth when they are first needed and when an unknown key id turns up. */
export const remoteKeys = (jwksUrl: string, internal: InternalFetch): JWTVerifyGetKey =>
	createRemoteJWKSet(new URL(jwksUrl), {
		cooldownDuration: 5_000,
		// jose reads `status` and `json()` only.
		[customFetch]: async (url, { signal }) => (await internal(url, { signal })) as unknown as Response,
	});

/**
 * Verifies access tokens of the region's issuer (RFC 9068: ES256, `typ: at+jwt`) against its published keys,
 * or against `keys` when they are at hand.
 */
export function createAuth(
	options: { issuer: string; audience: string } & (
		| { jwksUrl: string; internal: InternalFetch; keys?: undefined }
		| { keys: JWTVerifyGetKey }
	),
): Auth {
	const keys = options.keys ?? remoteKeys(options.jwksUrl, options.internal);

	async function verify(authorization: string | undefined): Promise<User> {
		const token = /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i.exec(authorization ?? "")?.[1];
		if (!token) throw unauthenticated("There is no bearer token in the request.");
		try {
			const { payload } = await jwtVerify(token, keys, {
				issuer: options.issuer,
				audience: options.audience,
				algorithms: ["ES256"],
				typ: "at+jwt",
				clockTolerance: 10,
			});
			const { sub, name, roles: held, exp } = claims.parse(payload);
			return { id: sub, name, roles: roles.filter((known) => held.includes(known)), expiresAt: exp * 1000 };
		} catch (cause) {
			if (cause instanceof errors.JWTExpired) throw unauthenticated("The access token has expired.", cause);
			if (cause instanceof errors.JOSEError && !(cause instanceof errors.JWKSTimeout)) {
				throw unauthenticated("The access token is not valid here.", cause);
			}
			if (cause instanceof z.ZodError) throw unauthenticated("The access token lacks sub, name or roles.", cause);
			throw new GroundplaneError("Overloaded", "The region's keys can't be fetched, so nobody can be let in.", {
				next: "Look at the service auth; this gets well by itself when it answers.",
				cause,
			});
		}
	}

	return {
		verify,
		requireUser:
			(...allowed) =>
			async (request, _response, next) => {
				const user = await verify(request.headers.authorization);
				if (!mayDo(user, allowed)) {
					throw new GroundplaneError("Forbidden", `${user.name} may not do this.`, {
						next: `It takes the role ${["admin", ...allowed].join(" or ")}: ask an administrator of the region.`,
					});
				}
				users.set(request, user);
				next();
			},
	};
}

const unauthenticated = (message: string, cause?: unknown) =>
	new GroundplaneError("Unauthenticated", message, {
		next: "Sign in again with `gp login`, or in the browser.",
		cause,
	});

/**
 * Name of the service whose client certificate came with a request. The certificate must be issued by the region's root
 * itself: host certificates come from an intermediate, so a host named like a service is no service.
 */
export function serviceOf(request: IncomingMessage, tls: TlsFiles): string | undefined {
	const socket = request.socket as TLSSocket;
	if (!socket.authorized) return undefined;
	const certificate = socket.getPeerX509Certificate();
	if (!certificate || !tls.roots.some((root) => certificate.checkIssued(root) && certificate.verify(root.publicKey))) {
		return undefined;
	}
	return /^CN=(.+)$/m.exec(certificate.subject)?.[1];
}

/** Lets through only these services, by their client certificate; for paths under `/internal/`. */
export const requireService =
	(tls: TlsFiles, ...names: string[]): RequestHandler =>
	(request, _response, next) => {
		const name = serviceOf(request, tls);
		if (name === undefined || !names.includes(name)) {
			throw new GroundplaneError(
				"Forbidden",
				`${name ?? "A caller without a service's certificate"} may not call this.`,
				{
					next: `Only ${names.join(", ")} may.`,
				},
			);
		}
		next();
	};
