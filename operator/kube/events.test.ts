import pino from "pino";
import { describe, expect, it, vi } from "vitest";
import { answering } from "../../test/support/answering.ts";
import { patience } from "../../test/support/patience.ts";
import { EventRecorder } from "./events.ts";
import { configMaps, type EventObject } from "./resources.ts";

const log = pino({ level: "silent" });
const until = (check: () => void) => vi.waitFor(check, { ...patience, interval: 5 });

/** A recorder, and the API server that it writes to. */
async function recorder() {
	const at = { now: 1_000_000_000_000 };
	const api = { events: new Map<string, EventObject>(), patches: 0, refused: 0, refuse: 0 };
	const client = await answering(async (request, response) => {
		let text = "";
		for await (const chunk of request) text += chunk;
		const body = JSON.parse(text) as EventObject;
		const answer = (status: number) => response.writeHead(status).end(JSON.stringify({ kind: "Status", code: status }));
		if (api.refuse > 0) {
			api.refuse--;
			api.refused++;
			return answer(500);
		}
		if (request.method === "POST") {
			api.events.set(body.metadata.name, body);
			return answer(201);
		}
		api.patches++;
		const found = api.events.get(request.url?.split("/").at(-1) ?? "");
		if (found === undefined) return answer(404);
		Object.assign(found, body);
		return answer(200);
	});
	const events = new EventRecorder({ client, component: "test", instance: "1", log, now: () => at.now });
	const tell = (note: string, reason = "Broken", name = "a") =>
		events.event(configMaps, { metadata: { name, namespace: "n", uid: name } }, "Warning", reason, note);
	return { at, api, tell, notes: () => [...api.events.values()].map(({ note }) => note) };
}

// By the names of client-go's tools/record and tools/events (v0.37) where they have the case.
describe("events", () => {
	it("TestUpdateExpiredEvent: one that is gone by now is written anew", async () => {
		const { at, api, tell } = await recorder();
		tell("It is broken.");
		await until(() => expect(api.events.size).toBe(1));
		api.events.clear();
		at.now += 40_000;
		tell("It is broken.");
		await until(() => expect(api.events.size).toBe(1));
		expect(api.patches).toBe(1);
	});

	it("TestWriteEventError: one that could not be written is written when it happens again", async () => {
		const { api, tell } = await recorder();
		api.refuse = 1;
		tell("It is broken.");
		await until(() => expect(api.refused).toBe(1));
		tell("It is broken.");
		await until(() => expect(api.events.size).toBe(1));
	});

	it("TestEventSeriesf, TestRefreshExistingEventSeries: one that goes on for hours is one", async () => {
		const { at, api, tell } = await recorder();
		for (let minute = 0; minute < 120; minute++) {
			tell("It is broken.");
			await until(() => expect(api.events.size > 0 && api.patches === minute).toBe(true));
			at.now += 60_000;
		}
		expect([...api.events.values()].map(({ series }) => series?.count)).toEqual([120]);
		// It ended, and began anew.
		at.now += 900_000;
		tell("It is broken.");
		await until(() => expect(api.events.size).toBe(2));
	});

	it("TestEventCorrelator: similar-events-should-aggregate-event: a host that flaps has two, whenever it went", async () => {
		const { at, api, tell } = await recorder();
		for (let flap = 0; flap < 50; flap++) {
			tell(`The tunnel has been down since ${new Date(at.now).toISOString()}.`, "Disconnected");
			tell("The host is ready.", "Ready");
			at.now += 60_000;
			await until(() => expect(api.events.size + api.patches).toBe(2 * flap + 2));
		}
		expect([...api.events.values()].map(({ series }) => series?.count)).toEqual([50, 50]);
	});

	it("tells each thing of an object that has many to tell, such as the hosts that a region left behind", async () => {
		const { api, tell } = await recorder();
		for (let host = 0; host < 50; host++) tell(`Host h${host} was given up.`, "LeftBehind");
		await until(() => expect(api.events.size).toBe(50));
	});

	it("TestEventCorrelator: create-many-unique-events, of many hosts that flap", async () => {
		const { at, api, tell } = await recorder();
		for (let flap = 0; flap < 2; flap++) {
			for (let host = 0; host < 2000; host++) {
				tell("It is broken.", "Broken", `host-${host}`);
				if (host % 500 === 499) await until(() => expect(api.events.size + api.patches).toBe(flap * 2000 + host + 1));
			}
			at.now += 60_000;
		}
		expect([api.events.size, api.patches]).toEqual([2000, 2000]);
	});

	it("keeps to the length that the API server takes, in bytes, and cuts no letter", async () => {
		const { tell, notes } = await recorder();
		tell(`x${"ö😀".repeat(400)}`);
		await until(() => expect(notes()).toHaveLength(1));
		expect(Buffer.byteLength(notes()[0] as string)).toBeLessThanOrEqual(1024);
		expect(notes()[0]).toMatch(/^x(ö😀)+ö?$/u);
	});
});
