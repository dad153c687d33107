import { createServer as createHttpServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo, Server as NetServer } from "node:net";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import type { Express } from "express";
import { register as defaultRegistry } from "prom-client";
import type { z } from "zod";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { type ConfigOf, type Environment, loadConfig } from "./config.ts";
import { createApp } from "./http.ts";
import { createInternalClient, type InternalFetch } from "./internal.ts";
import { createLog, type Log } from "./log.ts";
import { createMetrics, type Metrics } from "./metrics.ts";
import { TlsFiles } from "./tls.ts";

/** What a service is given to start with. */
export interface ServiceContext<Config> {
	readonly name: string;
	readonly config: Config;
	readonly log: Log;
	readonly metrics: Metrics;
	readonly tls: TlsFiles;
	/** Calls other services of the region with this service's client certificate. */
	readonly internal: InternalFetch;
	/** Aborts when the service is to stop. */
	readonly signal: AbortSignal;
	/** Ends the process in an orderly way because the service can't go on; the pod starts anew. */
	fail(error: unknown): void;
}

/** What a service is made of once it has started. */
export interface ServiceParts {
	/** Mounts routes on the express application (request ids, metrics and problem details are there already). */
	readonly app?: (app: Express) => void;
	/** Takes a request before express sees it; returns false to let express have it. For streams that must not be touched. */
	readonly onRequest?: (request: IncomingMessage, response: ServerResponse) => boolean;
	/** Takes HTTP upgrades; without it they are refused. */
	readonly onUpgrade?: (request: IncomingMessage, socket: Duplex, head: Buffer) => void;
	/** Ask clients for a certificate (it is optional; see `requireService`). */
	readonly requestClientCert?: boolean;
	/** `false` when the service has listeners of its own: then the kit serves health alone and `port` is 0. */
	readonly listen?: false;
	/** What must work for the service to be ready, by name. */
	readonly checks?: Readonly<Record<string, () => Promise<void>>>;
	/** Closes what `start` opened; called after the last request was answered. */
	readonly stop?: () => Promise<void>;
}

export interface ServiceDefinition<Shape extends z.ZodRawShape = z.ZodRawShape> {
	readonly name: string;
	/** Configuration beside the common one, as zod schemas by camel-case name. */
	readonly config: Shape;
	start(context: ServiceContext<ConfigOf<Shape>>): Promise<ServiceParts>;
}

export interface RunningService {
	/** Port of the HTTPS listener. */
	readonly port: number;
	readonly healthPort: number;
	/** Resolves when all is closed; rejects with what made the service fail. */
	readonly stopped: Promise<void>;
}

/** Keeps the type of the configuration while a definition is written down. */
export const defineService = <Shape extends z.ZodRawShape>(definition: ServiceDefinition<Shape>) => definition;

const CHECK_DEADLINE_MS = 2_000;
/** Time for endpoints to forget this pod between "not ready" and "no longer accepting". */
const LAME_DUCK_MS = 2_000;
const DRAIN_MS = 20_000;

/**
 * Starts a service: health first (so that a slow database does not get the pod killed), then the service's own parts,
 * then HTTPS. When `signal` aborts: not ready, stop accepting, let requests finish, close.
 */
export async function startService<Shape extends z.ZodRawShape>(
	definition: ServiceDefinition<Shape>,
	{
		env,
		signal,
		log,
		lameDuckMs = LAME_DUCK_MS,
	}: { env: Environment; signal: AbortSignal; log?: Log; lameDuckMs?: number },
): Promise<RunningService> {
	const config = loadConfig(definition.config, env);
	const { tlsDir, port, healthPort, logLevel } = config as ConfigOf<Record<never, never>>;
	const serviceLog = log ?? createLog(definition.name, logLevel);
	const metrics = createMetrics(definition.name);
	const tls = new TlsFiles(tlsDir);
	const failure = new AbortController();
	const stopping = AbortSignal.any([signal, failure.signal]);
	tls.watch(stopping, (err) => serviceLog.error({ err }, "can't read the new certificate; the old one stays in use"));

	let parts: ServiceParts | undefined;
	const health = healthServer(metrics, () => (stopping.aborted ? undefined : parts));
	await listen(health, healthPort);
	try {
		const started = await definition.start({
			name: definition.name,
			config,
			log: serviceLog,
			metrics,
			tls,
			internal: createInternalClient(tls),
			signal: stopping,
			fail: (error) => failure.abort(asGroundplaneError(error)),
		});
		const upgraded = new Set<Duplex>();
		const server =
			started.listen === false ? undefined : httpsServer(started, { tls, log: serviceLog, metrics, upgraded });
		if (server) await listen(server, port);
		parts = started;
		const running = { port: server ? portOf(server) : 0, healthPort: portOf(health) };
		serviceLog.info(running, "started");
		const stopped = (async () => {
			if (!stopping.aborted)
				await new Promise((resolve) => stopping.addEventListener("abort", resolve, { once: true }));
			serviceLog.info("stopping");
			await delay(failure.signal.aborted ? 0 : lameDuckMs);
			if (server) await close(server, DRAIN_MS, upgraded);
			await started.stop?.();
			await close(health, 0);
			serviceLog.info("stopped");
			if (failure.signal.aborted) throw failure.signal.reason;
		})();
		// Whoever awaits it hears of it; nobody has to.
		stopped.catch(() => {});
		return { ...running, stopped };
	} catch (error) {
		await close(health, 0);
		throw error;
	}
}

/** The main program of a service: environment and signals of the process, exit code 1 with a reason when it fails. */
export async function runService<Shape extends z.ZodRawShape>(definition: ServiceDefinition<Shape>): Promise<void> {
	const stop = new AbortController();
	for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort());
	try {
		const { stopped } = await startService(definition, { env: process.env, signal: stop.signal });
		await stopped;
		process.exitCode = 0;
	} catch (error) {
		createLog(definition.name).fatal({ err: asGroundplaneError(error) }, "can't go on");
		process.exitCode = 1;
	}
	// Whatever a library still holds open must not keep a pod from ending.
	setTimeout(() => process.exit(), 1_000).unref();
}

function httpsServer(
	{ app, onRequest, onUpgrade, requestClientCert = false }: ServiceParts,
	{ tls, log, metrics, upgraded }: { tls: TlsFiles; log: Log; metrics: Metrics; upgraded: Set<Duplex> },
): Server {
	const express = createApp(app ?? (() => {}), { log, metrics });
	const server = createHttpsServer(
		{
			...tls.current,
			minVersion: "TLSv1.2",
			requestCert: requestClientCert,
			// Who may call is decided per path, not in the handshake.
			rejectUnauthorized: false,
			// Longer than the idle time of `front`, so that it never reuses a connection that we are closing.
			keepAliveTimeout: 75_000,
			// Streams may take as long as they like; slow headers may not.
			requestTimeout: 0,
			headersTimeout: 20_000,
		},
		(request, response) => {
			if (!onRequest?.(request, response)) express(request, response);
		},
	);
	server.on("upgrade", (request, socket, head) => {
		upgraded.add(socket);
		socket.once("close", () => upgraded.delete(socket));
		if (onUpgrade) onUpgrade(request, socket, head);
		else socket.end("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
	});
	const forget = tls.onChange((material) => {
		server.setSecureContext({ ...material, minVersion: "TLSv1.2" });
		log.info("certificate reloaded");
	});
	server.once("close", forget);
	return server;
}

function healthServer(metrics: Metrics, ready: () => ServiceParts | undefined): Server {
	return createHttpServer(async (request, response) => {
		const answer = (status: number, body: string, type = "text/plain; charset=utf-8") =>
			response.writeHead(status, { "content-type": type }).end(body);
		switch (request.url) {
			case "/healthz":
				return answer(200, "ok\n");
			case "/readyz": {
				const parts = ready();
				if (!parts) return answer(503, "not ready: starting or stopping\n");
				const failed = await runChecks(parts.checks ?? {});
				return failed.length > 0 ? answer(503, `not ready:\n${failed.join("\n")}\n`) : answer(200, "ok\n");
			}
			case "/metrics":
				// The default registry holds what operator/kube counts.
				return answer(
					200,
					`${await metrics.registry.metrics()}${await defaultRegistry.metrics()}`,
					metrics.registry.contentType,
				);
			default:
				return answer(404, "not found\n");
		}
	});
}

async function runChecks(checks: Readonly<Record<string, () => Promise<void>>>): Promise<string[]> {
	const results = await Promise.all(
		Object.entries(checks).map(async ([name, check]) => {
			const deadline = AbortSignal.timeout(CHECK_DEADLINE_MS);
			const late = new Promise<never>((_, reject) =>
				deadline.addEventListener("abort", () => reject(new Error("no answer within 2 s")), { once: true }),
			);
			return Promise.race([check(), late]).then(
				() => undefined,
				(error: unknown) => `${name}: ${asGroundplaneError(error).message}`,
			);
		}),
	);
	return results.filter((line) => line !== undefined);
}

async function listen(server: NetServer, port: number): Promise<void> {
	await new Promise<void>((resolve, reject) => {
		server.once("error", (cause) =>
			reject(
				new GroundplaneError("InvalidConfiguration", `can't listen on port ${port}: ${cause.message}`, {
					next: "Choose a free port with PORT and HEALTH_PORT.",
					cause,
				}),
			),
		);
		server.listen(port, () => resolve());
	});
	server.removeAllListeners("error");
}

const portOf = (server: NetServer) => (server.address() as AddressInfo).port;

/** Stops accepting, waits for requests under way for `drainMs`, then cuts what is left. */
async function close(server: Server, drainMs: number, upgraded: ReadonlySet<Duplex> = new Set()): Promise<void> {
	const closed = new Promise<void>((resolve) => server.close(() => resolve()));
	server.closeIdleConnections();
	const timer = setTimeout(() => {
		server.closeAllConnections();
		for (const socket of upgraded) socket.destroy();
	}, drainMs);
	await closed;
	clearTimeout(timer);
}
