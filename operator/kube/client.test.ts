import type { IncomingMessage, ServerResponse } from "node:http";
import { describe, expect, it } from "vitest";
import { answering } from "../../test/support/answering.ts";
import type { KubeError } from "./client.ts";

/** A client of an API server that answers all in the same way, and how often that was asked. */
async function refusing(status: number, retryAfter: string | undefined, timeout = 30_000) {
	const asked: (string | undefined)[] = [];
	const answer = (request: IncomingMessage, response: ServerResponse) => {
		asked.push(request.method);
		response.writeHead(status, retryAfter === undefined ? {} : { "retry-after": retryAfter });
		response.end(JSON.stringify({ kind: "Status", code: status, reason: "Test", message: "a test's" }));
	};
	const client = await answering(answer, { timeout });
	return { client, asked };
}

// By the names of client-go's rest/request_test.go (v0.37) where it has the case; there it is ten times.
describe("a request that the server turns away", () => {
	it.each([
		["TestCheckRetryHandles429And5xx", "GET", 429, "0", 5, 0],
		["TestCheckRetryHandles429And5xx", "POST", 503, "0", 5, 0],
		["TestCheckRetryHandles429And5xx", "PATCH", 500, "0", 5, 0],
		["TestRetryableConditions: no Retry-After", "GET", 500, undefined, 1, undefined],
		["TestRetryableConditions: what is wrong stays wrong", "GET", 400, "0", 1, 0],
		["TestRetryableConditions: a conflict", "PUT", 409, "0", 1, 0],
		["more than is waited for here: whoever asked waits", "GET", 429, "20", 1, 20_000],
	])("%s: %s, %i, Retry-After %s: sent %i times", async (_, method, status, header, times, retryAfter) => {
		const { client, asked } = await refusing(status, header);
		const error = await client.request<KubeError>(method, "/").catch((reason: KubeError) => reason);
		expect([asked.length, error.httpStatus, error.retryAfter]).toEqual([times, status, retryAfter]);
	});

	it("says what the server asked for when its own time is up before that", async () => {
		const { client, asked } = await refusing(429, "1", 500);
		await expect(client.request("GET", "/")).rejects.toMatchObject({ httpStatus: 429, retryAfter: 1000 });
		expect(asked).toHaveLength(1);
	});
});
