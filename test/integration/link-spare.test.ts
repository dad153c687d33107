import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import type { TestGateway } from "../support/gateway.ts";
import { patience } from "../support/patience.ts";
import { Relay } from "../support/relay.ts";
import { answerAtTheEnd, LinkFixture, type TestLink, type TestLinkOptions } from "./link-fixture.ts";

const fixture = new LinkFixture();
beforeAll(() => fixture.start());
afterEach(() => fixture.clean());
afterAll(() => fixture.stop());

/** Gateways of one region behind one address, which gives each connection to the next one of them that is not down. */
class Front {
	readonly gateways: TestGateway[] = [];
	readonly #lines: Relay[] = [];
	readonly #down = new Set<Relay>();
	#turn = 0;
	#front!: Relay;

	static async start(count: number, options: { maxHosts?: number } = {}): Promise<Front> {
		const front = new Front();
		for (let index = 0; index < count; index++) {
			const gateway = await fixture.gateway({ name: `tunnel-${index}`, gateways: count, ...options });
			front.gateways.push(gateway);
			front.#lines.push(await relay(() => gateway.port));
		}
		front.#front = await relay(() => front.#next().port);
		return front;
	}

	get port(): number {
		return this.#front.port;
	}

	get connections(): number {
		return this.#front.connections;
	}

	line(gateway: string | undefined): Relay {
		return this.#lines[this.gateways.findIndex(({ name }) => name === gateway)] as Relay;
	}

	/** A gateway that is killed: its connections are reset, and nobody is sent there. */
	kill(gateway: string | undefined): void {
		this.#down.add(this.line(gateway));
		this.line(gateway).reset();
	}

	revive(): void {
		this.#down.clear();
	}

	/** The site's own line: all that passes here is silent. */
	behave(mischief: Parameters<Relay["behave"]>[0]): void {
		this.#front.behave(mischief);
	}

	#next(): Relay {
		const up = this.#lines.filter((line) => !this.#down.has(line));
		return up[this.#turn++ % up.length] as Relay;
	}
}

async function relay(port: () => number): Promise<Relay> {
	const started = await Relay.start(() => ({ port: port() }));
	fixture.atEnd(() => started.close());
	return started;
}

/** A host that doesn't wait before it opens its spare tunnel, and keeps its control stream open as an agent does. */
async function host(front: { port: number }, options: TestLinkOptions = {}): Promise<TestLink> {
	const started = await fixture.link(front.port, {
		services: { "kube-apiserver": answerAtTheEnd },
		random: () => 0,
		...options,
	});
	started.link.on("up", (session) => {
		session.open("control", { lane: "control" }).then(
			(stream) => stream.on("error", () => {}).resume(),
			() => {},
		);
	});
	await started.up();
	return started;
}

/** The gateway at which a host's spare tunnel stands ready: another one than its own. */
async function spareOf({ link }: TestLink): Promise<string> {
	await vi.waitFor(() => expect([undefined, link.state.gateway]).not.toContain(link.state.spare), patience);
	return link.state.spare as string;
}

/** A host is reached through every gateway, once its route is written. */
async function reached({ gateways }: Front, name = "host-1"): Promise<void> {
	for (const gateway of gateways) {
		const ask = () => fixture.ask(gateway, `kube-apiserver.${name}:80`, "hello");
		await vi.waitFor(async () => expect(await ask()).toBe("you said hello"), patience);
	}
}

test("the spare tunnel takes over at once when a gateway is killed, and another one is opened when that is back", async () => {
	const front = await Front.start(2);
	const agent = await host(front);
	const spare = await spareOf(agent);
	await reached(front);
	const killed = agent.link.state.gateway;
	// Nobody dials for it.
	front.behave({ refuse: true });
	front.kill(killed);
	const before = performance.now();
	await vi.waitFor(() => expect(agent.link.state.gateway).toBe(spare), { ...patience, interval: 1 });
	const [survivor] = front.gateways.filter(({ name }) => name === spare) as [TestGateway];
	expect(await fixture.ask(survivor, "kube-apiserver.host-1:80", "hello")).toBe("you said hello");
	expect(performance.now() - before).toBeLessThan(2_000);
	expect(agent.link.state.reconnects).toBe(1);
	front.behave({});
	front.revive();
	expect(await spareOf(agent)).toBe(killed);
	await reached(front);
});

test("a gateway that leaves is followed by the spare tunnel, and a stream that is open ends in peace", async () => {
	const front = await Front.start(2);
	const agent = await host(front);
	const spare = await spareOf(agent);
	const [leaving] = front.gateways.filter(({ name }) => name !== spare) as [TestGateway];
	const stream = await fixture.open(leaving, "kube-apiserver.host-1:80");
	stream.write("hel");
	const left = leaving.stop();
	await vi.waitFor(() => expect(agent.link.state.gateway).toBe(spare), { ...patience, interval: 1 });
	stream.end("lo");
	expect(await text(stream)).toBe("you said hello");
	await left;
});

test("a spare tunnel whose line has gone, too, is not relied on", async () => {
	const front = await Front.start(2);
	const agent = await host(front, { limits: { pingAfterMs: 300, pingTimeoutMs: 500, helloMs: 500 } });
	await spareOf(agent);
	front.behave({ silent: true });
	await agent.failed("TunnelClosed");
	front.behave({});
	await agent.up();
	await reached(front);
});

test("a host that is revoked loses both of its tunnels", async () => {
	const front = await Front.start(2);
	const agent = await host(front);
	await spareOf(agent);
	fixture.verdicts.set("host-1", { admitted: false, reason: "Forbidden", message: "it was sold" });
	fixture.cut("host-1", { reason: "Forbidden", message: "it was sold" });
	await agent.failed("Forbidden");
	await vi.waitFor(
		() => expect([agent.link.session, agent.link.state.spare]).toEqual([undefined, undefined]),
		patience,
	);
});

test("a spare tunnel makes way for a host that has no other place, and comes back only where there is room", async () => {
	const front = await Front.start(2, { maxHosts: 2 });
	const agents: TestLink[] = [];
	for (const name of ["host-1", "host-2"]) {
		const agent = await host(front, { host: name });
		expect(await spareOf(agent)).toBe("tunnel-1");
		agents.push(agent);
	}
	const spared = front.gateways[1] as TestGateway;
	for (const name of ["host-3", "host-4"]) agents.push(await host(spared, { host: name }));
	await vi.waitFor(
		() => expect(agents.map(({ link }) => link.state.spare)).toEqual(Array(4).fill(undefined)),
		patience,
	);
	for (const { link } of agents) expect(link.session).toBeDefined();
	for (const name of ["host-1", "host-4"]) await reached(front, name);
});

test("who has one gateway only opens one tunnel", async () => {
	const front = await Front.start(1);
	const agent = await host(front);
	await reached(front);
	agent.link.renew();
	await vi.waitFor(() => expect(agent.link.state.reconnects).toBe(1), patience);
	await reached(front);
	expect(front.connections).toBe(2);
});
