import type { Socket } from "node:net";

/** How often connections are let in, and how many at a time at least and at most: 200 to 800 a second. */
const TICK_MS = 10;
const LEAST_A_TICK = 2;
const MOST_A_TICK = 8;
/** Above this share of the event loop fewer are let in, so that open tunnels keep their turn. */
const BUSY = 0.8;
/** A host gives a handshake up after 10 s: who has waited for half of that is better told to come back. */
const WAIT_MS = 5_000;
const MAX_WAITING = 4_096;
/** Fatal alert internal_error (RFC 8446, 6.2), in the clear: nothing was agreed on yet. It tells a host from a firewall that closes. */
const NO_TIME = Buffer.from([0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x50]);
/** Time for the alert to be read, whatever the other end goes on to say. */
const FAREWELL_MS = 1_000;

export interface HandshakesOptions {
	/** Milliseconds from the beginning of the handshake to the host's HELLO, whoever is slow in between. */
	openMs: number;
	/** Share of the event loop in use since the last call, 0 to 1. */
	utilization: () => number;
	/** Hears of connections that were closed: nobody had time for them, or they took too long. */
	turnedAway: (reason: "Overloaded" | "DeadlineExceeded") => void;
	/** Milliseconds of a clock that never goes back. */
	now?: () => number;
}

interface Waiting {
	socket: Socket;
	begin: () => void;
	since: number;
}

/**
 * Lets new connections into the TLS handshake at the pace at which the gateway keeps up. A handshake costs a millisecond of the
 * one thread that also carries all open tunnels, so a thousand hosts that dial at once wait here, in the kernel's buffers,
 * and are let in over a few seconds. Sources take turns, so that one address can't keep the others out. Who has begun has
 * `openMs` until its tunnel is open, which bounds how many can be under way.
 */
export class Handshakes {
	readonly #options: HandshakesOptions;
	readonly #now: () => number;
	/** By source; the first in the map is next. */
	readonly #queues = new Map<string, Waiting[]>();
	readonly #begun = new Map<Socket, NodeJS.Timeout>();
	#waiting = 0;
	#batch = MOST_A_TICK / 2;
	#ticking: NodeJS.Timeout | undefined;

	constructor(options: HandshakesOptions) {
		this.#options = options;
		this.#now = options.now ?? (() => performance.now());
	}

	/** Connections that wait for their turn. */
	get waiting(): number {
		return this.#waiting;
	}

	/** Connections whose tunnel is not open yet. */
	get underWay(): number {
		return this.#begun.size;
	}

	/** Calls `begin` when it is the connection's turn; turns it away when there are too many. */
	enter(socket: Socket, source: string, begin: () => void): void {
		socket.on("error", () => {});
		if (this.#ticking === undefined) {
			this.#options.utilization();
			this.#ticking = setInterval(() => this.#tick(), TICK_MS);
			this.#begin({ socket, begin, since: this.#now() });
			return;
		}
		if (this.#waiting >= MAX_WAITING) {
			this.#turnAway(socket);
			return;
		}
		const queue = this.#queues.get(source);
		const waiting = { socket, begin, since: this.#now() };
		if (queue === undefined) this.#queues.set(source, [waiting]);
		else queue.push(waiting);
		this.#waiting++;
	}

	/** The connection's tunnel is open. */
	done(socket: Socket): void {
		clearTimeout(this.#begun.get(socket));
		this.#begun.delete(socket);
	}

	close(): void {
		clearInterval(this.#ticking);
		this.#ticking = undefined;
		for (const { socket } of [...this.#queues.values()].flat()) socket.destroy();
		this.#queues.clear();
		this.#waiting = 0;
		for (const timer of this.#begun.values()) clearTimeout(timer);
		this.#begun.clear();
	}

	#tick(): void {
		const busy = this.#options.utilization() > BUSY;
		this.#batch = busy ? Math.max(LEAST_A_TICK, this.#batch >> 1) : Math.min(MOST_A_TICK, this.#batch + 1);
		for (let left = this.#batch; left > 0; left--) {
			const next = this.#next();
			if (next === undefined) break;
			this.#begin(next);
		}
		if (this.#waiting > 0) return;
		clearInterval(this.#ticking);
		this.#ticking = undefined;
	}

	/** The next connection that is worth beginning with: sources in turn, within a source the first come. */
	#next(): Waiting | undefined {
		for (const [source, queue] of this.#queues) {
			const [first] = queue.splice(0, 1);
			this.#queues.delete(source);
			if (queue.length > 0) this.#queues.set(source, queue);
			if (first === undefined) continue;
			this.#waiting--;
			if (first.socket.destroyed) continue;
			if (this.#now() - first.since <= WAIT_MS) return first;
			this.#turnAway(first.socket);
		}
		return undefined;
	}

	#begin({ socket, begin }: Waiting): void {
		if (socket.destroyed) return;
		this.#begun.set(
			socket,
			setTimeout(() => {
				this.#options.turnedAway("DeadlineExceeded");
				socket.destroy();
			}, this.#options.openMs),
		);
		socket.once("close", () => this.done(socket));
		begin();
	}

	/** What the host has said is read: a connection that is closed with something unread is reset, and the alert may be lost. */
	#turnAway(socket: Socket): void {
		this.#options.turnedAway("Overloaded");
		const farewell = setTimeout(() => socket.destroy(), FAREWELL_MS);
		socket.once("close", () => clearTimeout(farewell));
		socket.resume();
		socket.end(NO_TIME);
	}
}
