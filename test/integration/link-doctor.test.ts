import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { dirname, join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { Paths } from "../../agent/config.ts";
import { type Diagnosis, describeDiagnosis, diagnose, exitCodeOf } from "../../agent/doctor.ts";
import { AddressBook } from "../../agent/link/addresses.ts";
import { type AgentStatus, writeStatus } from "../../agent/status.ts";
import type { TestGateway } from "../support/gateway.ts";
import { freePort } from "../support/ports.ts";
import { LinkFixture, SERVER_NAME } from "./link-fixture.ts";

const fixture = new LinkFixture();
const FRONT = "test.example.com";
let paths: Paths;
let gateway: TestGateway;

beforeAll(() => fixture.start());
beforeEach(async () => {
	gateway = await fixture.gateway();
	paths = new Paths(join(fixture.directory, "host"));
});
afterEach(async () => {
	await fixture.clean();
	rmSync(join(fixture.directory, "host"), { recursive: true, force: true });
});
afterAll(() => fixture.stop());

interface Host {
	address?: string;
	config?: object;
	link?: object;
	environment?: string;
	proxyCa?: string;
	identity?: object | "none";
	connected?: boolean;
	running?: boolean;
	lookup?: ConstructorParameters<typeof AddressBook>[0];
	ahead?: number;
	env?: Record<string, string>;
}

const write = (path: string, content: string) => {
	mkdirSync(dirname(path), { recursive: true });
	writeFileSync(path, content);
};

/** A host as the packages and the agent leave it, and the doctor's word on it. */
async function examine(host: Host = {}): Promise<Diagnosis> {
	const { certificate, key, ca } = await fixture.target(0);
	const config = {
		region: "test",
		address: host.address ?? `127.0.0.1:${gateway.port}`,
		tunnelServerName: SERVER_NAME,
		enrollUrl: `https://${FRONT}`,
		caBundle: ca,
		releaseJwks: { keys: [] },
		...host.config,
	};
	write(paths.config, JSON.stringify(config));
	if (host.link) write(paths.link, JSON.stringify(host.link));
	if (host.environment) write(paths.environment, host.environment);
	if (host.proxyCa) write(paths.proxyCa, host.proxyCa);
	if (host.identity !== "none") {
		const identity = { region: "test", host: "host-1", key, certificate, caBundle: ca, desiredStateJwks: { keys: [] } };
		write(join(paths.state, "identity.json"), JSON.stringify({ ...identity, ...host.identity }));
	}
	const { connected = true, running = true } = host;
	const link = { connected, since: 0, gateway: "tunnel-0", reconnects: 0 };
	writeStatus(paths.status, { pid: 4_242, link } as AgentStatus);
	return diagnose({
		paths,
		signal: AbortSignal.timeout(30_000),
		isAlive: (pid) => running && pid === 4_242,
		now: () => Date.now() + (host.ahead ?? 0),
		phaseMs: 1_500,
		...(host.env && { env: host.env }),
		...(host.lookup && { addresses: new AddressBook(host.lookup) }),
	});
}

const listen = async (server: Server): Promise<number> => {
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	fixture.atEnd(() => server.close());
	return (server.address() as AddressInfo).port;
};

/** A proxy that answers CONNECT with this. */
const proxyThatSays = (answer: string) =>
	listen(
		createServer((socket) => {
			socket.on("error", () => {});
			socket.once("data", () => socket.end(`HTTP/1.1 ${answer}\r\ncontent-length: 0\r\n\r\n`));
		}),
	);

const passOn = (socket: Socket, port: number, first: Buffer) => {
	const onward = connect(port, "127.0.0.1", () => {
		onward.write(first);
		socket.pipe(onward).pipe(socket);
	});
	onward.on("error", () => socket.destroy());
	socket.on("close", () => onward.destroy());
};

test("a host that is connected: every step is told, and the gateway says that it would let it in", async () => {
	const diagnosis = await examine();
	expect(diagnosis).toMatchObject({ ok: true });
	expect(diagnosis.findings.map(({ name, ok }) => [name, ok])).toEqual(
		["configuration", "identity", "dns", "connect", "tls", "tunnel", "clock", "agent"].map((name) => [name, true]),
	);
	expect(diagnosis.findings.find(({ name }) => name === "tunnel")?.message).toContain("tunnel-0 lets this host in");
	expect(exitCodeOf(diagnosis)).toBe(0);
	expect(describeDiagnosis(diagnosis)).toMatch(/All is well: this host is connected\.$/);
});

test("asking does not push out the tunnel that the agent has", async () => {
	const agent = await fixture.link(gateway.port);
	await agent.up();
	expect((await examine()).ok).toBe(true);
	expect(agent.link.state).toMatchObject({ connected: true, reconnects: 0 });
});

interface Case {
	what: string;
	host: () => Host | Promise<Host>;
	cause: string;
	code: string;
	says: RegExp;
	next: RegExp;
	exit?: number;
}

const cases: Case[] = [
	{
		what: "a name that does not resolve",
		host: () => ({
			address: "demo.invalid:443",
			lookup: { lookup: async () => Promise.reject(Object.assign(new Error(), { code: "ENOTFOUND" })) },
		}),
		cause: "dns",
		code: "TunnelClosed",
		says: /demo\.invalid: its name does not resolve/,
		next: /resolvectl query/,
	},
	{
		what: "a name server that does not answer",
		host: () => ({ address: "demo.invalid:443", lookup: { lookup: () => new Promise(() => {}) } }),
		cause: "dns",
		code: "TunnelClosed",
		says: /DNS does not answer/,
		next: /resolvectl status/,
	},
	{
		what: "a port where nothing listens",
		host: async () => ({ address: `127.0.0.1:${await freePort()}` }),
		cause: "connect",
		code: "TunnelClosed",
		says: /nothing listens there, or a firewall rejects/,
		next: /front door/,
	},
	{
		what: "a firewall that drops",
		host: async () => {
			const port = await freePort();
			await fixture.deadAddress("127.0.0.2", port);
			return { address: `127.0.0.2:${port}` };
		},
		cause: "connect",
		code: "DeadlineExceeded",
		says: /connection to 127\.0\.0\.2:\d+ took longer/,
		next: /firewall/,
	},
	{
		what: "a proxy that the agent was not told of",
		host: async () => ({ address: `127.0.0.1:${await freePort()}`, env: { https_proxy: "http://proxy:3128" } }),
		cause: "connect",
		code: "TunnelClosed",
		says: /nothing listens/,
		next: /put it into \/etc\/default\/groundplane-agent/,
	},
	{
		what: "a proxy that wants a password",
		host: async () => ({
			environment: `https_proxy="user:old@127.0.0.1:${await proxyThatSays("407 Proxy Authentication Required")}"\n`,
		}),
		cause: "proxy",
		code: "Unauthenticated",
		says: /answered 407/,
		next: /user and password/,
	},
	{
		what: "a proxy that forbids",
		host: async () => ({ link: { proxy: `http://127.0.0.1:${await proxyThatSays("403 Forbidden")}` } }),
		cause: "proxy",
		code: "Forbidden",
		says: /answered 403/,
		next: /allow CONNECT/,
	},
	{
		what: "a proxy that gets no further itself",
		host: async () => ({ link: { proxy: `http://127.0.0.1:${await proxyThatSays("502 Bad Gateway")}` } }),
		cause: "proxy",
		code: "Unreachable",
		says: /answered 502/,
		next: /its way out and its DNS/,
	},
	{
		what: "a proxy that is not there",
		host: async () => ({ link: { proxy: `http://127.0.0.1:${await freePort()}` } }),
		cause: "connect",
		code: "TunnelClosed",
		says: /nothing listens/,
		next: /./,
	},
	{
		what: "a proxy that opens up TLS",
		host: async () => {
			const proxy = await fixture.inspectingProxy(() => gateway.port);
			return { address: `127.0.0.1:${proxy.port}` };
		},
		cause: "tls",
		code: "CertificateInvalid",
		says: /CN=region-inspection-ca issued it/,
		next: /proxy-ca\.pem/,
	},
	{
		what: "a server name that is another's",
		host: () => ({ link: { tunnelServerName: "tunnel.other.example.com" } }),
		cause: "tls",
		code: "CertificateInvalid",
		says: /is for .*tunnel\.test\.example\.com.*, not for tunnel\.other/,
		next: /tunnelServerName/,
	},
	{
		what: "something that answers and is no TLS",
		host: async () => {
			const port = await listen(
				createServer((socket) => {
					socket.on("error", () => {});
					socket.end("HTTP/1.1 302 Found\r\nlocation: http://hotel.example/\r\n\r\n");
				}),
			);
			return { address: `127.0.0.1:${port}` };
		},
		cause: "tls",
		code: "TunnelProtocolError",
		says: /does not speak TLS/,
		next: /sign-in page/,
	},
	{
		what: "a middlebox that swallows TLS",
		host: async () => {
			const port = await listen(createServer((socket) => void socket.on("error", () => {})));
			return { address: `127.0.0.1:${port}` };
		},
		cause: "tls",
		code: "DeadlineExceeded",
		says: /TLS handshake/,
		next: /firewall/,
	},
	{
		what: "a firewall that decides by server name",
		host: async () => {
			const { cert, key } = await fixture.certificates.issueService("front", [FRONT]);
			const front = await listen(createTlsServer({ cert, key }, (socket) => void socket.on("error", () => {})));
			const port = await listen(
				createServer((socket) => {
					socket.on("error", () => {});
					socket.once("data", (hello: Buffer) => {
						if (hello.includes("tunnel.")) socket.resetAndDestroy();
						else passOn(socket, front, hello);
					});
				}),
			);
			return { address: `127.0.0.1:${port}` };
		},
		cause: "tls",
		code: "TunnelClosed",
		says: /TLS for test\.example\.com passes/,
		next: /let tunnel\.test\.example\.com through/,
	},
	{
		what: "a path that is wrong",
		host: () => ({ link: { tunnelPath: "/other" } }),
		cause: "tunnel",
		code: "NotFound",
		says: /nothing at \/other/,
		next: /\/tunnel\/v1/,
	},
	{
		what: "a certificate that was revoked",
		host: () => {
			fixture.verdicts.set("host-1", { admitted: false, reason: "CertificateRevoked", message: "host-1 was deleted" });
			return { connected: false };
		},
		cause: "tunnel",
		code: "CertificateRevoked",
		says: /host-1 was deleted/,
		next: /Enrol the host again/,
	},
	{
		what: "a gateway that is busy",
		host: async () => {
			const body = '{"code":"Overloaded","detail":"too many hosts at once","next":"Nothing."}';
			const port = await fixture.impostor((socket) => {
				socket.once("data", () =>
					socket.end(`HTTP/1.1 503 Overloaded\r\nretry-after: 3\r\ncontent-length: ${body.length}\r\n\r\n${body}`),
				);
			});
			return { address: `127.0.0.1:${port}` };
		},
		cause: "tunnel",
		code: "Overloaded",
		says: /too many hosts/,
		next: /Nothing/,
	},
	{
		what: "a clock that is wrong",
		host: () => ({ ahead: 600_000 }),
		cause: "clock",
		code: "ClockSkew",
		says: /60\d s ahead of the region's/,
		next: /timedatectl/,
		exit: 2,
	},
	{
		what: "a certificate that has ended",
		host: () => ({ ahead: 90 * 86_400_000 }),
		cause: "identity",
		code: "CertificateInvalid",
		says: /certificate ended at/,
		next: /Enrol/,
		exit: 2,
	},
	{
		what: "a clock of before the certificate",
		host: () => ({ ahead: -86_400_000 }),
		cause: "identity",
		code: "ClockSkew",
		says: /good from/,
		next: /timedatectl/,
		exit: 2,
	},
	{
		what: "a host that is not enrolled",
		host: () => ({ identity: "none" }),
		cause: "identity",
		code: "Unauthenticated",
		says: /not enrolled/,
		next: /gp host join-command/,
		exit: 2,
	},
	{
		what: "an identity of another region",
		host: () => ({ identity: { region: "other" } }),
		cause: "identity",
		code: "Conflict",
		says: /region other, its configuration is for test/,
		next: /join-command/,
		exit: 2,
	},
	{
		what: "a configuration with a slip in it",
		host: () => ({ link: { tunelPath: "/x" } }),
		cause: "configuration",
		code: "InvalidConfiguration",
		says: /link\.json.*tunelPath/,
		next: /tunnelServerName, tunnelPath and proxy/,
		exit: 2,
	},
	{
		what: "a proxy's CA that is none",
		host: () => ({ proxyCa: "not a certificate" }),
		cause: "configuration",
		code: "InvalidConfiguration",
		says: /proxy-ca\.pem holds no certificate/,
		next: /PEM/,
		exit: 2,
	},
	{
		what: "an agent that does not run",
		host: () => ({ running: false }),
		cause: "agent",
		code: "HostNotConnected",
		says: /does not run/,
		next: /systemctl start gp-agent/,
		exit: 2,
	},
	{
		what: "an agent that waits although the way is free",
		host: () => ({ connected: false }),
		cause: "agent",
		code: "HostNotConnected",
		says: /no tunnel/,
		next: /restart gp-agent/,
		exit: 2,
	},
];

test.each(cases)("$what is named, with what to do", async ({ host, cause, code, says, next, exit = 1 }) => {
	const diagnosis = await examine(await host());
	expect(diagnosis.cause).toMatchObject({ name: cause, ok: false, code });
	expect(diagnosis.cause?.message).toMatch(says);
	expect(diagnosis.cause?.next).toMatch(next);
	expect(exitCodeOf(diagnosis)).toBe(exit);
	const told = describeDiagnosis(diagnosis);
	expect(told).toContain("FAILED");
	expect(told).toContain(`Cause: ${cause}: `);
	expect(told).not.toMatch(/PRIVATE KEY|user:old/);
});

test("behind a proxy that opens up TLS, with its CA on the host, the way is free", async () => {
	const proxy = await fixture.inspectingProxy(() => gateway.port);
	const { ok, findings } = await examine({ address: `127.0.0.1:${proxy.port}`, proxyCa: proxy.caPem });
	expect(findings.find(({ name }) => name === "tls")?.message).toContain("CN=region-inspection-ca opens up TLS");
	expect(findings.find(({ name }) => name === "tunnel")?.message).toContain("proved in HELLO");
	expect(ok).toBe(true);
});
