import { createHash, randomBytes } from "node:crypto";
import { createServer, type IncomingMessage } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import { type AddressInfo, connect, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { connect as connectTls } from "node:tls";
import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import { regionCertificates } from "../test/support/certificates.ts";
import { patience } from "../test/support/patience.ts";
import { GroundplaneError } from "./errors.ts";
import type { Transport } from "./transport.ts";
import { acceptWebSocket, applyMask, requestWebSocket, WebSocketParser } from "./websocket.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
	for (const cleanup of cleanups.splice(0)) cleanup();
});

async function server(upgrade: (request: IncomingMessage, socket: Duplex, head: Buffer) => void): Promise<number> {
	const http = createServer((_request, response) => response.writeHead(503, { "x-why": "full" }).end("come back"));
	http.on("upgrade", upgrade);
	await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
	cleanups.push(() => {
		http.close();
		http.closeAllConnections();
	});
	return (http.address() as AddressInfo).port;
}

async function dial(port: number): Promise<Socket> {
	const socket = connect(port, "127.0.0.1");
	cleanups.push(() => socket.destroy());
	await new Promise<void>((resolve) => socket.once("connect", resolve));
	return socket;
}

const wanted = { host: "example.com", path: "/tunnel/v1", subprotocol: "p" };

async function request(port: number, masked: boolean): Promise<Transport> {
	const answer = await requestWebSocket(await dial(port), { ...wanted, masked });
	if (answer.transport === undefined) throw new Error(`answered ${answer.status}`);
	return answer.transport;
}

/** Gathers what a transport brings. */
function listen(transport: Transport): { bytes: () => Buffer; closed: Promise<Error | undefined> } {
	const chunks: Buffer[] = [];
	const closed = new Promise<Error | undefined>((resolve) =>
		transport.start({ onBytes: (chunk) => chunks.push(chunk), onSent: () => {}, onClose: resolve }),
	);
	return { bytes: () => Buffer.concat(chunks), closed };
}

const sizes = [1, 125, 126, 65_535, 65_536, 300_000];
const messages = sizes.map((size) => randomBytes(size));

test.each([
	["zero mask", false],
	["random mask", true],
])("our client and the ws library's server understand each other: %s", async (_name, masked) => {
	const sockets = new WebSocketServer({ noServer: true, handleProtocols: () => "p" });
	const port = await server((incoming, socket, head) =>
		sockets.handleUpgrade(incoming, socket, head, (webSocket) => {
			webSocket.on("message", (data) => webSocket.send(data));
			webSocket.ping("are you there");
			webSocket.on("pong", (data) => webSocket.send(data));
		}),
	);
	const transport = await request(port, masked);
	const { bytes, closed } = listen(transport);
	for (const message of messages) transport.send([message.subarray(0, 1), message.subarray(1)], message.length);
	const all = sizes.reduce((sum, size) => sum + size) + "are you there".length;
	await vi.waitFor(() => expect(bytes().length).toBe(all), patience);
	const got = bytes();
	expect(got.includes("are you there")).toBe(true);
	expect(got.includes(messages[5] as Buffer)).toBe(true);
	transport.end();
	expect(await closed).toBeUndefined();
});

test("our server and the ws library's client understand each other, masks and cut messages included", async () => {
	const ended = Promise.withResolvers<Error | undefined>();
	const port = await server((incoming, socket, head) => {
		const transport = acceptWebSocket(incoming, socket, head, { subprotocol: "p", headers: { "x-nonce": "n" } });
		transport.start({
			onBytes: (chunk) => transport.send([Buffer.from(chunk)], chunk.length),
			onSent: () => {},
			onClose: ended.resolve,
		});
	});
	const client = new WebSocket(`ws://127.0.0.1:${port}/`, "p", { perMessageDeflate: true });
	const chunks: Buffer[] = [];
	client.on("message", (data) => chunks.push(data as Buffer));
	const nonce = new Promise((resolve) => client.once("upgrade", (answer) => resolve(answer.headers["x-nonce"])));
	await new Promise((resolve) => client.once("open", resolve));
	expect(await nonce).toBe("n");
	for (const message of messages) {
		client.send(message.subarray(0, 100), { fin: false });
		client.send(message.subarray(100), { fin: true });
	}
	const pong = new Promise((resolve) => client.once("pong", (data) => resolve(data.toString())));
	client.ping("x");
	expect(await pong).toBe("x");
	await vi.waitFor(() => expect(Buffer.concat(chunks).equals(Buffer.concat(messages))).toBe(true), patience);
	const code = new Promise((resolve) => client.once("close", resolve));
	client.close(1000);
	expect(await code).toBe(1000);
	expect(await ended.promise).toBeUndefined();
});

test("over TLS the memory of what has left is used again, and every byte arrives as it was written", async () => {
	const certificates = await regionCertificates("");
	const { cert, key, ca } = await certificates.issueService("tunnel");
	const http = createHttpsServer({ cert, key });
	cleanups.push(() => {
		http.close();
		http.closeAllConnections();
	});
	const hash = createHash("sha256");
	let arrived = 0;
	http.on("upgrade", (incoming, socket, head) => {
		const transport = acceptWebSocket(incoming, socket, head, { subprotocol: "p" });
		const onBytes = (chunk: Buffer) => {
			hash.update(chunk);
			arrived += chunk.length;
		};
		transport.start({ onBytes, onSent: () => {}, onClose: () => {} });
	});
	await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
	const { port } = http.address() as AddressInfo;
	const socket = connectTls({ port, host: "127.0.0.1", servername: "localhost", ca });
	cleanups.push(() => socket.destroy());
	await new Promise<void>((resolve) => socket.once("secureConnect", resolve));
	const { transport } = await requestWebSocket(socket, wanted);
	if (transport === undefined) throw new Error("no WebSocket");
	const sent = createHash("sha256");
	let left = 120;
	const fill = () => {
		// Up to three at a time, so that some wait while the memory of others comes back.
		while (left > 0 && transport.buffered < 300_000) {
			const message = randomBytes([100_000, 131_000, 3_000, 70_000][left-- % 4] as number);
			sent.update(message);
			transport.send([message.subarray(0, 8), message.subarray(8)], message.length);
		}
	};
	transport.start({ onBytes: () => {}, onSent: fill, onClose: () => {} });
	fill();
	await vi.waitFor(() => expect(arrived).toBe(30 * (100_000 + 131_000 + 3_000 + 70_000)), patience);
	expect(hash.digest("hex")).toBe(sent.digest("hex"));
}, 30_000);

test("what came with the handshake is not lost, and nothing is read before the transport is started", async () => {
	const port = await server((incoming, socket, head) => {
		const transport = acceptWebSocket(incoming, socket, head, { subprotocol: "p" });
		listen(transport);
		transport.send([Buffer.from("early")], 5);
	});
	const transport = await request(port, false);
	await new Promise((resolve) => setTimeout(resolve, 20));
	const { bytes } = listen(transport);
	await vi.waitFor(() => expect(bytes().toString()).toBe("early"), patience);
});

test("an answer that is no WebSocket is given to the caller", async () => {
	const port = await server((_incoming, socket) =>
		socket.end("HTTP/1.1 503 Busy\r\ncontent-length: 2\r\nx-why: full\r\n\r\nno"),
	);
	const answer = await requestWebSocket(await dial(port), wanted);
	expect(answer).toMatchObject({ status: 503, body: "no", headers: { "x-why": "full" } });
	const liar = await server((_incoming, socket) =>
		socket.write("HTTP/1.1 101 OK\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n"),
	);
	await expect(requestWebSocket(await dial(liar), wanted)).rejects.toMatchObject({ code: "TunnelProtocolError" });
	const mute = await server((_incoming, socket) => socket.destroy());
	await expect(requestWebSocket(await dial(mute), wanted)).rejects.toThrow();
});

test.each([
	["another method", { method: "POST" }],
	["another version", { "sec-websocket-version": "8" }],
	["a bad key", { "sec-websocket-key": "short" }],
	["no subprotocol", { "sec-websocket-protocol": "q" }],
])(
	"a request with %s is refused before anything is written",
	(_name, { method = "GET", ...change }: Record<string, string>) => {
		const headers = {
			upgrade: "websocket",
			"sec-websocket-version": "13",
			"sec-websocket-key": randomBytes(16).toString("base64"),
			"sec-websocket-protocol": "a, p",
			...change,
		};
		const socket = { write: vi.fn() } as unknown as Duplex;
		expect(() =>
			acceptWebSocket({ method, headers } as unknown as IncomingMessage, socket, Buffer.alloc(0), { subprotocol: "p" }),
		).toThrow(GroundplaneError);
		expect(socket.write).not.toHaveBeenCalled();
	},
);

/** Frames as RFC 6455 §5.2 has them, written the slow and obvious way. */
function frame({
	opcode,
	fin,
	payload,
	key,
}: {
	opcode: number;
	fin: boolean;
	payload: Uint8Array;
	key: Uint8Array | undefined;
}): Buffer {
	const mask = key === undefined ? 0 : 0x80;
	const length =
		payload.length < 126
			? Buffer.from([mask | payload.length])
			: payload.length < 65_536
				? Buffer.from([mask | 126, payload.length >> 8, payload.length & 255])
				: Buffer.from([
						mask | 127,
						0,
						0,
						0,
						0,
						0,
						payload.length >> 16,
						(payload.length >> 8) & 255,
						payload.length & 255,
					]);
	const body = Buffer.from(payload.map((byte, index) => byte ^ (key?.[index & 3] ?? 0)));
	return Buffer.concat([Buffer.from([(fin ? 0x80 : 0) | opcode]), length, key ?? Buffer.alloc(0), body]);
}

const key = fc.oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.constant(new Uint8Array(4)));
const message = fc.record({
	parts: fc.array(fc.uint8Array({ maxLength: 70_000 }), { minLength: 1, maxLength: 3 }),
	control: fc.option(fc.record({ opcode: fc.constantFrom(9, 10), payload: fc.uint8Array({ maxLength: 125 }) })),
	key,
});

test("frames come out as they went in, however the bytes are cut, whatever the mask", () => {
	fc.assert(
		fc.property(
			fc.boolean(),
			fc.array(message, { maxLength: 5 }),
			fc.array(fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 70_000 })), {
				minLength: 1,
				maxLength: 5,
			}),
			(masked, messages, cuts) => {
				const raw: Buffer[] = [];
				const data: Uint8Array[] = [];
				const controls: [number, string][] = [];
				for (const { parts, control, key } of messages) {
					const use = masked ? key : undefined;
					for (const [index, payload] of parts.entries()) {
						raw.push(frame({ opcode: index === 0 ? 2 : 0, fin: index === parts.length - 1, payload, key: use }));
						data.push(payload);
						if (index > 0 || control === null) continue;
						raw.push(frame({ ...control, fin: true, key: use }));
						controls.push([control.opcode, Buffer.from(control.payload).toString("hex")]);
					}
				}
				const got: Buffer[] = [];
				const gotControls: [number, string][] = [];
				const parser = new WebSocketParser(
					masked,
					(piece) => got.push(piece),
					(opcode, payload) => gotControls.push([opcode, payload.toString("hex")]),
				);
				const all = Buffer.concat(raw);
				for (let at = 0, turn = 0; at < all.length; turn++) {
					const size = cuts[turn % cuts.length] as number;
					parser.push(Buffer.from(all.subarray(at, at + size)));
					at += size;
				}
				expect(Buffer.concat(got).equals(Buffer.concat(data))).toBe(true);
				expect(gotControls).toEqual(controls);
			},
		),
		{ numRuns: 60 },
	);
});

test("masking twice gives the data back, at every alignment", () => {
	fc.assert(
		fc.property(fc.uint8Array({ maxLength: 100 }), key, fc.nat(3), fc.nat(7), (data, mask, phase, offset) => {
			const memory = new ArrayBuffer(offset + data.length);
			const view = Buffer.from(memory, offset);
			view.set(data);
			applyMask(view, mask, phase);
			expect([...view]).toEqual([...data].map((byte, index) => byte ^ (mask[(phase + index) & 3] as number)));
		}),
	);
});

test.each([
	["reserved bits", [0xc2, 0x00]],
	["text", [0x81, 0x00]],
	["an unknown opcode", [0x83, 0x00]],
	["a masked frame from the server", [0x82, 0x80]],
	["a continuation of nothing", [0x80, 0x00]],
	["a message within a message", [0x02, 0x00, 0x82, 0x00]],
	["a cut control frame", [0x09, 0x00]],
	["a long control frame", [0x89, 126, 0, 126]],
	["an absurd length", [0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0]],
])("%s ends the connection", (_name, bytes) => {
	const parser = new WebSocketParser(
		false,
		() => {},
		() => {},
	);
	// The mask's four bytes make the header whole where one is announced.
	expect(() => parser.push(Buffer.from([...bytes, 0, 0, 0, 0]))).toThrow(/broke the tunnel protocol/);
});

test("a peer that breaks RFC 6455 is told 1002 and the transport says why it ended", async () => {
	const ended = Promise.withResolvers<Error | undefined>();
	const port = await server((incoming, socket, head) => {
		const transport = acceptWebSocket(incoming, socket, head, { subprotocol: "p" });
		transport.start({ onBytes: () => {}, onSent: () => {}, onClose: ended.resolve });
	});
	const client = new WebSocket(`ws://127.0.0.1:${port}/`, "p");
	const code = new Promise((resolve) => client.once("close", resolve));
	await new Promise((resolve) => client.once("open", resolve));
	client.send("text");
	expect(await code).toBe(1002);
	expect(await ended.promise).toMatchObject({ code: "TunnelProtocolError" });
});
