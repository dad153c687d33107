import { EventEmitter } from "node:events";
import { asGroundplaneError, type ErrorCode, errorCodes, GroundplaneError } from "./errors.ts";
import {
	encodeFrame,
	encodeHeader,
	FrameParser,
	type FrameSink,
	FrameType,
	HEADER_BYTES,
	MAX_DATA_BYTES,
	MIN_PIECE_BYTES,
	protocolError,
} from "./frames.ts";
import { passedOn } from "./garbage.ts";
import { type HelloIdentity, parseHelloIdentity } from "./hello.ts";
import { type Lane, lanes, type StreamHost, TunnelStream } from "./stream.ts";
import { BATCH_BYTES, type Transport } from "./transport.ts";
import { WindowBudget, type WindowLimits } from "./window.ts";

/**
 * Many streams over one connection, in both directions, with credit per stream.
 *
 * The read loop takes bytes and hands them to streams; it never waits and never writes. What it causes (credit, pongs, refusals)
 * is noted and leaves with the next turn of the scheduler, which keeps little in the transport, so that a ping or a
 * keystroke never stands behind a megabyte.
 */

export const PROTOCOL_VERSIONS = [1] as const;
/** What this end understands beyond version 1; frames that need one go only to peers that have it. */
const CAPABILITIES = ["release"] as const;

/** What both ends say first. Fields that an end doesn't know are ignored, so newer ends may say more. */
export interface Hello {
	/** Protocol versions that this end speaks. */
	versions: readonly number[];
	capabilities: readonly string[];
	/** Credit that streams start with, in both directions of this end's receiving. */
	window: number;
	/** The host's name (agent) or the gateway's (gateway). */
	name: string;
	/** Version of the software. */
	software: string;
	/** Changes with each boot of the machine or start of the gateway. */
	bootId: string;
	/** Changes with each connection. */
	connectionId: string;
	/** Proof of who this end is, where TLS does not give it. */
	identity?: HelloIdentity;
}

/** Why the other end wants this session to end, and when to come back. */
export interface GoAway {
	code: ErrorCode;
	message: string;
	/** When to dial again; at the agent's own discretion when absent. */
	reconnectAfterMs?: number;
}

export interface SessionLimits extends WindowLimits {
	/** While so much has not left the transport it is given no more: less than a batch, so that one is on its way at a time. */
	inTransport: number;
	/** Small frames that may wait for a peer that doesn't read. */
	maxControlBytes: number;
	/** Time for the peer's HELLO. */
	helloMs: number;
	/** Time for an answer to OPEN, at either end. */
	openMs: number;
	/** Silence after which the peer is asked, and how long it may take to say anything. */
	pingAfterMs: number;
	pingTimeoutMs: number;
}

export const defaultLimits: SessionLimits = {
	maxStreams: 1024,
	initialWindow: 256 * 1024,
	maxWindow: 4 * 1024 * 1024,
	budget: 64 * 1024 * 1024,
	minWindow: 16 * 1024,
	inTransport: 64 * 1024,
	maxControlBytes: 1024 * 1024,
	helloMs: 10_000,
	openMs: 10_000,
	pingAfterMs: 30_000,
	pingTimeoutMs: 15_000,
};

export interface SessionOptions {
	/** The dialling end is the client; it uses odd stream ids. */
	role: "client" | "server";
	hello: Pick<Hello, "name" | "software" | "bootId" | "connectionId" | "identity"> & {
		capabilities?: readonly string[];
	};
	/** Judges the peer's HELLO; what it throws is told to the peer by GOAWAY, and the session ends. */
	checkHello?: (hello: Hello) => void;
	limits?: Partial<SessionLimits>;
	/**
	 * Is told what a lane has carried, in either direction, and gives the milliseconds for which the lane is to rest: nothing of it is sent
	 * then, and no credit goes back, so that whoever sends waits. Asked again, with 0 bytes, when they are over.
	 */
	spend?: (lane: Lane, bytes: number) => number;
	/** Milliseconds of a clock that never goes back. */
	now?: () => number;
}

export interface OpenOptions {
	lane?: Lane;
	signal?: AbortSignal;
	/** Milliseconds for the peer's answer. */
	deadline?: number;
}

/** A stream that the peer wants to open. Exactly one of the two is to be called, within `openMs`. */
export interface IncomingStream {
	readonly service: string;
	readonly lane: Lane;
	/** Throws `TunnelClosed` when the peer has given up meanwhile. */
	accept(): TunnelStream;
	refuse(code: ErrorCode, message: string): void;
}

export interface SessionEvents {
	stream: [incoming: IncomingStream];
	goaway: [goAway: GoAway];
	close: [error: GroundplaneError | undefined];
}

/** Figures of a session so far. */
export interface SessionStats {
	streams: number;
	opened: number;
	refused: number;
	bytesIn: Record<Lane, number>;
	bytesOut: Record<Lane, number>;
	rttMs: number | undefined;
	queuedBytes: number;
	/** Streams whose data waits for the peer's credit. */
	starvedStreams: number;
	/** Milliseconds so far in which there was at least one of them. */
	stalledMs: number;
	/** Milliseconds so far for which lanes had to rest ({@link SessionOptions.spend}). */
	restedMs: Record<Lane, number>;
}

/** Less of a batch is not worth a frame of its own. */
const LEAST_ROOM = 1024;
/** A stream's turn: at most this much where others of its lane wait. */
const QUANTA: Readonly<Record<Lane, number>> = { control: 16 * 1024, interactive: 16 * 1024, bulk: 64 * 1024 };
/** So many pings come first, and the quickest counts: answers of a process that has just started are late. */
const FIRST_PINGS = 16;
/** Somebody who works over the tunnel is expected to go on for so long. */
const ATTENDED_MS = 5_000;
/** Bulk waits no longer than this for those who begin to work. */
const DRAIN_MS = 1_000;
const MAX_SERVICE_LENGTH = 128;
/** A lane that was passed over by this many bytes of higher lanes gets a turn. */
const PASSED_OVER = 256 * 1024;

interface PendingOpen {
	service: string;
	lane: Lane;
	window: number;
	resolve(stream: TunnelStream): void;
	reject(error: GroundplaneError): void;
}

interface PendingAccept {
	timer: NodeJS.Timeout;
	credit: number;
	gone: boolean;
}

export class Session extends EventEmitter<SessionEvents> {
	/** The peer's HELLO, once it came and was found good. Rejects when the session ends before. */
	readonly ready: Promise<Hello>;
	/** Settles when the session is over, with the reason if it wasn't an orderly end. Never rejects. */
	readonly closed: Promise<GroundplaneError | undefined>;
	readonly limits: SessionLimits;

	readonly #transport: Transport;
	readonly #options: SessionOptions;
	readonly #now: () => number;
	readonly #parser: FrameParser;
	readonly #host: StreamHost;

	readonly #streams = new Map<number, TunnelStream>();
	readonly #opening = new Map<number, PendingOpen>();
	readonly #incoming = new Map<number, PendingAccept>();
	#nextId: number;
	#lastPeerId = 0;
	readonly #budget: WindowBudget;

	readonly #control: Buffer[] = [];
	#controlBytes = 0;
	readonly #credits = new Map<number, number>();
	#pong: Buffer | undefined;
	readonly #lanes: Record<Lane, TunnelStream[]> = { control: [], interactive: [], bulk: [] };
	readonly #starved = new Set<TunnelStream>();
	#starvedSince = 0;
	#stalledMs = 0;
	readonly #passedOver: Record<Lane, number> = { control: 0, interactive: 0, bulk: 0 };
	/** Lanes that are over their budget, since when, and what looks whether they may go on. */
	readonly #resting = new Map<Lane, { since: number; timer: NodeJS.Timeout }>();
	readonly #restedMs: Record<Lane, number> = { control: 0, interactive: 0, bulk: 0 };
	#turnPlanned = false;
	readonly #plannedTurn = (): void => {
		this.#turnPlanned = false;
		this.#turn();
	};
	#inTurn = false;
	#flushPlanned = false;

	#peer: Hello | undefined;
	#goAwaySent = false;
	#goAwayReceived: GoAway | undefined;
	#ended = false;
	#keepalive: NodeJS.Timeout | undefined;
	#heardAt: number;
	#pingSentAt: number | undefined;
	#probing: NodeJS.Timeout | undefined;
	#probeNext: number | undefined;
	#pingNumber = 0;
	readonly #pings: { resolve(ms: number): void; reject(error: GroundplaneError): void }[] = [];
	#rtt: number | undefined;
	/** The round trip without what stands in queues: the least of the last ones, about. */
	#bestRtt: number | undefined;
	/** There was a stream other than those of the control lane, which an idle host has as well. */
	#carries = false;
	/** When data of the interactive lane came last. */
	#attendedAt = Number.NEGATIVE_INFINITY;
	/** Bulk waits until what stands in the line has left it. */
	#drain: { done: () => void; timer: NodeJS.Timeout } | undefined;
	#bytesIn: Record<Lane, number> = { control: 0, interactive: 0, bulk: 0 };
	#bytesOut: Record<Lane, number> = { control: 0, interactive: 0, bulk: 0 };
	#opened = 0;
	#refused = 0;

	#markReady!: (hello: Hello) => void;
	#failReady!: (error: GroundplaneError) => void;
	#markClosed!: (error: GroundplaneError | undefined) => void;

	constructor(transport: Transport, options: SessionOptions) {
		super();
		this.#transport = transport;
		this.#options = options;
		this.limits = { ...defaultLimits, ...options.limits };
		this.#budget = new WindowBudget(this.limits);
		this.#now = options.now ?? (() => performance.now());
		this.#heardAt = this.#now();
		this.#nextId = options.role === "client" ? 1 : 2;
		this.ready = new Promise((resolve, reject) => {
			this.#markReady = resolve;
			this.#failReady = reject;
		});
		this.ready.catch(() => {});
		this.closed = new Promise((resolve) => {
			this.#markClosed = resolve;
		});
		const sink: FrameSink = {
			onFrame: (type, stream, payload) => this.#onFrame(type, stream, payload),
			onData: (stream, piece, cost) => this.#onData(stream, piece, cost),
		};
		this.#parser = new FrameParser(sink);
		this.#host = {
			now: this.#now,
			wantsToSend: (stream) => this.#queue(stream),
			giveCredit: (stream, amount) => {
				this.#credits.set(stream.id, (this.#credits.get(stream.id) ?? 0) + amount);
				this.#planTurn();
			},
			tune: ({ lane }, round) =>
				this.#budget.tune(round, { rttMs: this.#bestRtt ?? 0, yields: lane === "bulk" && this.#isAttended }),
			reserve: (change) => this.#budget.change(change),
			abandoned: (stream, error) => {
				this.#sendReset(stream.id, error);
				this.#forget(stream);
			},
			finished: (stream) => this.#forget(stream),
			starving: (stream, starved) => this.#setStarved(stream, starved),
		};
		this.#send(
			FrameType.HELLO,
			0,
			JSON.stringify({
				...options.hello,
				versions: PROTOCOL_VERSIONS,
				capabilities: [...CAPABILITIES, ...(options.hello.capabilities ?? [])],
				window: this.limits.initialWindow,
			} satisfies Hello),
		);
		// After HELLO is in its place: what lies there already is read at once, and answered.
		transport.start({
			onBytes: (chunk) => this.#onBytes(chunk),
			onSent: () => this.#turn(),
			onClose: (error) => this.#onTransportClose(error),
		});
		this.#watchOver(this.limits.helloMs);
	}

	/** The peer's HELLO, if it came already. */
	get peer(): Hello | undefined {
		return this.#peer;
	}

	/** What the peer said before it left, if it did. */
	get goAwayReceived(): GoAway | undefined {
		return this.#goAwayReceived;
	}

	/** No more streams can be opened: one of the ends is leaving. */
	get leaving(): boolean {
		return this.#ended || this.#goAwaySent || this.#goAwayReceived !== undefined;
	}

	get rttMs(): number | undefined {
		return this.#rtt;
	}

	/** All that the peer may make this end keep now: within the budget, as long as the peer alone opens streams. */
	get reservedBytes(): number {
		return this.#budget.reserved;
	}

	/** Asks the peer now, and gives the round trip in milliseconds. Rejects with the reason when the session ends before. */
	ping(): Promise<number> {
		const { promise, resolve, reject } = Promise.withResolvers<number>();
		if (this.#ended) reject(this.#leavingError());
		else {
			this.#pings.push({ resolve, reject });
			if (this.#pingSentAt === undefined) this.#sendPing();
		}
		return promise;
	}

	/**
	 * Asks the peer now; when nothing at all is heard within `ms` the session is over. Meant for whoever wants something of the peer and
	 * would else learn from the next long silence only that it is gone. One question at a time: what is asked meanwhile follows.
	 */
	probe(ms: number = this.limits.pingTimeoutMs): void {
		if (this.#ended) return;
		if (this.#probing !== undefined) {
			this.#probeNext = ms;
			return;
		}
		const asked = this.#now();
		if (this.#pingSentAt === undefined) this.#sendPing();
		this.#probing = afterReading(() => {
			if (this.#ended) return;
			if (this.#heardAt < asked) return this.#destroySilent();
			this.#probing = undefined;
			const next = this.#probeNext;
			this.#probeNext = undefined;
			if (next !== undefined) this.probe(next);
		}, ms);
	}

	stats(): SessionStats {
		let queuedBytes = this.#controlBytes + this.#transport.buffered;
		for (const stream of this.#streams.values()) queuedBytes += stream.waitingBytes;
		return {
			streams: this.#streams.size,
			opened: this.#opened,
			refused: this.#refused,
			bytesIn: { ...this.#bytesIn },
			bytesOut: { ...this.#bytesOut },
			rttMs: this.#rtt,
			queuedBytes,
			starvedStreams: this.#starved.size,
			stalledMs: this.#stalledMs + (this.#starved.size > 0 ? this.#now() - this.#starvedSince : 0),
			restedMs: this.#rested(),
		};
	}

	/** Open streams, counted by service. */
	streamsByService(): Map<string, number> {
		const counts = new Map<string, number>();
		for (const { service } of this.#streams.values()) counts.set(service, (counts.get(service) ?? 0) + 1);
		return counts;
	}

	/**
	 * Opens a stream to a named service of the peer. Rejects with the peer's refusal, `DeadlineExceeded`, or `TunnelClosed`.
	 * The lane says how urgent the stream is, in both directions.
	 */
	async open(service: string, { lane = "interactive", signal, deadline }: OpenOptions = {}): Promise<TunnelStream> {
		const ms = deadline ?? this.limits.openMs;
		const { promise, resolve, reject } = Promise.withResolvers<TunnelStream>();
		let id: number | undefined;
		const fail = (error: GroundplaneError) => {
			if (id !== undefined && this.#opening.delete(id)) {
				this.#budget.close(window);
				this.#sendReset(id, error);
			}
			reject(error);
		};
		let window = 0;
		const onAbort = () => fail(tunnelClosed(`opening ${service} was cancelled`, "Nothing, if this was meant."));
		const timer = setTimeout(() => {
			this.probe();
			fail(
				new GroundplaneError("DeadlineExceeded", `no answer to opening ${service} within ${ms} ms`, {
					next: "Look at the other end's log; the host may be overloaded or its line may be down.",
				}),
			);
		}, ms);
		signal?.addEventListener("abort", onAbort, { once: true });
		const begin = () => {
			if (signal?.aborted) return onAbort();
			if (this.leaving) return reject(this.#leavingError());
			window = this.#budget.open();
			id = this.#nextId;
			this.#nextId += 2;
			this.#opening.set(id, { service, lane, window, resolve, reject });
			if (lane === "interactive") this.#attend();
			this.#send(FrameType.OPEN, id, JSON.stringify({ service, lane, window }));
		};
		try {
			if (this.#peer !== undefined) begin();
			else this.ready.then(begin, reject);
			return await promise;
		} finally {
			clearTimeout(timer);
			signal?.removeEventListener("abort", onAbort);
		}
	}

	/** Tells the peer to open nothing more here. Streams that are open go on. */
	goAway(goAway: GoAway): void {
		if (this.#ended || this.#goAwaySent) return;
		this.#goAwaySent = true;
		this.#send(FrameType.GOAWAY, 0, JSON.stringify(goAway));
	}

	/**
	 * GOAWAY, then an orderly end as soon as only streams of the control lane are left (they last as long as the session),
	 * or after `ms` whatever is left.
	 */
	async drain(goAway: GoAway, ms: number): Promise<void> {
		this.goAway(goAway);
		const until = this.#now() + ms;
		const busy = () => [...this.#streams.values()].some(({ lane }) => lane !== "control");
		while (!this.#ended && busy() && this.#now() < until) {
			await new Promise((resolve) => setTimeout(resolve, Math.min(25, ms)));
		}
		this.close(new GroundplaneError(goAway.code, goAway.message, { next: "Connect again." }));
	}

	/** Ends the session: what waits in small frames is sent, open streams break with `error`. */
	close(error?: GroundplaneError): void {
		if (this.#ended) return;
		this.#flushControl();
		this.#finish(error);
		this.#transport.end();
	}

	/** Ends the session at once. */
	destroy(error?: GroundplaneError): void {
		if (this.#ended) return;
		this.#finish(error);
		this.#transport.destroy();
	}

	// Reading

	#onBytes(chunk: Buffer): void {
		if (this.#ended) return;
		this.#heardAt = this.#now();
		this.#parse(() => this.#parser.push(chunk));
		if (!this.#parser.unfinished || this.#flushPlanned) return;
		// After everything that lies there has been read: the rest of the frame is on its way then, and not in this machine.
		this.#flushPlanned = true;
		setImmediate(() => {
			this.#flushPlanned = false;
			if (!this.#ended) this.#parse(() => this.#parser.flush());
		});
	}

	#parse(read: () => void): void {
		try {
			read();
		} catch (error) {
			this.#fail(asGroundplaneError(error));
		}
	}

	#onData(id: number, piece: Buffer, cost: number): void {
		const stream = this.#streams.get(id);
		if (stream === undefined) {
			this.#expectKnown(id, "DATA");
			return;
		}
		this.#bytesIn[stream.lane] += piece.length;
		this.#spend(stream.lane, piece.length);
		if (stream.lane === "interactive") this.#attend(this.#heardAt);
		if (piece.length >= MIN_PIECE_BYTES) passedOn(piece.length);
		if (!stream.receive(piece, cost)) throw protocolError(`data beyond credit or end on stream ${id}`);
	}

	#onFrame(type: FrameType, id: number, payload: Buffer) {
		if (this.#ended) return;
		if (this.#peer === undefined && type !== FrameType.HELLO && type !== FrameType.GOAWAY) {
			throw protocolError("the first frame is not HELLO");
		}
		switch (type) {
			case FrameType.HELLO:
				return this.#onHello(payload);
			case FrameType.OPEN:
				return this.#onOpen(id, payload);
			case FrameType.ACCEPT:
				return this.#onAccept(id, payload);
			case FrameType.REFUSE:
				return this.#onRefuse(id, payload);
			case FrameType.CREDIT:
				return this.#onCredit(id, payload);
			case FrameType.FIN: {
				const stream = this.#streams.get(id);
				if (stream === undefined) return this.#expectKnown(id, "FIN");
				if (!stream.receiveEnd()) throw protocolError(`second FIN on stream ${id}`);
				return;
			}
			case FrameType.RELEASE: {
				if (payload.length !== 4) throw protocolError("RELEASE is four bytes long");
				const stream = this.#streams.get(id);
				if (stream === undefined) return this.#expectKnown(id, "RELEASE");
				if (!stream.receiveRelease(payload.readUInt32BE(0))) throw protocolError(`too much released on stream ${id}`);
				return;
			}
			case FrameType.RESET:
				return this.#onReset(id, payload);
			case FrameType.PING:
				if (payload.length > 8) throw protocolError("PING longer than 8 bytes");
				this.#pong = encodeFrame(FrameType.PONG, 0, payload);
				return this.#planTurn();
			case FrameType.PONG:
				if (this.#pingSentAt !== undefined && payload.length === 4 && payload.readUInt32BE(0) === this.#pingNumber) {
					const sample = this.#now() - this.#pingSentAt;
					this.#rtt = this.#rtt === undefined ? sample : this.#rtt + (sample - this.#rtt) / 4;
					const best = this.#bestRtt ?? sample;
					const isQuickest = sample < best || this.#pingNumber <= FIRST_PINGS;
					if (isQuickest) this.#bestRtt = Math.min(best, sample);
					else if (this.#drain === undefined) this.#bestRtt = best + (sample - best) / 16;
					this.#pingSentAt = undefined;
					for (const { resolve } of this.#pings.splice(0)) resolve(sample);
					this.#measureLine();
				}
				return;
			case FrameType.GOAWAY: {
				const { code, message, reconnectAfterMs } = parse(payload);
				this.#goAwayReceived = {
					code: errorCode(code),
					message: text(message),
					...(typeof reconnectAfterMs === "number" && reconnectAfterMs >= 0 ? { reconnectAfterMs } : {}),
				};
				this.emit("goaway", this.#goAwayReceived);
				return;
			}
			case FrameType.DATA:
				throw protocolError("unreachable");
		}
	}

	#onHello(payload: Buffer): void {
		if (this.#peer !== undefined) throw protocolError("second HELLO");
		const said = parse(payload);
		const versions = Array.isArray(said.versions) ? said.versions : [];
		const identity = parseHelloIdentity(said.identity);
		const hello: Hello = {
			versions,
			capabilities: Array.isArray(said.capabilities) ? said.capabilities.map(String) : [],
			window: windowOf(said.window),
			name: text(said.name),
			software: text(said.software),
			bootId: text(said.bootId),
			connectionId: text(said.connectionId),
			...(identity && { identity }),
		};
		if (!PROTOCOL_VERSIONS.some((version) => versions.includes(version))) {
			throw new GroundplaneError(
				"TunnelProtocolError",
				`the peer speaks tunnel versions [${versions}], this end [${PROTOCOL_VERSIONS}]`,
				{ next: "Upgrade the older end." },
			);
		}
		this.#options.checkHello?.(hello);
		this.#peer = hello;
		this.#sendPing();
		this.#watchOver(this.limits.pingAfterMs);
		this.#markReady(hello);
	}

	#onOpen(id: number, payload: Buffer) {
		if (id === 0 || id % 2 === this.#nextId % 2 || id <= this.#lastPeerId) throw protocolError(`OPEN with id ${id}`);
		this.#lastPeerId = id;
		const { service, lane, window } = parse(payload);
		if (typeof service !== "string" || service.length > MAX_SERVICE_LENGTH || !lanes.includes(lane as Lane)) {
			throw protocolError("OPEN without a service's name or lane");
		}
		const refuse = (code: ErrorCode, message: string) => {
			this.#refused++;
			this.#send(FrameType.REFUSE, id, JSON.stringify({ code, message }));
		};
		if (this.#goAwaySent) return refuse("TunnelClosed", "this end is leaving");
		if (this.#streams.size + this.#incoming.size >= this.limits.maxStreams) {
			return refuse("Overloaded", `${this.limits.maxStreams} streams are open already`);
		}
		if (this.listenerCount("stream") === 0) return refuse("ServiceNotAllowed", `no service ${service} here`);
		const pending: PendingAccept = {
			credit: windowOf(window),
			gone: false,
			timer: setTimeout(() => incoming.refuse("DeadlineExceeded", `${service} did not answer`), this.limits.openMs),
		};
		this.#incoming.set(id, pending);
		const incoming: IncomingStream = {
			service,
			lane: lane as Lane,
			accept: () => {
				if (!this.#answer(id, pending)) {
					throw tunnelClosed("the stream was given up before it was accepted", "Nothing: the other end tries again.");
				}
				const granted = this.#budget.open();
				const stream = this.#addStream(id, service, lane as Lane, pending.credit, granted);
				this.#send(FrameType.ACCEPT, id, JSON.stringify({ window: granted }));
				return stream;
			},
			refuse: (code, message) => {
				if (this.#answer(id, pending)) refuse(code, message);
			},
		};
		this.emit("stream", incoming);
	}

	#answer(id: number, pending: PendingAccept): boolean {
		clearTimeout(pending.timer);
		this.#incoming.delete(id);
		if (pending.gone || this.#ended) return false;
		pending.gone = true;
		return true;
	}

	#onAccept(id: number, payload: Buffer) {
		const pending = this.#opening.get(id);
		if (pending === undefined) return this.#expectKnown(id, "ACCEPT");
		this.#opening.delete(id);
		const stream = this.#addStream(id, pending.service, pending.lane, windowOf(parse(payload).window), pending.window);
		pending.resolve(stream);
	}

	#onRefuse(id: number, payload: Buffer) {
		const pending = this.#opening.get(id);
		if (pending === undefined) return this.#expectKnown(id, "REFUSE");
		this.#opening.delete(id);
		this.#budget.close(pending.window);
		const { code, message } = parse(payload);
		pending.reject(
			new GroundplaneError(errorCode(code), text(message), { next: "Look at the log of the end that refused." }),
		);
	}

	#onCredit(id: number, payload: Buffer) {
		if (payload.length !== 4) throw protocolError("CREDIT is four bytes long");
		const stream = this.#streams.get(id);
		if (stream === undefined) return this.#expectKnown(id, "CREDIT");
		if (!stream.addCredit(payload.readUInt32BE(0))) throw protocolError("absurd credit");
	}

	#onReset(id: number, payload: Buffer) {
		const { code, message } = parse(payload);
		const pending = this.#incoming.get(id);
		if (pending !== undefined) {
			// It counts until whoever was to accept it has answered: a peer that opens and resets makes no more work than
			// one that opens (CVE-2023-44487).
			pending.gone = true;
			return;
		}
		const stream = this.#streams.get(id);
		if (stream === undefined) return this.#expectKnown(id, "RESET");
		this.#silence(stream, new GroundplaneError(errorCode(code), text(message), { next: "Open a new stream." }));
	}

	/** Frames may still come for streams that have ended here; for those that never were, they may not. */
	#expectKnown(id: number, what: string): void {
		const mine = id % 2 === this.#nextId % 2;
		if (id === 0 || (mine ? id >= this.#nextId : id > this.#lastPeerId)) {
			throw protocolError(`${what} for stream ${id}, which was never opened`);
		}
	}

	// Streams

	#addStream(id: number, service: string, lane: Lane, credit: number, window: number): TunnelStream {
		const stream = new TunnelStream(this.#host, { id, service, lane, credit, window });
		this.#streams.set(id, stream);
		this.#opened++;
		this.#carries ||= lane !== "control";
		if (lane === "interactive") this.#attend();
		this.#measureLine();
		return stream;
	}

	#forget(stream: TunnelStream): void {
		if (!this.#streams.delete(stream.id)) return;
		this.#credits.delete(stream.id);
		this.#budget.close(stream.reserved);
		this.#setStarved(stream, false);
	}

	#setStarved(stream: TunnelStream, starved: boolean): void {
		if (starved && this.#streams.has(stream.id)) {
			if (this.#starved.size === 0) this.#starvedSince = this.#now();
			this.#starved.add(stream);
		} else if (this.#starved.delete(stream) && this.#starved.size === 0) {
			this.#stalledMs += this.#now() - this.#starvedSince;
		}
	}

	/** Breaks a stream without a word to the peer. */
	#silence(stream: TunnelStream, error: GroundplaneError): void {
		stream.silenced = true;
		this.#forget(stream);
		stream.destroy(error);
	}

	/** Somebody waits for answers: what stands in queues before them is to be short. */
	get #isAttended(): boolean {
		return this.#heardAt - this.#attendedAt < ATTENDED_MS;
	}

	/** Somebody works: what they sent came, or what they wait for went, at `now`. */
	#attend(now = this.#now()): void {
		const begins = now - this.#attendedAt >= ATTENDED_MS;
		this.#attendedAt = now;
		if (begins) this.#drainLine();
	}

	/**
	 * Somebody begins to work: bulk waits until what stands in the line has left it, which takes as long as a question that is put behind it,
	 * and goes on with two round trips of what it gets through. The credit beyond that is given back, or it would stand there again.
	 */
	#drainLine(): void {
		const bulk = [...this.#streams.values()].filter(({ lane }) => lane === "bulk");
		if (bulk.length === 0 || this.#drain !== undefined) return;
		// A line that says nothing is judged by the question that waits, which another one would put off.
		if (this.#pingSentAt !== undefined && this.#heardAt < this.#pingSentAt) return;
		const began = this.#now();
		const given = bulk.map((stream) => stream.given);
		const done = () => {
			if (this.#drain?.done !== done) return;
			clearTimeout(this.#drain.timer);
			this.#drain = undefined;
			const elapsedMs = this.#now() - began;
			bulk.forEach((stream, index) => {
				const bytes = stream.given - (given[index] as number);
				const kept = this.#budget.keep({ bytes, elapsedMs, rttMs: this.#bestRtt ?? 0 });
				if (kept !== undefined) this.#release(stream, kept);
			});
			this.#planTurn();
		};
		this.#drain = { done, timer: setTimeout(done, DRAIN_MS) };
		// A question of its own: one that is under way may have overtaken what stands there.
		this.#pings.push({ resolve: done, reject: () => {} });
		this.#sendPing();
	}

	/** Gives credit beyond `kept` back, to a peer that can take it. */
	#release(stream: TunnelStream, kept: number): void {
		if (stream.silenced || this.#peer?.capabilities.includes("release") !== true) return;
		const amount = stream.releaseCredit(kept);
		if (amount === 0) return;
		const payload = Buffer.allocUnsafe(4);
		payload.writeUInt32BE(amount, 0);
		this.#send(FrameType.RELEASE, stream.id, payload);
	}

	// Sending

	#send(type: FrameType, id: number, payload: Uint8Array | string): void {
		if (this.#ended) return;
		const frame = encodeFrame(type, id, payload);
		this.#control.push(frame);
		this.#controlBytes += frame.length;
		if (this.#controlBytes > this.limits.maxControlBytes) {
			this.#fail(protocolError("it makes this end answer and does not read the answers"));
			return;
		}
		this.#planTurn();
	}

	#sendReset(id: number, error: Error | null): void {
		const { code, message } =
			error === null ? { code: "TunnelClosed", message: "the other end closed the stream" } : asGroundplaneError(error);
		this.#send(FrameType.RESET, id, JSON.stringify({ code, message: message.slice(0, 1000) }));
	}

	#sendPing(): void {
		const payload = Buffer.allocUnsafe(4);
		this.#pingNumber = (this.#pingNumber + 1) >>> 0;
		payload.writeUInt32BE(this.#pingNumber, 0);
		this.#pingSentAt = this.#now();
		this.#send(FrameType.PING, 0, payload);
	}

	/** Learns the round trip that windows are judged by, when there is something to carry. */
	#measureLine(): void {
		if (this.#carries && this.#pingSentAt === undefined && this.#pingNumber < FIRST_PINGS) this.#sendPing();
	}

	#queue(stream: TunnelStream): void {
		if (stream.queued || stream.silenced) return;
		stream.queued = true;
		this.#lanes[stream.lane].push(stream);
		this.#planTurn();
	}

	#planTurn(): void {
		if (this.#turnPlanned || this.#ended) return;
		this.#turnPlanned = true;
		process.nextTick(this.#plannedTurn);
	}

	#turn(): void {
		if (this.#ended || this.#inTurn) return;
		this.#inTurn = true;
		try {
			while (this.#waits && this.#transport.buffered < this.limits.inTransport) {
				const batch: Buffer[] = [];
				let bytes = this.#transport.overhead ?? 0;
				do {
					// Taking a turn may cause control frames (a callback accepts a stream and writes to it): they go before the next turn.
					bytes += this.#takeControl(batch);
					const stream = this.#next();
					if (stream === undefined) break;
					bytes += this.#takeTurn(stream, batch, Math.max(LEAST_ROOM, BATCH_BYTES - bytes) - HEADER_BYTES);
				} while (bytes + LEAST_ROOM <= BATCH_BYTES);
				if (batch.length === 0) break;
				this.#transport.send(batch, bytes - (this.#transport.overhead ?? 0));
			}
		} finally {
			this.#inTurn = false;
		}
	}

	/** Streams in all lanes. */
	get #queued(): number {
		const { control, interactive, bulk } = this.#lanes;
		return control.length + interactive.length + bulk.length;
	}

	/** Whether there may be something to send. */
	get #waits(): boolean {
		return this.#queued > 0 || this.#controlBytes > 0 || this.#pong !== undefined || this.#credits.size > 0;
	}

	#takeControl(batch: Buffer[]): number {
		let bytes = this.#controlBytes;
		if (bytes > 0) {
			batch.push(...this.#control.splice(0));
			this.#controlBytes = 0;
		}
		if (this.#pong !== undefined) {
			batch.push(this.#pong);
			bytes += this.#pong.length;
			this.#pong = undefined;
		}
		if (this.#credits.size === 0) return bytes;
		for (const [id, amount] of this.#credits) {
			if (this.#resting.size > 0 && this.#isResting(id)) continue;
			const payload = Buffer.allocUnsafe(4);
			payload.writeUInt32BE(amount, 0);
			const frame = encodeFrame(FrameType.CREDIT, id, payload);
			batch.push(frame);
			bytes += frame.length;
			this.#credits.delete(id);
		}
		return bytes;
	}

	#flushControl(): void {
		const batch: Buffer[] = [];
		const bytes = this.#takeControl(batch);
		if (batch.length > 0) this.#transport.send(batch, bytes);
	}

	/** Whose turn it is: higher lanes first, but nobody is passed over for ever. */
	#next(): TunnelStream | undefined {
		if (this.#queued === 0) return undefined;
		let chosen: Lane | undefined;
		for (const lane of lanes) {
			const queue = this.#lanes[lane];
			while (queue.length > 0 && !(queue[0] as TunnelStream).sendable) (queue.shift() as TunnelStream).queued = false;
			if (queue.length === 0 || this.#resting.has(lane) || (lane === "bulk" && this.#drain)) this.#passedOver[lane] = 0;
			else if (chosen === undefined || this.#passedOver[lane] >= PASSED_OVER) chosen = lane;
		}
		return chosen === undefined ? undefined : this.#lanes[chosen].shift();
	}

	#takeTurn(stream: TunnelStream, batch: Buffer[], room: number): number {
		stream.queued = false;
		const alone = this.#lanes[stream.lane].length === 0;
		const { parts, bytes, end } = stream.nextTurn(Math.min(room, alone ? MAX_DATA_BYTES : QUANTA[stream.lane]));
		let total = 0;
		if (bytes > 0) {
			batch.push(encodeHeader(FrameType.DATA, stream.id, bytes), ...parts);
			total += HEADER_BYTES + bytes;
			this.#bytesOut[stream.lane] += bytes;
			if (stream.lane === "interactive") this.#attend();
			this.#spend(stream.lane, bytes);
			this.#passedOver[stream.lane] = 0;
			for (const lane of lanes.slice(lanes.indexOf(stream.lane) + 1)) {
				if (this.#lanes[lane].length > 0) this.#passedOver[lane] += bytes;
			}
		}
		if (end) {
			batch.push(encodeHeader(FrameType.FIN, stream.id, 0));
			total += HEADER_BYTES;
		}
		if (stream.sendable) this.#queue(stream);
		return total;
	}

	// Budget

	/** Counts what a lane has carried. Less than a millisecond is owed until it is one: no timer is that exact. */
	#spend(lane: Lane, bytes: number): void {
		const ms = this.#options.spend?.(lane, bytes) ?? 0;
		if (ms >= 1 && !this.#resting.has(lane)) this.#rest(lane, this.#now(), ms);
	}

	#rest(lane: Lane, since: number, ms: number): void {
		const timer = setTimeout(() => {
			// What was on its way came meanwhile, and another tunnel of the same budget may have spent as well.
			const more = this.#options.spend?.(lane, 0) ?? 0;
			if (more >= 1) return this.#rest(lane, since, more);
			this.#resting.delete(lane);
			this.#restedMs[lane] += this.#now() - since;
			this.#planTurn();
		}, Math.ceil(ms));
		this.#resting.set(lane, { since, timer });
	}

	#isResting(id: number): boolean {
		const stream = this.#streams.get(id);
		return stream !== undefined && this.#resting.has(stream.lane);
	}

	#rested(): Record<Lane, number> {
		const rested = { ...this.#restedMs };
		for (const [lane, { since }] of this.#resting) rested[lane] += this.#now() - since;
		return rested;
	}

	// Life and death

	#watchOver(ms: number): void {
		clearTimeout(this.#keepalive);
		this.#keepalive = afterReading(() => this.#checkLife(), ms);
	}

	#checkLife(): void {
		if (this.#ended) return;
		const { pingAfterMs, pingTimeoutMs, helloMs } = this.limits;
		if (this.#peer === undefined) {
			this.destroy(
				new GroundplaneError("DeadlineExceeded", `the peer said no HELLO within ${helloMs} ms`, {
					next: "Check that the address is a Groundplane tunnel and that no proxy holds the bytes back.",
				}),
			);
			return;
		}
		this.#releaseIdleCredit();
		const now = this.#now();
		const silent = now - this.#heardAt;
		const asked = this.#pingSentAt;
		if (asked !== undefined && this.#heardAt < asked && now - asked >= pingTimeoutMs) {
			this.#destroySilent();
		} else if (silent >= pingAfterMs && (asked === undefined || this.#heardAt >= asked)) {
			this.#sendPing();
			this.#watchOver(pingTimeoutMs);
		} else if (asked !== undefined && this.#heardAt < asked) {
			this.#watchOver(Math.max(1, pingTimeoutMs - (now - asked)));
		} else {
			this.#watchOver(Math.max(1, pingAfterMs - silent));
		}
	}

	/** Streams that have been quiet for a while give large windows back, so that the peer has them for others. */
	#releaseIdleCredit(): void {
		for (const stream of this.#streams.values()) {
			if (stream.lookIdle()) this.#release(stream, this.limits.initialWindow);
		}
	}

	#destroySilent(): void {
		this.destroy(
			tunnelClosed(
				`nothing was heard from the peer for ${Math.round(this.#now() - this.#heardAt)} ms`,
				"Nothing, if the line comes back by itself.",
			),
		);
	}

	/** Tells the peer what is wrong, then ends. */
	#fail(error: GroundplaneError): void {
		if (this.#ended) return;
		this.#control.length = 0;
		this.#controlBytes = 0;
		if (!this.#goAwaySent) {
			this.#goAwaySent = true;
			const frame = encodeFrame(
				FrameType.GOAWAY,
				0,
				JSON.stringify({ code: error.code, message: error.message.slice(0, 1000) }),
			);
			this.#control.push(frame);
			this.#controlBytes = frame.length;
		}
		this.close(error);
	}

	#onTransportClose(error: Error | undefined): void {
		const said = this.#goAwayReceived;
		if (said !== undefined) {
			this.#finish(new GroundplaneError(said.code, said.message, { next: "The other end said so before it closed." }));
		} else {
			this.#finish(
				tunnelClosed(
					error === undefined ? "the connection was closed" : `the connection broke: ${error.message}`,
					"Nothing, if it comes back by itself.",
					error,
				),
			);
		}
	}

	#finish(error: GroundplaneError | undefined): void {
		if (this.#ended) return;
		this.#ended = true;
		clearTimeout(this.#keepalive);
		clearTimeout(this.#probing);
		clearTimeout(this.#drain?.timer);
		for (const [lane, { since, timer }] of this.#resting) {
			clearTimeout(timer);
			this.#restedMs[lane] += this.#now() - since;
		}
		this.#resting.clear();
		const reason = error ?? tunnelClosed("the tunnel was closed", "Nothing, if this was meant.");
		for (const pending of this.#incoming.values()) {
			pending.gone = true;
			clearTimeout(pending.timer);
		}
		for (const pending of this.#opening.values()) pending.reject(reason);
		for (const { reject } of this.#pings.splice(0)) reject(reason);
		this.#incoming.clear();
		this.#opening.clear();
		for (const stream of [...this.#streams.values()]) this.#silence(stream, reason);
		this.#failReady(reason);
		this.#markClosed(error);
		this.emit("close", error);
	}

	#leavingError(): GroundplaneError {
		const said = this.#goAwayReceived;
		return tunnelClosed(
			said === undefined ? "the tunnel is closing" : `the other end is leaving: ${said.message}`,
			"Try again: a new tunnel follows.",
		);
	}
}

/**
 * A timer that judges silence. After a stall of this process (a busy machine, a stopped VM) timers run before sockets
 * are read: what lies there already is heard first, or a good tunnel would be ended.
 */
function afterReading(judge: () => void, ms: number): NodeJS.Timeout {
	return setTimeout(() => setImmediate(judge), ms);
}

function tunnelClosed(message: string, next: string, cause?: unknown): GroundplaneError {
	return new GroundplaneError("TunnelClosed", message, { next, cause });
}

function parse(payload: Buffer): Record<string, unknown> {
	try {
		const value: unknown = JSON.parse(payload.toString("utf8"));
		if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
	} catch {
		// Said below.
	}
	throw protocolError("payload is not a JSON object");
}

function text(value: unknown): string {
	return typeof value === "string" ? value.slice(0, 1024) : "";
}

function errorCode(value: unknown): ErrorCode {
	return typeof value === "string" && Object.hasOwn(errorCodes, value) ? (value as ErrorCode) : "TunnelClosed";
}

function windowOf(value: unknown): number {
	if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 0xffffffff) return value;
	throw protocolError("window out of range");
}

export { type Lane, lanes, TunnelStream } from "./stream.ts";
export { duplexTransport, type Transport } from "./transport.ts";
