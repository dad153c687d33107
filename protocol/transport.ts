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
	/** The chunk is good during the call: its memory may be used for what comes next. */
	onBytes(chunk: Buffer): void;
	onSent(): void;
	/** Called once, after the last bytes. */
	onClose(error?: Error): void;
}

/**
 * What a session hands over at once, with all headers: eight whole TLS records (RFC 8446 §5.1), so that none is a short one. Each batch
 * costs a turn of the event loop and a system call.
 */
export const BATCH_BYTES = 128 * 1024;

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
