import { describe, expect, it } from "vitest";
import { host } from "../testing/objects.ts";
import { followRegion, reconnectDelay, type WatchEvent, type WatchState } from "./watch.ts";

const encode = (text: string) => new TextEncoder().encode(text);
const event = (id: string, name: string, data: unknown) =>
	`id: ${id}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`;

/** Answers each attempt by the next of `attempts`; stops following when they are used up. */
async function follow(attempts: readonly ((headers: Headers) => Response)[]) {
	const stop = new AbortController();
	const states: WatchState[] = [];
	const events: WatchEvent[] = [];
	const asked: (string | null)[] = [];
	const waits: number[] = [];
	await followRegion({
		signal: stop.signal,
		random: () => 0.5,
		now: () => 42,
		wait: async (ms) => {
			waits.push(ms);
			if (asked.length === attempts.length) stop.abort();
		},
		fetch: async (_url, init) => {
			const headers = new Headers(init.headers);
			asked.push(headers.get("last-event-id"));
			const attempt = attempts[asked.length - 1];
			if (!attempt) throw new Error("asked too often");
			return attempt(headers);
		},
		onState: (state) => states.push(state),
		onEvents: (arrived) => events.push(...arrived),
	});
	return { states: states.map(({ state }) => state), events, asked, waits, last: states.at(-1) };
}

const stream =
	(...parts: (string | Error)[]) =>
	() =>
		new Response(
			new ReadableStream({
				pull(controller) {
					const part = parts.shift();
					if (part === undefined) controller.close();
					else if (part instanceof Error) controller.error(part);
					else controller.enqueue(encode(part));
				},
			}),
		);

describe("following the region", () => {
	it("reads events however they are cut up, resumes after an orderly end, and says nothing of it", async () => {
		const snapshot = event("a-1", "snapshot", { hosts: [host("h1")], clusters: [] });
		const change = event("a-2", "host", { type: "updated", object: host("h1") });
		const { states, events, asked } = await follow([
			stream("retry: 2000\n\n", snapshot.slice(0, 20), snapshot.slice(20) + change.slice(0, 9), change.slice(9)),
			stream(": still here\n\n"),
		]);
		expect(events.map((each) => each.event)).toEqual(["snapshot", "host"]);
		expect(asked).toEqual([null, "a-2"]);
		expect(states).toEqual(["connecting", "live", "live"]);
	});

	it("says that the line is lost, since when and why, backs off, and resumes where it was", async () => {
		const { states, asked, waits, last } = await follow([
			stream(
				event("a-7", "cluster", { type: "deleted", object: { metadata: { name: "c" } } }),
				new TypeError("network"),
			),
			() => {
				throw new TypeError("Failed to fetch");
			},
			() => {
				throw new TypeError("Failed to fetch");
			},
		]);
		expect(states).toEqual(["connecting", "live", "lost", "lost", "lost"]);
		expect(asked).toEqual([null, "a-7", "a-7"]);
		expect(waits).toEqual([1000, 2000, 4000]);
		expect(last).toMatchObject({ since: 42, problem: { code: "Unreachable" } });
	});

	it("backs off to half a minute at most, and spreads", () => {
		expect(reconnectDelay(30, () => 1)).toBe(30_000);
		expect(reconnectDelay(3, () => 0)).toBe(0);
	});
});
