import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { Duplex } from "node:stream";
import { afterEach, expect, test } from "vitest";
import { splice } from "./splice.ts";

const open: { destroy(): void }[] = [];
const servers: Server[] = [];
afterEach(() => {
	for (const socket of open.splice(0)) socket.destroy();
	for (const server of servers.splice(0)) server.close();
});

/** Two ends of a TCP connection. The second one ends by itself when its peer does, as a client's socket in Node. */
async function pair(): Promise<[Socket, Socket]> {
	const server = createServer({ allowHalfOpen: true }).listen(0, "127.0.0.1");
	servers.push(server);
	await once(server, "listening");
	const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
	const [accepted] = (await once(server, "connection")) as [Socket];
	for (const socket of [client, accepted]) socket.on("error", () => {});
	open.push(client, accepted);
	return [accepted, client];
}

/** A stream that takes what is written to it slowly, and says something now and then. */
function slowReader({ ms }: { ms: number }) {
	const taken: Buffer[] = [];
	const stream = new Duplex({
		read() {},
		write(chunk: Buffer, _encoding, callback) {
			setTimeout(() => {
				taken.push(chunk);
				callback();
			}, ms);
		},
	});
	open.push(stream);
	return { stream, taken: () => Buffer.concat(taken) };
}

/** What comes, up to the end. */
async function allOf(stream: Duplex): Promise<string> {
	const parts: Buffer[] = [];
	stream.on("data", (part: Buffer) => parts.push(part));
	await once(stream, "end");
	return Buffer.concat(parts).toString();
}

const closed = (stream: Duplex) => new Promise<void>((resolve) => stream.once("close", resolve));

test("last words arrive although the one who said them has closed, and the other still talks", async () => {
	const [server, socket] = await pair();
	const reader = slowReader({ ms: 20 });
	splice(reader.stream, socket);
	const talk = setInterval(() => reader.stream.push("are you there?"), 1);
	open.push({ destroy: () => clearInterval(talk) });
	server.resume();
	const words = Buffer.alloc(300_000, "last words ");
	server.end(words);
	await closed(socket);
	await once(reader.stream, "finish");
	expect(reader.taken().equals(words)).toBe(true);
	expect(reader.stream.destroyed).toBe(false);
	clearInterval(talk);
	reader.stream.push(null);
	await closed(reader.stream);
});

test("each direction ends by itself", async () => {
	const [server, socket] = await pair();
	const [far, near] = await pair();
	splice(socket, far);
	near.end("a question");
	expect(await allOf(server)).toBe("a question");
	server.end("the answer");
	expect(await allOf(near)).toBe("the answer");
});

test("who breaks off breaks the other", async () => {
	const [server, socket] = await pair();
	const reader = slowReader({ ms: 1 });
	reader.stream.on("error", () => {});
	splice(socket, reader.stream);
	server.write("the beginning of");
	await once(socket, "data");
	server.resetAndDestroy();
	await closed(reader.stream);
	expect(reader.stream.writableFinished).toBe(false);
});
