import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createRemoteJWKSet, customFetch as joseFetch, jwtVerify } from "jose";
import * as oidc from "openid-client";
import { Agent, fetch } from "undici";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RegionCertificates, regionCertificates } from "../../test/support/certificates.ts";
import { startPostgres, type TestPostgres } from "../../test/support/postgres.ts";
import { createLog } from "../kit/log.ts";
import { type RunningService, startService } from "../kit/service.ts";
import { API_TOKEN_TYPE, TOKEN_EXCHANGE } from "./provider.ts";
import { authService } from "./service.ts";

const directory = mkdtempSync(join(tmpdir(), "gp-auth-"));
const domain = "demo.example.com";
const issuer = `https://${domain}/auth`;
const audience = `https://${domain}/api`;
const password = "correct horse battery staple";
const lines: string[] = [];
let postgres: TestPostgres;
let certificates: RegionCertificates;
let service: RunningService;
let stop: AbortController;
let env: Record<string, string>;
let dispatcher: Agent;

const start = async () => {
	stop = new AbortController();
	const log = createLog("auth", "info", {
		write: (line: string) => void lines.push(line),
	});
	service = await startService(authService, { env, signal: stop.signal, log, lameDuckMs: 0 });
};
const restart = async () => {
	stop.abort();
	await service.stopped;
	await start();
};

beforeAll(async () => {
	postgres = await startPostgres();
	certificates = await regionCertificates(directory);
	const write = (path: string, text: string) => {
		mkdirSync(join(directory, path, ".."), { recursive: true });
		writeFileSync(join(directory, path), text);
		return join(directory, path);
	};
	const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
	write("keys/jwks.json", JSON.stringify({ keys: [{ ...privateKey.export({ format: "jwk" }), kid: "one" }] }));
	write("keys/cookie-keys", `${randomBytes(32).toString("base64url")}\n`);
	write("admin/username", "admin");
	write("admin/password", password);
	const url = new URL(await postgres.createDatabase("auth"));
	env = {
		REGION: "demo",
		DOMAIN: domain,
		PORT: "0",
		HEALTH_PORT: "0",
		TLS_DIR: await certificates.service("auth", [domain]),
		DATABASE_URL: `postgresql://${url.username}@${url.host}${url.pathname}?sslmode=disable`,
		DATABASE_PASSWORD_FILE: write("database/password", decodeURIComponent(url.password)),
		AUTH_KEYS_DIR: join(directory, "keys"),
		AUTH_ADMIN_DIR: join(directory, "admin"),
	};
	await start();
	// What DNS and the front door do for a browser: the domain leads to this service.
	dispatcher = new Agent({
		connect: {
			ca: certificates.caPem,
			lookup: (_name: string, _options: unknown, done: (error: null, addresses: unknown[]) => void) =>
				done(null, [{ address: "127.0.0.1", family: 4 }]),
		} as never,
	});
});
afterAll(async () => {
	stop?.abort();
	await service?.stopped;
	await dispatcher?.close();
	await postgres?.close();
	rmSync(directory, { recursive: true, force: true });
});

/** `fetch` that finds the domain at the service's port. */
const reach = ((input: string | URL, init: object = {}) => {
	const url = new URL(input);
	if (url.hostname === domain) url.port = String(service.port);
	return fetch(url, { ...init, dispatcher, redirect: "manual" } as never);
}) as unknown as typeof globalThis.fetch;

const api = async (
	path: string,
	options: { method?: string; token?: string; basic?: string; json?: unknown; headers?: object } = {},
) => {
	const response = await reach(`https://${domain}${path}`, {
		method: options.method ?? "GET",
		headers: {
			...(options.token && { authorization: `Bearer ${options.token}` }),
			...(options.basic && { authorization: `Basic ${Buffer.from(options.basic).toString("base64")}` }),
			...(options.json !== undefined && { "content-type": "application/json" }),
			...options.headers,
		},
		...(options.json !== undefined && { body: JSON.stringify(options.json) }),
	});
	const text = await response.text();
	// biome-ignore lint/suspicious/noExplicitAny: answers of many shapes, checked by the tests
	return { status: response.status, body: text ? (JSON.parse(text) as any) : undefined };
};

const client = async (id: string) =>
	oidc.discovery(new URL(issuer), id, undefined, oidc.None(), { [oidc.customFetch]: reach as never });

/** A browser with cookies that follows redirects as long as they stay in the region. */
class Browser {
	readonly #cookies = new Map<string, string>();

	async open(
		url: string,
		form?: Record<string, string>,
	): Promise<{ url: string; status: number; body: string; headers: Headers }> {
		let next: string = url;
		let body: URLSearchParams | undefined = form && new URLSearchParams(form);
		for (let hops = 0; hops < 10; hops++) {
			const response = await reach(next, {
				method: body ? "POST" : "GET",
				headers: { cookie: [...this.#cookies].map(([name, value]) => `${name}=${value}`).join("; ") },
				...(body && { body }),
			});
			for (const cookie of response.headers.getSetCookie()) {
				const [, name, value, attributes] = /^([^=]+)=([^;]*);?(.*)$/.exec(cookie) ?? [];
				expect(attributes).toMatch(/secure.*httponly/i);
				if (name && value) this.#cookies.set(name, value);
				else if (name) this.#cookies.delete(name);
			}
			const location = response.headers.get("location");
			if (!location)
				return { url: next, status: response.status, body: await response.text(), headers: response.headers };
			next = new URL(location, next).href;
			body = undefined;
			if (new URL(next).hostname !== domain || new URL(next).pathname === "/callback") {
				return { url: next, status: response.status, body: "", headers: response.headers };
			}
		}
		throw new Error("redirects without end");
	}
}

/** Authorization code with PKCE, as `gp login` and the console do it. */
async function signIn(
	clientId: string,
	redirectUri: string,
	browser = new Browser(),
	name = "admin",
	secret = password,
) {
	const config = await client(clientId);
	const verifier = oidc.randomPKCECodeVerifier();
	const state = oidc.randomState();
	const url = oidc.buildAuthorizationUrl(config, {
		redirect_uri: redirectUri,
		scope: "openid profile",
		code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
		code_challenge_method: "S256",
		state,
	});
	let page = await browser.open(url.href);
	if (new URL(page.url).pathname.startsWith("/auth/interaction/")) {
		const asked = page.body.includes('name="password"');
		page = await browser.open(page.url, asked ? { username: name, password: secret } : {});
	}
	const exchange = () =>
		oidc.authorizationCodeGrant(config, new URL(page.url), { pkceCodeVerifier: verifier, expectedState: state });
	return { config, page, exchange };
}

const loopback = "http://127.0.0.1:54321/callback";
const adminToken = async () => (await (await signIn("gp", loopback)).exchange()).access_token;

describe("signing in", () => {
	test("code with PKCE over the loopback gives a JWT for the API, and refresh tokens rotate", async () => {
		const { config, exchange } = await signIn("gp", loopback);
		const tokens = await exchange();
		expect(tokens.claims()).toMatchObject({ name: "admin", roles: ["admin"] });
		expect(tokens.expires_in).toBe(900);

		const keys = createRemoteJWKSet(new URL(`${issuer}/jwks`), { [joseFetch]: reach as never });
		const { payload, protectedHeader } = await jwtVerify(tokens.access_token, keys, { issuer, audience });
		expect(protectedHeader).toMatchObject({ alg: "ES256", typ: "at+jwt" });
		expect(payload).toMatchObject({ name: "admin", roles: ["admin"], client_id: "gp" });

		const first = tokens.refresh_token as string;
		const refreshed = await oidc.refreshTokenGrant(config, first);
		expect(refreshed.refresh_token).not.toBe(first);
		expect((await api("/auth/api/v1/me", { token: refreshed.access_token })).body).toMatchObject({ name: "admin" });
		// The old one used again is theft: the whole family goes (RFC 9700 section 4.14.2).
		await expect(oidc.refreshTokenGrant(config, first)).rejects.toMatchObject({ error: "invalid_grant" });
		await expect(oidc.refreshTokenGrant(config, refreshed.refresh_token as string)).rejects.toMatchObject({
			error: "invalid_grant",
		});
	});

	test("a session signs in to the next client without a password and survives a restart", async () => {
		const browser = new Browser();
		const first = await (await signIn("console", `https://${domain}/callback`, browser)).exchange();
		await restart();
		const second = await signIn("gp", loopback, browser, "nobody", "is not asked for");
		expect((await second.exchange()).claims()?.sub).toBe(first.claims()?.sub);
		expect(
			(await oidc.refreshTokenGrant(await client("console"), first.refresh_token as string)).access_token,
		).toBeTruthy();
	});

	test("a wrong password is refused on an accessible page that runs no script, and guessing is stopped", async () => {
		const browser = new Browser();
		const { page } = await signIn("gp", loopback, browser, "Mallory<script>", "wrong");
		expect([page.status, new URL(page.url).pathname.split("/")[2]]).toEqual([401, "interaction"]);
		expect(page.body).toContain('role="alert"');
		expect(page.body).toContain('<label for="password">');
		expect(page.body).not.toContain("<script");
		expect(page.headers.get("content-security-policy")).toMatch(
			/default-src 'none'.*form-action 'self' http:\/\/127\.0\.0\.1:54321/,
		);

		const statuses: number[] = [];
		for (let attempt = 0; attempt < 10; attempt++) {
			statuses.push((await browser.open(page.url, { username: "mallory<script>", password: "wrong" })).status);
		}
		expect(statuses).toEqual([...Array(9).fill(401), 429]);
		// Somebody else is not held up by that.
		expect((await signIn("gp", loopback)).page.url).toContain("code=");
	});

	test("what the standards forbid is refused", async () => {
		const config = await client("gp");
		const bad = async (parameters: Record<string, string>) =>
			new Browser().open(oidc.buildAuthorizationUrl(config, parameters).href);
		const challenge = await oidc.calculatePKCECodeChallenge(oidc.randomPKCECodeVerifier());
		// Without PKCE, with plain PKCE, to another redirect, for another resource.
		expect((await bad({ redirect_uri: loopback, scope: "openid" })).url).toContain("error=invalid_request");
		const plain = {
			redirect_uri: loopback,
			scope: "openid",
			code_challenge: challenge,
			code_challenge_method: "plain",
		};
		expect((await bad(plain)).url).toContain("error=invalid_request");
		const elsewhere = await bad({
			...plain,
			redirect_uri: "https://evil.example.com/callback",
			code_challenge_method: "S256",
		});
		expect([elsewhere.status, new URL(elsewhere.url).hostname]).toEqual([400, domain]);
		const other = { ...plain, code_challenge_method: "S256", resource: "https://other.example.com/api" };
		expect((await bad(other)).url).toContain("error=invalid_target");
	});

	test("the device flow works for a machine without a browser", async () => {
		const config = await client("gp");
		const device = await oidc.initiateDeviceAuthorization(config, { scope: "openid profile" });
		const browser = new Browser();
		const form = (body: string, name: string) => new RegExp(`name="${name}" value="([^"]*)"`).exec(body)?.[1] ?? "";
		const input = await browser.open(device.verification_uri);
		const confirm = await browser.open(device.verification_uri, {
			xsrf: form(input.body, "xsrf"),
			user_code: device.user_code,
		});
		expect(confirm.body).toContain(device.user_code);
		expect(confirm.body).not.toContain("<script");
		const question = await browser.open(device.verification_uri, {
			xsrf: form(confirm.body, "xsrf"),
			user_code: device.user_code,
			confirm: "yes",
		});
		expect(question.url).toContain("/auth/interaction/");
		expect((await browser.open(question.url, { username: "admin", password })).body).toContain("Connected");
		const tokens = await oidc.pollDeviceAuthorizationGrant(config, { ...device, interval: 0.1 });
		expect((await api("/auth/api/v1/me", { token: tokens.access_token })).status).toBe(200);
	});
});

describe("users and API tokens", () => {
	test("only administrators manage users, and there is always one left", async () => {
		const token = await adminToken();
		const create = { name: "dora", password: "a long enough one", roles: ["developer"] };
		expect((await api("/auth/api/v1/users", { method: "POST", json: create })).status).toBe(401);
		const weak = await api("/auth/api/v1/users", { method: "POST", token, json: { ...create, password: "short" } });
		expect([weak.status, weak.body.detail]).toEqual([400, "body.password: at least 12 characters"]);
		const dora = await api("/auth/api/v1/users", { method: "POST", token, json: create });
		expect([dora.status, dora.body]).toEqual([
			201,
			expect.objectContaining({ name: "dora", roles: ["developer"], disabled: false }),
		]);
		expect((await api("/auth/api/v1/users", { method: "POST", token, json: create })).body.code).toBe("AlreadyExists");

		const signedIn = await signIn("gp", loopback, new Browser(), "DORA", create.password);
		const tokens = await signedIn.exchange();
		expect((await api("/auth/api/v1/users", { token: tokens.access_token })).body.code).toBe("Forbidden");

		// Disabled: no refresh, no sign-in.
		await api(`/auth/api/v1/users/${dora.body.id}`, { method: "PATCH", token, json: { disabled: true } });
		await expect(oidc.refreshTokenGrant(signedIn.config, tokens.refresh_token as string)).rejects.toMatchObject({
			error: "invalid_grant",
		});
		expect((await signIn("gp", loopback, new Browser(), "dora", create.password)).page.status).toBe(401);

		const { body } = await api("/auth/api/v1/me", { token });
		const demoted = await api(`/auth/api/v1/users/${body.id}`, { method: "PATCH", token, json: { roles: ["viewer"] } });
		expect(demoted.body.code).toBe("Conflict");
		expect((await api(`/auth/api/v1/users/${body.id}`, { method: "DELETE", token })).body.code).toBe("Conflict");
		expect((await api(`/auth/api/v1/users/${dora.body.id}`, { method: "DELETE", token })).status).toBe(204);
	});

	test("a password becomes an API token, which is exchanged for access tokens until it is revoked", async () => {
		const config = await client("gp");
		const basic = `admin:${password}`;
		const made = await api("/auth/api/v1/tokens", { method: "POST", basic, json: { name: "ci", expiresIn: "1h" } });
		expect([made.status, made.body.token]).toEqual([201, expect.stringMatching(/^gpt_[\w-]{43}$/)]);
		const exchange = () =>
			oidc.genericGrantRequest(config, TOKEN_EXCHANGE, {
				subject_token: made.body.token,
				subject_token_type: API_TOKEN_TYPE,
			});
		const { access_token: token, issued_token_type } = await exchange();
		expect(issued_token_type).toBe("urn:ietf:params:oauth:token-type:access_token");
		expect((await api("/auth/api/v1/me", { token })).body).toMatchObject({ name: "admin", roles: ["admin"] });

		// The token itself opens nothing, and is nowhere in the answer of the list.
		expect((await api("/auth/api/v1/me", { token: made.body.token })).status).toBe(401);
		const listed = await api("/auth/api/v1/tokens", { token });
		expect(listed.body.items).toEqual([expect.objectContaining({ id: made.body.id, lastUsedAt: expect.any(String) })]);
		expect(JSON.stringify(listed.body)).not.toContain("gpt_");

		expect((await api(`/auth/api/v1/tokens/${made.body.id}`, { method: "DELETE", token })).status).toBe(204);
		await expect(exchange()).rejects.toMatchObject({ error: "invalid_grant" });
		const web = { method: "POST", basic, json: { name: "x" }, headers: { origin: "https://evil.example.com" } };
		expect((await api("/auth/api/v1/tokens", web)).body.code).toBe("Forbidden");
		expect(
			(await api("/auth/api/v1/tokens", { method: "POST", basic: "admin:wrong", json: { name: "x" } })).status,
		).toBe(401);
	});

	test("a new password of one's own ends every session", async () => {
		const { config, exchange } = await signIn("gp", loopback);
		const tokens = await exchange();
		const change = (current: string, next: string) =>
			api("/auth/api/v1/me/password", { method: "PUT", token: tokens.access_token, json: { current, new: next } });
		expect((await change("wrong", "something else entirely")).body.code).toBe("Forbidden");
		expect((await change(password, "something else entirely")).status).toBe(204);
		await expect(oidc.refreshTokenGrant(config, tokens.refresh_token as string)).rejects.toMatchObject({
			error: "invalid_grant",
		});
		expect((await change("something else entirely", password)).status).toBe(204);
	});

	test("audit lines tell who did what, and no line holds a secret", () => {
		const audit = lines.map((line) => JSON.parse(line)).filter((line) => line.audit);
		const events = new Set(audit.map(({ event, outcome }) => [event, outcome].filter(Boolean).join(" ")));
		for (const expected of [
			"sign-in ok",
			"sign-in refused",
			"sign-in throttled",
			"user-created",
			"user-changed",
			"user-deleted",
			"api-token-created",
			"api-token-revoked",
			"token-exchange ok",
			"token-exchange refused",
			"password-changed",
		]) {
			expect(events).toContain(expected);
		}
		expect(lines.filter((line) => line.includes(password) || line.includes("gpt_"))).toEqual([]);
	});
});

test("while PostgreSQL is away requests say so and readiness is false; afterwards all is well", async () => {
	const token = await adminToken();
	await postgres.stop("kill");
	const away = await api("/auth/api/v1/me", { token });
	expect([away.status, away.body.code]).toEqual([503, "DatabaseUnavailable"]);
	const ready = () => fetch(`http://127.0.0.1:${service.healthPort}/readyz`).then(({ status }) => status);
	expect(await ready()).toBe(503);
	await postgres.start();
	await expect.poll(ready, { timeout: 10_000 }).toBe(200);
	expect((await api("/auth/api/v1/me", { token })).status).toBe(200);
});
