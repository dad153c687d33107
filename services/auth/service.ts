import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createLocalJWKSet } from "jose";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { createAuth } from "../kit/auth.ts";
import { databaseConfig, durationVariable } from "../kit/config.ts";
import { openDatabase } from "../kit/database.ts";
import type { Log } from "../kit/log.ts";
import { defineService } from "../kit/service.ts";
import { deleteExpired } from "./adapter.ts";
import { createApi } from "./api.ts";
import { interactionRouter } from "./interaction.ts";
import { createProvider } from "./provider.ts";
import { SignIn } from "./sign-in.ts";
import { type AuthTables, migrations } from "./store.ts";
import { ApiTokens } from "./tokens.ts";
import { Users } from "./users.ts";

const CLEANUP_MS = 60 * 60_000;

/** The region's issuer: users, sign-in, tokens. */
export const authService = defineService({
	name: "auth",
	config: {
		...databaseConfig,
		/** Mount of Secret auth-keys: `jwks.json` (ES256, private) and `cookie-keys` (one per line, newest first). */
		authKeysDir: z.string().default("/etc/groundplane/auth-keys"),
		/** Mount of Secret auth-admin: `username` and `password` of the first administrator. */
		authAdminDir: z.string().default("/etc/groundplane/auth-admin"),
		accessTokenLifetime: durationVariable.prefault("15m"),
		sessionLifetime: durationVariable.prefault("12h"),
		version: z.string().default("dev"),
	},
	async start(context) {
		const { config, log, metrics, signal } = context;
		const keys = await readKeys(config.authKeysDir);
		const database = await openDatabase<AuthTables>(context, { migrations });
		const { db } = database;
		const users = new Users(db);
		const tokens = new ApiTokens(db);
		await createFirstAdministrator(users, config.authAdminDir, log);

		const { jwks, cookieKeys } = keys;
		const provider = createProvider({
			...config,
			jwks,
			cookieKeys,
			accessTokenLifetimeMs: config.accessTokenLifetime,
			sessionLifetimeMs: config.sessionLifetime,
			db,
			users,
			tokens,
			log,
		});
		const auth = createAuth({ ...config, keys: createLocalJWKSet({ keys: jwks.keys.map(publicPart) }) });
		const signIn = new SignIn({ users, log, metrics });
		const api = createApi({ users, tokens, signIn, auth, log, version: config.version });

		const cleanup = setInterval(() => {
			deleteExpired(db).catch((err: unknown) =>
				log.warn({ err }, "can't delete what has expired; trying again in an hour"),
			);
		}, CLEANUP_MS).unref();
		signal.addEventListener("abort", () => clearInterval(cleanup), { once: true });

		const callback = provider.callback();
		return {
			app: (app) => {
				app.use(api.router(auth));
				app.get("/auth/openapi.json", (_request, response) => void response.json(api.openapi()));
				app.use(interactionRouter({ provider, signIn, region: config.region }));
				app.use("/auth", (request, response) => void callback(request, response));
			},
			checks: { database: database.check },
			stop: database.close,
		};
	},
});

const privateJwks = z.object({
	keys: z
		.array(
			z.looseObject({ kty: z.literal("EC"), crv: z.literal("P-256"), x: z.string(), y: z.string(), d: z.string() }),
		)
		.min(1),
});

async function readKeys(directory: string) {
	try {
		const jwks = privateJwks.parse(JSON.parse(await readFile(join(directory, "jwks.json"), "utf8")));
		const cookieKeys = (await readFile(join(directory, "cookie-keys"), "utf8"))
			.split("\n")
			.filter((line) => line.trim());
		if (cookieKeys.length === 0) throw new Error("cookie-keys is empty");
		// ES256 and signing alone, whatever else the file says.
		return { jwks: { keys: jwks.keys.map((key) => ({ ...key, alg: "ES256", use: "sig" })) }, cookieKeys };
	} catch (cause) {
		throw new GroundplaneError("InvalidConfiguration", `no usable signing keys in ${directory}`, {
			next: "Check that the Secret auth-keys is mounted there with jwks.json (EC P-256, private) and cookie-keys.",
			cause,
		});
	}
}

const publicPart = <Key extends { d: string }>({ d, ...key }: Key) => key;

async function createFirstAdministrator(users: Users, directory: string, log: Log): Promise<void> {
	const read = async (name: string) => (await readFile(join(directory, name), "utf8")).trim();
	let credentials: { name: string; password: string };
	try {
		credentials = { name: (await read("username")).toLowerCase(), password: await read("password") };
	} catch (cause) {
		// The Secret may be removed once there are other administrators.
		if ((await users.list()).length > 0) return;
		throw new GroundplaneError(
			"InvalidConfiguration",
			`there is no user yet and no first administrator in ${directory}`,
			{
				next: "Check that the Secret auth-admin is mounted there with username and password.",
				cause,
			},
		);
	}
	const created = await users.createFirst(credentials.name, credentials.password);
	if (created)
		log.info(
			{ audit: true, event: "user-created", by: "auth-admin", user: created.name, roles: created.roles },
			"user-created",
		);
}
