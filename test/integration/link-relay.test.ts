import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { buffer, text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Relay } from "../support/relay.ts";

/** The tool that the link is tested with is itself put to the test: a relay that is kinder than it says proves nothing. */
let relay: Relay;
const echo = createServer({ allowHalfOpen: true }, (socket) => {
	socket.on("error", () => {});
	socket.pipe(socket);
});

beforeEach(async () => {
	if (!echo.listening) {
		echo.listen(0, "127.0.0.1");
		await once(echo, "listening");
	}
	relay = await Relay.start(() => ({ port: (echo.address() as AddressInfo).port }));
});

afterEach(async () => {
	await relay.close();
	echo.close();
});

async function dial(): Promise<Socket> {
	const socket = connect({ port: relay.port, host: "127.0.0.1", allowHalfOpen: true });
	await once(socket, "connect");
	return socket;
}

const codeOf = async (socket: Socket): Promise<string> => {
	const [error] = (await once(socket, "error")) as [NodeJS.ErrnoException];
	return error.code ?? "";
};

test("bytes arrive whole, in order and as late as said, also when the delay changes on the way", async () => {
	relay.behave({ delayMs: 150 });
	const socket = await dial();
	const since = performance.now();
	const sent = Buffer.from(Array.from({ length: 300_000 }, (_, at) => at % 251));
	socket.write(sent.subarray(0, 100_000));
	await delay(20);
	relay.behave();
	socket.end(sent.subarray(100_000));
	expect((await buffer(socket)).equals(sent)).toBe(true);
	expect(performance.now() - since).toBeGreaterThan(149);
});

test("a thin line takes the time it should", async () => {
	relay.behave({ bytesPerSecond: 100_000 });
	const socket = await dial();
	const since = performance.now();
	socket.end(Buffer.alloc(50_000, "x"));
	expect((await text(socket)).length).toBe(50_000);
	expect(performance.now() - since).toBeGreaterThan(450);
});

test("silence passes nothing, not even an end, and the connection stays", async () => {
	const socket = await dial();
	relay.behave({ silent: true });
	socket.write("anybody?");
	const heard = await Promise.race([once(socket, "data"), once(socket, "close"), delay(200, "nothing")]);
	expect(heard).toBe("nothing");
	socket.destroy();
});

test("resets, refusals and lost connections are what they are called", async () => {
	const first = await dial();
	first.write("hello");
	await once(first, "data");
	relay.reset();
	expect(await codeOf(first)).toBe("ECONNRESET");
	relay.behave({ lose: 0.5 });
	const fates: string[] = [];
	for (let at = 0; at < 4; at++) {
		const socket = connect({ port: relay.port, host: "127.0.0.1" });
		socket.on("error", () => {});
		socket.write("hello");
		fates.push(
			await once(socket, "data").then(
				() => "good",
				() => "lost",
			),
		);
		socket.destroy();
	}
	expect(fates).toEqual(["good", "lost", "good", "lost"]);
});

test("garbage comes in between, and what is cut off is cut off at that byte", async () => {
	const socket = await dial();
	socket.write("hello");
	await once(socket, "data");
	relay.inject("client", Buffer.from("garbage"));
	expect(String((await once(socket, "data"))[0])).toBe("garbage");
	socket.destroy();
	relay.behave({ truncateAfter: 7 });
	const cut = await dial();
	cut.on("error", () => {});
	cut.write("0123456789");
	expect(await text(cut)).toBe("0123456");
});
