import { once } from "node:events";
import { connect, createServer } from "node:net";
import { arrayBuffer } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { AddressBook } from "../../agent/link/addresses.ts";
import { type Surroundings, surroundings } from "../../agent/link/network.ts";
import { defaultLimits } from "../../protocol/mux.ts";
import { patience } from "../support/patience.ts";
import { freePort } from "../support/ports.ts";
import { Relay } from "../support/relay.ts";
import { answerAtTheEnd, LinkFixture } from "./link-fixture.ts";

const fixture = new LinkFixture();
beforeAll(() => fixture.start());
afterEach(() => fixture.clean());
afterAll(() => fixture.stop());

const services = { "kube-apiserver": answerAtTheEnd };

async function relayTo(port: () => number): Promise<Relay> {
	const relay = await Relay.start(() => ({ port: port() }));
	fixture.atEnd(() => relay.close());
	return relay;
}

test.each<[string, (relay: Relay) => void]>([
	["closed", (relay) => relay.cut()],
	["reset", (relay) => relay.reset()],
	["garbled towards the host", (relay) => relay.inject("client")],
	["garbled towards the gateway", (relay) => relay.inject("server")],
	[
		"cut off in the middle of a TLS record, again and again",
		(relay) => {
			relay.behave({ truncateAfter: 1_500 });
			relay.reset();
			setTimeout(() => relay.behave(), 700);
		},
	],
	[
		"lost every other time",
		(relay) => {
			relay.behave({ lose: 0.5 });
			relay.reset();
		},
	],
	[
		"refused for a while",
		(relay) => {
			relay.behave({ refuse: true });
			relay.reset();
			setTimeout(() => relay.behave(), 700);
		},
	],
])("a connection that is %s is made again, and carries streams again", async (_what, harm) => {
	const gateway = await fixture.gateway();
	const relay = await relayTo(() => gateway.port);
	const agent = await fixture.link(relay.port, { services });
	await agent.up();
	const before = agent.link.session;
	harm(relay);
	await vi.waitFor(() => expect(agent.link.session).not.toBe(before), { ...patience, interval: 5 });
	await agent.up();
	await vi.waitFor(async () => {
		expect(await fixture.ask(gateway, "kube-apiserver.host-1:80", "hello")).toBe("you said hello");
	}, 10_000);
	expect(agent.link.state.reconnects).toBeGreaterThan(0);
});

test("a line that falls silent is noticed and told, and taken up again when it speaks", async () => {
	const gateway = await fixture.gateway();
	const relay = await relayTo(() => gateway.port);
	const agent = await fixture.link(relay.port, { limits: { pingAfterMs: 300, pingTimeoutMs: 500, helloMs: 500 } });
	await agent.up();
	relay.behave({ silent: true });
	expect((await agent.failed("TunnelClosed")).detail).toContain("nothing was heard");
	relay.behave();
	await agent.up();
});

test("what a host sends fills a long line, and does not wait a round trip for each few kilobytes", async () => {
	const SIZE = 24 * 1024 * 1024;
	const gateway = await fixture.gateway();
	const relay = await relayTo(() => gateway.port);
	const agent = await fixture.link(relay.port, {
		services: { "kube-apiserver": (stream) => void stream.resume().end(Buffer.alloc(SIZE)) },
	});
	relay.behave({ delayMs: 50 });
	await agent.up();
	// On a long line the gateway has the agent's HELLO later than the agent has the gateway's.
	const stream = await vi.waitFor(() => fixture.open(gateway, "kube-apiserver.host-1:80"), patience);
	const since = performance.now();
	expect((await arrayBuffer(stream)).byteLength).toBe(SIZE);
	// With windows of 16 KiB it would take 2.5 minutes, with the initial ones ten seconds.
	expect(performance.now() - since).toBeLessThan(5_000);
}, 60_000);

test("a thin and slow line is alive as long as any byte comes, however late its pongs are", async () => {
	const gateway = await fixture.gateway();
	const relay = await relayTo(() => gateway.port);
	let received = 0;
	const agent = await fixture.link(relay.port, {
		limits: { pingAfterMs: 100, pingTimeoutMs: 400 },
		services: {
			"kube-apiserver": (stream) => {
				stream.on("data", (bytes: Buffer) => {
					received += bytes.length;
				});
				stream.on("end", () => stream.end("all of it"));
			},
		},
	});
	await agent.up();
	// The agent's HELLO must have arrived: on a slow line it is still on its way when the agent knows the gateway's.
	await vi.waitFor(() => fixture.ask(gateway, "kube-apiserver.host-1:80", ""), { timeout: 30_000 });
	relay.behave({ delayMs: 150, bytesPerSecond: 60_000 });
	// Longer on its way than many deadlines of a ping, and it stands before every pong.
	expect(await fixture.ask(gateway, "kube-apiserver.host-1:80", "x".repeat(200_000))).toBe("all of it");
	expect(received).toBe(200_000);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 0 });
});

test.each<[string, (seen: Surroundings) => Surroundings]>([
	["slept", (seen) => ({ ...seen, wall: seen.wall + 3_600_000 })],
	["lost the address of its tunnel", (seen) => ({ ...seen, addresses: new Set() })],
])(
	"a machine that %s asks at once whether its tunnel stands, and does not wait for the next ping",
	async (_what, change) => {
		const gateway = await fixture.gateway();
		const relay = await relayTo(() => gateway.port);
		let changed = false;
		const here = () => ({ ...surroundings(), addresses: new Set(["127.0.0.1"]) });
		const agent = await fixture.link(relay.port, {
			lookMs: 50,
			look: () => (changed ? change(here()) : here()),
		});
		await agent.up();
		const before = agent.link.session;
		relay.behave({ silent: true });
		const since = performance.now();
		changed = true;
		await vi.waitFor(() => expect(agent.link.session).toBeUndefined(), { ...patience, interval: 10 });
		// Far sooner than by the agent's ordinary pings (25 s, and 15 s for the answer).
		expect(performance.now() - since).toBeLessThan(defaultLimits.pingTimeoutMs);
		relay.behave();
		await agent.up(before);
	},
);

test("a machine that slept keeps a tunnel that still stands", async () => {
	const gateway = await fixture.gateway();
	let slept = 0;
	const agent = await fixture.link(gateway.port, {
		services,
		lookMs: 50,
		look: () => ({ ...surroundings(), wall: Date.now() + slept }),
	});
	await agent.up();
	slept = 3_600_000;
	await delay(4_000);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 0 });
	expect(await fixture.ask(gateway, "kube-apiserver.host-1:80", "hello")).toBe("you said hello");
});

test("a new network ends a long pause", async () => {
	const gateway = await fixture.gateway();
	let passwordIsRight = false;
	const proxy = createServer((socket) => {
		socket.on("error", () => {});
		socket.once("data", () => {
			if (!passwordIsRight) {
				socket.end("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
				return;
			}
			socket.write("HTTP/1.1 200 OK\r\n\r\n");
			const onward = connect(gateway.port, "127.0.0.1");
			onward.on("error", () => {});
			socket.pipe(onward).pipe(socket);
			socket.on("close", () => onward.destroy());
		});
	});
	proxy.listen(0, "127.0.0.1");
	await once(proxy, "listening");
	fixture.atEnd(() => proxy.close());
	const addresses = new Set(["192.0.2.1"]);
	const agent = await fixture.link(gateway.port, {
		target: { proxy: `http://user:wrong@127.0.0.1:${(proxy.address() as { port: number }).port}` },
		// The longest pause for what a person has to heal: 5 s at first.
		random: () => 1,
		lookMs: 50,
		look: () => ({ ...surroundings(), addresses: new Set(addresses) }),
	});
	expect((await agent.failed("Unauthenticated")).next).toContain("/etc/default/groundplane-agent");
	passwordIsRight = true;
	const since = performance.now();
	addresses.add("198.51.100.1");
	await agent.up();
	expect(performance.now() - since).toBeLessThan(4_000);
});

test("a dead address before the living one costs a quarter of a second, not the deadline", async () => {
	const gateway = await fixture.gateway();
	const relay = await Relay.start(() => ({ port: gateway.port }), { host: "127.0.0.3", port: await freePort() });
	fixture.atEnd(() => relay.close());
	await fixture.deadAddress("127.0.0.2", relay.port);
	const phases: string[] = [];
	const agent = await fixture.link(relay.port, {
		target: {
			address: `region.test:${relay.port}`,
			addresses: new AddressBook({
				lookup: async () => [
					{ address: "127.0.0.2", family: 4 },
					{ address: "127.0.0.3", family: 4 },
				],
			}),
			trace: (phase, detail) => void phases.push(`${phase} ${detail}`),
		},
	});
	await agent.up();
	expect(phases.find((phase) => phase.startsWith("connect"))).toContain("reaches 127.0.0.3");
	expect(agent.link.state.reconnects).toBe(0);
	expect(agent.link.state.lastError).toBeUndefined();
});

test("IPv6 that leads nowhere does not keep IPv4 from being used", async () => {
	const gateway = await fixture.gateway();
	// Listens on IPv4 alone.
	const relay = await relayTo(() => gateway.port);
	const agent = await fixture.link(relay.port, {
		target: {
			address: `region.test:${relay.port}`,
			addresses: new AddressBook({
				lookup: async () => [
					{ address: "::1", family: 6 },
					{ address: "127.0.0.1", family: 4 },
				],
			}),
		},
	});
	await agent.up();
	expect(agent.link.state.lastError).toBeUndefined();
});

test("the name is asked for at each dial: a region that moved is found", async () => {
	const gateway = await fixture.gateway();
	const port = await freePort();
	const places = await Promise.all(
		["127.0.0.4", "127.0.0.5"].map((host) => Relay.start(() => ({ port: gateway.port }), { host, port })),
	);
	for (const place of places) fixture.atEnd(() => place.close());
	let at = "127.0.0.4";
	const agent = await fixture.link(port, {
		target: {
			address: `region.test:${port}`,
			addresses: new AddressBook({ lookup: async () => [{ address: at, family: 4 }] }),
		},
	});
	await agent.up();
	const before = agent.link.session;
	at = "127.0.0.5";
	places[0]?.behave({ refuse: true });
	places[0]?.cut();
	await agent.up(before);
	expect(places.map(({ open }) => open)).toEqual([0, 1]);
});

test("of two front doors one that hangs does not hold the host", async () => {
	const gateway = await fixture.gateway();
	const port = await freePort();
	const [hung, good] = await Promise.all(
		["127.0.0.6", "127.0.0.7"].map((host) => Relay.start(() => ({ port: gateway.port }), { host, port })),
	);
	for (const place of [hung, good]) fixture.atEnd(() => place?.close());
	hung?.behave({ silent: true });
	const agent = await fixture.link(port, {
		target: {
			address: `region.test:${port}`,
			phaseMs: 1_000,
			addresses: new AddressBook({
				lookup: async () => [
					{ address: "127.0.0.6", family: 4 },
					{ address: "127.0.0.7", family: 4 },
				],
			}),
		},
	});
	await agent.up();
	expect([hung?.connections, good?.connections]).toEqual([1, 1]);
});

test("when a gateway leaves, the next tunnel is open before the old one ends, and what runs on the old one is finished", async () => {
	const first = await fixture.gateway({ name: "tunnel-0" });
	const second = await fixture.gateway({ name: "tunnel-1" });
	let port = first.port;
	const relay = await relayTo(() => port);
	const events: string[] = [];
	const agent = await fixture.link(relay.port, {
		services: {
			"kube-apiserver": (stream) => {
				stream.resume();
				stream.once("end", () => setTimeout(() => stream.end("slow answer"), 1_500));
			},
		},
	});
	agent.link.on("up", (session) => {
		events.push(`up ${session.peer?.name}`);
		void session.closed.then(() => events.push(`closed ${session.peer?.name}`));
	});
	agent.link.on("down", () => events.push("down"));
	await agent.up();
	const answer = fixture.ask(first, "kube-apiserver.host-1:80", "a question");
	await vi.waitFor(() => expect(agent.link.session?.streamsByService().get("kube-apiserver")).toBe(1), patience);
	port = second.port;
	const stopped = first.stop();
	expect(await answer).toBe("slow answer");
	await stopped;
	await vi.waitFor(() => expect(events).toContain("closed tunnel-0"), patience);
	expect(events).toEqual(["up tunnel-0", "up tunnel-1", "closed tunnel-0"]);
	expect(agent.link.state).toMatchObject({ connected: true, gateway: "tunnel-1" });
});

test("while a new tunnel can't be opened the old one serves, and the host counts as connected", async () => {
	const gateway = await fixture.gateway();
	const agent = await fixture.link(gateway.port, { services });
	await agent.up();
	const before = agent.link.session;
	agent.retarget({ address: `127.0.0.1:${await freePort()}` });
	agent.link.renew();
	await delay(1_000);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 0 });
	expect(await fixture.ask(gateway, "kube-apiserver.host-1:80", "hello")).toBe("you said hello");
	agent.retarget({ address: `127.0.0.1:${gateway.port}` });
	await agent.up(before);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 1 });
});

test("the hosts' certificate that was revoked is told, and not hammered with", async () => {
	const gateway = await fixture.gateway();
	const relay = await relayTo(() => gateway.port);
	fixture.verdicts.set("host-1", { admitted: false, reason: "CertificateRevoked", message: "host-1 was deleted" });
	const agent = await fixture.link(relay.port);
	const { detail } = await agent.failed("CertificateRevoked");
	expect(detail).toBe("host-1 was deleted");
	await delay(2_000);
	expect(relay.connections).toBe(1);
});

test.each([
	["in problem details", "retry-after: 7200", { retryAfterMs: 1_500 }],
	["in whole seconds", "retry-after: 2", {}],
])("a gateway that is busy says when to come back, %s, and is obeyed", async (_what, header, more) => {
	const dials: number[] = [];
	const port = await fixture.impostor((socket) => {
		dials.push(performance.now());
		const body = JSON.stringify({ code: "Overloaded", detail: "too many hosts", next: "Nothing.", ...more });
		socket.once("data", () =>
			socket.end(`HTTP/1.1 503 Overloaded\r\n${header}\r\ncontent-length: ${body.length}\r\n\r\n${body}`),
		);
	});
	const agent = await fixture.link(port);
	await agent.failed("Overloaded");
	await vi.waitFor(() => expect(dials.length).toBeGreaterThan(1), { timeout: 10_000 });
	expect((dials[1] as number) - (dials[0] as number)).toBeGreaterThan(1_450);
});
