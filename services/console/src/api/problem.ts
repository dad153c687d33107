/** An error as the region tells it (RFC 9457 with our code and next step), or as close to it as we can come. */
export class Problem extends Error {
	readonly code: string;
	/** What to do about it. */
	readonly next: string;
	/** HTTP status; 0 when there was no answer at all. */
	readonly status: number;
	/** Id of the request in the service's log. */
	readonly requestId: string | undefined;

	constructor(
		code: string,
		message: string,
		{ next, status = 0, requestId, cause }: { next: string; status?: number; requestId?: string; cause?: unknown },
	) {
		super(message, { cause });
		this.name = "Problem";
		this.code = code;
		this.next = next;
		this.status = status;
		this.requestId = requestId;
	}

	/** Whether asking again may help. */
	get isTransient(): boolean {
		return this.status === 0 || this.status === 429 || this.status >= 500;
	}
}

/** What an answer that is not a success says. A proxy's own error page is no problem document, and its text of no use. */
export async function problemOf(response: Response): Promise<Problem> {
	const requestId = response.headers.get("x-request-id") ?? undefined;
	const body = (await response.json().catch(() => undefined)) as Record<string, unknown> | undefined;
	if (typeof body?.code === "string" && typeof body.detail === "string" && typeof body.next === "string") {
		return new Problem(body.code, body.detail, {
			next: body.next,
			status: response.status,
			...(requestId !== undefined && { requestId }),
		});
	}
	return new Problem("Unreachable", `The region answered with status ${response.status} and no reason.`, {
		next: "Try again in a moment. If it lasts, tell the provider: a service behind the front door is away.",
		status: response.status,
		...(requestId !== undefined && { requestId }),
	});
}

/** Any thrown value as a problem; `fetch` throws a `TypeError` when there is no connection. */
export function asProblem(error: unknown): Problem {
	if (error instanceof Problem) return error;
	if (error instanceof TypeError) {
		return new Problem("Unreachable", "The region does not answer.", {
			next: "Check your own connection. The console goes on by itself as soon as the region answers.",
			cause: error,
		});
	}
	return new Problem("Internal", error instanceof Error ? error.message : String(error), {
		next: "This is a fault of the console: reload the page, and report it with what you were doing.",
		cause: error,
	});
}
