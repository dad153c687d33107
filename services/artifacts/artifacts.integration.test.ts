import { execFile } from "node:child_process";
import { createHash, generateKeyPairSync, randomBytes } from "node:crypto";
import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { CompactSign } from "jose";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { agentConfig } from "../../protocol/messages.ts";
import { RELEASE_MANIFEST_TYPE } from "../../protocol/release.ts";
import { regionCertificates } from "../../test/support/certificates.ts";
import { startIssuer } from "../../test/support/issuer.ts";
import { freePort } from "../../test/support/ports.ts";
import { createInternalClient } from "../kit/internal.ts";
import { createLog } from "../kit/log.ts";
import { startService } from "../kit/service.ts";
import { TlsFiles } from "../kit/tls.ts";
import { artifactsService } from "./service.ts";

const run = promisify(execFile);
const sha256 = (data: Buffer | string) => createHash("sha256").update(data).digest("hex");
const GOOD = `gpj_${"a".repeat(43)}`;
const EXPIRED = `gpj_${"b".repeat(43)}`;

/** The artifacts service with two bundles, one of them tampered with, and what it asks other services for. */
async function startWorld() {
	const directory = await mkdtemp(join(tmpdir(), "gp-artifacts-"));
	const certificates = await regionCertificates(directory);
	const port = await freePort();
	const at = (...parts: string[]) => join(directory, ...parts);

	const release = generateKeyPairSync("ed25519");
	const releaseJwks = { keys: [{ ...release.publicKey.export({ format: "jwk" }), kid: "r", alg: "EdDSA" }] };
	await writeFile(at("release.jwks"), JSON.stringify(releaseJwks));
	const blob = randomBytes(300_000);
	await mkdir(at("root/blobs/sha256"), { recursive: true });
	await writeFile(at("root/blobs/sha256", sha256(blob)), blob);
	await writeFile(at("root/blobs/sha256", sha256("stray")), "stray");
	const program = Buffer.from("a program ".repeat(20_000));
	await writeFile(at("root/blobs/sha256", `${sha256(program)}.zst`), zstdCompressSync(program));
	const bundle = async (version: string, tamper = (jws: string) => jws) => {
		const manifest = {
			schema: 1,
			name: "kubernetes",
			version,
			architecture: "amd64",
			createdAt: new Date().toISOString(),
			components: { kubernetes: version },
			files: [
				{ path: "bin/kubelet", sha256: sha256(blob), size: blob.length, kind: "binary" },
				{ path: "bin/runc", sha256: sha256(program), size: program.length, kind: "binary" },
			],
		};
		const jws = await new CompactSign(Buffer.from(JSON.stringify(manifest)))
			.setProtectedHeader({ alg: "EdDSA", typ: RELEASE_MANIFEST_TYPE, kid: "r" })
			.sign(release.privateKey);
		await mkdir(at("root/bundles/kubernetes", version), { recursive: true });
		await writeFile(at("root/bundles/kubernetes", version, "manifest.jws"), tamper(jws));
	};
	await bundle("v1.36.3");
	await bundle("v1.36.4", (jws) => {
		const [header, payload, signature] = jws.split(".");
		const bytes = Buffer.from(payload ?? "", "base64url");
		bytes[20] = (bytes[20] ?? 0) ^ 1;
		return [header, bytes.toString("base64url"), signature].join(".");
	});

	await mkdir(at("packages"));
	await writeFile(at("packages/groundplane-agent_0.1.0_amd64.deb"), "an agent");
	await writeFile(at("packages/groundplane-agent_0.10.0_amd64.deb"), "a newer agent");
	await mkdir(at("console/assets"), { recursive: true });
	await writeFile(at("console/index.html"), "<!doctype html>");
	await writeFile(at("console/assets/app-123.js"), "0");

	const others = createServer(
		{ ...(await certificates.issueService("hosts")), requestCert: true, rejectUnauthorized: false },
		async (request, response) => {
			const answer = (status: number, body: unknown) =>
				response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
			let body = "";
			for await (const chunk of request) body += chunk;
			if (JSON.parse(body).token === GOOD)
				return answer(200, { id: "1", createdAt: "2026-01-02T03:04:05.000Z", hostName: "host-1" });
			return answer(401, { code: "JoinTokenExpired", detail: "It isn't good any more.", next: "Ask for a new one." });
		},
	);
	await new Promise<void>((resolve) => others.listen(0, "127.0.0.1", resolve));
	const othersUrl = `https://127.0.0.1:${(others.address() as AddressInfo).port}`;

	const domain = `localhost:${port}`;
	const issuer = await startIssuer(domain, certificates);
	const stop = new AbortController();
	const tlsDir = await certificates.service("artifacts");
	const running = await startService(artifactsService, {
		env: {
			REGION: "test",
			DOMAIN: domain,
			PORT: String(port),
			HEALTH_PORT: "0",
			TLS_DIR: tlsDir,
			JWKS_URL: issuer.url,
			HOSTS_URL: othersUrl,
			BUNDLE_DIRS: at("root"),
			PACKAGES_DIR: at("packages"),
			CONSOLE_DIR: at("console"),
			RELEASE_JWKS_FILE: at("release.jwks"),
			// Nothing stands in front of it here.
			FRONT_CERT_FILE: join(tlsDir, "tls.crt"),
		},
		signal: stop.signal,
		log: createLog("artifacts", "silent"),
		lameDuckMs: 0,
	});
	const client = async (name: string) => createInternalClient(new TlsFiles(await certificates.service(name)));
	return {
		at,
		blob,
		program,
		releaseJwks,
		caPem: certificates.caPem,
		domain,
		health: `http://127.0.0.1:${running.healthPort}`,
		url: (path: string) => `https://127.0.0.1:${port}${path}`,
		asTunnel: await client("tunnel"),
		asFront: await client("front"),
		user: async () => ({ authorization: `Bearer ${await issuer.token("alice", ["viewer"])}` }),
		async close() {
			stop.abort();
			await running.stopped;
			others.close();
			issuer.close();
			await rm(directory, { recursive: true, force: true });
		},
	};
}

let world: Awaited<ReturnType<typeof startWorld>>;
beforeAll(async () => {
	world = await startWorld();
});
afterAll(async () => {
	await world?.close();
});

describe("bundles", () => {
	const blobPath = () => `/artifacts/v1/blobs/sha256/${sha256(world.blob)}`;

	test("a download that broke off resumes, and an unchanged one is not sent again", async () => {
		const whole = await world.asTunnel(world.url(blobPath()));
		expect(sha256(whole.body)).toBe(sha256(world.blob));
		expect(whole.headers["cache-control"]).toContain("immutable");
		const etag = String(whole.headers.etag);
		const rest = await world.asTunnel(world.url(blobPath()), { headers: { range: "bytes=100000-", "if-range": etag } });
		expect(rest.status).toBe(206);
		expect(rest.headers["content-range"]).toBe("bytes 100000-299999/300000");
		expect(rest.body.equals(world.blob.subarray(100_000))).toBe(true);
		const beyond = await world.asTunnel(world.url(blobPath()), { headers: { range: "bytes=300000-" } });
		expect(beyond.status).toBe(416);
		const unchanged = await world.asTunnel(world.url(blobPath()), { headers: { "if-none-match": etag } });
		expect(unchanged.status).toBe(304);
	});

	test("a program travels packed to who can unpack it, resumable too, and as it is to others", async () => {
		const url = world.url(`/artifacts/v1/blobs/sha256/${sha256(world.program)}`);
		const encoded = { headers: { "accept-encoding": "zstd" } };
		const whole = await world.asTunnel(url, encoded);
		expect(whole.headers).toMatchObject({
			"content-encoding": "zstd",
			vary: expect.stringMatching(/accept-encoding/i),
		});
		expect(zstdDecompressSync(whole.body).equals(world.program)).toBe(true);
		const rest = await world.asTunnel(url, { headers: { ...encoded.headers, range: "bytes=10-" } });
		expect(rest.status).toBe(206);
		expect(rest.headers["content-encoding"]).toBe("zstd");
		expect(rest.body.equals(whole.body.subarray(10))).toBe(true);
		const plain = await world.asTunnel(url, { headers: { range: "bytes=10-" } });
		expect(plain.status).toBe(200);
		expect(plain.headers["content-encoding"]).toBeUndefined();
		expect(plain.headers.etag).not.toBe(whole.headers.etag);
		expect(plain.body.equals(world.program)).toBe(true);
	});

	test("only tunnels and people get them; files that no manifest names are not there", async () => {
		expect((await world.asFront(world.url(blobPath()))).status).toBe(401);
		const forged = { "x-groundplane-host": "host-1" };
		expect((await world.asFront(world.url(blobPath()), { headers: forged })).status).toBe(401);
		expect((await world.asFront(world.url(blobPath()), { headers: await world.user() })).status).toBe(200);
		expect((await world.asTunnel(world.url(`/artifacts/v1/blobs/sha256/${sha256("stray")}`))).status).toBe(404);
	});

	test("one flipped bit in a manifest keeps it from being served, and a metric says so", async () => {
		const manifest = (version: string) =>
			world.asTunnel(world.url(`/artifacts/v1/bundles/kubernetes/${version}/manifest.jws`));
		expect((await manifest("v1.36.3")).status).toBe(200);
		expect(await (await manifest("v1.36.4")).json()).toMatchObject({ status: 422, code: "SignatureInvalid" });
		expect(await (await manifest("v1.0.0")).json()).toMatchObject({ status: 404, code: "BundleNotFound" });
		const list = await world.asFront(world.url("/artifacts/v1/bundles"), { headers: await world.user() });
		expect(await list.json()).toMatchObject({ items: [{ name: "kubernetes", version: "v1.36.3", bytes: 500_000 }] });
		const metrics = await (await fetch(`${world.health}/metrics`)).text();
		expect(metrics).toMatch(/groundplane_bundles\{bundle="kubernetes",version="v1\.36\.4",.*\} 0/);
	});
});

describe("joining", () => {
	const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
	const pinOf = async () =>
		(
			(await (await world.asFront(world.url("/artifacts/v1/pin"), { headers: await world.user() })).json()) as {
				pin: string;
			}
		).pin;
	/** As the printed command downloads it. */
	const curlScript = (pin: string, token: string) =>
		run("curl", [
			"-fsSLk",
			"--pinnedpubkey",
			pin,
			"-H",
			`Authorization: Bearer ${token}`,
			`https://${world.domain}/artifacts/v1/join`,
		]);

	test("the stamped package holds the region's address, its CA and the token, and dpkg reads it", async () => {
		const path = "/artifacts/v1/packages/groundplane-agent-config.deb";
		const deb = world.at("config.deb");
		await writeFile(deb, (await world.asFront(world.url(path), { headers: bearer(GOOD) })).body);
		const listing = (await run("dpkg-deb", ["-c", deb])).stdout;
		expect(listing).toMatch(/-rw-r--r-- root\/root +\d+ 2026-01-02 \d\d:\d\d \.\/etc\/groundplane\/agent\.json/);
		expect(listing).toMatch(/-rw------- root\/root +48 .* \.\/etc\/groundplane\/join-token/);
		const fields = (await run("dpkg-deb", ["-f", deb])).stdout;
		expect(fields).toContain("Package: groundplane-agent-config");
		expect(fields).toContain("Depends: groundplane-agent");
		await run("dpkg-deb", ["-x", deb, world.at("tree")]);
		const config = agentConfig.parse(JSON.parse(await readFile(world.at("tree/etc/groundplane/agent.json"), "utf8")));
		expect(config).toEqual({
			region: "test",
			address: `${world.domain}:443`,
			tunnelServerName: `tunnel.${world.domain}`,
			enrollUrl: `https://${world.domain}`,
			caBundle: world.caPem,
			releaseJwks: world.releaseJwks,
			hostName: "host-1",
		});
		expect(await readFile(world.at("tree/etc/groundplane/join-token"), "utf8")).toBe(`${GOOD}\n`);
		expect((await world.asFront(world.url(path), { headers: bearer(EXPIRED) })).status).toBe(401);
		expect((await world.asFront(world.url(path))).status).toBe(401);
	});

	test("the script installs both packages, keeps the proxy on the host and waits for enrolment", async () => {
		const { stdout: script } = await curlScript(await pinOf(), GOOD);
		const bin = world.at("bin");
		await mkdir(bin);
		const stub = async (name: string, lines: string) => {
			await writeFile(join(bin, name), `#!/bin/sh\n${lines}\n`);
			await chmod(join(bin, name), 0o755);
		};
		// A machine without systemd and dpkg's database: what the script asks for is played, what it fetches is real.
		await stub("id", "echo 1000");
		await stub("sudo", '"$@"');
		await stub("systemctl", ":");
		await stub(
			"dpkg",
			`[ "$1" = -i ] || { echo amd64; exit; }; cat "$2" >${world.at("installed")}; cp "$3" ${world.at("installed.deb")}`,
		);
		const here = script
			.replaceAll("/run/systemd/system", world.at())
			.replaceAll("/etc/default", world.at())
			.replaceAll("/etc/groundplane", world.at());
		const env = {
			PATH: `${bin}:${process.env.PATH}`,
			https_proxy: "http://me:p%40ss@proxy:3128",
			no_proxy: "localhost, .example.com,10.0.0.0/8,[::1]",
		};
		await writeFile(world.at("join.sh"), here);
		const { stdout } = await run("sh", [world.at("join.sh")], { env });
		expect(stdout).toContain("enrolled in region test");
		expect(await readFile(world.at("installed"), "utf8")).toBe("a newer agent");
		expect((await run("dpkg-deb", ["-f", world.at("installed.deb"), "Package"])).stdout.trim()).toBe(
			"groundplane-agent-config",
		);
		expect(await readFile(world.at("groundplane-agent"), "utf8")).toBe(
			'https_proxy="http://me:p%40ss@proxy:3128"\nno_proxy="localhost, .example.com,10.0.0.0/8,[::1]"\n',
		);
		expect((await stat(world.at("groundplane-agent"))).mode & 0o777).toBe(0o600);

		await writeFile(world.at("join.sh"), here.replace(/agent\.deb [0-9a-f]{64}/, `agent.deb ${"0".repeat(64)}`));
		await expect(run("sh", [world.at("join.sh")], { env })).rejects.toMatchObject({
			stderr: expect.stringContaining("not what the region announced"),
		});
		const bad = { ...env, https_proxy: 'http://x"; reboot; "' };
		await writeFile(world.at("join.sh"), here);
		await expect(run("sh", [world.at("join.sh")], { env: bad })).rejects.toMatchObject({
			stderr: expect.stringContaining("https_proxy is not a URL"),
		});
		await expect(
			run("sh", [world.at("join.sh")], { env: { ...env, no_proxy: "localhost,$(reboot)" } }),
		).rejects.toMatchObject({
			stderr: expect.stringContaining("no_proxy is not a list"),
		});
	});

	test("a server with another key gets not even the token", async () => {
		const other = `sha256//${Buffer.alloc(32).toString("base64")}`;
		await expect(curlScript(other, GOOD)).rejects.toMatchObject({ code: 90 });
	});

	test("a token that is refused gives a script that says so", async () => {
		const { stdout } = await curlScript(await pinOf(), EXPIRED);
		await writeFile(world.at("refused.sh"), stdout);
		await expect(run("sh", [world.at("refused.sh")])).rejects.toMatchObject({
			code: 1,
			stderr: "gp: It isn't good any more. (JoinTokenExpired)\n    → Ask for a new one.\n",
		});
	});
});

test("the console is served for every path of its own, with caching by digest and a strict policy", async () => {
	const page = await world.asFront(world.url("/clusters/demo"));
	expect(page.text()).toBe("<!doctype html>");
	expect(page.headers["content-security-policy"]).toContain("default-src 'self'");
	expect(page.headers["cache-control"]).toBe("no-cache");
	expect((await world.asFront(world.url("/assets/app-123.js"))).headers["cache-control"]).toContain("immutable");
	expect((await world.asFront(world.url("/assets/gone.js"))).status).toBe(404);
	expect((await world.asFront(world.url("/..%2f..%2fetc/passwd.txt"))).status).toBeGreaterThanOrEqual(400);
	expect((await world.asFront(world.url("/artifacts/v1/nothing"))).status).toBe(404);
});
