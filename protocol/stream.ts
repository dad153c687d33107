import { Duplex } from "node:stream";
import { GroundplaneError } from "./errors.ts";
import { MIN_DATA_COST } from "./frames.ts";
import type { Round } from "./window.ts";

/** In this order a session serves what waits; within a lane streams take turns. */
export const lanes = ["control", "interactive", "bulk"] as const;
export type Lane = (typeof lanes)[number];

/**
 * Credit goes back in pieces of this part of a window: each is a TLS record and a system call at both ends. What is held back stands still until
 * more comes, over a long line for a whole round trip: with halves a window did the work of one half.
 */
const CREDIT_PART = 1 / 4;

/** What a stream asks of its session. */
export interface StreamHost {
	/** There is something to send; the session calls {@link TunnelStream.nextTurn} when it is the stream's turn. */
	wantsToSend(stream: TunnelStream): void;
	/** Gives the peer more credit, at the session's next turn. */
	giveCredit(stream: TunnelStream, amount: number): void;
	/** What the stream's window should be after this round. */
	tune(stream: TunnelStream, round: Round): Pick<Round, "window" | "bestRate">;
	/** The peer may make the stream keep more or less than before. */
	reserve(change: number): void;
	/** The stream ended at this end before both directions were finished: the peer is to know. */
	abandoned(stream: TunnelStream, error: Error | null): void;
	/** Both directions are finished on the wire. */
	finished(stream: TunnelStream): void;
	/** Whether the stream's data now waits for the peer's credit. */
	starving(stream: TunnelStream, starved: boolean): void;
	now(): number;
}

/** One turn's worth of a stream: data, and whether the stream's end follows it. */
export interface Turn {
	parts: Buffer[];
	bytes: number;
	end: boolean;
}

/**
 * A stream of a session: an ordinary Node duplex with half-close. `end()` finishes the sending direction only,
 * `destroy(error)` resets the stream at the other end. An `error` without a listener does not end the process:
 * a stream that breaks is the tunnel's daily bread, and `close` is always emitted.
 */
export class TunnelStream extends Duplex {
	readonly id: number;
	readonly service: string;
	readonly lane: Lane;
	readonly #host: StreamHost;

	/** The peer has reset the stream, or the session is gone: nothing is to be sent about it any more. */
	silenced = false;
	/** In a lane's queue of the session. */
	queued = false;

	#credit: number;
	/** Credit that the peer has given since the stream was opened. */
	given = 0;
	#waiting: Buffer[] = [];
	#first = 0;
	#offset = 0;
	#written: ((error?: Error | null) => void) | undefined;
	#finalized: ((error?: Error | null) => void) | undefined;
	#endSent = false;
	#sentSince = false;

	window: number;
	/** What the peer may make this end keep: the window, or what is left of a larger one. */
	reserved: number;
	/** Credit ever given to the peer, and ever spent by it. */
	#given: number;
	#spent = 0;
	/** What unread frames cost beyond their bytes. */
	#surcharge = 0;
	/** The round that goes on: where and when it began, and how fast the stream was when its window was last enlarged. */
	#roundFrom = 0;
	#roundAt: number;
	#bestRate = 0;
	#endReceived = false;

	constructor(
		host: StreamHost,
		{ id, service, lane, credit, window }: { id: number; service: string; lane: Lane; credit: number; window: number },
	) {
		// The credit window bounds what is buffered, so push() need never say no.
		super({ allowHalfOpen: true, readableHighWaterMark: 64 * 1024, writableHighWaterMark: 128 * 1024 });
		this.#host = host;
		this.id = id;
		this.service = service;
		this.lane = lane;
		this.#credit = credit;
		this.window = window;
		this.reserved = window;
		this.#given = window;
		this.#roundAt = host.now();
		this.on("error", () => {});
	}

	/** Both directions are finished on the wire. */
	get settled(): boolean {
		return this.#endSent && this.#endReceived;
	}

	/** Data that waits for the session's turn or for credit. */
	get waitingBytes(): number {
		return this.writableLength;
	}

	/** Data waits and only the peer's credit is missing. */
	get starved(): boolean {
		return this.#written !== undefined && this.#credit < MIN_DATA_COST;
	}

	/** There is something to send now. */
	get sendable(): boolean {
		if (this.#written !== undefined) return this.#credit >= MIN_DATA_COST;
		return this.#finalized !== undefined && !this.#endSent;
	}

	/** The session's turn: at most `limit` bytes of what waits, within the peer's credit. Call only when {@link sendable}. */
	nextTurn(limit: number): Turn {
		const turn: Turn = { parts: [], bytes: 0, end: false };
		const most = Math.min(limit, this.#credit);
		while (turn.bytes < most && this.#written !== undefined) {
			const chunk = this.#waiting[this.#first] as Buffer;
			const take = Math.min(chunk.length - this.#offset, most - turn.bytes);
			turn.parts.push(take === chunk.length ? chunk : chunk.subarray(this.#offset, this.#offset + take));
			turn.bytes += take;
			this.#offset += take;
			if (this.#offset < chunk.length) break;
			this.#offset = 0;
			this.#first++;
			if (this.#first < this.#waiting.length) continue;
			const written = this.#written;
			this.#written = undefined;
			// May bring the next write, which then fills up the frame, or the end.
			written();
		}
		if (turn.bytes > 0) {
			this.#credit -= Math.max(turn.bytes, MIN_DATA_COST);
			this.#sentSince = true;
		}
		if (this.#written === undefined && this.#finalized !== undefined && !this.#endSent) {
			turn.end = true;
			this.#endSent = true;
			const finalized = this.#finalized;
			finalized();
			this.#settle();
		}
		if (this.starved) this.#host.starving(this, true);
		return turn;
	}

	/** The peer gave credit. */
	addCredit(amount: number): boolean {
		if (this.starved) this.#host.starving(this, false);
		this.#credit += amount;
		this.given += amount;
		if (this.#credit > Number.MAX_SAFE_INTEGER / 2) return false;
		if (this.sendable) this.#host.wantsToSend(this);
		return true;
	}

	/** A piece of data came. False when the peer had no credit for it or had finished. */
	receive(piece: Buffer, cost: number): boolean {
		this.#spent += cost;
		if (this.#spent > this.#given || this.#endReceived) return false;
		this.#surcharge += cost - piece.length;
		this.push(this.#isTakenAtOnce ? piece : compact(piece));
		this.#giveBack();
		return true;
	}

	/** The consumer takes what is pushed before push() returns. */
	get #isTakenAtOnce(): boolean {
		return this.readableFlowing === true && this.readableLength === 0;
	}

	/** The peer finished its direction. False when it had done so before. */
	receiveEnd(): boolean {
		if (this.#endReceived) return false;
		this.#endReceived = true;
		this.push(null);
		this.#settle();
		return true;
	}

	/** Credit goes back only for what the consumer has taken. */
	#giveBack(): void {
		if (this.silenced || this.#endReceived) return;
		const consumed = this.#consumed;
		if (consumed + this.window - this.#given < this.window * CREDIT_PART) return;
		this.#measure(consumed);
		const due = consumed + this.window - this.#given;
		if (due > 0) {
			this.#given += due;
			this.#host.giveCredit(this, due);
		}
		this.#reserve(Math.max(this.window, this.#given - consumed));
	}

	/** What the consumer has taken of what the peer has spent. */
	get #consumed(): number {
		const unread = this.readableLength;
		if (unread === 0) this.#surcharge = 0;
		return this.#spent - unread - this.#surcharge;
	}

	/** When a whole window has been consumed it is judged. */
	#measure(consumed: number): void {
		const bytes = consumed - this.#roundFrom;
		if (bytes < this.window) return;
		const now = this.#host.now();
		const round = { window: this.window, bytes, elapsedMs: now - this.#roundAt, bestRate: this.#bestRate };
		({ window: this.window, bestRate: this.#bestRate } = this.#host.tune(this, round));
		this.#roundFrom = consumed;
		this.#roundAt = now;
	}

	#reserve(reserved: number): void {
		if (reserved === this.reserved) return;
		this.#host.reserve(reserved - this.reserved);
		this.reserved = reserved;
	}

	/** The peer gave unused credit back. False when it had not so much. */
	receiveRelease(amount: number): boolean {
		this.#given -= amount;
		if (this.#given < this.#spent) return false;
		// What is left is the window: credit that was held back, or that a window which shrank had given before, is not to be made up for.
		this.window = Math.max(1, this.#given - this.#consumed);
		this.#bestRate = 0;
		this.#reserve(this.window);
		return true;
	}

	/** Looks whether it has sent nothing since the look before, and nothing waits. */
	lookIdle(): boolean {
		const idle = !this.#sentSince && this.#written === undefined;
		this.#sentSince = false;
		return idle;
	}

	/** Gives up what credit there is beyond `kept`. */
	releaseCredit(kept: number): number {
		const amount = Math.max(0, Math.min(this.#credit - kept, 0xffff_ffff));
		this.#credit -= amount;
		return amount;
	}

	#settle(): void {
		if (this.settled && !this.silenced) {
			this.silenced = true;
			this.#host.finished(this);
		}
	}

	override read(size?: number): ReturnType<Duplex["read"]> {
		const chunk = super.read(size);
		if (chunk !== null) this.#giveBack();
		return chunk;
	}

	override _read(): void {}

	override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
		this.#enqueue([chunk], callback);
	}

	override _writev(chunks: { chunk: Buffer }[], callback: (error?: Error | null) => void): void {
		this.#enqueue(
			chunks.map(({ chunk }) => chunk),
			callback,
		);
	}

	#enqueue(chunks: Buffer[], callback: (error?: Error | null) => void): void {
		const data = chunks.filter((chunk) => chunk.length > 0);
		if (data.length === 0) {
			callback();
			return;
		}
		this.#waiting = data;
		this.#first = 0;
		this.#offset = 0;
		this.#written = callback;
		if (this.sendable) this.#host.wantsToSend(this);
		else this.#host.starving(this, true);
	}

	override _final(callback: (error?: Error | null) => void): void {
		this.#finalized = callback;
		this.#host.wantsToSend(this);
	}

	override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
		const written = this.#written;
		this.#written = undefined;
		this.#waiting = [];
		if (!this.silenced) {
			this.silenced = true;
			this.#host.abandoned(this, error);
		}
		callback(error);
		written?.(
			error ??
				new GroundplaneError("TunnelClosed", "the stream was closed before all was sent", {
					next: "Open a new stream.",
				}),
		);
	}
}

/**
 * What has to wait for its reader has memory of its own: TLS gives 16 KiB in a chunk of 64 KiB, and a view keeps all of it.
 * Node's pool would be kept alive as well, so the copy isn't taken from there.
 */
function compact(piece: Buffer): Buffer {
	if (piece.buffer.byteLength < 2 * piece.length) return piece;
	const own = Buffer.allocUnsafeSlow(piece.length);
	piece.copy(own);
	return own;
}
