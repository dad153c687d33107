import { randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { createServer } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { Paths, policyAllows } from "../../agent/config.ts";
import { clockSkewSeconds } from "../../agent/enroll.ts";
import { LocalServices } from "../../agent/link/services.ts";
import { encodeFrame, encodeHeader, FrameParser, FrameType } from "../../protocol/frames.ts";
import { isNonce, NONCE_HEADER, newNonce, signHello } from "../../protocol/hello.ts";
import type { Hello } from "../../protocol/mux.ts";
import { defaultLimits } from "../../protocol/mux.ts";
import type { Transport } from "../../protocol/transport.ts";
import { TUNNEL_SUBPROTOCOL } from "../../protocol/tunnel.ts";
import { acceptWebSocket } from "../../protocol/websocket.ts";
import { regionCertificates } from "../support/certificates.ts";
import { patience } from "../support/patience.ts";
import { answerAtTheEnd, LinkFixture, quiet, SERVER_NAME } from "./link-fixture.ts";

const fixture = new LinkFixture();
beforeAll(() => fixture.start());
afterEach(() => fixture.clean());
afterAll(() => fixture.stop());

// Behind a proxy that opens up TLS

test("with its CA on the host the tunnel opens, and the host is who its key says", async () => {
	const gateway = await fixture.gateway();
	const proxy = await fixture.inspectingProxy(() => gateway.port);
	const agent = await fixture.link(proxy.port, {
		target: { proxyCa: proxy.caPem },
		services: { "kube-apiserver": answerAtTheEnd },
	});
	await agent.up();
	expect(await fixture.ask(gateway, "kube-apiserver.host-1:80", "hello")).toBe("you said hello");
	expect(agent.link.state.opened).toBe(true);
});

test("a path of the customer's own leads there, and the usual one is said to be wrong where there is none", async () => {
	const gateway = await fixture.gateway();
	const proxy = await fixture.inspectingProxy(() => gateway.port, {
		onClientBytes: (bytes) => {
			const [from, to] = ["GET /corp/tunnel/v1 ", "GET /tunnel/v1 "];
			if (bytes.toString("latin1", 0, from.length) !== from) return bytes;
			return Buffer.concat([Buffer.from(to), bytes.subarray(from.length)]);
		},
	});
	const agent = await fixture.link(proxy.port, { target: { proxyCa: proxy.caPem, path: "/corp/tunnel/v1" } });
	await agent.up();
	const lost = await fixture.link(proxy.port, { target: { proxyCa: proxy.caPem, path: "/corp/tunnel/v2" } });
	expect((await lost.failed("NotFound")).next).toContain("/tunnel/v1");
});

test("with its CA on the host enrolment passes the proxy, too, and without it does not", async () => {
	const gateway = await fixture.gateway();
	const proxy = await fixture.inspectingProxy(() => gateway.port);
	const config = {
		region: "test",
		address: `127.0.0.1:${proxy.port}`,
		tunnelServerName: SERVER_NAME,
		enrollUrl: `https://${SERVER_NAME}`,
		caBundle: fixture.certificates.caPem,
		releaseJwks: { keys: [] },
		hostName: "host-1",
		proxy: undefined,
	};
	const signal = AbortSignal.timeout(20_000);
	// The first thing that an enrolling host asks: what time it is.
	expect(await clockSkewSeconds({ ...config, proxyCa: proxy.caPem }, signal)).toBeTypeOf("number");
	expect(await clockSkewSeconds(config, signal)).toBeUndefined();
});

test("without its CA nothing is sent, and whose CA it is gets told", async () => {
	const gateway = await fixture.gateway();
	const seen: Buffer[] = [];
	const proxy = await fixture.inspectingProxy(() => gateway.port, {
		onClientBytes: (bytes) => {
			seen.push(bytes);
			return bytes;
		},
	});
	const agent = await fixture.link(proxy.port);
	const { detail, next } = await agent.failed("CertificateInvalid");
	expect(detail).toContain(proxy.name);
	expect(next).toContain("/etc/groundplane/proxy-ca.pem");
	expect(seen).toEqual([]);
});

test("with a proxy's CA on the host a region that is reached directly still gets the certificate in TLS", async () => {
	const gateway = await fixture.gateway();
	const { caPem: proxyCa } = await regionCertificates(join(fixture.directory, "unused"), "inspection");
	const agent = await fixture.link(gateway.port, { target: { proxyCa } });
	await agent.up();
	expect(agent.link.session?.peer?.identity).toBeUndefined();
	expect(agent.link.state.opened).toBeUndefined();
});

test("what a host has said once is no good a second time, and does not disturb it", async () => {
	const gateway = await fixture.gateway();
	const said: Buffer[] = [];
	const proxy = await fixture.inspectingProxy(() => gateway.port, {
		onClientBytes: (bytes) => {
			said.push(Buffer.from(bytes));
			return bytes;
		},
	});
	const agent = await fixture.link(proxy.port, { target: { proxyCa: proxy.caPem } });
	await agent.up();
	// A pong comes after the host's HELLO was taken, so all of it has passed the proxy.
	await vi.waitFor(() => expect(agent.link.session?.rttMs).toBeDefined(), patience);
	const thief = connectTls({
		port: gateway.port,
		host: "127.0.0.1",
		servername: SERVER_NAME,
		ca: fixture.certificates.caPem,
	});
	thief.write(Buffer.concat(said));
	const answer = await text(thief);
	expect(answer).toContain("101 Switching Protocols");
	expect(answer).toMatch(/did not prove|CertificateInvalid/);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 0 });
});

test("a host that proves another name than it says is refused", async () => {
	const gateway = await fixture.gateway();
	const proxy = await fixture.inspectingProxy(() => gateway.port);
	const agent = await fixture.link(proxy.port, { hostName: "host-2", target: { proxyCa: proxy.caPem } });
	await agent.failed("HostNameMismatch");
	expect(agent.link.session).toBeUndefined();
});

test("a revoked host is refused behind a proxy, too", async () => {
	const gateway = await fixture.gateway();
	fixture.verdicts.set("host-1", { admitted: false, reason: "CertificateRevoked", message: "host-1 was deleted" });
	const proxy = await fixture.inspectingProxy(() => gateway.port);
	const agent = await fixture.link(proxy.port, { target: { proxyCa: proxy.caPem } });
	await agent.failed("CertificateRevoked");
});

// A gateway that means harm

const hello = (change: object = {}): Buffer =>
	encodeFrame(
		FrameType.HELLO,
		0,
		JSON.stringify({
			versions: [1],
			capabilities: [],
			window: 262_144,
			name: "tunnel-0",
			software: "0.1.0",
			bootId: "b",
			connectionId: "c",
			...change,
		}),
	);

interface Hostile {
	socket: TLSSocket;
	transport: Transport;
	send: (...frames: Buffer[]) => void;
	headers: NodeJS.Dict<string | string[]>;
}

/** Speaks TLS and WebSocket as the region's gateway would, and then does as `act` likes; `hear` gets what the agent says. */
async function hostile(
	act: (gateway: Hostile) => void,
	hear: (type: FrameType, stream: number, payload: Buffer, gateway: Hostile) => void = () => {},
	headers: () => Record<string, string> = () => ({}),
): Promise<number> {
	const http = createHttpServer();
	http.on("upgrade", (request, socket, head) => {
		const transport = acceptWebSocket(request, socket, head, { subprotocol: TUNNEL_SUBPROTOCOL, headers: headers() });
		const gateway: Hostile = {
			socket: socket as TLSSocket,
			transport,
			headers: request.headers,
			send: (...frames) => {
				for (const frame of frames) transport.send([frame], frame.length);
			},
		};
		const parser = new FrameParser({
			onFrame: (type, stream, payload) => hear(type, stream, payload, gateway),
			onData: () => {},
		});
		transport.start({ onBytes: (bytes) => parser.push(bytes), onSent: () => {}, onClose: () => {} });
		act(gateway);
	});
	return fixture.impostor((socket) => void http.emit("connection", socket));
}

const number = (value: number): Buffer => {
	const bytes = Buffer.alloc(4);
	bytes.writeUInt32BE(value);
	return bytes;
};

test.each<[string, () => Buffer[]]>([
	["rubbish", () => [randomBytes(64 * 1024)]],
	["a frame of 16 MB", () => [hello(), encodeHeader(FrameType.PING, 0, 0xffffff)]],
	["no HELLO first", () => [encodeFrame(FrameType.PING, 0, number(1))]],
	["HELLO twice", () => [hello(), hello()]],
	["a HELLO that is no object", () => [encodeFrame(FrameType.HELLO, 0, "[1,2")]],
	["a window below nothing", () => [hello({ window: -1 })]],
	["a window beyond all", () => [hello({ window: 2 ** 53 })]],
	["versions nobody speaks", () => [hello({ versions: [99] })]],
	["data on a stream that never was", () => [hello(), encodeFrame(FrameType.DATA, 2, "x")]],
	["credit for one", () => [hello(), encodeFrame(FrameType.CREDIT, 1, number(1))]],
	["credit of another length", () => [hello(), encodeFrame(FrameType.CREDIT, 1, "12345")]],
	["a stream with an id of the host's", () => [hello(), encodeFrame(FrameType.OPEN, 3, '{"service":"metrics"}')]],
	["a stream in no lane", () => [hello(), encodeFrame(FrameType.OPEN, 2, '{"service":"metrics","lane":"x"}')]],
	[
		"a stream to a name without end",
		() => [hello(), encodeFrame(FrameType.OPEN, 2, JSON.stringify({ service: "x".repeat(10_000), lane: "bulk" }))],
	],
	["a GOAWAY that can't be read", () => [hello(), encodeFrame(FrameType.GOAWAY, 0, "bye")]],
])("a gateway that says %s is left, told so, and tried again", async (_what, frames) => {
	let sessions = 0;
	const port = await hostile(({ send }) => {
		sessions++;
		send(...frames());
	});
	const agent = await fixture.link(port);
	const { detail } = await agent.failed("TunnelProtocolError");
	expect(detail).toMatch(/broke the tunnel protocol|speaks tunnel versions/);
	await vi.waitFor(() => expect(sessions).toBeGreaterThan(1), patience);
});

test("a gateway that says nothing is left after the time for HELLO", async () => {
	const port = await hostile(() => {});
	const agent = await fixture.link(port, { limits: { helloMs: 300 } });
	expect((await agent.failed("DeadlineExceeded")).detail).toContain("HELLO");
});

test.each([[-1], ["soon"], [null], [{}]])("a GOAWAY with the hint %j holds no host", async (reconnectAfterMs) => {
	let sessions = 0;
	const port = await hostile(({ send, transport }) => {
		sessions++;
		send(
			hello(),
			encodeFrame(FrameType.GOAWAY, 0, JSON.stringify({ code: "TunnelClosed", message: "go", reconnectAfterMs })),
		);
		transport.end();
	});
	await fixture.link(port);
	await vi.waitFor(() => expect(sessions).toBeGreaterThan(2), patience);
});

test("absurd credit ends the tunnel and sends nothing that was not there to send", async () => {
	const port = await hostile(
		({ send }) => send(hello()),
		(type, stream, _payload, { send }) => {
			if (type !== FrameType.OPEN) return;
			send(encodeFrame(FrameType.ACCEPT, stream, '{"window":4294967295}'));
			// More than any number can hold exactly, in one go.
			const credit = encodeFrame(FrameType.CREDIT, stream, number(0xffffffff));
			const many = Buffer.concat(Array.from({ length: 4_096 }, () => credit));
			for (let sent = 0; sent < 2 ** 21; sent += 4_096) send(many);
		},
	);
	const agent = await fixture.link(port);
	await agent.up();
	const stream = await agent.link.session?.open("control", { lane: "control" });
	stream?.write("all that there is");
	expect((await agent.failed("TunnelProtocolError")).detail).toContain("absurd credit");
});

/** The agent's own allow-list, with a kube-apiserver described that must not be reached and counts who tries. */
async function allowList() {
	const paths = new Paths(join(fixture.directory, "root"));
	let reached = 0;
	const apiserver = createServer((socket) => {
		reached++;
		socket.destroy();
	});
	await new Promise<void>((resolve) => apiserver.listen(0, "127.0.0.1", resolve));
	fixture.atEnd(() => apiserver.close());
	mkdirSync(paths.services, { recursive: true });
	const file = join(paths.services, "none.pem");
	writeFileSync(file, "");
	writeFileSync(
		join(paths.services, "kube-apiserver.json"),
		JSON.stringify({
			address: `127.0.0.1:${(apiserver.address() as { port: number }).port}`,
			caFile: file,
			certFile: file,
			keyFile: file,
			serverName: "kubernetes",
		}),
	);
	writeFileSync(paths.policy, '{"allow": {"services": ["metrics"]}}');
	const services = new LocalServices({
		directory: paths.services,
		allows: (service) => policyAllows(paths, service),
		metrics: () => {},
		shell: () => {},
		log: quiet,
	});
	return { onStream: services.onStream, reached: () => reached };
}

test("names outside the allow-list, and those that the customer's policy takes off it, lead nowhere", async () => {
	const names = [
		"kube-apiserver",
		"127.0.0.1:22",
		"localhost:6443",
		"../kube-apiserver",
		"kube-apiserver\0",
		"kube-apiserver.json",
		"shell",
		"__proto__",
		"constructor",
		"",
		"metrics ",
		"x".repeat(128),
	];
	const answers = new Map<number, [FrameType, string]>();
	const { onStream, reached } = await allowList();
	const port = await hostile(
		({ send }) => {
			send(hello());
			for (const [at, service] of names.entries()) {
				send(encodeFrame(FrameType.OPEN, 2 + 2 * at, JSON.stringify({ service, lane: "bulk", window: 1 })));
			}
		},
		(type, stream, payload) => {
			if (type === FrameType.REFUSE || type === FrameType.ACCEPT) answers.set(stream, [type, payload.toString()]);
		},
	);
	const agent = await fixture.link(port, { onStream });
	await agent.up();
	await vi.waitFor(() => expect(answers.size).toBe(names.length), 10_000);
	for (const [type, said] of answers.values()) {
		expect(type).toBe(FrameType.REFUSE);
		expect(said).toContain("ServiceNotAllowed");
	}
	expect(reached()).toBe(0);
});

test("fifty thousand streams: the agent holds its limit of them, refuses the rest, and lives on", async () => {
	const OPENS = 50_000;
	const BATCH = 1_000;
	let [sent, accepted, refused] = [0, 0, 0];
	const { onStream } = await allowList();
	const batch = ({ send }: Hostile) => {
		const opens = Array.from({ length: BATCH }, (_, at) =>
			encodeFrame(FrameType.OPEN, 2 + 2 * (sent + at), '{"service":"metrics","lane":"bulk","window":65536}'),
		);
		sent += BATCH;
		send(Buffer.concat(opens));
	};
	const port = await hostile(
		(gateway) => {
			gateway.send(hello());
			batch(gateway);
		},
		(type, _stream, _payload, gateway) => {
			if (type === FrameType.ACCEPT) accepted++;
			if (type === FrameType.REFUSE) refused++;
			// It reads the answers: one that doesn't is the next test's.
			if (accepted + refused === sent && sent < OPENS) batch(gateway);
		},
	);
	const agent = await fixture.link(port, { onStream });
	await agent.up();
	await vi.waitFor(() => expect(accepted + refused).toBe(OPENS), { timeout: 50_000 });
	expect(accepted).toBe(defaultLimits.maxStreams);
	expect(agent.link.session?.stats().streams).toBe(defaultLimits.maxStreams);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 0 });
});

test("a gateway that makes the agent answer and does not read is left before the answers fill its memory", async () => {
	const port = await hostile(({ socket, send }) => {
		send(hello());
		socket.pause();
		let id = 2;
		const more = () => {
			if (socket.destroyed) return;
			const opens = Array.from({ length: 1_000 }, () => {
				const frame = encodeFrame(FrameType.OPEN, id, '{"service":"no such","lane":"bulk","window":1}');
				id += 2;
				return frame;
			});
			send(Buffer.concat(opens));
			setTimeout(more, 1);
		};
		more();
	});
	const agent = await fixture.link(port);
	expect((await agent.failed("TunnelProtocolError")).detail).toContain("does not read the answers");
});

test.each<[string, (claim: Parameters<typeof signHello>[0]) => Promise<Hello["identity"]>, string]>([
	["nothing to show", async () => undefined, "showed no certificate"],
	[
		"a host's certificate",
		async (claim) => {
			const { cert: certificate, key } = await fixture.certificates.host("tunnel");
			return signHello(claim, { certificate, key });
		},
		"is not tunnel.test.example.com of this region",
	],
	[
		"another service's certificate",
		async (claim) => {
			const { cert: certificate, key } = await fixture.certificates.issueService("front");
			return signHello(claim, { certificate, key });
		},
		"is not tunnel.test.example.com of this region",
	],
	[
		"another region's certificate",
		async (claim) => {
			const other = await regionCertificates(join(fixture.directory, "other"));
			const { cert: certificate, key } = await other.issueService("tunnel", [SERVER_NAME]);
			return signHello(claim, { certificate, key });
		},
		"is not tunnel.test.example.com of this region",
	],
	[
		"a signature over another nonce",
		async (claim) => {
			const { cert: certificate, key } = await fixture.certificates.issueService("tunnel", [SERVER_NAME]);
			return signHello({ ...claim, hostNonce: newNonce() }, { certificate, key });
		},
		"did not prove",
	],
])("behind a proxy that opens up TLS a gateway with %s is not believed", async (_what, identify, problem) => {
	const gatewayNonce = newNonce();
	const port = await hostile(
		({ headers, send }) => {
			const hostNonce = headers[NONCE_HEADER];
			if (!isNonce(hostNonce)) return;
			const claim = {
				role: "gateway",
				region: "test",
				name: "tunnel-0",
				connectionId: "c",
				hostNonce,
				gatewayNonce,
			} as const;
			void identify(claim).then((identity) => send(hello({ identity })));
		},
		undefined,
		() => ({ [NONCE_HEADER]: gatewayNonce }),
	);
	const proxy = await fixture.inspectingProxy(() => port);
	const agent = await fixture.link(proxy.port, { target: { proxyCa: proxy.caPem } });
	expect((await agent.failed("CertificateInvalid")).detail).toContain(problem);
	await delay(100);
	expect(agent.link.session).toBeUndefined();
});
