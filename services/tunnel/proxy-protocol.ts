import { createServer, type Server, type Socket } from "node:net";

/** Magic of the PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt §2.2). */
const SIGNATURE = Buffer.from("0d0a0d0a000d0a515549540a", "hex");
const FIXED_BYTES = 16;
/** Addresses and extensions that a front sends; more is no front of ours. */
const MAX_BYTES = FIXED_BYTES + 512;
const HEADER_MS = 5_000;

/** The header at the start of some bytes: `undefined` while it isn't complete, `source` empty when it names none. Throws. */
export function parseProxyHeader(bytes: Buffer): { source: string; length: number } | undefined {
	if (!SIGNATURE.subarray(0, bytes.length).equals(bytes.subarray(0, SIGNATURE.length))) {
		throw new Error("no PROXY protocol header");
	}
	if (bytes.length < FIXED_BYTES) return undefined;
	const length = FIXED_BYTES + bytes.readUInt16BE(14);
	if (length > MAX_BYTES || bytes.readUInt8(12) >> 4 !== 2) throw new Error("not a PROXY protocol header of version 2");
	if (bytes.length < length) return undefined;
	const proxied = (bytes.readUInt8(12) & 0x0f) === 1;
	const family = bytes.readUInt8(13) >> 4;
	if (proxied && family === 1 && length >= FIXED_BYTES + 12) {
		return { source: [...bytes.subarray(16, 20)].join("."), length };
	}
	if (proxied && family === 2 && length >= FIXED_BYTES + 36) {
		const groups = Array.from({ length: 8 }, (_, at) => bytes.readUInt16BE(16 + 2 * at).toString(16));
		return { source: new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1), length };
	}
	return { source: "", length };
}

/**
 * Listens for connections that the edge passes on with a PROXY header, and hands them to `take` without it, with the true address
 * (undefined when the header names none).
 */
export function proxyProtocolListener(take: (socket: Socket, source: string | undefined) => void): Server {
	return createServer({ noDelay: true }, (socket) => {
		let seen = Buffer.alloc(0);
		const timer = setTimeout(() => socket.destroy(), HEADER_MS);
		socket.on("error", () => {});
		const onReadable = () => {
			for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) {
				seen = Buffer.concat([seen, chunk]);
			}
			try {
				const header = parseProxyHeader(seen);
				if (!header) return;
				clearTimeout(timer);
				socket.removeListener("readable", onReadable);
				if (seen.length > header.length) socket.unshift(seen.subarray(header.length));
				take(socket, header.source || undefined);
			} catch {
				socket.destroy();
			}
		};
		socket.on("readable", onReadable);
		socket.once("close", () => clearTimeout(timer));
	});
}
