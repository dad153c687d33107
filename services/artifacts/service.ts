import { createHash, X509Certificate } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { extname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createZstdDecompress } from "node:zlib";
import type { Express, NextFunction, Request, RequestHandler, Response } from "express";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { createAuth, requireService, serviceOf } from "../kit/auth.ts";
import { Gauge } from "../kit/metrics.ts";
import { Api } from "../kit/routes.ts";
import { defineService } from "../kit/service.ts";
import { Bundles } from "./bundles.ts";
import { type JoinRegion, joinScript, refusalScript, type StampedToken, stampedPackage } from "./join.ts";

const jwks = z.object({ keys: z.array(z.record(z.string(), z.unknown())).min(1) });
const joinToken = z.object({ createdAt: z.string(), hostName: z.string().optional() });
/** Problem details of another service. */
const problem = z.object({ code: z.string(), detail: z.string(), next: z.string() });

const AGENT_PACKAGE = /^groundplane-agent_[A-Za-z0-9.+~-]+_(amd64|arm64)\.deb$/;
const CONFIG_PACKAGE = "groundplane-agent-config.deb";
const FOREVER = { immutable: true, maxAge: "365d" } as const;
const IMMUTABLE = "public, max-age=31536000, immutable";

/** Release bundles, agent packages with what a machine needs to join, and the console's files. */
export const artifactsService = defineService({
	name: "artifacts",
	config: {
		bundleDirs: z
			.string()
			.default("")
			.transform((list) => list.split(":").filter(Boolean)),
		packagesDir: z.string().default("/opt/groundplane/packages"),
		consoleDir: z.string().default("/opt/groundplane/console"),
		releaseJwksFile: z.string().default("/etc/groundplane/release/public.jwks"),
		frontCertFile: z.string().default("/etc/groundplane/front/tls.crt"),
		hostsUrl: z.url().default("https://hosts"),
	},
	async start({ config, log, metrics, tls, internal }) {
		const releaseJwks = jwks.parse(JSON.parse(await readFile(config.releaseJwksFile, "utf8")));
		const bundles = await Bundles.load([...config.bundleDirs, config.packagesDir], releaseJwks as never);
		const served = new Gauge({
			name: "groundplane_bundles",
			help: "Release bundles on disk: 1 when served, 0 when refused because of their signature or missing files.",
			labelNames: ["bundle", "version"],
			registers: [metrics.registry],
		});
		for (const { manifest } of bundles.list()) served.set({ bundle: manifest.name, version: manifest.version }, 1);
		for (const { name, version, error } of bundles.refused) {
			served.set({ bundle: name, version }, 0);
			log.error({ err: error, bundle: name, version }, "refused a release bundle");
		}

		const auth = createAuth({ ...config, internal });
		const region = (): JoinRegion => ({
			region: config.region,
			domain: config.domain,
			caBundle: tls.current.ca,
			releaseJwks,
		});

		/** The join token of a request, once the hosts service has vouched for it. */
		async function tokenOf(request: Request): Promise<StampedToken> {
			const token = /^Bearer (gpj_\S+)$/i.exec(request.headers.authorization ?? "")?.[1];
			if (!token) {
				throw new GroundplaneError("JoinTokenInvalid", "The request carries no join token.", {
					next: "Use the command that `gp host join-command` prints.",
				});
			}
			const answer = await internal(`${config.hostsUrl}/internal/v1/join-tokens/verify`, {
				method: "POST",
				json: { token },
			});
			if (answer.status === 200) return { token, ...joinToken.parse(await answer.json()) };
			const { code, detail, next } = problem.parse(await answer.json());
			throw new GroundplaneError(code as "JoinTokenInvalid", detail, { next });
		}

		/** Tunnels (for hosts) and people who are signed in. */
		const hostsOrUsers: RequestHandler = (request, response, next) =>
			serviceOf(request, tls) === "tunnel" ? next() : auth.requireUser()(request, response, next);

		/** Besides them, machines that are about to join. */
		const alsoJoining: RequestHandler = async (request, response, next) => {
			if (!/^Bearer gpj_/i.test(request.headers.authorization ?? "")) return hostsOrUsers(request, response, next);
			await tokenOf(request);
			next();
		};

		const api = new Api({ title: `Groundplane artifacts of region ${config.region}`, version: "v1" })
			.route({
				method: "get",
				path: "/artifacts/v1/bundles",
				summary: "Release bundles that the region offers.",
				roles: "anyone",
				before: [internalOr(requireService(tls, "clusters", "hosts"), auth.requireUser())],
				answer: z.object({ items: z.array(bundleSummary) }),
				handler: async () => ({
					items: bundles.list().map(({ manifest: { files, ...manifest } }) => ({
						name: manifest.name,
						version: manifest.version,
						architecture: manifest.architecture,
						createdAt: manifest.createdAt,
						components: manifest.components,
						bytes: files.reduce((sum, { size }) => sum + size, 0),
					})),
				}),
			})
			.route({
				method: "get",
				path: "/artifacts/v1/pin",
				summary: "Public key of the region's front door, as curl pins it.",
				roles: [],
				answer: z.object({ pin: z.string() }),
				handler: async () => ({ pin: await pinOf(config.frontCertFile) }),
			});

		function internalOr(service: RequestHandler, user: RequestHandler): RequestHandler {
			return (request, response, next) =>
				["clusters", "hosts"].includes(serviceOf(request, tls) ?? "")
					? service(request, response, next)
					: user(request, response, next);
		}

		/** The script for whoever asks; a token that is refused gets one that says so, because `curl -f` shows no bodies. */
		async function scriptFor(request: Request): Promise<string> {
			try {
				const token = await tokenOf(request);
				const agent = await agentPackage(config.packagesDir);
				return joinScript({
					region: config.region,
					domain: config.domain,
					pin: await pinOf(config.frontCertFile),
					token: token.token,
					architecture: agent.architecture,
					agent: { path: `/artifacts/v1/packages/${agent.file}`, sha256: agent.sha256 },
					config: { path: `/artifacts/v1/packages/${CONFIG_PACKAGE}`, sha256: sha256(stampedPackage(region(), token)) },
				});
			} catch (error) {
				if (error instanceof GroundplaneError && error.status < 500) return refusalScript(error);
				throw error;
			}
		}

		return {
			requestClientCert: true,
			app: (app: Express) => {
				app.use(api.router(auth));

				app.get("/artifacts/v1/ca.crt", (_request, response) => {
					response.type("application/x-pem-file").set("cache-control", "no-cache").send(tls.current.ca);
				});
				app.get("/artifacts/v1/bundles/:name/:version/manifest.jws", hostsOrUsers, (request, response) => {
					const { jws } = bundles.get(String(request.params.name), String(request.params.version));
					response.type("application/jose").set("cache-control", "no-cache").send(jws);
				});
				app.get("/artifacts/v1/blobs/sha256/:digest", hostsOrUsers, (request, response, next) => {
					const digest = String(request.params.digest);
					const { path, size, packed } = bundles.blob(digest);
					response.type("application/octet-stream").vary("accept-encoding");
					if (packed && !/\bzstd\b/.test(request.get("accept-encoding") ?? "")) {
						response.set({ etag: `"${digest}"`, "content-length": String(size), "cache-control": IMMUTABLE });
						pipeline(createReadStream(path), createZstdDecompress(), response).catch(sent(response, next));
						return;
					}
					if (packed) response.set("content-encoding", "zstd");
					// The digest is the content: a strong validator, so that a download resumes (RFC 9110, 13.1.5).
					response.set("etag", packed ? `"${digest}.zst"` : `"${digest}"`);
					response.sendFile(path, { ...FOREVER, dotfiles: "allow" }, sent(response, next));
				});

				app.get(`/artifacts/v1/packages/${CONFIG_PACKAGE}`, async (request, response) => {
					const deb = stampedPackage(region(), await tokenOf(request));
					response.type("application/vnd.debian.binary-package").set("cache-control", "no-store").send(deb);
				});
				app.get("/artifacts/v1/packages/:file", alsoJoining, (request, response, next) => {
					const file = String(request.params.file);
					if (!AGENT_PACKAGE.test(file)) return next();
					response.type("application/vnd.debian.binary-package");
					response.sendFile(file, { root: config.packagesDir, maxAge: "1h" }, sent(response, next));
				});
				app.get("/artifacts/v1/join", async (request, response) => {
					response
						.type("text/x-shellscript")
						.set("cache-control", "no-store")
						.send(await scriptFor(request));
				});

				mountConsole(app, config.consoleDir);
			},
		};
	},
});

const bundleSummary = z.object({
	name: z.string(),
	version: z.string(),
	architecture: z.string(),
	createdAt: z.string(),
	components: z.record(z.string(), z.string()).describe("Versions of the parts."),
	bytes: z.int(),
});

const sha256 = (data: Buffer) => createHash("sha256").update(data).digest("hex");

/** `sha256//BASE64` of a certificate's public key (curl's --pinnedpubkey, RFC 7469). The operator keeps that key on renewal. */
async function pinOf(certificateFile: string): Promise<string> {
	const { publicKey } = new X509Certificate(await readFile(certificateFile));
	const spki = publicKey.export({ type: "spki", format: "der" });
	return `sha256//${createHash("sha256").update(spki).digest("base64")}`;
}

interface AgentPackage {
	readonly file: string;
	readonly architecture: string;
	readonly sha256: string;
}
const agentPackages = new Map<string, Promise<AgentPackage>>();

/** The newest generic agent package; its digest is computed once. */
async function agentPackage(directory: string): Promise<AgentPackage> {
	const files = (await readdir(directory).catch(() => [])).filter((name) => AGENT_PACKAGE.test(name));
	const newest = files.sort((a, b) => a.localeCompare(b, "en", { numeric: true })).at(-1);
	if (newest === undefined) {
		throw new GroundplaneError("NotFound", "The region has no agent package.", {
			next: "The image of the region's services was built without it: build it with hack/build.",
		});
	}
	const path = join(directory, newest);
	const { mtimeMs } = await stat(path);
	const key = `${path}@${mtimeMs}`;
	const known = agentPackages.get(key);
	if (known) return known;
	const digest = (async () => {
		const hash = createHash("sha256");
		await pipeline(createReadStream(path), hash);
		return { file: newest, architecture: AGENT_PACKAGE.exec(newest)?.[1] ?? "amd64", sha256: hash.digest("hex") };
	})();
	agentPackages.set(key, digest);
	digest.catch(() => agentPackages.delete(key));
	return digest;
}

/** After a file was sent, or not: a client that went away is no error of ours, and a path that is none is not found. */
const sent = (response: Response, next: NextFunction) => (error?: unknown) => {
	const { code, status = 500 } = (error ?? {}) as { code?: string; status?: number };
	if (!error || code === "ECONNABORTED" || code === "EPIPE" || code === "ECONNRESET") return;
	if (status === 416) response.status(416).end();
	else if (status < 500) next();
	else next(error);
};

const CONSOLE_HEADERS = {
	"content-security-policy":
		"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
	"x-content-type-options": "nosniff",
	"referrer-policy": "no-referrer",
};

/** The console: files with a digest in their name are cached for good, every other path is the page itself. */
function mountConsole(app: Express, directory: string): void {
	app.get("/{*path}", (request: Request, response: Response, next: NextFunction) => {
		if (/^\/(artifacts|api|auth|enroll|internal|k8s)(\/|$)/.test(request.path)) return next();
		const isPage = extname(request.path) === "";
		response.set(CONSOLE_HEADERS);
		const caching = request.path.startsWith("/assets/") ? FOREVER : { cacheControl: false };
		if (isPage) response.set("cache-control", "no-cache");
		response.sendFile(
			isPage ? "index.html" : decodeURIComponent(request.path).slice(1),
			{ root: directory, ...caching },
			sent(response, next),
		);
	});
}
