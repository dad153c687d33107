import { type Duplex, duplexPair } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, expect, test, vi } from "vitest";
import { patience } from "../test/support/patience.ts";
import { downMessage, upMessage } from "./messages.ts";
import { Session, type SessionOptions } from "./mux.ts";
import type { TunnelStream } from "./stream.ts";
import { duplexTransport } from "./transport.ts";

/**
 * What the first release put on the line, letter by letter, spoken by a peer that shares no code with this one. It may be added to
 * and never changed: hosts that are two releases behind go on speaking like this.
 */
const recorded = {
	agentHello:
		'{"name":"host-1","software":"0.1.0","bootId":"f3b6","connectionId":"c1","versions":[1],"capabilities":[],"window":262144}',
	gatewayHello:
		'{"name":"tunnel-0","software":"0.1.0","bootId":"77aa","connectionId":"c2","versions":[1],"capabilities":[],"window":262144}',
	up: [
		'{"type":"facts","agentVersion":"0.1.0","facts":{"hostname":"host-1","machineId":"ab12","architecture":"amd64","os":{"id":"debian","versionId":"12","prettyName":"Debian GNU/Linux 12"},"kernel":"6.1.0","cgroup":"v2","cpu":{"cores":2,"model":"x"},"memoryBytes":4294967296,"disks":[{"name":"vda","sizeBytes":10737418240,"rotational":false}],"filesystems":[{"path":"/","sizeBytes":10737418240,"availableBytes":5368709120}],"interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","addresses":["192.0.2.10"]}],"primaryAddress":"192.0.2.10","bootId":"f3b6"},"checks":[{"name":"swap","ok":true,"severity":"error","message":"no swap"}],"certificateNotAfter":"2027-01-01T00:00:00.000Z"}',
		'{"type":"acknowledgement","epoch":1,"generation":2,"accepted":true}',
		'{"type":"acknowledgement","epoch":1,"generation":2,"accepted":false,"reason":"Forbidden","message":"no"}',
		'{"type":"roles","generation":2,"roles":[{"name":"kubernetes","version":"0.1.0","phase":"Applying","done":3,"total":61}]}',
		'{"type":"certificate-request","csr":"-----BEGIN CERTIFICATE REQUEST-----"}',
	],
	down: [
		'{"type":"desired-state","jws":"a.b.c"}',
		'{"type":"certificate","certificate":"-----BEGIN CERTIFICATE-----","caBundle":"-----BEGIN CERTIFICATE-----"}',
		'{"type":"report"}',
	],
};

const OPEN = 2;
const ACCEPT = 3;
const DATA = 5;
const CREDIT = 6;
const FIN = 7;
const PING = 9;
const PONG = 10;
const NEWEST_OF_FIRST = 11;
/** After so long a stream that is quiet gives a large window back, to peers that know how. */
const QUIET_MS = 40;

interface Frame {
	type: number;
	stream: number;
	payload: Buffer;
}

/** A peer of the first release: takes the frames 1 to 11 apart by hand, and answers pings. */
class FirstRelease {
	readonly heard: Frame[] = [];
	readonly #duplex: Duplex;

	constructor(duplex: Duplex, hello: string) {
		this.#duplex = duplex;
		let unread = Buffer.alloc(0);
		duplex.on("error", () => {});
		duplex.on("data", (chunk: Buffer) => {
			unread = Buffer.concat([unread, chunk]);
			while (unread.length >= 8 && unread.length >= 8 + unread.readUIntBE(1, 3)) {
				const end = 8 + unread.readUIntBE(1, 3);
				const frame = { type: unread.readUInt8(0), stream: unread.readUInt32BE(4), payload: unread.subarray(8, end) };
				unread = unread.subarray(end);
				this.heard.push(frame);
				if (frame.type === PING) this.say(PONG, 0, frame.payload);
			}
		});
		this.say(1, 0, hello);
	}

	say(type: number, stream: number, payload: string | Buffer = ""): void {
		const header = Buffer.alloc(8);
		header.writeUInt8(type, 0);
		header.writeUIntBE(Buffer.byteLength(payload), 1, 3);
		header.writeUInt32BE(stream, 4);
		this.#duplex.write(Buffer.concat([header, Buffer.from(payload as string)]));
	}

	/** Waits for `count` frames of a type for a stream. */
	async frames(type: number, stream: number, count = 1): Promise<Frame[]> {
		const found = () => this.heard.filter((frame) => frame.type === type && frame.stream === stream);
		await vi.waitFor(() => expect(found().length).toBeGreaterThanOrEqual(count), { ...patience, interval: 5 });
		return found();
	}
}

const sessions: Session[] = [];
afterEach(() => {
	for (const session of sessions.splice(0)) session.destroy();
});

function meet(role: SessionOptions["role"], hello: string): { session: Session; first: FirstRelease } {
	const [mine, theirs] = duplexPair();
	const session = new Session(duplexTransport(mine), {
		role,
		hello: { name: "newest", software: "9.9.9", bootId: "b", connectionId: "c" },
		// The clock stands still: every round is quick, so windows grow however busy the machine is.
		limits: { initialWindow: 32 * 1024, pingAfterMs: QUIET_MS },
		now: () => 0,
	});
	sessions.push(session);
	return { session, first: new FirstRelease(theirs, hello) };
}

test.each([
	["gateway", "server", recorded.agentHello, { own: 1, others: 2 }],
	["agent", "client", recorded.gatewayHello, { own: 2, others: 1 }],
] as const)(
	"the %s's end works with a peer of the first release, and says nothing that it does not know",
	async (_what, role, hello, ids) => {
		const { session, first } = meet(role, hello);
		expect(await session.ready).toMatchObject({ software: "0.1.0", capabilities: [] });

		// A stream of ours: it sends no more than the credit that it was given, goes on when there is more, and ends each way by itself.
		const opening = session.open("kube-apiserver");
		const [open] = await first.frames(OPEN, ids.others);
		expect(JSON.parse(String(open?.payload))).toMatchObject({ service: "kube-apiserver", lane: "interactive" });
		first.say(ACCEPT, ids.others, '{"window":65536}');
		const stream = await opening;
		const sent = Buffer.alloc(100_000, "0123456789");
		stream.end(sent);
		const data = async () => Buffer.concat((await first.frames(DATA, ids.others)).map(({ payload }) => payload));
		await vi.waitFor(async () => expect((await data()).length).toBe(65_536), patience);
		first.say(CREDIT, ids.others, Buffer.from([0, 1, 0, 0]));
		await first.frames(FIN, ids.others);
		expect((await data()).equals(sent)).toBe(true);
		first.say(DATA, ids.others, "answer");
		first.say(FIN, ids.others);
		expect(String(Buffer.concat(await stream.toArray()))).toBe("answer");

		// A stream of theirs, through which so much comes that its window has grown; then it is quiet for a while.
		const accepted = new Promise<TunnelStream>((resolve) =>
			session.once("stream", (incoming) => resolve(incoming.accept())),
		);
		first.say(OPEN, ids.own, '{"service":"control","lane":"control","window":262144}');
		const theirs = await accepted;
		const [answer] = await first.frames(ACCEPT, ids.own);
		let credit = JSON.parse(String(answer?.payload)).window as number;
		theirs.resume();
		for (let left = 1_000_000, credits = 0; left > 0; ) {
			const piece = Math.min(left, 16 * 1024);
			while (credit < piece) {
				const given = await first.frames(CREDIT, ids.own, credits + 1);
				for (const { payload } of given.slice(credits)) credit += payload.readUInt32BE(0);
				credits = given.length;
			}
			first.say(DATA, ids.own, Buffer.alloc(piece));
			credit -= piece;
			left -= piece;
		}
		await vi.waitFor(() => expect(theirs.window).toBeGreaterThan(32 * 1024), patience);
		await delay(5 * QUIET_MS);
		expect(theirs.window).toBeGreaterThan(32 * 1024);
		expect(first.heard.filter(({ type }) => type > NEWEST_OF_FIRST)).toEqual([]);
		expect(session.stats()).toMatchObject({ streams: 1 });
	},
	60_000,
);

test("what a newer peer says beyond is passed over", async () => {
	const newer = {
		...JSON.parse(recorded.agentHello),
		versions: [3, 2, 1],
		capabilities: ["release", "zip"],
		more: { a: [1] },
	};
	const { session } = meet("server", JSON.stringify(newer));
	expect(await session.ready).toMatchObject({ name: "host-1", versions: [3, 2, 1] });
});

test("a peer that shares no version is told so, with what to do", async () => {
	const { session, first } = meet("server", JSON.stringify({ ...JSON.parse(recorded.agentHello), versions: [2] }));
	expect(await session.closed).toMatchObject({ code: "TunnelProtocolError", next: "Upgrade the older end." });
	const [goAway] = await first.frames(11, 0);
	expect(JSON.parse(String(goAway?.payload)).message).toContain("versions [2]");
});

test.each([
	...recorded.up.map((line) => [line, upMessage] as const),
	...recorded.down.map((line) => [line, downMessage] as const),
])("on the control stream %s still counts", (line, list) => {
	expect(list.parse(JSON.parse(line))).toEqual(JSON.parse(line));
	expect(list.parse({ ...JSON.parse(line), newer: true })).toEqual(JSON.parse(line));
});
