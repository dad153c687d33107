import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { encodeFrame, encodeHeader, FrameType } from "../../protocol/frames.ts";
import { Session, type Transport, type TunnelStream } from "../../protocol/mux.ts";
import type { TransportHandlers } from "../../protocol/transport.ts";
import { WebSocketParser } from "../../protocol/websocket.ts";
import type { FuzzTarget } from "./fuzzer.ts";

/**
 * Everything a peer may send, to a session with small limits. The promises: nothing is thrown, nothing is kept beyond the budget,
 * no more streams are open than allowed, and in the end every stream is closed once.
 */

const limits = {
	maxStreams: 4,
	initialWindow: 4 * 1024,
	minWindow: 1024,
	maxWindow: 16 * 1024,
	budget: 24 * 1024,
	maxControlBytes: 8 * 1024,
};

/** Bits of an input's first byte. */
const SERVER = 1;
const GREETED = 2;
const STUCK_TRANSPORT = 4;
const WEB_SOCKET = 8;
const OPENS = 16;
const MASKED = 32;

const hello = (name: string) => ({ name, software: "1", bootId: "b", connectionId: "c" });
const json = (value: unknown) => JSON.stringify(value);
const greeting = encodeFrame(
	FrameType.HELLO,
	0,
	json({ ...hello("peer"), versions: [1], capabilities: ["release"], window: 5_000 }),
);

async function run(input: Buffer): Promise<void> {
	const flags = input[0] ?? 0;
	const chunk = 1 + (input[1] ?? 0) * 8;
	const bytes = Buffer.from(input.subarray(2));
	let handlers: TransportHandlers | undefined;
	let sent = 0;
	const transport: Transport = {
		buffered: flags & STUCK_TRANSPORT ? Number.POSITIVE_INFINITY : 0,
		start: (given) => {
			handlers = given;
		},
		send: (parts, length) => {
			sent += length;
			assert.equal(
				parts.reduce((sum, part) => sum + part.length, 0),
				length,
			);
		},
		end: () => {},
		destroy: () => {},
	};
	const session = new Session(transport, { role: flags & SERVER ? "server" : "client", hello: hello("own"), limits });
	const closes = new Map<TunnelStream, number>();
	const follow = (stream: TunnelStream) => {
		closes.set(stream, 0);
		stream.on("close", () => closes.set(stream, (closes.get(stream) as number) + 1));
	};
	session.on("stream", (incoming) => {
		const { service } = incoming;
		if (service === "refuse") return incoming.refuse("Forbidden", "no");
		if (service === "later") return;
		const stream = incoming.accept();
		follow(stream);
		if (service === "echo") stream.on("data", (data) => stream.write(data)).on("end", () => stream.end());
		if (service === "read") stream.resume();
		if (service === "end") stream.end("bye");
	});
	if (flags & OPENS) {
		for (let count = 0; count < 3; count++) session.open("x").then(follow, () => {});
	}
	if (flags & GREETED) handlers?.onBytes(greeting);
	await turn();
	const parser = new WebSocketParser(
		(flags & MASKED) !== 0,
		(data) => handlers?.onBytes(data),
		() => {},
	);
	let broken = false;
	for (let at = 0; at < bytes.length && !broken; at += chunk) {
		const piece = bytes.subarray(at, at + chunk);
		try {
			if (flags & WEB_SOCKET) parser.push(piece);
			else handlers?.onBytes(piece);
		} catch (error) {
			assert.equal((error as { code?: string }).code, "TunnelProtocolError");
			broken = true;
		}
		check(session, closes);
		if (chunk > 200) await turn();
	}
	await turn();
	check(session, closes);
	session.destroy();
	await session.closed;
	// What had come whole before the end is still there to be read.
	for (const stream of closes.keys()) stream.resume();
	await turn();
	await turn();
	for (const times of closes.values()) assert.equal(times, 1, "a stream did not end once");
	assert.equal(session.stats().streams, 0);
	assert.ok(sent < 64 * 1024 + 20 * bytes.length, "a few bytes brought forth many");
}

function check(session: Session, closes: ReadonlyMap<TunnelStream, number>): void {
	const streams = [...closes.keys()].filter((stream) => !stream.closed);
	const kept = streams.reduce((sum, { readableLength }) => sum + readableLength, 0);
	for (const stream of streams) {
		assert.ok(stream.readableLength <= stream.reserved || stream.destroyed, "a stream keeps more than its window");
		assert.ok(stream.reserved >= 0 && stream.window > 0);
	}
	assert.ok(kept <= limits.budget, `${kept} bytes are kept, the budget is ${limits.budget}`);
	const opened = streams.filter(({ service }) => service !== "x");
	assert.ok(opened.filter((stream) => !stream.destroyed).length <= limits.maxStreams, "more streams than allowed");
	assert.ok(session.reservedBytes <= limits.budget + 3 * limits.minWindow, "more is promised than the budget has");
}

const number = (value: number) => {
	const bytes = Buffer.alloc(4);
	bytes.writeUInt32BE(value);
	return bytes;
};
const ids = [0, 1, 2, 3, 4, 5, 9, 11, 0xffff_ffff];
const frames = ids.flatMap((id) => [
	...["echo", "read", "keep", "end", "refuse", "later"].map((service) =>
		encodeFrame(FrameType.OPEN, id, json({ service, lane: id === 3 ? "bulk" : "interactive", window: 3_000 })),
	),
	encodeFrame(FrameType.ACCEPT, id, json({ window: 2_000 })),
	encodeFrame(FrameType.REFUSE, id, json({ code: "Forbidden", message: "no" })),
	encodeFrame(FrameType.DATA, id, Buffer.alloc(1, "x")),
	encodeFrame(FrameType.DATA, id, Buffer.alloc(900, "x")),
	encodeFrame(FrameType.DATA, id, Buffer.alloc(4_000, "x")),
	encodeFrame(FrameType.CREDIT, id, number(2_000)),
	encodeFrame(FrameType.CREDIT, id, number(0xffff_ffff)),
	encodeFrame(FrameType.RELEASE, id, number(700)),
	encodeFrame(FrameType.RELEASE, id, number(0xffff_ffff)),
	encodeFrame(FrameType.RESET, id, json({ code: "TunnelClosed", message: "" })),
	encodeHeader(FrameType.FIN, id, 0),
	encodeHeader(FrameType.DATA, id, 60_000),
]);
const others = [
	greeting,
	encodeFrame(FrameType.PING, 0, number(1)),
	encodeFrame(FrameType.PONG, 0, number(1)),
	encodeFrame(FrameType.GOAWAY, 0, json({ code: "Conflict", message: "m", reconnectAfterMs: 5 })),
	Buffer.from([0x82, 0x7e, 0x01, 0x00]),
	Buffer.from([0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]),
	Buffer.from([0x89, 0x02, 1, 2]),
	Buffer.from([0x88, 0x00]),
	Buffer.from([0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4]),
];
const open = (id: number, service: string) =>
	encodeFrame(FrameType.OPEN, id, json({ service, lane: "interactive", window: 3_000 }));
const data = (id: number, length: number) => encodeFrame(FrameType.DATA, id, Buffer.alloc(length, "x"));
/** Conversations as they are, to begin with. */
const conversations = [
	[
		greeting,
		open(1, "echo"),
		data(1, 700),
		encodeFrame(FrameType.CREDIT, 1, number(2_000)),
		encodeHeader(FrameType.FIN, 1, 0),
	],
	[greeting, open(1, "keep"), data(1, 1_000), data(1, 2_000), open(3, "read"), data(3, 3_000), data(1, 1_000)],
	[greeting, ...[1, 3, 5, 7].map((id) => open(id, "keep"))],
	[greeting, ...[1, 3, 5, 7].map((id) => open(id, "later"))],
].map((frames) => Buffer.concat([Buffer.from([SERVER, 255]), ...frames]));
const openings = [
	SERVER | GREETED,
	SERVER | GREETED | STUCK_TRANSPORT,
	GREETED | OPENS,
	0,
	SERVER | WEB_SOCKET,
	WEB_SOCKET | MASKED | GREETED,
];

/** Sessions and parsers of the tunnel. */
export const tunnelTarget: FuzzTarget = {
	run,
	dictionary: [...frames, ...others],
	seeds: conversations.concat(
		openings.flatMap((flags) => [Buffer.from([flags, 255]), Buffer.concat([Buffer.from([flags, 1]), ...others])]),
	),
	covers: "/protocol/",
};
