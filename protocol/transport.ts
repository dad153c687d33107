import type { Duplex } from "node:stream";

/** What a session runs over: something that carries bytes in order, both ways. */
export interface Transport {
	/** Bytes handed over that have not left yet. */
	readonly buffered: number;
	/** Bytes that are added to each batch; none when absent. */
	readonly overhead?: number;
	/** Called once, before anything else. */
	start(handlers: TransportHandlers): void;
	/** Hands bytes over. `onSent` follows when there may be room again. */
	send(parts: readonly Buffer[], bytes: number): void;
	/** Ends after what was handed over has left. */
	end(): void;
	destroy(): void;
}

export interface TransportHandlers {
	onBytes(chunk: Buffer): void;
	onSent(): void;
	/** Called once, after the last bytes. */
	onClose(error?: Error): void;
}

/** How long a peer may take over an orderly end. */
export const LINGER_MS = 5_000;

/** Over any duplex stream: a TLS socket, a pair in memory. */
export function duplexTransport(duplex: Duplex): Transport {
	return {
		get buffered() {
			return duplex.writableLength;
		},
		start({ onBytes, onSent, onClose }) {
			let failure: Error | undefined;
			duplex.on("data", onBytes);
			duplex.on("drain", onSent);
			duplex.on("error", (error) => {
				failure = error;
			});
			duplex.on("end", () => duplex.end());
			duplex.on("close", () => onClose(failure));
			this.send = (parts) => {
				if (duplex.destroyed || duplex.writableEnded) return;
				duplex.cork();
				for (const part of parts.slice(0, -1)) duplex.write(part);
				duplex.write(parts.at(-1) as Buffer, () => onSent());
				duplex.uncork();
			};
		},
		send() {
			throw new Error("not started");
		},
		end() {
			duplex.end();
			setTimeout(() => duplex.destroy(), LINGER_MS).unref();
		},
		destroy() {
			duplex.destroy();
		},
	};
}

/** What is used of a WebSocket of the `ws` library. */
export interface WebSocketLike {
	readonly readyState: number;
	readonly bufferedAmount: number;
	binaryType: string;
	send(data: Buffer, options: { binary: true }, callback: (error?: Error) => void): void;
	close(code?: number): void;
	terminate(): void;
	resume(): void;
	on(event: "message", listener: (data: Buffer, isBinary: boolean) => void): unknown;
	on(event: "close", listener: (code: number, reason: Buffer) => void): unknown;
	on(event: "error", listener: (error: Error) => void): unknown;
}

const OPEN = 1;

/** Over a WebSocket: one binary message per batch of whole frames. */
export function webSocketTransport(socket: WebSocketLike): Transport {
	let onSent: () => void;
	const sent = () => onSent();
	return {
		get buffered() {
			return socket.bufferedAmount;
		},
		start(handlers) {
			onSent = handlers.onSent;
			let failure: Error | undefined;
			socket.binaryType = "nodebuffer";
			socket.on("message", (data, isBinary) => {
				if (isBinary) handlers.onBytes(data);
				else socket.close(1003);
			});
			socket.on("error", (error) => {
				failure = error;
			});
			socket.on("close", () => handlers.onClose(failure));
			// Whoever dialled may have paused it, so that nothing is lost before a session listens.
			socket.resume();
		},
		send(parts, bytes) {
			if (socket.readyState !== OPEN) return;
			socket.send(parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts, bytes), { binary: true }, sent);
		},
		end() {
			socket.close(1000);
			setTimeout(() => socket.terminate(), LINGER_MS).unref();
		},
		destroy() {
			socket.terminate();
		},
	};
}
