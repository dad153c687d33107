import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import {
	type IssuedCertificate,
	type RegionCertificates,
	regionCertificates,
} from "../../test/support/certificates.ts";
import { requireService } from "./auth.ts";
import { createLog } from "./log.ts";
import { Api } from "./routes.ts";
import { defineService, type RunningService, startService } from "./service.ts";
import type { TlsFiles } from "./tls.ts";

const directory = mkdtempSync(join(tmpdir(), "gp-kit-"));
const stop = new AbortController();
const lines: string[] = [];
let certificates: RegionCertificates;
let service: RunningService;
let tls: TlsFiles;
let healthy = true;
let release: () => void = () => {};
let stopped = false;

const definition = defineService({
	name: "demo",
	config: { greeting: z.string() },
	async start(context) {
		tls = context.tls;
		const api = new Api({ title: "demo", version: "1" }).route({
			method: "post",
			path: "/api/v1/greet/:name",
			summary: "Greets.",
			roles: "anyone",
			params: z.object({ name: z.string() }),
			body: z.object({ times: z.int().max(3) }),
			answer: z.object({ text: z.string() }),
			handler: async ({ params, body }) => ({
				text: `${context.config.greeting} ${params.name} `.repeat(body.times).trim(),
			}),
		});
		return {
			requestClientCert: true,
			app: (app) => {
				app.use(api.router({ requireUser: () => () => {} }));
				app.get("/openapi.json", (_request, response) => void response.json(api.openapi()));
				app.get(
					"/internal/v1/secret",
					requireService(context.tls, "hosts"),
					(_request, response) => void response.send("ok"),
				);
				app.get("/broken", () => {
					throw new Error("password=hunter2");
				});
				app.get("/slow", async (_request, response) => {
					await new Promise<void>((resolve) => {
						release = resolve;
					});
					response.send("done");
				});
			},
			checks: {
				thing: async () => {
					if (!healthy) throw new GroundplaneError("BusUnavailable", "the thing is away", { next: "Wait." });
				},
			},
			stop: async () => {
				stopped = true;
			},
		};
	},
});

beforeAll(async () => {
	certificates = await regionCertificates(directory);
	const env = {
		REGION: "test",
		DOMAIN: "test.example.com",
		TLS_DIR: await certificates.service("demo"),
		PORT: "0",
		HEALTH_PORT: "0",
		GREETING: "hello",
	};
	const log = createLog("demo", "info", { write: (line: string) => void lines.push(line) });
	service = await startService(definition, { env, signal: stop.signal, log, lameDuckMs: 300 });
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

interface Answer {
	status: number;
	type: string;
	body: string;
	serial: string;
}
const call = (path: string, options: { json?: unknown; identity?: IssuedCertificate } = {}) =>
	new Promise<Answer>((resolve, reject) => {
		const outgoing = request(
			{
				host: "127.0.0.1",
				port: service.port,
				path,
				agent: false,
				method: options.json === undefined ? "GET" : "POST",
				headers: options.json === undefined ? {} : { "content-type": "application/json" },
				ca: certificates.caPem,
				...(options.identity && { cert: options.identity.cert, key: options.identity.key }),
			},
			async (incoming) => {
				const serial = (incoming.socket as TLSSocket).getPeerCertificate().serialNumber;
				let body = "";
				for await (const chunk of incoming) body += chunk;
				resolve({ status: incoming.statusCode ?? 0, type: incoming.headers["content-type"] ?? "", body, serial });
			},
		);
		outgoing.on("error", reject);
		outgoing.end(options.json === undefined ? undefined : JSON.stringify(options.json));
	});
const health = async (path: string) => {
	const response = await fetch(`http://127.0.0.1:${service.healthPort}${path}`);
	return { status: response.status, body: await response.text() };
};

test("routes validate, answer and document themselves", async () => {
	const good = await call("/api/v1/greet/bob", { json: { times: 2 } });
	expect([good.status, JSON.parse(good.body)]).toEqual([200, { text: "hello bob hello bob" }]);

	const bad = await call("/api/v1/greet/bob", { json: { times: 9 } });
	expect([bad.status, bad.type]).toEqual([400, "application/problem+json; charset=utf-8"]);
	expect(JSON.parse(bad.body)).toMatchObject({ code: "InvalidInput", detail: expect.stringContaining("body.times") });

	const { openapi, paths } = JSON.parse((await call("/openapi.json")).body);
	expect(openapi).toBe("3.1.0");
	expect(paths["/api/v1/greet/{name}"].post).toMatchObject({
		operationId: "postApiV1GreetName",
		parameters: [{ name: "name", in: "path", required: true }],
	});
});

test("a fault of ours tells the client nothing and the log everything", async () => {
	const { status, body } = await call("/broken");
	expect([status, JSON.parse(body).code]).toEqual([500, "Internal"]);
	expect(body).not.toContain("hunter2");
	const { instance } = JSON.parse(body);
	expect(lines.some((line) => line.includes(instance) && line.includes("hunter2"))).toBe(true);
});

test("internal paths are for named services, and a host named like one is none", async () => {
	expect((await call("/internal/v1/secret")).status).toBe(403);
	expect((await call("/internal/v1/secret", { identity: await certificates.issueService("monitor") })).status).toBe(
		403,
	);
	expect((await call("/internal/v1/secret", { identity: await certificates.host("hosts") })).status).toBe(403);
	expect((await call("/internal/v1/secret", { identity: await certificates.issueService("hosts") })).status).toBe(200);
});

test("health, readiness and metrics", async () => {
	expect((await health("/healthz")).status).toBe(200);
	expect((await health("/readyz")).status).toBe(200);
	healthy = false;
	expect(await health("/readyz")).toEqual({ status: 503, body: "not ready:\nthing: the thing is away\n" });
	healthy = true;
	const { body } = await health("/metrics");
	expect(body).toContain('route="/api/v1/greet/:name",code="200"');
	expect(body).not.toContain("bob");
});

test("a new certificate is served without a restart, a broken one is not", async () => {
	const { serial } = await call("/openapi.json");
	await certificates.service("demo");
	tls.reload();
	const renewed = await call("/openapi.json");
	expect(renewed.serial).not.toBe(serial);
	writeFileSync(join(tls.directory, "tls.crt"), "half a file");
	expect(() => tls.reload()).toThrow("no usable certificate");
	expect((await call("/openapi.json")).serial).toBe(renewed.serial);
});

test("stopping: not ready, then no new connections, and the request under way is answered", async () => {
	const slow = call("/slow");
	await expect.poll(() => release.name !== "").toBe(true);
	stop.abort();
	expect((await health("/readyz")).status).toBe(503);
	await expect
		.poll(() => call("/openapi.json").catch((error: NodeJS.ErrnoException) => error.code))
		.toBe("ECONNREFUSED");
	expect(stopped).toBe(false);
	release();
	expect((await slow).body).toBe("done");
	await service.stopped;
	expect(stopped).toBe(true);
});

test("configuration lists every problem at once", async () => {
	const start = startService(definition, { env: { PORT: "99999", REGION: "x" }, signal: stop.signal });
	await expect(start).rejects.toMatchObject({
		code: "InvalidConfiguration",
		details: {
			problems: expect.arrayContaining([
				"DOMAIN: is not set",
				"GREETING: is not set",
				expect.stringMatching(/^PORT: /),
			]),
		},
	});
});
