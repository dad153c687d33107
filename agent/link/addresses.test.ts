import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import { afterEach, expect, test, vi } from "vitest";
import { type Address, AddressBook, connectFastest, interleave } from "./addresses.ts";

const v4 = (last: number): Address => ({ address: `192.0.2.${last}`, family: 4 });
const v6 = (last: number): Address => ({ address: `2001:db8::${last}`, family: 6 });

afterEach(() => vi.useRealTimers());

test.each<[string, Address[], Address[]]>([
	["families in turns, the favourite first", [v6(1), v6(2), v4(1), v4(2)], [v6(1), v4(1), v6(2), v4(2)]],
	["more of one than of the other", [v4(1), v6(1), v4(2), v4(3)], [v4(1), v6(1), v4(2), v4(3)]],
	["one family", [v4(1), v4(2)], [v4(1), v4(2)]],
	["none", [], []],
])("order: %s", (_what, addresses, order) => {
	expect(interleave(addresses)).toEqual(order);
});

/** A connect() whose attempts end as told, by milliseconds: `ok`, an error code, or never. */
function network(fates: Record<string, { after: number; error?: string } | "never">) {
	const tried: [string, number][] = [];
	const open = new Set<string>();
	const connect = ({ host }: { host: string }): Socket => {
		const socket = new EventEmitter() as Socket;
		socket.destroy = () => {
			open.delete(host);
			return socket;
		};
		tried.push([host, Date.now()]);
		open.add(host);
		const fate = fates[host] ?? "never";
		if (fate !== "never") {
			setTimeout(() => {
				if (!open.has(host)) return;
				if (fate.error === undefined) return socket.emit("connect");
				open.delete(host);
				socket.emit("error", Object.assign(new Error(fate.error), { code: fate.error }));
			}, fate.after);
		}
		return Object.assign(socket, { remoteAddress: host });
	};
	return { connect, tried, open };
}

test("a dead address first costs a quarter of a second, and what lost is closed", async () => {
	vi.useFakeTimers({ now: 0 });
	const { connect, tried, open } = network({ "192.0.2.1": { after: 20 } });
	const { connected } = connectFastest([v6(1), v4(1)], 443, connect);
	await vi.advanceTimersByTimeAsync(270);
	expect((await connected).remoteAddress).toBe("192.0.2.1");
	expect(tried).toEqual([
		["2001:db8::1", 0],
		["192.0.2.1", 250],
	]);
	expect([...open]).toEqual(["192.0.2.1"]);
});

test("a slow line wins although the next address was begun: nothing is given up early", async () => {
	vi.useFakeTimers({ now: 0 });
	const { connect } = network({ "2001:db8::1": { after: 900 } });
	const { connected } = connectFastest([v6(1), v4(1)], 443, connect);
	await vi.advanceTimersByTimeAsync(900);
	expect((await connected).remoteAddress).toBe("2001:db8::1");
});

test("a refusal moves on at once, and the error that says most is told", async () => {
	vi.useFakeTimers({ now: 0 });
	const { connect, tried } = network({
		"2001:db8::1": { after: 1, error: "ENETUNREACH" },
		"192.0.2.1": { after: 1, error: "ECONNREFUSED" },
		"192.0.2.2": { after: 1, error: "EHOSTUNREACH" },
	});
	const { connected } = connectFastest([v6(1), v4(1), v4(2)], 443, connect);
	const failed = expect(connected).rejects.toMatchObject({ code: "ECONNREFUSED" });
	await vi.advanceTimersByTimeAsync(10);
	await failed;
	expect(tried.map(([, at]) => at)).toEqual([0, 1, 2]);
});

test("abandoning ends every attempt and begins none", async () => {
	vi.useFakeTimers({ now: 0 });
	const { connect, tried, open } = network({});
	const { abandon } = connectFastest([v6(1), v4(1), v4(2)], 443, connect);
	await vi.advanceTimersByTimeAsync(300);
	abandon();
	await vi.advanceTimersByTimeAsync(1_000);
	expect(tried).toHaveLength(2);
	expect(open.size).toBe(0);
});

test("each dial asks anew; while the DNS fails or hangs, its last answer stands in", async () => {
	const answers: (Address[] | "fails" | "hangs")[] = [[v4(1)], [v4(2)], "fails", "hangs", [v4(3)]];
	let asked = 0;
	let release = () => {};
	const book = new AddressBook({
		lookup: async () => {
			const answer = answers[asked++];
			if (answer === "fails" || answer === undefined) throw Object.assign(new Error(), { code: "EAI_AGAIN" });
			if (answer !== "hangs") return answer;
			await new Promise<void>((resolve) => {
				release = resolve;
			});
			return [v4(9)];
		},
	});
	expect(await book.find("a.test", 1_000)).toEqual([v4(1)]);
	expect(await book.find("a.test", 1_000)).toEqual([v4(2)]);
	expect(await book.find("a.test", 1_000)).toEqual([v4(2)]);
	expect(await book.find("a.test", 10)).toEqual([v4(2)]);
	// The hung question is still being asked: there is no second one.
	expect(await book.find("a.test", 10)).toEqual([v4(2)]);
	expect(asked).toBe(4);
	release();
	await new Promise((resolve) => setImmediate(resolve));
	expect(await book.find("a.test", 1_000)).toEqual([v4(3)]);
});

test("a name that was never found is said to be so, and an address is no question for the DNS", async () => {
	const book = new AddressBook({
		lookup: async () => {
			throw Object.assign(new Error(), { code: "ENOTFOUND" });
		},
	});
	await expect(book.find("a.test", 1_000)).rejects.toMatchObject({ code: "ENOTFOUND" });
	expect(await book.find("::1", 1_000)).toEqual([{ address: "::1", family: 6 }]);
});

test("an address that was no good goes last for a minute", async () => {
	let now = 0;
	const book = new AddressBook({ lookup: async () => [v4(1), v4(2)], now: () => now });
	book.demote("192.0.2.1");
	expect(await book.find("a.test", 1_000)).toEqual([v4(2), v4(1)]);
	now = 60_000;
	expect(await book.find("a.test", 1_000)).toEqual([v4(1), v4(2)]);
});
