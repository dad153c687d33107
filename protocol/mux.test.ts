import { createHash } from "node:crypto";
import { type AddressInfo, createConnection, createServer, type Socket } from "node:net";
import { duplexPair } from "node:stream";
import { buffer } from "node:stream/consumers";
import { setTimeout as delay, setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { patience } from "../test/support/patience.ts";
import { GroundplaneError } from "./errors.ts";
import { encodeFrame, FrameParser, FrameType } from "./frames.ts";
import {
	duplexTransport,
	type Lane,
	lanes,
	Session,
	type SessionLimits,
	type Transport,
	type TunnelStream,
} from "./mux.ts";
import type { TransportHandlers } from "./transport.ts";

const sessions: Session[] = [];
afterEach(() => {
	for (const session of sessions.splice(0)) session.destroy();
});

/** Two ends of a connection that delivers bytes cut as told, a little at each turn of the event loop. */
function wire(cuts: readonly number[] = [65_536]): [Transport & { cut(): void }, Transport & { cut(): void }] {
	const ends = [0, 1].map(() => ({
		handlers: undefined as TransportHandlers | undefined,
		queue: Buffer.alloc(0),
		moving: false,
	}));
	let open = true;
	let step = 0;
	const close = () => {
		if (!open) return;
		open = false;
		for (const { handlers } of ends) handlers?.onClose();
	};
	const make = (mine: number): Transport & { cut(): void } => {
		const own = ends[mine] as (typeof ends)[number];
		const other = ends[1 - mine] as (typeof ends)[number];
		const move = () => {
			own.moving = false;
			if (!open) return;
			const size = cuts[step++ % cuts.length] as number;
			const chunk = Buffer.from(own.queue.subarray(0, size));
			own.queue = own.queue.subarray(size);
			other.handlers?.onBytes(chunk);
			own.handlers?.onSent();
			if (own.queue.length > 0) plan();
		};
		const plan = () => {
			if (own.moving) return;
			own.moving = true;
			setImmediate(move);
		};
		return {
			get buffered() {
				return own.queue.length;
			},
			start: (handlers) => {
				own.handlers = handlers;
			},
			send: (parts) => {
				own.queue = Buffer.concat([own.queue, ...parts]);
				plan();
			},
			end: () => setImmediate(() => (own.queue.length > 0 ? setTimeout(close, 20) : close())),
			destroy: close,
			cut: close,
		};
	};
	return [make(0), make(1)];
}

const hello = (name: string) => ({ name, software: "1", bootId: "b", connectionId: "c" });

function connect(
	options: {
		cuts?: readonly number[];
		limits?: Partial<SessionLimits>;
		checkHello?: () => void;
		now?: () => number;
		/** Of b. */
		spend?: (lane: Lane, bytes: number) => number;
	} = {},
): { a: Session; b: Session; cut: () => void } {
	const [left, right] = wire(options.cuts);
	const limits = options.limits ?? {};
	const clock = options.now && { now: options.now };
	const a = new Session(left, { role: "client", hello: hello("a"), limits, ...clock });
	const b = new Session(right, {
		role: "server",
		hello: hello("b"),
		limits,
		...clock,
		...(options.checkHello && { checkHello: options.checkHello }),
		...(options.spend && { spend: options.spend }),
	});
	sessions.push(a, b);
	return { a, b, cut: () => left.cut() };
}

const accepted = (session: Session): Promise<TunnelStream> =>
	new Promise((resolve) => session.once("stream", (incoming) => resolve(incoming.accept())));

async function pair(a: Session, b: Session, lane: Lane = "interactive"): Promise<[TunnelStream, TunnelStream]> {
	const other = accepted(b);
	const mine = await a.open("x", { lane });
	return [mine, await other];
}

/** Everything that a stream brings until it ends; what came so far if it breaks. */
function collect(stream: TunnelStream): Promise<{ digest: string; length: number; complete: boolean }> {
	const hash = createHash("sha256");
	let length = 0;
	let complete = false;
	stream.on("data", (chunk: Buffer) => {
		hash.update(chunk);
		length += chunk.length;
	});
	stream.on("end", () => {
		complete = true;
	});
	return new Promise((resolve) =>
		stream.once("close", () => resolve({ digest: hash.digest("hex"), length, complete })),
	);
}

const digestOf = (chunks: Buffer[]): string => createHash("sha256").update(Buffer.concat(chunks)).digest("hex");
let seed = 1;
const bytes = (length: number): Buffer => {
	const buffer = Buffer.alloc(length);
	for (let at = 0; at < length; at++) {
		seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
		buffer[at] = seed >>> 24;
	}
	return buffer;
};

const size = fc.oneof(fc.integer({ min: 0, max: 50 }), fc.integer({ min: 1, max: 90_000 }));
const script = fc.record({
	fromA: fc.boolean(),
	lane: fc.constantFrom(...lanes),
	up: fc.array(size, { maxLength: 5 }),
	down: fc.array(size, { maxLength: 5 }),
	/** Which end breaks the stream, after how many of its writes; undefined: it ends in order. */
	broken: fc.option(fc.record({ byOpener: fc.boolean(), after: fc.nat(4) }), { nil: undefined, freq: 3 }),
});

test("what lies there already when a session begins is answered after HELLO", async () => {
	const sent: Buffer[] = [];
	const early = encodeFrame(
		FrameType.HELLO,
		0,
		JSON.stringify({ ...hello("early"), versions: [1], capabilities: [], window: 1 }),
	);
	const transport: Transport = {
		buffered: 0,
		start: ({ onBytes }) => onBytes(Buffer.concat([early, encodeFrame(FrameType.PING, 0, Buffer.alloc(4))])),
		send: (parts) => sent.push(...parts),
		end: () => {},
		destroy: () => {},
	};
	const session = new Session(transport, { role: "server", hello: hello("late") });
	sessions.push(session);
	await session.ready;
	await turn();
	const types: number[] = [];
	new FrameParser({ onFrame: (type) => types.push(type), onData: () => {} }).push(Buffer.concat(sent));
	expect(types).toEqual([FrameType.HELLO, FrameType.PING, FrameType.PONG]);
});

test("any number of streams at once, cut and mixed in any way: nothing lost, nothing twice, everything ends once at both ends", async () => {
	await fc.assert(
		fc.asyncProperty(
			fc.array(script, { minLength: 1, maxLength: 12 }),
			fc.array(fc.oneof(fc.integer({ min: 1, max: 100 }), fc.integer({ min: 100, max: 70_000 })), {
				minLength: 1,
				maxLength: 5,
			}),
			fc.constantFrom(16 * 1024, 64 * 1024, 256 * 1024),
			async (scripts, cuts, initialWindow) => {
				// One byte at a time through the whole of it would take minutes.
				const { a, b } = connect({ cuts: [...cuts, 40_000], limits: { initialWindow } });
				const ends = new Map<TunnelStream, number>();
				const follow = (stream: TunnelStream) => {
					ends.set(stream, 0);
					stream.on("close", () => ends.set(stream, (ends.get(stream) ?? 0) + 1));
				};
				const waiting = new Map<string, (stream: TunnelStream) => void>();
				for (const session of [a, b]) {
					session.on("stream", (incoming) => {
						const stream = incoming.accept();
						follow(stream);
						waiting.get(incoming.service)?.(stream);
					});
				}
				await Promise.all(
					scripts.map(async ({ fromA, lane, up, down, broken }, number) => {
						const theirs = new Promise<TunnelStream>((resolve) => waiting.set(`s${number}`, resolve));
						const opener = await (fromA ? a : b).open(`s${number}`, { lane });
						follow(opener);
						const acceptor = await theirs;
						const sent = { up: up.map(bytes), down: down.map(bytes) };
						const got = [collect(acceptor), collect(opener)] as const;
						const say = async (stream: TunnelStream, chunks: Buffer[], breaks: number | undefined) => {
							for (const [index, chunk] of chunks.entries()) {
								if (index === breaks) break;
								if (stream.destroyed) return;
								if (!stream.write(chunk))
									await Promise.race([new Promise((r) => stream.once("drain", r)), closed(stream)]);
							}
							if (breaks !== undefined) stream.destroy(new GroundplaneError("TunnelClosed", "enough", { next: "-" }));
							else stream.end();
						};
						await Promise.all([
							say(opener, sent.up, broken?.byOpener === true ? broken.after : undefined),
							say(acceptor, sent.down, broken?.byOpener === false ? broken.after : undefined),
						]);
						const [atAcceptor, atOpener] = await Promise.all(got);
						if (broken) return;
						expect(atAcceptor).toMatchObject({ complete: true, digest: digestOf(sent.up) });
						expect(atOpener).toMatchObject({ complete: true, digest: digestOf(sent.down) });
					}),
				);
				for (const times of ends.values()) expect(times).toBe(1);
				expect(ends.size).toBe(2 * scripts.length);
				await vi.waitFor(() => expect([a.stats().streams, b.stats().streams]).toEqual([0, 0]), { interval: 1 });
				a.destroy();
				b.destroy();
			},
		),
		{ numRuns: 60 },
	);
}, 60_000);

const closed = (stream: TunnelStream) => new Promise((resolve) => stream.once("close", resolve));

test("whatever bytes a peer sends, a session ends in order and says why", async () => {
	const valid = fc.record({
		type: fc.integer({ min: 1, max: 11 }),
		stream: fc.nat(8),
		payload: fc.uint8Array({ maxLength: 40 }),
	});
	const likely = fc.oneof(
		valid.map(({ type, stream, payload }) => encodeFrame(type as FrameType, stream, payload)),
		fc.nat(8).map((id) => encodeFrame(FrameType.OPEN, id, '{"service":"x","lane":"bulk","window":1000}')),
		fc.nat(8).map((id) => encodeFrame(FrameType.CREDIT, id, Buffer.from([255, 255, 255, 255]))),
		fc.nat(8).map((id) => encodeFrame(FrameType.DATA, id, Buffer.alloc(5000))),
		fc.uint8Array({ maxLength: 30 }).map((raw) => Buffer.from(raw)),
	);
	await fc.assert(
		fc.asyncProperty(fc.array(likely, { maxLength: 30 }), async (frames) => {
			const [end, peer] = wire();
			const session = new Session(end, { role: "server", hello: hello("b"), limits: { initialWindow: 20_000 } });
			session.on("stream", (incoming) => void incoming.accept());
			peer.start({ onBytes: () => {}, onSent: () => {}, onClose: () => {} });
			const say = (frame: Buffer) => peer.send([frame], frame.length);
			say(
				encodeFrame(
					FrameType.HELLO,
					0,
					JSON.stringify({ ...hello("a"), versions: [1], capabilities: [], window: 1000 }),
				),
			);
			for (const frame of frames) say(frame);
			await turn();
			await turn();
			await turn();
			// However much came: no stream holds more than its window.
			expect(session.stats().queuedBytes).toBeLessThan(2 * session.limits.maxControlBytes);
			session.destroy();
			const reason = await session.closed;
			expect(reason === undefined || reason instanceof GroundplaneError).toBe(true);
		}),
		{ numRuns: 200 },
	);
});

test("readers that are stuck block nobody else", { timeout: 60_000 }, async () => {
	const { a, b } = connect();
	const stuck: TunnelStream[] = [];
	for (let count = 0; count < 8; count++) {
		const [mine] = await pair(a, b, "bulk");
		for (let at = 0; at < 40; at++) mine.write(bytes(64 * 1024));
		stuck.push(mine);
	}
	for (let round = 0; round < 5; round++) {
		const [mine, theirs] = await pair(a, b);
		theirs.on("data", (chunk) => theirs.write(chunk)).on("end", () => theirs.end());
		const answer = collect(mine);
		const content = bytes(700_000);
		mine.end(content);
		expect(await answer).toMatchObject({ complete: true, digest: digestOf([content]) });
	}
	// They wait, and hold no more than their window and the writer's own buffer.
	for (const stream of stuck) expect(stream.starved).toBe(true);
});

test("a slow reader is sent no more than its window", async () => {
	const { a, b } = connect({ limits: { initialWindow: 32 * 1024 } });
	const [mine, theirs] = await pair(a, b);
	mine.write(bytes(500_000));
	await delay(50);
	expect(theirs.readableLength).toBe(32 * 1024);
	const rest = collect(theirs);
	mine.end();
	theirs.end();
	expect(await rest).toMatchObject({ length: 500_000, complete: true });
});

test("what waits for its reader keeps no more memory than its own", async () => {
	const [end, peer] = wire([65_536]);
	const session = new Session(end, { role: "server", hello: hello("b") });
	sessions.push(session);
	peer.start({ onBytes: () => {}, onSent: () => {}, onClose: () => {} });
	const theirs = accepted(session);
	const frames = Buffer.concat([
		encodeFrame(FrameType.HELLO, 0, JSON.stringify({ ...hello("a"), versions: [1], capabilities: [], window: 1 })),
		encodeFrame(FrameType.OPEN, 1, '{"service":"x","lane":"bulk","window":1}'),
		encodeFrame(FrameType.DATA, 1, bytes(6_000)),
		...Array.from({ length: 40 }, () => encodeFrame(FrameType.PING, 0, Buffer.alloc(8))),
	]);
	peer.send([frames, Buffer.alloc(0)], frames.length);
	const stream = await theirs;
	await vi.waitFor(() => expect(stream.readableLength).toBe(6_000), patience);
	expect((stream.read() as Buffer).buffer.byteLength).toBe(6_000);
});

test("tiny writes cost credit as well, so a peer can't fill the memory with them", async () => {
	const { a, b } = connect({ limits: { initialWindow: 16 * 1024 } });
	const [mine, theirs] = await pair(a, b);
	for (let at = 0; at < 500; at++) {
		mine.write("x");
		await turn();
	}
	expect(theirs.readableLength).toBeLessThanOrEqual(64);
	const all = collect(theirs);
	mine.end();
	theirs.end();
	expect(await all).toMatchObject({ length: 500, complete: true });
});

test("higher lanes go first, and the lowest is not starved", async () => {
	const { a, b } = connect({ limits: { initialWindow: 8 * 1024 * 1024, inTransport: 64 * 1024 } });
	const [bulk, bulkEnd] = await pair(a, b, "bulk");
	const [interactive, interactiveEnd] = await pair(a, b, "interactive");
	const got = { bulk: 0, interactive: 0 };
	bulkEnd.on("data", (chunk: Buffer) => {
		got.bulk += chunk.length;
	});
	const enough = new Promise<number>((resolve) =>
		interactiveEnd.on("data", (chunk: Buffer) => {
			got.interactive += chunk.length;
			if (got.interactive >= 3 * 1024 * 1024) resolve(got.bulk / got.interactive);
		}),
	);
	bulk.write(bytes(2 * 1024 * 1024));
	interactive.write(bytes(4 * 1024 * 1024));
	const share = await enough;
	expect(share).toBeGreaterThan(0.05);
	expect(share).toBeLessThan(0.4);
});

test("a ping does not wait behind a megabyte", async () => {
	const { a, b } = connect({ limits: { pingAfterMs: 10, pingTimeoutMs: 5_000 } });
	const [mine, theirs] = await pair(a, b, "bulk");
	theirs.resume();
	for (let at = 0; at < 100; at++) mine.write(bytes(64 * 1024));
	expect(a.stats().queuedBytes).toBeGreaterThan(5_000_000);
	await vi.waitFor(() => expect(a.rttMs).toBeDefined(), patience);
	expect(mine.writableLength).toBeGreaterThan(1_000_000);
});

test("opening: refusals, deadlines and cancellation are told apart, at both ends", async () => {
	const { a, b } = connect({ limits: { openMs: 60 } });
	await expect(a.open("nobody")).rejects.toMatchObject({ code: "ServiceNotAllowed" });
	const given: string[] = [];
	b.on("stream", (incoming) => {
		if (incoming.service === "no") incoming.refuse("Forbidden", "not you");
		else {
			setTimeout(() => {
				try {
					incoming.accept();
				} catch (error) {
					given.push((error as GroundplaneError).code);
				}
			}, 120);
		}
	});
	await expect(a.open("no")).rejects.toMatchObject({ code: "Forbidden", message: "not you" });
	await expect(a.open("slow")).rejects.toMatchObject({ code: "DeadlineExceeded" });
	const cancel = new AbortController();
	const opening = a.open("slow", { signal: cancel.signal, deadline: 5_000 });
	cancel.abort();
	await expect(opening).rejects.toMatchObject({ code: "TunnelClosed" });
	await vi.waitFor(() => expect(given).toEqual(["TunnelClosed", "TunnelClosed"]), patience);
	expect(b.stats().streams).toBe(0);
	expect(a.leaving).toBe(false);
});

test("more streams than allowed are refused, the others live", async () => {
	const { a, b } = connect({ limits: { maxStreams: 3 } });
	b.on("stream", (incoming) => void incoming.accept());
	const results = await Promise.allSettled(Array.from({ length: 5 }, () => a.open("x")));
	expect(results.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "fulfilled", "rejected", "rejected"]);
	expect(results[4]).toMatchObject({ reason: { code: "Overloaded" } });
});

test("opening and resetting at once makes no more work than opening", async () => {
	const { a, b } = connect({ limits: { maxStreams: 3 } });
	let asked = 0;
	const answers: (() => void)[] = [];
	b.on("stream", (incoming) => {
		asked++;
		answers.push(() => incoming.refuse("NotFound", "no"));
	});
	await a.ready;
	const codes = new Map<string, number>();
	await Promise.all(
		Array.from({ length: 50 }, async () => {
			const cancel = new AbortController();
			const opening = a.open("x", { signal: cancel.signal });
			setImmediate(() => cancel.abort());
			await opening.catch(({ code }: GroundplaneError) => codes.set(code, (codes.get(code) ?? 0) + 1));
		}),
	);
	await a.ping();
	expect(asked).toBe(3);
	for (const answer of answers) answer();
	b.once("stream", (incoming) => incoming.accept());
	await expect(a.open("x")).resolves.toBeDefined();
});

test("windows grow when the round trip is what limits, and shrink to the least when the budget is used up", async () => {
	const { a, b } = connect({
		limits: {
			budget: 200 * 1024,
			initialWindow: 64 * 1024,
			minWindow: 16 * 1024,
			maxWindow: 512 * 1024,
			maxStreams: 6,
		},
	});
	// A clock of the test's own: a round trip takes some time, and half a window is then used up in none.
	let time = 0;
	let step = 1;
	const clock = () => {
		time += step;
		return time;
	};
	const roomy = connect({ limits: { initialWindow: 32 * 1024 }, now: clock });
	const [source, sink] = await pair(roomy.a, roomy.b);
	await vi.waitFor(() => expect(roomy.b.rttMs).toBeGreaterThan(0), patience);
	step = 0;
	const received = collect(sink);
	sink.end();
	source.resume().end(bytes(3_000_000));
	expect(await received).toMatchObject({ length: 3_000_000, complete: true });
	expect(sink.window).toBeGreaterThan(64 * 1024);

	const streams = [];
	for (let count = 0; count < 6; count++) streams.push(await pair(a, b));
	expect(streams.map(([, theirs]) => theirs.window / 1024)).toEqual([64, 64, 16, 16, 16, 16]);
	for (const [mine, theirs] of streams) {
		const all = collect(theirs);
		theirs.end();
		mine.resume().end(bytes(300_000));
		expect(await all).toMatchObject({ length: 300_000, complete: true });
	}
});

test("windows are judged by the best round trip, not by the first answer of a process that has just started", async () => {
	let time = 0;
	let pings = 0;
	const [peer, transport] = wire();
	const session = new Session(transport, { role: "server", hello: hello("b"), now: () => time });
	sessions.push(session);
	const say = (frame: Buffer) => peer.send([frame], frame.length);
	const parser = new FrameParser({
		onFrame: (type, _stream, payload) => {
			if (type !== FrameType.PING) return;
			time += pings++ === 0 ? 100 : 0.2;
			say(encodeFrame(FrameType.PONG, 0, payload));
		},
		onData: () => {},
	});
	peer.start({ onBytes: (chunk) => parser.push(chunk), onSent: () => {}, onClose: () => {} });
	const theirs = accepted(session);
	say(encodeFrame(FrameType.HELLO, 0, JSON.stringify({ ...hello("a"), versions: [1], capabilities: [], window: 1 })));
	say(encodeFrame(FrameType.OPEN, 1, '{"service":"x","lane":"bulk","window":1}'));
	const stream = await theirs;
	await vi.waitFor(() => expect(session.rttMs).toBeLessThan(50), patience);
	let received = 0;
	stream.on("data", (chunk: Buffer) => {
		received += chunk.length;
		// A window takes 4 ms: much more than four round trips, much less than the first one.
		time += chunk.length / 65_536;
	});
	for (let count = 0; count < 16; count++) {
		say(encodeFrame(FrameType.DATA, 1, bytes(65_536)));
		await vi.waitFor(() => expect(received).toBe((count + 1) * 65_536), patience);
	}
	expect(stream.window).toBe(256 * 1024);
}, 60_000);

test("a stream that has been quiet gives a large window back, and can be used after that", async () => {
	// The clock stands still: every round is quick, so windows grow however busy the machine is.
	const { a, b } = connect({ limits: { initialWindow: 32 * 1024, pingAfterMs: 40 }, now: () => 0 });
	const [mine, theirs] = await pair(a, b);
	theirs.resume();
	mine.write(bytes(1_000_000));
	await vi.waitFor(() => expect(mine.writableLength).toBe(0), patience);
	await vi.waitFor(() => expect([theirs.window, theirs.reserved]).toEqual([32 * 1024, 32 * 1024]), patience);
	const all = collect(theirs);
	mine.resume().end(bytes(1_000_000));
	theirs.end();
	expect(await all).toMatchObject({ length: 1_000_000, complete: true });
}, 60_000);

test("after GOAWAY open streams go on and new ones are not opened; drain ends the session when they are done", async () => {
	const { a, b } = connect();
	const [mine, theirs] = await pair(a, b);
	const said = new Promise((resolve) => a.once("goaway", resolve));
	const drained = b.drain({ code: "TunnelClosed", message: "upgrade", reconnectAfterMs: 7 }, 5_000);
	expect(await said).toEqual({ code: "TunnelClosed", message: "upgrade", reconnectAfterMs: 7 });
	await expect(a.open("x")).rejects.toMatchObject({ code: "TunnelClosed" });
	const answer = collect(mine);
	theirs.end("still here");
	mine.end();
	expect(await answer).toMatchObject({ length: 10, complete: true });
	theirs.resume();
	await drained;
	expect(await a.closed).toMatchObject({ code: "TunnelClosed", message: "upgrade" });
});

test("when the connection breaks, everything that is open breaks with a reason, and what was complete stays readable", async () => {
	const { a, b, cut } = connect();
	const [mine, theirs] = await pair(a, b);
	const [done, doneThere] = await pair(a, b);
	done.end("all of it");
	doneThere.end();
	await vi.waitFor(() => expect(doneThere.readableLength).toBe(9), patience);
	await vi.waitFor(() => expect(doneThere.settled).toBe(true), patience);
	const opening = a.open("never");
	const errors = Promise.all([mine, theirs].map((stream) => new Promise((resolve) => stream.once("error", resolve))));
	cut();
	for (const error of await errors) expect(error).toMatchObject({ code: "TunnelClosed" });
	await expect(opening).rejects.toMatchObject({ code: "TunnelClosed" });
	expect(doneThere.read()?.toString()).toBe("all of it");
	await expect(a.open("later")).rejects.toMatchObject({ code: "TunnelClosed" });
});

test("a peer that falls silent is given up, one that only has nothing to say is not", async () => {
	const limits = { pingAfterMs: 30, pingTimeoutMs: 60 };
	const alive = connect({ limits });
	const [end, mute] = wire();
	mute.start({ onBytes: () => {}, onSent: () => {}, onClose: () => {} });
	const session = new Session(end, { role: "client", hello: hello("a"), limits });
	const hi = encodeFrame(
		FrameType.HELLO,
		0,
		JSON.stringify({ ...hello("b"), versions: [1], capabilities: [], window: 1 }),
	);
	mute.send([hi], hi.length);
	expect(await session.closed).toMatchObject({
		code: "TunnelClosed",
		message: expect.stringContaining("nothing was heard"),
	});
	await delay(150);
	expect(alive.a.leaving).toBe(false);
	expect(alive.a.rttMs).toBeDefined();
});

test("a probe ends a session whose peer says nothing in time, and a ping gives the round trip", async () => {
	const { a, b } = connect();
	await a.ready;
	expect(await a.ping()).toBeGreaterThanOrEqual(0);
	a.probe(20);
	await delay(60);
	expect(a.leaving).toBe(false);
	b.destroy();
	await a.closed;
	await expect(a.ping()).rejects.toMatchObject({ code: "TunnelClosed" });

	const [end, mute] = wire();
	mute.start({ onBytes: () => {}, onSent: () => {}, onClose: () => {} });
	const session = new Session(end, { role: "client", hello: hello("a") });
	session.probe(20);
	expect(await session.closed).toMatchObject({ message: expect.stringContaining("nothing was heard") });
});

test("probes that are asked for while one is under way follow it, and one that nobody answers ends the session", async () => {
	const [end, mute] = wire();
	let pings = 0;
	const parser = new FrameParser({
		onFrame: (type) => {
			if (type === FrameType.PING) pings++;
		},
		onData: () => {},
	});
	mute.start({ onBytes: (chunk) => parser.push(chunk), onSent: () => {}, onClose: () => {} });
	const session = new Session(end, { role: "client", hello: hello("a") });
	sessions.push(session);
	const say = (type: FrameType, payload: Buffer | string) => {
		const frame = encodeFrame(type, 0, payload);
		mute.send([frame], frame.length);
	};
	say(FrameType.HELLO, JSON.stringify({ ...hello("b"), versions: [1], capabilities: [], window: 1 }));
	await session.ready;
	session.probe(50);
	for (let count = 0; count < 100; count++) session.probe(50);
	say(FrameType.PING, "");
	await delay(60);
	expect(session.leaving).toBe(false);
	expect(await session.closed).toMatchObject({ message: expect.stringContaining("nothing was heard") });
	expect(pings).toBeLessThan(4);
});

test("a stream that the peer does not answer in time has it asked whether it is there at all", async () => {
	const [end, mute] = wire();
	mute.start({ onBytes: () => {}, onSent: () => {}, onClose: () => {} });
	const session = new Session(end, { role: "client", hello: hello("a"), limits: { openMs: 30, pingTimeoutMs: 30 } });
	sessions.push(session);
	const hi = encodeFrame(
		FrameType.HELLO,
		0,
		JSON.stringify({ ...hello("b"), versions: [1], capabilities: [], window: 1 }),
	);
	mute.send([hi], hi.length);
	await session.ready;
	await expect(session.open("x")).rejects.toMatchObject({ code: "DeadlineExceeded" });
	expect(await session.closed).toMatchObject({ message: expect.stringContaining("nothing was heard") });
});

test("what lies unread after a stall of the process is heard before silence is judged", async () => {
	const server = createServer();
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
	const client = createConnection((server.address() as AddressInfo).port, "127.0.0.1");
	const peer = await accepted;
	const session = new Session(duplexTransport(client), { role: "client", hello: hello("a") });
	sessions.push(session);
	session.probe(20);
	await turn();
	peer.write(encodeFrame(FrameType.HELLO, 0, JSON.stringify({ ...hello("b"), versions: [1], window: 1 })));
	const end = performance.now() + 60;
	while (performance.now() < end);
	await delay(30);
	expect(session.leaving).toBe(false);
	peer.destroy();
	server.close();
});

test("the window of a bulk transfer yields while somebody works, and not otherwise", async () => {
	let time = 0;
	const { a, b } = connect({ now: () => time });
	const [bulk, sink] = await pair(a, b, "bulk");
	const transfer = async () => {
		sink.resume();
		for (let count = 0; count < 20; count++) {
			bulk.write(bytes(16 * 1024));
			await vi.waitFor(() => expect(bulk.writableLength).toBe(0), patience);
			time += 100;
			await turn();
		}
	};
	await transfer();
	expect(sink.window).toBe(256 * 1024);
	const [keys, terminal] = await pair(a, b, "interactive");
	terminal.resume();
	keys.write("ls");
	await vi.waitFor(() => expect(b.stats().bytesIn.interactive).toBe(2), patience);
	await transfer();
	expect(sink.window).toBe(32 * 1024);
});

test.each([
	["what stood in the line was much", 50, 32 * 1024],
	["nothing stood in the line", 0, 256 * 1024],
])(
	"bulk waits until the line is dry when somebody begins to work, and gives credit back when %s",
	async (_name, tookMs, window) => {
		let time = 0;
		const { a, b } = connect({ now: () => time });
		const [bulk, sink] = await pair(a, b, "bulk");
		await vi.waitFor(() => expect(a.rttMs).toBe(0), patience);
		const opened = pair(a, b, "interactive");
		const sent = bytes(600 * 1024);
		bulk.end(sent);
		// What is sent leaves at the end of the turn; an answer comes in a later one.
		await new Promise<void>((resolve) => process.nextTick(resolve));
		expect(a.stats().bytesOut.bulk).toBe(0);
		time += tookMs;
		await opened;
		await vi.waitFor(() => expect(sink.readableLength).toBeGreaterThan(window - 256), patience);
		expect(sink.window).toBe(window);
		// The next one who comes does not have it wait again: somebody is at work.
		const another = pair(a, b, "interactive");
		expect((await buffer(sink)).equals(sent)).toBe(true);
		await another;
	},
);

test("the time that streams wait for a reader is counted", async () => {
	let time = 0;
	const { a, b } = connect({ limits: { initialWindow: 32 * 1024 }, now: () => time });
	const [mine, theirs] = await pair(a, b);
	mine.write(bytes(100_000));
	await vi.waitFor(() => expect(a.stats().starvedStreams).toBe(1), patience);
	time += 1_000;
	expect(a.stats().stalledMs).toBe(1_000);
	theirs.resume();
	await vi.waitFor(() => expect(mine.writableLength).toBe(0), patience);
	time += 1_000;
	expect(a.stats()).toMatchObject({ starvedStreams: 0, stalledMs: 1_000 });
});

test("a lane that is over its budget rests in both directions until it may go on, and others don't wait for it", async () => {
	let time = 0;
	let over = true;
	const carried: Record<Lane, number> = { control: 0, interactive: 0, bulk: 0 };
	const spend = (lane: Lane, count: number) => {
		carried[lane] += count;
		return lane === "bulk" && over ? 5 : 0;
	};
	const { a, b } = connect({ now: () => time, spend });
	const [up, sink] = await pair(a, b, "bulk");
	const [drain, down] = await pair(a, b, "bulk");
	const [keys, terminal] = await pair(a, b, "interactive");
	const received = [buffer(sink), buffer(drain)];
	const sent = bytes(400 * 1024);
	up.end(sent);
	down.end(sent);
	terminal.pipe(terminal);
	// One window is all that comes, since no credit goes back; of what b sends it is one turn at most.
	await vi.waitFor(() => expect(b.stats().bytesIn.bulk).toBeGreaterThan(256 * 1024 - 256), patience);
	const reached = { ...carried };
	for (let count = 0; count < 5; count++) {
		const echoed = new Promise<Buffer>((resolve) => keys.once("data", resolve));
		keys.write("ls");
		expect((await echoed).toString()).toBe("ls");
		await delay(5);
	}
	expect(carried).toEqual({ ...reached, interactive: reached.interactive + 20 });
	expect(a.stats().starvedStreams).toBe(1);
	expect(b.stats().bytesOut.bulk).toBeLessThanOrEqual(128 * 1024);
	time += 1_000;
	expect(b.stats().restedMs).toEqual({ control: 0, interactive: 0, bulk: 1_000 });
	over = false;
	expect((await Promise.all(received)).map((one) => one.equals(sent))).toEqual([true, true]);
	time += 1_000;
	expect(b.stats().restedMs.bulk).toBe(1_000);
	expect(carried.bulk).toBe(2 * sent.length);
});

test("no HELLO, a HELLO of another time, and one that is not liked end the session with a reason", async () => {
	const [end] = wire();
	const lonely = new Session(end, { role: "client", hello: hello("a"), limits: { helloMs: 30 } });
	expect(await lonely.closed).toMatchObject({ code: "DeadlineExceeded" });
	await expect(lonely.ready).rejects.toMatchObject({ code: "DeadlineExceeded" });

	const [left, right] = wire();
	right.start({ onBytes: () => {}, onSent: () => {}, onClose: () => {} });
	const modern = new Session(left, { role: "client", hello: hello("a") });
	const old = encodeFrame(FrameType.HELLO, 0, JSON.stringify({ ...hello("b"), versions: [99], window: 1 }));
	right.send([old], old.length);
	expect((await modern.closed)?.message).toContain("99");

	const { a, b } = connect({
		checkHello: () => {
			throw new GroundplaneError("HostNameMismatch", "you are not a", { next: "-" });
		},
	});
	expect(await b.closed).toMatchObject({ code: "HostNameMismatch" });
	expect(await a.closed).toMatchObject({ code: "HostNameMismatch", message: "you are not a" });
});

test("it runs over any Duplex", async () => {
	const [left, right] = duplexPair();
	const a = new Session(duplexTransport(left), { role: "client", hello: hello("a") });
	const b = new Session(duplexTransport(right), { role: "server", hello: hello("b") });
	sessions.push(a, b);
	const [mine, theirs] = await pair(a, b);
	const content = bytes(2_000_000);
	const all = collect(theirs);
	theirs.end();
	mine.resume().end(content);
	expect(await all).toMatchObject({ digest: digestOf([content]), complete: true });
	a.close();
	expect(await b.closed).toMatchObject({ code: "TunnelClosed" });
});
