import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** How the relay treats what passes. Changing it counts at once, for connections that are open, too. */
export interface Mischief {
	/** Milliseconds that each byte is on its way, in each direction. */
	delayMs: number;
	/** Bytes a second in each direction; the rest waits, as on a thin line. */
	bytesPerSecond: number;
	/** Takes connections and bytes and passes nothing on: a half-open connection, a firewall that forgot it. */
	silent: boolean;
	/** Answers new connections with a reset. */
	refuse: boolean;
	/** The part of new connections that is lost, 0 to 1, in turns: 0.5 is every other one. */
	lose: number;
	/** Ends each connection after this many bytes from the server: a TLS record that is cut off. */
	truncateAfter: number;
}

const harmless: Mischief = {
	delayMs: 0,
	bytesPerSecond: Number.POSITIVE_INFINITY,
	silent: false,
	refuse: false,
	lose: 0,
	truncateAfter: Number.POSITIVE_INFINITY,
};

/** Pieces in which a thin line passes bytes on. */
const SLICES_PER_SECOND = 50;
/** What the relay holds of a direction before it stops reading. */
const MOST_WAITING = 1024 * 1024;

interface Pair {
	client: Socket;
	server: Socket;
}

/**
 * A TCP relay that misbehaves: a stand-in for the lines, firewalls and middleboxes between a site and its region, where
 * the kernel has no netem.
 */
export class Relay {
	readonly #server: Server;
	readonly #target: () => { port: number; host?: string };
	#mischief = harmless;
	readonly #pairs = new Set<Pair>();
	#lost = 0;
	/** Connections that were asked for so far. */
	connections = 0;
	/** Bytes that were passed on so far, both directions. */
	bytes = 0;

	private constructor(server: Server, target: () => { port: number; host?: string }) {
		this.#server = server;
		this.#target = target;
		server.on("connection", (socket) => this.#relay(socket));
	}

	/** Listens on a port of its own; `target` is asked at each connection. */
	static async start(
		target: () => { port: number; host?: string },
		{ host = "127.0.0.1", port = 0 }: { host?: string; port?: number } = {},
	): Promise<Relay> {
		const server = createServer({ noDelay: true, allowHalfOpen: true });
		const relay = new Relay(server, target);
		server.listen(port, host);
		await once(server, "listening");
		return relay;
	}

	get port(): number {
		return (this.#server.address() as AddressInfo).port;
	}

	/** Connections that are open. */
	get open(): number {
		return this.#pairs.size;
	}

	/** From now on; what isn't named is harmless again. */
	behave(mischief: Partial<Mischief> = {}): void {
		const wasSilent = this.#mischief.silent;
		this.#mischief = { ...harmless, ...mischief };
		if (!wasSilent || this.#mischief.silent) return;
		// What one end gave up in the silence the other one hears now.
		for (const { client, server } of this.#pairs) {
			if (client.destroyed || client.readableEnded) server.destroy();
			if (server.destroyed || server.readableEnded) client.destroy();
		}
	}

	/** Closes every connection in an orderly way, as a proxy that restarts. */
	cut(): void {
		for (const { client, server } of this.#pairs) {
			client.end();
			server.end();
			client.destroy();
			server.destroy();
		}
	}

	/** Resets every connection. */
	reset(): void {
		for (const { client, server } of this.#pairs) {
			client.resetAndDestroy();
			server.resetAndDestroy();
		}
	}

	/** Puts bytes that nobody sent into every connection, towards the client or the server. */
	inject(towards: "client" | "server", bytes: Buffer = randomBytes(256)): void {
		for (const pair of this.#pairs) pair[towards].write(bytes);
	}

	async close(): Promise<void> {
		this.#server.close();
		for (const { client, server } of this.#pairs) {
			client.destroy();
			server.destroy();
		}
		await once(this.#server, "close");
	}

	#relay(client: Socket): void {
		this.connections++;
		client.on("error", () => {});
		const { refuse, lose } = this.#mischief;
		this.#lost += lose;
		if (refuse || this.#lost >= 1) {
			if (this.#lost >= 1) this.#lost--;
			client.resetAndDestroy();
			return;
		}
		const { port, host = "127.0.0.1" } = this.#target();
		const server = connect({ port, host, noDelay: true, allowHalfOpen: true });
		server.on("error", () => client.destroy());
		const pair = { client, server };
		this.#pairs.add(pair);
		let closed = 0;
		for (const [socket, other] of [
			[client, server],
			[server, client],
		] as const) {
			this.#carry(socket, other, socket === server);
			socket.on("close", () => {
				if (++closed === 2) this.#pairs.delete(pair);
				// After an orderly end what is still on its way arrives.
				if (!this.#mischief.silent && !socket.readableEnded) other.destroy();
			});
		}
	}

	/** Carries one direction: in order, each piece when its time has come. */
	#carry(from: Socket, to: Socket, fromServer: boolean): void {
		const queue: { piece: Buffer | "end"; at: number }[] = [];
		/** When the line is free again, by `bytesPerSecond`. */
		let free = 0;
		let passed = 0;
		let waiting = 0;
		let timer: NodeJS.Timeout | undefined;
		const pass = (piece: Buffer) => {
			const left = fromServer ? this.#mischief.truncateAfter - passed : Number.POSITIVE_INFINITY;
			passed += piece.length;
			if (left < piece.length) {
				to.end(piece.subarray(0, Math.max(0, left)));
				from.destroy();
				return;
			}
			this.bytes += piece.length;
			to.write(piece);
		};
		const turn = () => {
			timer = undefined;
			for (let next = queue[0]; next && next.at <= performance.now(); next = queue[0]) {
				queue.shift();
				if (this.#mischief.silent || to.destroyed) continue;
				if (next.piece === "end") to.end();
				else {
					waiting -= next.piece.length;
					pass(next.piece);
				}
			}
			if (queue[0]) timer = setTimeout(turn, Math.max(1, queue[0].at - performance.now()));
			if (waiting < MOST_WAITING && to.writableLength < MOST_WAITING) from.resume();
			else if (!queue[0]) to.once("drain", () => from.resume());
		};
		const add = (piece: Buffer | "end") => {
			free = Math.max(free, performance.now());
			if (piece !== "end") {
				free += (piece.length / this.#mischief.bytesPerSecond) * 1_000;
				waiting += piece.length;
			}
			queue.push({ piece, at: Math.max(queue.at(-1)?.at ?? 0, free + this.#mischief.delayMs) });
		};
		from.on("data", (chunk: Buffer) => {
			if (this.#mischief.silent) return;
			const slice = Math.max(1, Math.min(chunk.length, Math.floor(this.#mischief.bytesPerSecond / SLICES_PER_SECOND)));
			for (let at = 0; at < chunk.length; at += slice) add(chunk.subarray(at, at + slice));
			if (waiting >= MOST_WAITING || to.writableLength >= MOST_WAITING) from.pause();
			if (timer === undefined) turn();
		});
		from.on("end", () => {
			add("end");
			if (timer === undefined) turn();
		});
		to.on("close", () => clearTimeout(timer));
	}
}
