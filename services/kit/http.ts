import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import express, { type Express, type NextFunction, type Request, type Response } from "express";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";

const REQUEST_ID = /^[A-Za-z0-9._-]{8,64}$/;
const requestIds = new WeakMap<IncomingMessage, string>();

/** Id of a request: the caller's `x-request-id` when it is sane, else a new one. */
export function requestId(request: IncomingMessage): string {
	let id = requestIds.get(request);
	if (!id) {
		const given = request.headers["x-request-id"];
		id = typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID();
		requestIds.set(request, id);
	}
	return id;
}

/**
 * An error as the client may see it. Faults of our own keep their message to themselves (the log has it);
 * errors of express and its body parser become `InvalidInput`.
 */
export function publicError(error: unknown): GroundplaneError {
	if (error instanceof GroundplaneError && error.code !== "Internal") return error;
	const { status, expose, message } = (error ?? {}) as { status?: number; expose?: boolean; message?: string };
	if (expose && status && status >= 400 && status < 500) {
		return new GroundplaneError("InvalidInput", message ?? "The request can't be read.", {
			next: "Correct the request: see /openapi.json for what is expected.",
			cause: error,
		});
	}
	return new GroundplaneError("Internal", "Something went wrong here.", {
		next: "Try again; if it stays, look for the request id in the service's log.",
		cause: error,
	});
}

/** Answers with problem details (RFC 9457) and logs what was our fault. */
export function sendProblem(request: Request, response: Response, error: unknown, log: Log): void {
	const shown = publicError(error);
	const id = requestId(request);
	if (shown.status >= 500) {
		log.error(
			{ err: asGroundplaneError(error), requestId: id, method: request.method, path: request.path },
			"request failed",
		);
	}
	if (response.headersSent) {
		response.destroy();
		return;
	}
	if (shown.code === "Unauthenticated") response.set("www-authenticate", "Bearer");
	if (shown.status === 503) response.set("retry-after", "5");
	response
		.status(shown.status)
		.type("application/problem+json")
		.send(JSON.stringify({ ...shown.toJSON(), ...(shown.details && { details: shown.details }), instance: id }));
}

/** The express application of a service: request ids, metrics, the service's own routes, then 404 and errors as problems. */
export function createApp(mount: (app: Express) => void, { log, metrics }: { log: Log; metrics: Metrics }): Express {
	const app = express();
	app.disable("x-powered-by");
	app.disable("etag");
	// HAProxy `front` is the one proxy before us.
	app.set("trust proxy", 1);
	app.use((request, response, next) => {
		const started = process.hrtime.bigint();
		response.set("x-request-id", requestId(request));
		response.once("close", () => {
			const seconds = Number(process.hrtime.bigint() - started) / 1e9;
			const route = request.route ? `${request.baseUrl}${request.route.path}` : "other";
			const code = response.writableFinished ? response.statusCode : 499;
			metrics.httpRequests.observe({ method: request.method, route, code: String(code) }, seconds);
			log.debug(
				{ method: request.method, path: request.path, code, seconds, requestId: requestId(request) },
				"request",
			);
		});
		next();
	});
	mount(app);
	app.use((request) => {
		throw new GroundplaneError("NotFound", `There is nothing at ${request.path}.`, {
			next: "Check the path against /openapi.json.",
		});
	});
	app.use((error: unknown, request: Request, response: Response, _next: NextFunction) =>
		sendProblem(request, response, error, log),
	);
	return app;
}
