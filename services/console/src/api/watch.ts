import { createParser } from "eventsource-parser";
import { asProblem, Problem } from "./problem.ts";
import type { Cluster, Host } from "./types.ts";

/** What `GET /api/v1/watch` tells. */
export type WatchEvent =
	| { readonly event: "snapshot"; readonly hosts: readonly Host[]; readonly clusters: readonly Cluster[] }
	| { readonly event: "host"; readonly type: "added" | "updated" | "deleted"; readonly object: Host }
	| { readonly event: "cluster"; readonly type: "added" | "updated" | "deleted"; readonly object: Cluster };

export type WatchState =
	| { readonly state: "connecting" }
	| { readonly state: "live" }
	| { readonly state: "lost"; readonly since: number; readonly problem: Problem };

export interface WatchOptions {
	readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
	/** Events that arrived together. */
	readonly onEvents: (events: WatchEvent[]) => void;
	readonly onState: (state: WatchState) => void;
	readonly signal: AbortSignal;
	/** Waits before a new attempt; ends early when there is reason to hope. */
	readonly wait: (ms: number, signal: AbortSignal) => Promise<void>;
	readonly random?: () => number;
	readonly now?: () => number;
}

/** The server says something every 15 s; after three times that the line is dead, whatever TCP thinks. */
const SILENCE_MS = 45_000;
const MAX_WAIT_MS = 30_000;

/** Full jitter, from a second to half a minute. */
export const reconnectDelay = (attempt: number, random: () => number): number =>
	Math.round(random() * Math.min(MAX_WAIT_MS, 1_000 * 2 ** attempt));

/**
 * Follows the region's hosts and clusters until `signal` aborts, for ever: resumes by `Last-Event-ID`, backs off with jitter.
 * A stream that ends in order (the token's end, another pod) is opened again without a word.
 */
export async function followRegion(options: WatchOptions): Promise<void> {
	const { onState, signal, wait, random = Math.random, now = Date.now } = options;
	let lastEventId = "";
	let failures = 0;
	let lostSince = 0;
	onState({ state: "connecting" });
	while (!signal.aborted) {
		const attempt = new AbortController();
		try {
			const response = await options.fetch("/api/v1/watch", {
				headers: { accept: "text/event-stream", ...(lastEventId && { "last-event-id": lastEventId }) },
				cache: "no-store",
				signal: AbortSignal.any([signal, attempt.signal]),
			});
			onState({ state: "live" });
			failures = 0;
			await readEvents(response, attempt, (events, id) => {
				lastEventId = id ?? lastEventId;
				options.onEvents(events);
			});
			await wait(random() * 500, signal);
		} catch (error) {
			if (signal.aborted) return;
			if (failures++ === 0) lostSince = now();
			onState({ state: "lost", since: lostSince, problem: asProblem(attempt.signal.reason ?? error) });
			await wait(reconnectDelay(failures, random), signal);
		} finally {
			attempt.abort();
		}
	}
}

async function readEvents(
	response: Response,
	attempt: AbortController,
	onChunk: (events: WatchEvent[], lastEventId: string | undefined) => void,
): Promise<void> {
	const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
	if (!reader) return;
	let arrived: WatchEvent[] = [];
	let lastEventId: string | undefined;
	const parser = createParser({
		onEvent: ({ id, event, data }) => {
			lastEventId = id ?? lastEventId;
			if (event === "snapshot" || event === "host" || event === "cluster") {
				arrived.push({ event, ...JSON.parse(data) } as WatchEvent);
			}
		},
	});
	for (;;) {
		const silence = setTimeout(
			() =>
				attempt.abort(
					new Problem("TunnelClosed", "Nothing was heard from the region for a while.", {
						next: "The console is connecting again.",
					}),
				),
			SILENCE_MS,
		);
		try {
			const { done, value } = await reader.read();
			if (done) return;
			parser.feed(value);
		} finally {
			clearTimeout(silence);
		}
		if (arrived.length > 0) {
			const events = arrived;
			arrived = [];
			onChunk(events, lastEventId);
		}
	}
}
