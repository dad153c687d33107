import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { dial } from "../../agent/link/dial.ts";
import { Session } from "../../protocol/mux.ts";
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
			const gateway = await fixture.gateway({ name: `tunnel-${index}`, oneOfSeveral: count > 1, ...options });
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

test("a gateway that leaves serves until another tunnel is open, and where none can be opened the spare one is used", async () => {
	const front = await Front.start(2);
	const agent = await host(front);
	const spare = await spareOf(agent);
	const [leaving] = front.gateways.filter(({ name }) => name !== spare) as [TestGateway];
	const stream = await fixture.open(leaving, "kube-apiserver.host-1:80");
	stream.write("hel");
	front.behave({ refuse: true });
	const dials = front.connections;
	const left = leaving.stop();
	await vi.waitFor(() => expect(front.connections).toBeGreaterThan(dials + 1), patience);
	expect([agent.link.state.gateway, agent.link.state.spare]).toEqual([leaving.name, spare]);
	stream.end("lo");
	expect(await text(stream)).toBe("you said hello");
	await vi.waitFor(() => expect(agent.link.state.gateway).toBe(spare), { ...patience, interval: 1 });
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

test("nothing goes through a spare tunnel, none stands beside the host's own, and none that was declined takes over", async () => {
	const front = await Front.start(2, { maxHosts: 2 });
	const [first, second] = front.gateways as [TestGateway, TestGateway];
	const agent = await host(first);
	const open = async (gateway: TestGateway, name: string) => {
		const { transport } = await dial(await fixture.target(gateway.port, name), AbortSignal.timeout(20_000), true);
		const hello = { name, software: "0.1.0", bootId: "boot", connectionId: "spare" };
		const session = new Session(transport, { role: "client", hello });
		fixture.atEnd(() => session.destroy());
		await session.ready;
		return session;
	};
	await expect(open(first, "host-1")).rejects.toMatchObject({ code: "AlreadyExists" });
	const spare = await open(second, "host-1");
	await expect(spare.open("artifacts")).rejects.toMatchObject({ code: "ServiceNotAllowed" });
	await open(second, "host-2");
	await expect(open(second, "host-3")).rejects.toMatchObject({ code: "Overloaded" });
	expect(await fixture.metric(second, "groundplane_tunnel_spares")).toBe(2);
	// Neither is a fault: nobody is to be woken for it.
	for (const gateway of [first, second]) {
		const results = "groundplane_tunnel_connections_total";
		expect(await fixture.metric(gateway, results, "SpareDeclined")).toBeGreaterThan(0);
		expect(await fixture.metric(gateway, results, "Full")).toBeNaN();
	}
	expect(agent.link.state.reconnects).toBe(0);
	// A newer one of the same host takes its own place.
	await open(second, "host-2");
	expect(await fixture.metric(second, "groundplane_tunnel_spares")).toBe(2);
	expect(spare.leaving).toBe(false);
});

test("after an outage hosts are back before they open spare tunnels", async () => {
	const front = await Front.start(2);
	const agent = await host(front, { random: () => 0.05 });
	await spareOf(agent);
	front.behave({ refuse: true });
	for (const { name } of front.gateways) front.line(name).reset();
	await agent.failed("TunnelClosed");
	await delay(1_500);
	front.behave({});
	await agent.up();
	const back = performance.now();
	await spareOf(agent);
	expect(performance.now() - back).toBeGreaterThan(500);
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
