import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";

/** A TLS record holds no more (RFC 8446 §5.1), and Node gives what comes record by record. */
const RECORD_BYTES = 16 * 1024;

/** Where the records of all connections are put, one after the other: whoever is given one has done with it when its call returns. */
const landing = Buffer.allocUnsafeSlow(RECORD_BYTES);

/**
 * Reads a socket to its end. `onBytes` is given chunks that are good during its call only.
 *
 * Node makes new memory for each record that it has decrypted, and an object of its stream machinery's besides; both are garbage at once when
 * the tunnel's parser has copied what it needs. Sockets made by `net.connect` can be given memory of one's own instead (`onread`),
 * those of a server can't: so the same is set where Node keeps it. A Node that keeps it elsewhere, and what is no TLS over a connection of the
 * kernel's, is read as any stream.
 */
export function readSocket(socket: Duplex, onBytes: (chunk: Buffer) => void): void {
	if (!readIntoLanding(socket, onBytes)) socket.on("data", onBytes);
}

/** False, and nothing done, when this socket can't be read so. */
function readIntoLanding(socket: Duplex, onBytes: (chunk: Buffer) => void): boolean {
	// Under a stream in memory a write at one end is read at the other within the same call, in the midst of another socket's record.
	if (!(socket instanceof TLSSocket) || socket.remoteAddress === undefined) return false;
	const symbols = Object.getOwnPropertySymbols(socket);
	const own = (name: string) => symbols.find(({ description }) => description === name);
	const [buffer, callback] = [own("kBuffer"), own("kBufferCb")];
	const internals = socket as unknown as Record<symbol, unknown> & {
		_handle?: { useUserBuffer?: (memory: Buffer) => void };
	};
	const handle = internals._handle;
	const giveMemory = handle?.useUserBuffer;
	if (buffer === undefined || callback === undefined || giveMemory === undefined) return false;
	for (let chunk = socket.read(); chunk !== null; chunk = socket.read()) onBytes(chunk);
	internals[buffer] = landing;
	internals[callback] = (length: number) => {
		onBytes(length === RECORD_BYTES ? landing : landing.subarray(0, length));
		return true;
	};
	giveMemory.call(handle, landing);
	// Its end is an event of a stream that flows.
	socket.resume();
	return true;
}
