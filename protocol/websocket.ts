import { createHash, randomBytes } from "node:crypto";
import { request as httpRequest, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import { GroundplaneError } from "./errors.ts";
import { protocolError } from "./frames.ts";
import { readSocket } from "./socket-reader.ts";
import { BATCH_BYTES, LINGER_MS, type Transport, type TransportHandlers } from "./transport.ts";

/**
 * WebSocket (RFC 6455) as far as the tunnel needs it: binary messages over a TLS socket, without extensions.
 *
 * The multiplexer's frames delimit themselves, so a message's bytes are passed on as they come: no message is put together,
 * which saves a copy of everything and the memory for the longest message. That is why this is not a library.
 */

/** RFC 6455 §5.2 */
const opcodes = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;
/** RFC 6455 §7.4.1 */
const closeCodes = { normal: 1000, protocolError: 1002, unsupportedData: 1003 } as const;
const MAX_CONTROL_PAYLOAD = 125;
const ACCEPT_SUFFIX = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/** A peer that asks and doesn't read gets no more answers while this much waits. */
const MAX_WAITING_PONGS = 64 * 1024;
/** No answer to an upgrade is longer; what is beyond is dropped. */
const MAX_BODY = 64 * 1024;

/** Reads frames out of bytes cut anywhere. Keeps no more than one control frame. */
export class WebSocketParser {
	readonly #masked: boolean;
	readonly #onData: (data: Buffer) => void;
	readonly #onControl: (opcode: number, payload: Buffer) => void;
	readonly #header = Buffer.alloc(14);
	#headerFill = 0;
	#headerNeeds = 2;
	/** Payload bytes of the current frame that are still to come; -1 while in a header. */
	#missing = -1;
	#opcode = 0;
	#key: Buffer | undefined;
	#keyAt = 0;
	/** A message is open: continuations may come, a new message may not. */
	#open = false;
	#control = Buffer.alloc(0);

	/**
	 * @param masked whether frames must be masked (the peer is a client) or must not be (RFC 6455 §5.1)
	 * @param onData a piece of a binary message, never empty: a view of what was pushed
	 * @param onControl a whole control frame
	 */
	constructor(masked: boolean, onData: (data: Buffer) => void, onControl: (opcode: number, payload: Buffer) => void) {
		this.#masked = masked;
		this.#onData = onData;
		this.#onControl = onControl;
	}

	/** Throws `TunnelProtocolError` at what breaks RFC 6455; the parser is of no use after that. Masked bytes are unmasked in place. */
	push(chunk: Buffer): void {
		let at = 0;
		while (at < chunk.length || this.#missing === 0) {
			if (this.#missing === -1) {
				at = this.#readHeader(chunk, at);
				continue;
			}
			const end = at + Math.min(this.#missing, chunk.length - at);
			const piece = at === 0 && end === chunk.length ? chunk : chunk.subarray(at, end);
			at = end;
			this.#missing -= piece.length;
			if (this.#key !== undefined) {
				applyMask(piece, this.#key, this.#keyAt);
				this.#keyAt = (this.#keyAt + piece.length) & 3;
			}
			if (this.#opcode < opcodes.close) {
				if (this.#missing === 0) this.#missing = -1;
				if (piece.length > 0) this.#onData(piece);
			} else {
				this.#control = Buffer.concat([this.#control, piece]);
				if (this.#missing > 0) continue;
				const payload = this.#control;
				this.#missing = -1;
				this.#control = Buffer.alloc(0);
				this.#onControl(this.#opcode, payload);
			}
		}
	}

	#readHeader(chunk: Buffer, at: number): number {
		while (at < chunk.length) {
			this.#header[this.#headerFill++] = chunk[at++] as number;
			if (this.#headerFill === 2) {
				const length = (this.#header[1] as number) & 0x7f;
				this.#headerNeeds = 2 + (length === 126 ? 2 : length === 127 ? 8 : 0) + (this.#masked ? 4 : 0);
			}
			if (this.#headerFill === this.#headerNeeds) {
				this.#headerFill = 0;
				this.#headerNeeds = 2;
				this.#begin();
				return at;
			}
		}
		return at;
	}

	#begin(): void {
		const header = this.#header;
		const first = header[0] as number;
		const second = header[1] as number;
		const opcode = first & 0x0f;
		const final = (first & 0x80) !== 0;
		if ((first & 0x70) !== 0) throw protocolError("a WebSocket frame with reserved bits");
		if (second >= 0x80 !== this.#masked) {
			throw protocolError(this.#masked ? "a WebSocket frame without mask" : "a masked WebSocket frame");
		}
		let length = second & 0x7f;
		let at = 2;
		if (length === 126) {
			length = header.readUInt16BE(2);
			at = 4;
		} else if (length === 127) {
			if (header.readUInt16BE(2) !== 0) throw protocolError("a WebSocket frame of absurd length");
			length = header.readUIntBE(4, 6);
			at = 10;
		}
		switch (opcode) {
			case opcodes.continuation:
			case opcodes.binary:
				if ((opcode === opcodes.continuation) !== this.#open) throw protocolError("WebSocket messages out of order");
				this.#open = !final;
				break;
			case opcodes.close:
			case opcodes.ping:
			case opcodes.pong:
				if (!final || length > MAX_CONTROL_PAYLOAD)
					throw protocolError("a WebSocket control frame that is cut or too long");
				break;
			case opcodes.text:
				throw protocolError("a WebSocket text message");
			default:
				throw protocolError(`WebSocket opcode ${opcode}`);
		}
		this.#opcode = opcode;
		this.#missing = length;
		this.#keyAt = 0;
		this.#key = this.#masked && header.readUInt32BE(at) !== 0 ? Buffer.from(header.subarray(at, at + 4)) : undefined;
	}
}

/** XORs `data` in place with the four bytes of `key`, beginning with its byte `phase` (RFC 6455 §5.3). */
export function applyMask(data: Buffer, key: Uint8Array, phase: number): void {
	let at = 0;
	const unaligned = Math.min(data.length, (4 - (data.byteOffset & 3)) & 3);
	for (; at < unaligned; at++) data[at] = (data[at] as number) ^ (key[(phase + at) & 3] as number);
	const count = (data.length - at) >>> 2;
	if (count > 0) {
		// In the machine's own byte order on both sides, so the order doesn't matter.
		const rotated = Uint8Array.from({ length: 4 }, (_, index) => key[(phase + at + index) & 3] as number);
		const word = new Int32Array(rotated.buffer)[0] as number;
		const words = new Int32Array(data.buffer, data.byteOffset + at, count);
		for (let index = 0; index < count; index++) words[index] = (words[index] as number) ^ word;
		at += count * 4;
	}
	for (; at < data.length; at++) data[at] = (data[at] as number) ^ (key[(phase + at) & 3] as number);
}

const ZERO_KEY = Buffer.alloc(4);

/**
 * A whole message in one piece. Node's TLS encrypts one piece from where it lies; several it first puts together, in memory that it
 * makes anew each time.
 */
function encode(opcode: number, parts: readonly Buffer[], bytes: number, key: Uint8Array | undefined): Buffer {
	const size = 2 + (bytes > 0xffff ? 8 : bytes > MAX_CONTROL_PAYLOAD ? 2 : 0) + (key === undefined ? 0 : 4);
	const message = takeMemory(size + bytes);
	const masked = key === undefined ? 0 : 0x80;
	message[0] = 0x80 | opcode;
	if (bytes > 0xffff) {
		message[1] = masked | 127;
		message.writeUInt16BE(0, 2);
		message.writeUIntBE(bytes, 4, 6);
	} else if (bytes > MAX_CONTROL_PAYLOAD) {
		message[1] = masked | 126;
		message.writeUInt16BE(bytes, 2);
	} else {
		message[1] = masked | bytes;
	}
	if (key !== undefined) message.set(key, size - 4);
	let at = size;
	for (const part of parts) {
		message.set(part, at);
		at += part.length;
	}
	if (key !== undefined && key !== ZERO_KEY) applyMask(message.subarray(size), key, 0);
	return message;
}

/** Memory of full batches that have left, for those to come: of all connections together, and not much. */
const spare: Buffer[] = [];
const MAX_SPARE = 8;

function takeMemory(size: number): Buffer {
	if (size <= BATCH_BYTES / 2 || size > BATCH_BYTES) return Buffer.allocUnsafe(size);
	return (spare.pop() ?? Buffer.allocUnsafeSlow(BATCH_BYTES)).subarray(0, size);
}

function giveMemory({ length, buffer }: Buffer): void {
	if (length <= BATCH_BYTES / 2 || buffer.byteLength !== BATCH_BYTES || spare.length >= MAX_SPARE) return;
	spare.push(Buffer.from(buffer as ArrayBuffer));
}

/** A transport over a socket whose WebSocket handshake is done. `head` is what came with the handshake. */
function webSocketTransport(
	socket: Duplex,
	{ role, masked, head }: { role: "client" | "server"; masked: boolean; head: Buffer },
): Transport {
	let handlers: TransportHandlers | undefined;
	/** What was written is encrypted into other memory before `write` calls back; another kind of stream may hand it on as it is. */
	const copies = socket instanceof TLSSocket;
	let failure: Error | undefined;
	let closeSent = false;
	let over = false;
	socket.on("error", (error) => {
		failure ??= error;
		// A TLS socket that could not read a record stays open.
		socket.destroy();
	});

	const key = (): Uint8Array | undefined => (role === "server" ? undefined : masked ? randomBytes(4) : ZERO_KEY);
	const write = (opcode: number, payload: Buffer): void => {
		if (socket.destroyed || socket.writableEnded) return;
		socket.write(encode(opcode, [payload], payload.length, role === "server" ? undefined : randomBytes(4)), () =>
			handlers?.onSent(),
		);
	};
	const close = (code: number): void => {
		if (closeSent) return;
		const payload = Buffer.allocUnsafe(2);
		payload.writeUInt16BE(code, 0);
		write(opcodes.close, payload);
		closeSent = true;
		socket.end();
		setTimeout(() => socket.destroy(), LINGER_MS).unref();
	};
	const parser = new WebSocketParser(
		role === "server",
		(data) => handlers?.onBytes(data),
		(opcode, payload) => {
			if (opcode === opcodes.close) {
				over = true;
				close(closeCodes.normal);
			} else if (opcode === opcodes.ping && !closeSent && socket.writableLength < MAX_WAITING_PONGS) {
				write(opcodes.pong, payload);
			}
		},
	);
	const onBytes = (chunk: Buffer): void => {
		if (over) return;
		try {
			parser.push(chunk);
		} catch (error) {
			over = true;
			failure = error as Error;
			close(closeCodes.protocolError);
			// The other end may never read it.
			handlers?.onClose(failure);
		}
	};

	return {
		overhead: role === "client" ? 14 : 10,
		get buffered() {
			return socket.writableLength;
		},
		start(given) {
			handlers = given;
			let said = false;
			const onClose = given.onClose;
			handlers = {
				...given,
				onClose: (error) => {
					if (said) return;
					said = true;
					onClose(error);
				},
			};
			socket.on("end", () => socket.end());
			socket.on("close", () => handlers?.onClose(failure));
			if (socket.destroyed) setImmediate(() => handlers?.onClose(failure));
			if (head.length > 0) onBytes(head);
			readSocket(socket, onBytes);
		},
		send(parts, bytes) {
			if (closeSent || socket.destroyed || socket.writableEnded) return;
			const message = encode(opcodes.binary, parts, bytes, key());
			socket.write(message, (error) => {
				if (error) return;
				if (copies) giveMemory(message);
				handlers?.onSent();
			});
		},
		end() {
			close(closeCodes.normal);
		},
		destroy() {
			socket.destroy();
		},
	};
}

/**
 * Answers a client's upgrade request (RFC 6455 §4.2) and gives the transport over its socket. `headers` go into the answer.
 * Throws `InvalidInput` at a request that can't become a WebSocket with this subprotocol; nothing was written then.
 */
export function acceptWebSocket(
	request: IncomingMessage,
	socket: Duplex,
	head: Buffer,
	{ subprotocol, headers = {} }: { subprotocol: string; headers?: Readonly<Record<string, string>> },
): Transport {
	const said = request.headers;
	const key = said["sec-websocket-key"] ?? "";
	const problem =
		request.method !== "GET" || said.upgrade?.toLowerCase() !== "websocket"
			? "this is no WebSocket handshake"
			: said["sec-websocket-version"] !== "13"
				? "this WebSocket version is not known"
				: !/^[+/0-9A-Za-z]{22}==$/.test(key)
					? "Sec-WebSocket-Key is not 16 bytes in base64"
					: !tokens(said["sec-websocket-protocol"]).includes(subprotocol)
						? `the subprotocol ${subprotocol} is not asked for`
						: undefined;
	if (problem !== undefined) {
		throw new GroundplaneError("InvalidInput", problem, {
			next: `Speak WebSocket version 13 (RFC 6455) with the subprotocol ${subprotocol}; a proxy on the way may have changed the request.`,
		});
	}
	socket.write(
		[
			"HTTP/1.1 101 Switching Protocols",
			"Upgrade: websocket",
			"Connection: Upgrade",
			`Sec-WebSocket-Accept: ${acceptOf(key)}`,
			`Sec-WebSocket-Protocol: ${subprotocol}`,
			...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
			"",
			"",
		].join("\r\n"),
	);
	return webSocketTransport(socket, { role: "server", masked: false, head });
}

export interface WebSocketRequest {
	/** For the Host header. */
	host: string;
	path: string;
	subprotocol: string;
	headers?: Readonly<Record<string, string>>;
	/**
	 * Mask with a random key. RFC 6455 §5.3 wants that so that nobody who chooses what is sent can choose the bytes that a
	 * proxy sees, and make it take them for an HTTP request (§10.3). Where TLS ends at the gateway no proxy sees any,
	 * so the key is zero there: that is a legal frame for every receiver, and needs no pass over the data. Set it wherever
	 * something on the way may open up TLS.
	 */
	masked?: boolean;
}

/** A WebSocket, or what the other end answered instead. */
export type WebSocketAnswer =
	| { transport: Transport; headers: IncomingHttpHeaders }
	| { transport?: undefined; status: number; headers: IncomingHttpHeaders; body: string };

/**
 * Asks the other end of `socket` for a WebSocket (RFC 6455 §4.1). The transport reads nothing until it is started.
 * Rejects with the socket's error, or `TunnelProtocolError` when what answers is no WebSocket server. Deadlines are the caller's:
 * destroying the socket ends it.
 */
export function requestWebSocket(
	socket: Duplex,
	{ host, path, subprotocol, headers = {}, masked = false }: WebSocketRequest,
): Promise<WebSocketAnswer> {
	const { promise, resolve, reject } = Promise.withResolvers<WebSocketAnswer>();
	const key = randomBytes(16).toString("base64");
	const request = httpRequest({
		createConnection: () => socket,
		path,
		headers: {
			...headers,
			host,
			connection: "Upgrade",
			upgrade: "websocket",
			"sec-websocket-version": "13",
			"sec-websocket-key": key,
			"sec-websocket-protocol": subprotocol,
		},
	});
	request.once("upgrade", (response, _socket, head) => {
		const said = response.headers;
		if (
			said.upgrade?.toLowerCase() !== "websocket" ||
			said["sec-websocket-accept"] !== acceptOf(key) ||
			said["sec-websocket-protocol"] !== subprotocol ||
			said["sec-websocket-extensions"] !== undefined
		) {
			socket.destroy();
			reject(protocolError("its answer to the WebSocket handshake is not one"));
			return;
		}
		resolve({ transport: webSocketTransport(socket, { role: "client", masked, head }), headers: said });
	});
	request.once("response", (response) => {
		const chunks: Buffer[] = [];
		let size = 0;
		response.on("data", (chunk: Buffer) => {
			size += chunk.length;
			if (size <= MAX_BODY) chunks.push(chunk);
		});
		const answered = () =>
			resolve({
				status: response.statusCode ?? 0,
				headers: response.headers,
				body: Buffer.concat(chunks).toString("utf8"),
			});
		response.once("end", answered);
		response.once("error", answered);
	});
	request.once("error", reject);
	request.end();
	return promise;
}

function acceptOf(key: string): string {
	return createHash("sha1")
		.update(key + ACCEPT_SUFFIX)
		.digest("base64");
}

function tokens(header: string | undefined): string[] {
	return (header ?? "").split(",").map((token) => token.trim());
}
