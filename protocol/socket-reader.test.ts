import { createHash, randomBytes } from "node:crypto";
import type { AddressInfo } from "node:net";
import { duplexPair } from "node:stream";
import { connect, createServer, type TLSSocket } from "node:tls";
import { afterEach, expect, test, vi } from "vitest";
import { regionCertificates } from "../test/support/certificates.ts";
import { patience } from "../test/support/patience.ts";
import { readSocket } from "./socket-reader.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
	for (const cleanup of cleanups.splice(0)) cleanup();
});

/** Both ends of a TLS connection over loopback. */
async function tlsPair(): Promise<Record<"dialling" | "accepting", TLSSocket>> {
	const { cert, key, ca } = await (await regionCertificates("")).issueService("tunnel");
	const accepted = Promise.withResolvers<TLSSocket>();
	const server = createServer({ cert, key }, accepted.resolve);
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	const { port } = server.address() as AddressInfo;
	const dialling = connect({ port, host: "127.0.0.1", servername: "localhost", ca });
	const accepting = await accepted.promise;
	cleanups.push(() => {
		dialling.destroy();
		accepting.destroy();
		server.close();
	});
	return { dialling, accepting };
}

test.each([
	["dialling", "accepting"],
	["accepting", "dialling"],
] as const)("the %s end is read into memory that is used again, to its end", async (reader, writer) => {
	const pair = await tlsPair();
	const [from, to] = [pair[writer], pair[reader]];
	const sent = randomBytes(900_001);
	from.write(sent.subarray(0, 30_000));
	// Some has come before anybody reads.
	to.pause();
	await new Promise((resolve) => setTimeout(resolve, 50));

	const hash = createHash("sha256");
	const memories = new Set<ArrayBufferLike>();
	let bytes = 0;
	let ended = false;
	to.on("end", () => {
		ended = true;
	});
	readSocket(to, (chunk) => {
		hash.update(chunk);
		bytes += chunk.length;
		// What came late enough for it not to be in the stream's own buffer.
		if (bytes > 200_000) memories.add(chunk.buffer);
	});
	// The other direction is none of its business.
	const answer = new Promise((resolve) => from.once("data", resolve));
	to.write("an answer");
	expect(String(await answer)).toBe("an answer");
	from.end(sent.subarray(30_000));
	await vi.waitFor(() => expect(ended).toBe(true), { timeout: 10_000 });
	expect(bytes).toBe(sent.length);
	expect(hash.digest("hex")).toBe(createHash("sha256").update(sent).digest("hex"));
	// Red when a Node keeps what it reads elsewhere: then the tunnel works, but slower.
	expect(memories.size).toBe(1);
});

test("a connection that is cut closes", async () => {
	const { dialling, accepting } = await tlsPair();
	readSocket(accepting, () => {});
	const closed = new Promise((resolve) => accepting.once("close", resolve));
	dialling.destroy();
	await closed;
});

test("any other stream is read as it is", async () => {
	const [near, far] = duplexPair();
	const pieces: string[] = [];
	readSocket(near, (chunk) => pieces.push(String(chunk)));
	far.write("a");
	far.end("b");
	await vi.waitFor(() => expect(pieces.join("")).toBe("ab"), patience);
});
