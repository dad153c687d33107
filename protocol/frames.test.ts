import fc from "fast-check";
import { expect, test } from "vitest";
import { GroundplaneError } from "./errors.ts";
import { encodeFrame, FrameParser, FrameType, MAX_CONTROL_BYTES, MAX_DATA_BYTES, MIN_DATA_COST } from "./frames.ts";

/** What a parser said, with the pieces of each DATA frame put together. */
function parse(chunks: Buffer[]): { type: number; stream: number; payload: string; cost?: number }[] {
	const frames: { type: number; stream: number; payload: string; cost?: number }[] = [];
	const parser = new FrameParser({
		onFrame: (type, stream, payload) => frames.push({ type, stream, payload: payload.toString("hex") }),
		onData: (stream, piece, cost) => {
			const last = frames.at(-1);
			// A frame's cost tells where it ends: its pieces cost their length, the last one what is missing to the minimum.
			if (last?.type === FrameType.DATA && last.stream === stream && !complete.has(last)) {
				last.payload += piece.toString("hex");
				last.cost = (last.cost ?? 0) + cost;
			} else frames.push({ type: FrameType.DATA, stream, payload: piece.toString("hex"), cost });
			const frame = frames.at(-1) as { payload: string; cost?: number };
			if (lengths[complete.size] === frame.payload.length / 2) complete.add(frame);
		},
	});
	const complete = new Set<object>();
	const lengths = dataLengths(Buffer.concat(chunks));
	for (const chunk of chunks) parser.push(chunk);
	return frames;
}

function dataLengths(bytes: Buffer): number[] {
	const lengths: number[] = [];
	for (let at = 0; at + 8 <= bytes.length; at += 8 + bytes.readUIntBE(at + 1, 3)) {
		if (bytes[at] === FrameType.DATA) lengths.push(bytes.readUIntBE(at + 1, 3));
	}
	return lengths;
}

const frame = fc.oneof(
	fc.record({
		type: fc.constantFrom(FrameType.OPEN, FrameType.CREDIT, FrameType.FIN, FrameType.GOAWAY),
		stream: fc.nat(0xffffffff),
		payload: fc.uint8Array({ maxLength: 300 }),
	}),
	fc.record({
		type: fc.constant(FrameType.DATA),
		stream: fc.nat(3),
		payload: fc.uint8Array({ minLength: 1, maxLength: 20_000, size: "max" }),
	}),
);

const cut = (bytes: Buffer, sizes: number[]): Buffer[] => {
	const chunks: Buffer[] = [];
	for (let at = 0, turn = 0; at < bytes.length; turn++) {
		const size = sizes[turn % sizes.length] as number;
		chunks.push(Buffer.from(bytes.subarray(at, at + size)));
		at += size;
	}
	return chunks;
};

test("frames come out as they went in, however the bytes are cut", () => {
	fc.assert(
		fc.property(
			fc.array(frame, { maxLength: 8 }),
			fc.array(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 70_000 })), {
				minLength: 1,
				maxLength: 6,
			}),
			(frames, sizes) => {
				const bytes = Buffer.concat(frames.map(({ type, stream, payload }) => encodeFrame(type, stream, payload)));
				expect(parse(cut(bytes, sizes))).toEqual(
					frames.map(({ type, stream, payload }) => ({
						type,
						stream,
						payload: Buffer.from(payload).toString("hex"),
						...(type === FrameType.DATA && { cost: Math.max(payload.length, MIN_DATA_COST) }),
					})),
				);
			},
		),
		{ numRuns: 60 },
	);
});

test("what was read may be overwritten at once", () => {
	const pieces: Buffer[] = [];
	const parser = new FrameParser({ onFrame: () => {}, onData: (_stream, piece) => pieces.push(piece) });
	const payloads = [Buffer.alloc(100, "a"), Buffer.alloc(50_000, "b"), Buffer.alloc(MAX_DATA_BYTES, "c")];
	const memory = Buffer.alloc(16_384);
	const bytes = Buffer.concat(payloads.map((payload) => encodeFrame(FrameType.DATA, 1, payload)));
	for (let at = 0; at < bytes.length; at += memory.length) {
		parser.push(memory.subarray(0, bytes.copy(memory, 0, at, at + memory.length)));
		memory.fill(0);
	}
	expect(pieces).toEqual(payloads);
});

test("what has come of a frame is passed on when it is asked for, unless it is little", () => {
	const pieces: [number, number][] = [];
	const parser = new FrameParser({
		onFrame: () => {},
		onData: (_stream, { length }, cost) => pieces.push([length, cost]),
	});
	const frame = encodeFrame(FrameType.DATA, 1, Buffer.alloc(10_000));
	const steps: [from: number, to: number, seen: number[]][] = [
		[0, 4, []],
		[4, 4_000, []],
		[4_000, 5_008, [5_000]],
		[5_008, 6_000, []],
		[6_000, 10_008, [5_000]],
	];
	for (const [from, to, seen] of steps) {
		parser.push(frame.subarray(from, to));
		expect(parser.unfinished).toBe(to > 8 && to < frame.length);
		parser.flush();
		parser.flush();
		expect(pieces.splice(0)).toEqual(seen.map((length) => [length, length]));
	}
	expect(parser.unfinished).toBe(false);
	parser.push(encodeFrame(FrameType.DATA, 1, Buffer.alloc(10)));
	expect(pieces).toEqual([[10, MIN_DATA_COST]]);
});

test("garbage is recognised or waited for, never anything else", () => {
	fc.assert(
		fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { maxLength: 20 }), (chunks) => {
			const parser = new FrameParser({ onFrame: () => {}, onData: () => {} });
			try {
				for (const chunk of chunks) parser.push(Buffer.from(chunk));
			} catch (error) {
				expect(error).toBeInstanceOf(GroundplaneError);
				expect((error as GroundplaneError).code).toBe("TunnelProtocolError");
			}
		}),
		{ numRuns: 300 },
	);
});

test.each([
	["a type that there isn't", Buffer.from([13, 0, 0, 0, 0, 0, 0, 0])],
	["a control frame that is too long", header(FrameType.OPEN, MAX_CONTROL_BYTES + 1)],
	["data that is too long", header(FrameType.DATA, MAX_DATA_BYTES + 1)],
	["data without data", header(FrameType.DATA, 0)],
])("%s is refused at its header", (_name, bytes) => {
	const parser = new FrameParser({ onFrame: () => {}, onData: () => {} });
	expect(() => parser.push(bytes)).toThrow(/broke the tunnel protocol/);
});

function header(type: number, length: number): Buffer {
	const bytes = Buffer.alloc(8);
	bytes.writeUInt32BE(type * 0x1000000 + length, 0);
	return bytes;
}
