import { spawn } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname } from "node:os";
import { createInterface } from "node:readline/promises";
import { Command } from "commander";
import type { Configuration } from "openid-client";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type CommonOptions, command, configStore, withSession } from "../command.ts";
import type { Credentials, RegionConfig } from "../config.ts";
import { errorOf, fetchCa, RegionHttp } from "../http.ts";
import { printList, printOne, readSecret, section, terminal } from "../output.ts";
import { type AccessToken, accept, CLIENT_ID, renew, Session } from "../session.ts";

interface LoginOptions {
	readonly server?: string;
	readonly caFile?: string;
	readonly caDigest?: string;
	readonly username?: string;
	readonly passwordStdin?: boolean;
	readonly token?: string;
	readonly device?: boolean;
}

const LOGIN_HELP = `
Without --username, --token and --device a browser opens. The first time, gp shows the SHA-256 of the region's CA and asks
whether it is the right one: the provider knows it (status.caDigest of the Region).

Examples:
  gp login https://acme.example.com
  gp login https://acme.example.com --username ada --password-stdin < password
  gp login https://acme.example.com --token - < token`;

const SCOPE = "openid profile";
const BROWSER_DEADLINE_MS = 5 * 60_000;

export function loginCommand(): Command {
	return new Command("login")
		.description("sign in to a region, in the browser or with a password or a token")
		.argument("[server]", "https://DOMAIN of the region; the one signed in to last when empty")
		.option("--server <url>", "the same as the argument")
		.option("--ca-file <file>", "the region's CA certificate, PEM")
		.option("--ca-digest <sha256>", "SHA-256 of the region's CA certificate, hex: trust it without asking")
		.option("--username <name>", "sign in by password; it becomes an API token, which gp logout revokes")
		.option("--password-stdin", "read the password from standard input")
		.option("--token <token>", "an API token (gpt_…), or - to read it from standard input")
		.option("--device", "sign in with a browser on another machine")
		.addHelpText("after", LOGIN_HELP)
		.action(async (server: string | undefined, options: LoginOptions) =>
			login({ ...options, ...(server && { server }) }),
		);
}

async function login(options: LoginOptions): Promise<void> {
	const store = configStore();
	const server = await serverOf(options, async () => (await store.region(undefined)).region.server);
	const domain = new URL(server).host;
	const known = (await store.read()).regions[domain];
	const ca = await trustedCa(server, options, known);
	const http = new RegionHttp(server, { ca });
	try {
		const { access, credentials } = await authenticate(http, server, domain, options);
		const region: RegionConfig = { server, ...(ca && { ca }), credentials, access };
		const session = new Session({ read: async () => ({ regions: { [domain]: region } }) } as never, domain, region);
		const user = (await session.call<{ name: string }>("GET", "/auth/api/v1/me")).name;
		// Its name is nice to have: the region's API may be starting still.
		const name = await session.call<{ name: string }>("GET", "/api/v1/region").then(
			(answer) => answer.name,
			() => known?.name,
		);
		session.close();
		await store.update((config) => {
			config.regions[domain] = { ...region, user, ...(name && { name }) };
			config.current = domain;
		});
		terminal.err(`Signed in to ${name ?? domain} as ${user}.`);
	} finally {
		http.close();
	}
}

async function serverOf({ server }: LoginOptions, last: () => Promise<string>): Promise<string> {
	if (server === undefined) return last();
	const url = URL.parse(server.includes("://") ? server : `https://${server}`);
	if (url?.protocol === "https:" && url.pathname === "/") return url.origin;
	throw new GroundplaneError("InvalidInput", `"${server}" is not the address of a region.`, {
		next: "Give it like https://demo.example.com",
	});
}

/**
 * The CA to trust for a region: the file given, else the one the region shows if its digest is the one given or one known
 * from an earlier sign-in, else (first use) if the person at the terminal says that it is the right one.
 */
async function trustedCa(
	server: string,
	{ caFile, caDigest }: LoginOptions,
	known: RegionConfig | undefined,
): Promise<string | undefined> {
	if (caFile !== undefined) return readFile(caFile, "utf8");
	const { ca, isTrusted } = await fetchCa(server);
	if (isTrusted) return undefined;
	const digest = digestOf(ca);
	if (caDigest !== undefined) {
		if (caDigest.replaceAll(":", "").toLowerCase() === digest) return ca;
		throw new GroundplaneError("CertificateInvalid", `The CA of ${server} has digest ${digest}, not the one given.`, {
			next: "Compare with status.caDigest of the Region. If that differs too, somebody stands in between.",
		});
	}
	if (known?.ca !== undefined) {
		if (digestOf(known.ca) === digest) return ca;
		throw new GroundplaneError("CertificateInvalid", `The CA of ${server} has changed since the last sign-in.`, {
			next: `If the region was made anew, its digest is in status.caDigest of the Region: gp login --server ${server} --ca-digest …`,
		});
	}
	terminal.err(`The region's CA is not known to this machine. SHA-256 of its certificate:\n  ${digest}`);
	if (!process.stdin.isTTY) {
		throw new GroundplaneError("CertificateInvalid", "Nobody is here to say whether that is the right one.", {
			next: "Compare it with status.caDigest of the Region and pass it: --ca-digest …",
		});
	}
	const prompt = createInterface({ input: process.stdin, output: process.stderr });
	const answer = await prompt.question("It is status.caDigest of the Region. Trust it? [y/N] ");
	prompt.close();
	if (/^y(es)?$/i.test(answer.trim())) return ca;
	throw new GroundplaneError("CertificateInvalid", "The region's CA was not trusted.", {
		next: "Ask the provider for its digest.",
	});
}

/** SHA-256 of a CA certificate (DER), hex: what Region.status.caDigest shows. */
const digestOf = (pem: string) => new X509Certificate(pem).fingerprint256.replaceAll(":", "").toLowerCase();

async function authenticate(
	http: RegionHttp,
	server: string,
	domain: string,
	options: LoginOptions,
): Promise<{ access: AccessToken; credentials: Credentials }> {
	if (options.token !== undefined) {
		const token = options.token === "-" ? await readSecret("Token") : options.token;
		return renew(http, server, { type: "api-token", token }, domain);
	}
	if (options.username !== undefined) {
		return renew(http, server, await tokenForPassword(http, options.username, await password(options)), domain);
	}
	const oidc = await import("openid-client");
	const config = await provider(http, server);
	const tokens = options.device ? await byDevice(oidc, config, server) : await byBrowser(oidc, config, server);
	return accept(tokens, undefined);
}

async function password({ passwordStdin }: LoginOptions): Promise<string> {
	if (passwordStdin) return readSecret("Password");
	throw new GroundplaneError("InvalidInput", "--username needs --password-stdin.", {
		next: "Passwords are never arguments: gp login --username NAME --password-stdin < file",
	});
}

/** Turns a password into an API token: OAuth has no good way to hand a password over (RFC 9700, 2.4). */
async function tokenForPassword(http: RegionHttp, name: string, password: string): Promise<Credentials> {
	const answer = await http.send("/auth/api/v1/tokens", {
		method: "POST",
		headers: {
			authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}`,
			"content-type": "application/json",
		},
		body: JSON.stringify({ name: `gp on ${hostname()}`.slice(0, 100), expiresIn: "720h" }),
	});
	if (answer.status >= 400) throw errorOf(answer);
	const { token, id } = JSON.parse(answer.text) as { token: string; id: string };
	return { type: "api-token", token, id };
}

type Oidc = typeof import("openid-client");

/** The region's OpenID provider. Its endpoints are part of our own contract, so nothing is discovered. */
async function provider(http: RegionHttp, server: string): Promise<Configuration> {
	const oidc = await import("openid-client");
	const config = new oidc.Configuration(
		{
			issuer: `${server}/auth`,
			authorization_endpoint: `${server}/auth/authorize`,
			token_endpoint: `${server}/auth/token`,
			device_authorization_endpoint: `${server}/auth/device/authorize`,
			jwks_uri: `${server}/auth/jwks`,
		},
		CLIENT_ID,
		{ id_token_signed_response_alg: "ES256" },
		oidc.None(),
	);
	config[oidc.customFetch] = async (url, { method, headers, body }) => {
		const { pathname, search } = new URL(url);
		const answer = await http.send(`${pathname}${search}`, {
			method,
			headers: Object.fromEntries(new Headers(headers).entries()),
			...(body !== null && body !== undefined && { body: String(body) }),
		});
		return new Response(answer.text, {
			status: answer.status,
			headers: { "content-type": String(answer.headers["content-type"] ?? "application/json") },
		});
	};
	return config;
}

/** Authorization code with PKCE and a loopback redirect (RFC 8252). */
async function byBrowser(oidc: Oidc, config: Configuration, server: string): Promise<Record<string, unknown>> {
	const verifier = oidc.randomPKCECodeVerifier();
	const state = oidc.randomState();
	const loopback = createServer();
	await new Promise<void>((resolve) => loopback.listen(0, "127.0.0.1", resolve));
	const redirect = `http://127.0.0.1:${(loopback.address() as AddressInfo).port}/callback`;
	const url = oidc.buildAuthorizationUrl(config, {
		redirect_uri: redirect,
		scope: SCOPE,
		resource: `${server}/api`,
		code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
		code_challenge_method: "S256",
		state,
	});
	terminal.err(`Sign in with your browser:\n  ${url.href}`);
	openBrowser(url.href);
	try {
		const called = await callback(loopback, redirect);
		const tokens = await oidc.authorizationCodeGrant(
			config,
			called,
			{ pkceCodeVerifier: verifier, expectedState: state, idTokenExpected: true },
			{ resource: `${server}/api` },
		);
		return { ...tokens };
	} catch (cause) {
		if (cause instanceof GroundplaneError) throw cause;
		throw new GroundplaneError("Unauthenticated", `Signing in did not work: ${(cause as Error).message}`, {
			next: "Try again: gp login. On a machine without a browser: gp login --device",
			cause,
		});
	} finally {
		loopback.close();
		loopback.closeAllConnections();
	}
}

/** The URL that the browser was sent back to. */
function callback(loopback: ReturnType<typeof createServer>, redirect: string): Promise<URL> {
	return new Promise((resolve, reject) => {
		const timer = setTimeout(
			() =>
				reject(
					new GroundplaneError("DeadlineExceeded", "Nobody signed in within five minutes.", {
						next: "Run gp login again. On a machine without a browser: gp login --device",
					}),
				),
			BROWSER_DEADLINE_MS,
		);
		loopback.on("request", (request, response) => {
			const url = new URL(request.url ?? "/", redirect);
			if (url.pathname !== "/callback") return void response.writeHead(404).end();
			response
				.writeHead(200, { "content-type": "text/html; charset=utf-8", connection: "close" })
				.end("<!doctype html><title>Groundplane</title><p>You can close this page and go back to the terminal.");
			clearTimeout(timer);
			resolve(url);
		});
	});
}

function openBrowser(url: string): void {
	const program = process.platform === "darwin" ? "open" : "xdg-open";
	const child = spawn(program, [url], { stdio: "ignore", detached: true });
	// The address was printed: who has no such program opens it by hand.
	child.on("error", () => undefined);
	child.unref();
}

/** Device authorization grant (RFC 8628). */
async function byDevice(oidc: Oidc, config: Configuration, server: string): Promise<Record<string, unknown>> {
	const device = await oidc.initiateDeviceAuthorization(config, { scope: SCOPE, resource: `${server}/api` });
	terminal.err(
		`Open this on any machine and enter the code ${device.user_code}:\n  ${device.verification_uri_complete ?? device.verification_uri}`,
	);
	try {
		return { ...(await oidc.pollDeviceAuthorizationGrant(config, device, { resource: `${server}/api` })) };
	} catch (cause) {
		throw new GroundplaneError("Unauthenticated", `Signing in did not work: ${(cause as Error).message}`, {
			next: "Try again: gp login --device",
			cause,
		});
	}
}

export function logoutCommand(): Command {
	return command("logout", "sign out of a region", { output: false }).action(async (options: CommonOptions) => {
		const store = configStore();
		const { domain, region } = await store.region(options.region);
		const { credentials } = region;
		const session = new Session(store, domain, region);
		try {
			if (credentials?.type === "api-token" && credentials.id) {
				await session.call("DELETE", `/auth/api/v1/tokens/${credentials.id}`);
			} else if (credentials?.type === "session") {
				const form = new URLSearchParams({ token: credentials.refreshToken, client_id: CLIENT_ID });
				await session.http.send("/auth/revoke", {
					method: "POST",
					headers: { "content-type": "application/x-www-form-urlencoded" },
					body: form.toString(),
				});
			}
		} catch (error) {
			terminal.err(`The region could not be told (${(error as Error).message}); the credentials are removed here.`);
		} finally {
			session.close();
		}
		await store.update((config) => {
			const known = config.regions[domain];
			if (!known) return;
			const { server, name, ca } = known;
			config.regions[domain] = { server, ...(name && { name }), ...(ca && { ca }) };
		});
		terminal.err(`Signed out of ${region.name ?? domain}.`);
	});
}

export function whoamiCommand(): Command {
	return command("whoami", "say who is signed in").action(async (options: CommonOptions) =>
		withSession(options, async (session) => {
			const me = await session.call<{ name: string; roles: string[] }>("GET", "/auth/api/v1/me");
			const words = () =>
				section(me.name, [`region  ${session.region.name ?? session.domain}`, `roles   ${me.roles.join(", ")}`]);
			await printOne(me, { format: options.output, name: `user/${me.name}`, words });
		}),
	);
}

export function regionCommand(): Command {
	const group = new Command("region").description("regions that you are signed in to");
	group.addCommand(
		command("get", "show the region").action(async (options: CommonOptions) =>
			withSession(options, async (session) => {
				interface Count {
					total: number;
					ready: number;
				}
				const region = await session.call<{
					name: string;
					customer?: string;
					domain: string;
					version: string;
					hosts: Count;
					clusters: Count;
				}>("GET", "/api/v1/region");
				const words = () =>
					section(region.name, [
						...(region.customer ? [`customer  ${region.customer}`] : []),
						`domain    ${region.domain}`,
						`version   ${region.version}`,
						`hosts     ${region.hosts.ready}/${region.hosts.total} ready`,
						`clusters  ${region.clusters.ready}/${region.clusters.total} ready`,
					]);
				await printOne(region, { format: options.output, name: `region/${region.name}`, words });
			}),
		),
	);
	group.addCommand(
		command("list", "list the regions that this machine knows").action(async ({ output }: CommonOptions) => {
			const { current, regions } = await configStore().read();
			const items = Object.entries(regions).map(([domain, { name, user, credentials }]) => ({
				name: name ?? domain,
				domain,
				user: credentials ? user : undefined,
				current: domain === current,
			}));
			await printList(items, {
				format: output,
				columns: [
					["", ({ current }) => (current ? "*" : " ")],
					["name", ({ name }) => name],
					["domain", ({ domain }) => domain],
					["user", ({ user }) => user ?? "signed out"],
				],
				name: ({ name }) => `region/${name}`,
				empty: "No region is known yet: gp login --server https://DOMAIN",
			});
		}),
	);
	group.addCommand(
		new Command("use")
			.description("work with this region from now on")
			.argument("<name>", "its name or domain")
			.action(async (name: string) => {
				const store = configStore();
				const { domain } = await store.region(name);
				await store.update((config) => {
					config.current = domain;
				});
				terminal.err(`gp works with ${name} now.`);
			}),
	);
	return group;
}
