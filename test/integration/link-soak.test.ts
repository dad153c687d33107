import { createHash, randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import type { TestGateway } from "../support/gateway.ts";
import { harms } from "../support/harms.ts";
import { Relay } from "../support/relay.ts";
import { LinkFixture } from "./link-fixture.ts";

const fixture = new LinkFixture();
beforeAll(() => fixture.start());
afterEach(() => fixture.clean());
afterAll(() => fixture.stop());

/** An hour with GROUNDPLANE_SOAK_SECONDS=3600. */
const SECONDS = Number(process.env.GROUNDPLANE_SOAK_SECONDS ?? 20);
const WORKERS = 4;
const MOST_BYTES = 400_000;
const TRANSFER_MS = 15_000;
const MOST_GROWTH = 16 * 1024 * 1024;
const patience = { timeout: 60_000, interval: 200 };

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/** What must not grow. */
function usage(): { memory: number; handles: number } {
	collect();
	const { heapUsed, external, arrayBuffers } = process.memoryUsage();
	return { memory: heapUsed + external + arrayBuffers, handles: process.getActiveResourcesInfo().length };
}

/** What happens to the line; its silences are mostly longer than those that end a tunnel here. */
const allHarms = harms(3_000);

/** Sends bytes there and back. Says whether they came back whole; broken lines break transfers, but none may change a byte. */
async function transfer(gateway: TestGateway): Promise<"whole" | "broken"> {
	const signal = AbortSignal.timeout(TRANSFER_MS);
	const sent = randomBytes(1 + Math.floor(Math.random() * MOST_BYTES));
	let stream: Duplex;
	try {
		stream = await fixture.open(gateway, "kube-apiserver.host-1:80", signal);
	} catch {
		return "broken";
	}
	const stop = () => stream.destroy();
	signal.addEventListener("abort", stop);
	const [there, back] = [createHash("sha256").update(sent), createHash("sha256")];
	let received = 0;
	stream.on("error", () => {});
	stream.end(sent);
	try {
		for await (const bytes of stream as AsyncIterable<Buffer>) {
			// What has come so far must be what was sent, in the same order, whether the rest comes or not.
			if (!bytes.equals(sent.subarray(received, received + bytes.length))) throw new Corrupt();
			received += bytes.length;
			back.update(bytes);
		}
	} catch (error) {
		if (error instanceof Corrupt) throw error;
	} finally {
		signal.removeEventListener("abort", stop);
		stream.destroy();
	}
	return received === sent.length && there.digest("hex") === back.digest("hex") ? "whole" : "broken";
}

class Corrupt extends Error {
	override message = "bytes came back changed";
}

test(`${SECONDS} s of cuts, stalls, resets and garbage: no byte is changed, every stream ends once, and nothing is left behind`, {
	timeout: (SECONDS + 120) * 1_000,
}, async () => {
	const gateway = await fixture.gateway();
	const relay = await Relay.start(() => ({ port: gateway.port }));
	fixture.atEnd(() => relay.close());
	const ends = new Map<Duplex, number>();
	const count = { opened: 0, whole: 0, broken: 0, harm: 0 };
	const agent = await fixture.link(relay.port, {
		limits: { pingAfterMs: 500, pingTimeoutMs: 700, helloMs: 2_000 },
		target: { phaseMs: 2_000 },
		services: {
			"kube-apiserver": (stream) => {
				count.opened++;
				ends.set(stream, 0);
				stream.on("close", () => ends.set(stream, (ends.get(stream) ?? 0) + 1));
				stream.pipe(stream);
			},
		},
	});
	await agent.up();

	/** Works and does harm for a while, then lets the line rest until all has ended, and says what is in use. */
	const round = async (ms: number) => {
		const over = AbortSignal.timeout(ms);
		const work = async () => {
			while (!over.aborted) count[await transfer(gateway)]++;
		};
		const harm = async () => {
			while (!over.aborted) {
				await allHarms[Math.floor(Math.random() * allHarms.length)]?.(relay);
				count.harm++;
				relay.behave();
				await delay(300 + Math.random() * 700);
			}
		};
		await Promise.all([harm(), ...Array.from({ length: WORKERS }, work)]);
		await vi.waitFor(() => expect([...ends.values()].every((times) => times > 0)).toBe(true), patience);
		expect([...ends.values()].filter((times) => times !== 1)).toEqual([]);
		ends.clear();
		await agent.up();
		await vi.waitFor(() => expect(relay.open).toBe(1), patience);
		expect(agent.link.session?.stats()).toMatchObject({ streams: 0, queuedBytes: 0 });
		return usage();
	};
	// What is made once (pools, compiled code) is made by then.
	const before = await round((SECONDS * 1_000) / 4);
	const after = await round((SECONDS * 3_000) / 4);
	const figures = JSON.stringify({ ...count, reconnects: agent.link.state.reconnects, before, after });
	// Buffers and timers go a little later; what leaks never goes.
	await vi.waitFor(() => {
		const { memory, handles } = usage();
		expect(memory - before.memory, figures).toBeLessThan(MOST_GROWTH);
		expect(handles - before.handles, figures).toBeLessThanOrEqual(4);
	}, patience);
	// It was no walk in the park, and work got done all the same.
	expect(agent.link.state.reconnects, figures).toBeGreaterThan(count.harm / 4);
	expect(count.whole, figures).toBeGreaterThan(0);
	if (process.env.GROUNDPLANE_SOAK_SECONDS) console.log(figures);
});
