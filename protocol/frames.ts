import { GroundplaneError } from "./errors.ts";

/**
 * The multiplexer's frames on the wire: `type (1) · length (3) · stream (4) · payload (length)`, big-endian.
 * They delimit themselves, so they travel over WebSocket messages and over a plain byte stream alike,
 * and a receiver never depends on how the bytes were cut.
 */
export const FrameType = {
	HELLO: 1,
	OPEN: 2,
	ACCEPT: 3,
	REFUSE: 4,
	DATA: 5,
	CREDIT: 6,
	FIN: 7,
	RESET: 8,
	PING: 9,
	PONG: 10,
	GOAWAY: 11,
	/** Gives unused credit back to who gave it; only to peers with the capability `release`. */
	RELEASE: 12,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];

export const HEADER_BYTES = 8;
/** Longest payload of a DATA frame. */
export const MAX_DATA_BYTES = 64 * 1024;
/** Longest payload of every other frame. */
export const MAX_CONTROL_BYTES = 16 * 1024;
/**
 * A DATA frame costs at least this much credit, however little it carries: it bounds how many small buffers
 * a peer can make us keep.
 */
export const MIN_DATA_COST = 256;

/**
 * Shorter DATA frames lie in memory that many share. Less of one that is not whole yet is not passed on: it would make a reader that is stuck keep
 * many small buffers.
 */
export const MIN_PIECE_BYTES = 4 * 1024;

/** Builds header and payload as one buffer; meant for the small frames. */
export function encodeFrame(type: FrameType, stream: number, payload?: Uint8Array | string): Buffer {
	const length = payload === undefined ? 0 : typeof payload === "string" ? Buffer.byteLength(payload) : payload.length;
	const frame = Buffer.allocUnsafe(HEADER_BYTES + length);
	writeHeader(frame, type, stream, length);
	if (typeof payload === "string") frame.write(payload, HEADER_BYTES);
	else if (payload !== undefined) frame.set(payload, HEADER_BYTES);
	return frame;
}

/** Only the header, for DATA whose payload goes out as it is. */
export function encodeHeader(type: FrameType, stream: number, length: number): Buffer {
	const header = Buffer.allocUnsafe(HEADER_BYTES);
	writeHeader(header, type, stream, length);
	return header;
}

function writeHeader(into: Buffer, type: FrameType, stream: number, length: number): void {
	into.writeUInt32BE(type * 0x1000000 + length, 0);
	into.writeUInt32BE(stream, 4);
}

/** What a parser calls, in the order of the wire, synchronously. */
export interface FrameSink {
	/** A whole frame other than DATA. The payload is a view that is good during the call. */
	onFrame(type: FrameType, stream: number, payload: Buffer): void;
	/**
	 * A DATA frame, or a piece of one ({@link FrameParser.flush}), never empty. It may be kept: its memory is the frame's own, or Node's pool.
	 * `cost` is the credit that it spent: its length, and with the last piece what is missing to {@link MIN_DATA_COST}.
	 */
	onData(stream: number, piece: Buffer, cost: number): void;
}

/**
 * Reads frames out of bytes cut anywhere, and keeps nothing of the chunks that it is given: what they lie in can be used again.
 * Memory: one frame, never more.
 */
export class FrameParser {
	readonly #sink: FrameSink;
	readonly #header = Buffer.allocUnsafe(HEADER_BYTES);
	#headerFill = 0;
	/** Payload bytes of the current frame that are still to come; -1 while in a header. */
	#missing = -1;
	#type: FrameType = FrameType.PING;
	#stream = 0;
	/** What the last piece costs beyond its length. */
	#surcharge = 0;
	#gathered: Buffer | undefined;
	#gatheredFill = 0;
	/** Of what is gathered, so much was passed on already. */
	#delivered = 0;

	constructor(sink: FrameSink) {
		this.#sink = sink;
	}

	/** Throws `TunnelProtocolError` at what can't be a frame; the parser is of no use after that. */
	push(chunk: Buffer): void {
		let at = 0;
		while (at < chunk.length || this.#missing === 0) {
			if (this.#missing === -1) at = this.#readHeader(chunk, at);
			else if (this.#type === FrameType.DATA) at = this.#readData(chunk, at);
			else at = this.#readControl(chunk, at);
		}
	}

	#readHeader(chunk: Buffer, at: number): number {
		let header = chunk;
		let start = at;
		if (this.#headerFill > 0 || chunk.length - at < HEADER_BYTES) {
			const take = Math.min(HEADER_BYTES - this.#headerFill, chunk.length - at);
			chunk.copy(this.#header, this.#headerFill, at, at + take);
			this.#headerFill += take;
			at += take;
			if (this.#headerFill < HEADER_BYTES) return at;
			this.#headerFill = 0;
			header = this.#header;
			start = 0;
		} else {
			at += HEADER_BYTES;
		}
		const type = header[start] as number;
		const length = header.readUIntBE(start + 1, 3);
		if (type < FrameType.HELLO || type > FrameType.RELEASE) throw protocolError(`unknown frame type ${type}`);
		const limit = type === FrameType.DATA ? MAX_DATA_BYTES : MAX_CONTROL_BYTES;
		if (length > limit) throw protocolError(`frame of ${length} bytes, ${limit} are allowed`);
		if (length === 0 && type === FrameType.DATA) throw protocolError("DATA frame without data");
		this.#type = type as FrameType;
		this.#stream = header.readUInt32BE(start + 4);
		this.#missing = length;
		this.#surcharge = Math.max(0, MIN_DATA_COST - length);
		return at;
	}

	#readControl(chunk: Buffer, at: number): number {
		const have = chunk.length - at;
		if (this.#gathered === undefined && have >= this.#missing) {
			const end = at + this.#missing;
			this.#missing = -1;
			this.#sink.onFrame(this.#type, this.#stream, chunk.subarray(at, end));
			return end;
		}
		this.#gathered ??= Buffer.allocUnsafe(this.#missing);
		const take = this.#gather(chunk, at, this.#missing);
		if (this.#missing === 0) {
			const payload = this.#release();
			this.#missing = -1;
			this.#sink.onFrame(this.#type, this.#stream, payload);
		}
		return at + take;
	}

	/** There is a part of a DATA frame that was not passed on. */
	get unfinished(): boolean {
		return this.#type === FrameType.DATA && this.#gatheredFill > this.#delivered;
	}

	/** Passes on what has come of a DATA frame, when the rest may take a while: over a thin line a frame is many milliseconds long. */
	flush(): void {
		if (this.unfinished && this.#gatheredFill - this.#delivered >= MIN_PIECE_BYTES) this.#deliver();
	}

	#readData(chunk: Buffer, at: number): number {
		this.#gathered ??=
			this.#missing < MIN_PIECE_BYTES ? Buffer.allocUnsafe(this.#missing) : Buffer.allocUnsafeSlow(this.#missing);
		const take = this.#gather(chunk, at, this.#missing);
		if (this.#missing === 0) this.#deliver();
		return at + take;
	}

	#deliver(): void {
		const gathered = this.#gathered as Buffer;
		const whole = this.#delivered === 0 && this.#gatheredFill === gathered.length;
		const piece = whole ? gathered : gathered.subarray(this.#delivered, this.#gatheredFill);
		const last = this.#missing === 0;
		if (last) {
			this.#release();
			this.#missing = -1;
		} else this.#delivered = this.#gatheredFill;
		this.#sink.onData(this.#stream, piece, last ? piece.length + this.#surcharge : piece.length);
	}

	#gather(chunk: Buffer, at: number, most: number): number {
		const take = Math.min(most, chunk.length - at);
		chunk.copy(this.#gathered as Buffer, this.#gatheredFill, at, at + take);
		this.#gatheredFill += take;
		this.#missing -= take;
		return take;
	}

	#release(): Buffer {
		const gathered = this.#gathered as Buffer;
		this.#gathered = undefined;
		this.#gatheredFill = 0;
		this.#delivered = 0;
		return gathered;
	}
}

/** The error of a peer that breaks the protocol. The session ends with it. */
export function protocolError(message: string): GroundplaneError {
	return new GroundplaneError("TunnelProtocolError", `the peer broke the tunnel protocol: ${message}`, {
		next: "Check that something other than Groundplane isn't answering on this address, and that both ends run a supported version.",
	});
}
