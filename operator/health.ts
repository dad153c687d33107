import { createServer, type Server } from "node:http";
import { register } from "prom-client";
import type { Reflector } from "./kube/reflector.ts";
import type { KubeObject } from "./kube/resources.ts";

/** What readiness goes by: a copy of the objects of one kind. */
type Copy = Pick<Reflector<KubeObject>, "isFresh" | "hasSynced" | "age"> & {
	readonly resource: Pick<Reflector<KubeObject>["resource"], "kind">;
};

/**
 * Which copies can't be gone by, each with why. A standby has none to go by and is ready: it takes over at once. The leader is
 * when it knows everything, and nothing of it is old.
 */
export const unfit = (isLeader: boolean, copies: readonly Copy[]): readonly string[] =>
	(isLeader ? copies : [])
		.filter(({ isFresh }) => !isFresh)
		.map(({ resource: { kind }, hasSynced, age }) =>
			hasSynced ? `${kind}: nothing heard for ${Math.round(age / 1000)} s` : `${kind}: not complete yet`,
		);

/** `/healthz` (the process answers), `/readyz` and `/metrics`, plain HTTP. `problems` says why it is not ready. */
export function healthServer(problems: () => readonly string[]): Server {
	return createServer((request, response) => {
		const answer = (status: number, body: string, type = "text/plain") =>
			response.writeHead(status, { "content-type": type }).end(body);
		switch (request.url) {
			case "/healthz":
				return answer(200, "ok");
			case "/readyz": {
				const found = problems();
				return found.length === 0 ? answer(200, "ok") : answer(503, `${found.join("\n")}\n`);
			}
			case "/metrics":
				return register.metrics().then(
					(text) => answer(200, text, register.contentType),
					(error) => answer(500, String(error)),
				);
			default:
				return answer(404, "not found");
		}
	});
}
