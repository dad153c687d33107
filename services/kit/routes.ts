import express, { type Request, type RequestHandler, type Response, Router } from "express";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type Auth, type Role, type User, userOf } from "./auth.ts";

type Output<Schema> = Schema extends z.ZodType ? z.output<Schema> : undefined;
type Optional = z.ZodType | undefined;

/** What a route's handler gets: everything validated. */
export interface RouteInput<Params extends Optional, Query extends Optional, Body extends Optional> {
	readonly params: Output<Params>;
	readonly query: Output<Query>;
	readonly body: Output<Body>;
	/** Who is asking. Throws on routes with `roles: "anyone"`. */
	readonly user: User;
	readonly request: Request;
	readonly response: Response;
}

export interface Route<
	Params extends Optional,
	Query extends Optional,
	Body extends Optional,
	Answer extends Optional,
> {
	readonly method: "get" | "post" | "put" | "patch" | "delete";
	/** Express path such as `/api/v1/hosts/:name`. */
	readonly path: string;
	readonly summary: string;
	/** Who may: these roles (and `admin`), everybody who is signed in (`[]`), or anyone at all. */
	readonly roles: readonly Role[] | "anyone";
	readonly params?: Params;
	readonly query?: Query;
	readonly body?: Body;
	/** Schema of the answer; also its documentation. Without it the answer is empty (204) or written by the handler. */
	readonly answer?: Answer;
	/** Status of a good answer: 200, or 204 when there is no schema for it. */
	readonly status?: number;
	/** Media type when the handler writes the answer itself. */
	readonly mediaType?: string;
	/** Runs before the handler, after the user is known. */
	readonly before?: readonly RequestHandler[];
	readonly handler: (
		input: RouteInput<Params, Query, Body>,
	) => Promise<Answer extends z.ZodType ? z.input<Answer> : void>;
}

type AnyRoute = Route<Optional, Optional, Optional, Optional>;

/**
 * Routes whose input is validated by zod and which document themselves as OpenAPI 3.1.
 * An answer is sent as the handler returned it: its schema is a promise checked by tests, not a filter at run time.
 */
export class Api {
	readonly #info: { title: string; version: string; description?: string };
	readonly #routes: AnyRoute[] = [];

	constructor(info: { title: string; version: string; description?: string }) {
		this.#info = info;
	}

	route<
		Params extends Optional = undefined,
		Query extends Optional = undefined,
		Body extends Optional = undefined,
		Answer extends Optional = undefined,
	>(route: Route<Params, Query, Body, Answer>): this {
		this.#routes.push(route as unknown as AnyRoute);
		return this;
	}

	/** An express router with all routes. Bodies are JSON of at most 1 MiB. */
	router(auth: Pick<Auth, "requireUser">): Router {
		const router = Router();
		const json = express.json({ limit: "1mb", strict: true });
		for (const route of this.#routes) {
			const handlers: RequestHandler[] = [];
			if (route.roles !== "anyone") handlers.push(auth.requireUser(...route.roles));
			if (route.body) handlers.push(json);
			router[route.method](route.path, ...handlers, ...(route.before ?? []), (request, response) =>
				run(route, request, response),
			);
		}
		return router;
	}

	/** The OpenAPI 3.1 document of all routes. */
	openapi(): Record<string, unknown> {
		const paths: Record<string, Record<string, unknown>> = {};
		for (const route of this.#routes) {
			const path = route.path.replace(/:(\w+)/g, "{$1}");
			paths[path] = { ...paths[path], [route.method]: operation(route) };
		}
		return {
			openapi: "3.1.0",
			info: this.#info,
			paths,
			components: {
				securitySchemes: { bearer: { type: "http", scheme: "bearer", bearerFormat: "JWT" } },
				schemas: { Problem: jsonSchema(problem) },
			},
		};
	}
}

async function run(route: AnyRoute, request: Request, response: Response): Promise<void> {
	const answer = await route.handler({
		params: parse(route.params, request.params, "path"),
		query: parse(route.query, request.query, "query"),
		body: parse(route.body, request.body, "body"),
		get user() {
			return userOf(request);
		},
		request,
		response,
	} as RouteInput<Optional, Optional, Optional>);
	if (response.headersSent || response.writableEnded) return;
	if (route.answer) response.status(route.status ?? response.statusCode).json(answer);
	else if (!route.mediaType) response.status(route.status ?? 204).end();
}

function parse(schema: Optional, value: unknown, where: string): unknown {
	if (!schema) return undefined;
	const result = schema.safeParse(value ?? {});
	if (result.success) return result.data;
	const problems = result.error.issues.map(
		({ path, message }) => `${[where, ...path.map(String)].join(".")}: ${message}`,
	);
	throw new GroundplaneError("InvalidInput", problems.join("; "), {
		next: "Correct these fields: see /openapi.json for what is expected.",
		details: { problems },
	});
}

/** Problem details (RFC 9457) as every error is answered. */
export const problem = z.object({
	title: z.string().describe("Stable code of the error."),
	status: z.int(),
	code: z.string(),
	detail: z.string().describe("What happened."),
	next: z.string().describe("What to do next."),
	instance: z.string().optional().describe("Id of the request, as in the log."),
});

function jsonSchema(schema: z.ZodType, io: "input" | "output" = "output"): Record<string, unknown> {
	const { $schema, ...rest } = z.toJSONSchema(schema, { target: "draft-2020-12", io, unrepresentable: "any" });
	return rest;
}

function operation(route: AnyRoute): Record<string, unknown> {
	const parameters = (schema: Optional, where: "path" | "query") => {
		if (!schema) return [];
		const { properties = {}, required = [] } = jsonSchema(schema, "input") as {
			properties?: Record<string, { description?: string }>;
			required?: string[];
		};
		return Object.entries(properties).map(([name, { description, ...property }]) => ({
			name,
			in: where,
			required: where === "path" || required.includes(name),
			...(description && { description }),
			schema: property,
		}));
	};
	const status = String(route.status ?? (route.answer || route.mediaType ? 200 : 204));
	const content = route.answer
		? { "application/json": { schema: jsonSchema(route.answer) } }
		: route.mediaType
			? { [route.mediaType]: { schema: { type: "string" } } }
			: undefined;
	return {
		summary: route.summary,
		operationId: `${route.method}${route.path.replace(/[^A-Za-z0-9]+(\w)?/g, (_, letter: string | undefined) => (letter ?? "").toUpperCase())}`,
		parameters: [...parameters(route.params, "path"), ...parameters(route.query, "query")],
		...(route.body && {
			requestBody: { required: true, content: { "application/json": { schema: jsonSchema(route.body, "input") } } },
		}),
		responses: {
			[status]: { description: "Done.", ...(content && { content }) },
			default: {
				description: "It was refused or failed.",
				content: { "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } } },
			},
		},
		...(route.roles !== "anyone" && {
			security: [{ bearer: [] }],
			"x-roles": route.roles.length > 0 ? ["admin", ...route.roles.filter((name) => name !== "admin")] : ["any"],
		}),
	};
}
