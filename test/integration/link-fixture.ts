import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { request as httpsRequest } from "node:https";
import { type AddressInfo, connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls, createServer as createTlsServer, type TLSSocket } from "node:tls";
import type { NatsConnection } from "@nats-io/nats-core";
import { connect as connectNats } from "@nats-io/transport-node";
import { expect, vi } from "vitest";
import type { DialTarget } from "../../agent/link/dial.ts";
import { Link, type LinkOptions } from "../../agent/link/link.ts";
import { createLog } from "../../agent/log.ts";
import type { IncomingStream } from "../../protocol/mux.ts";
import { type IssuedCertificate, type RegionCertificates, regionCertificates } from "../support/certificates.ts";
import { startGateway, type TestGateway } from "../support/gateway.ts";
import { startNats, type TestNats } from "../support/nats.ts";
import { patience } from "../support/patience.ts";

export const SERVER_NAME = "tunnel.test.example.com";
export const quiet = createLog({ write: process.env.DEBUG ? (line) => void process.stderr.write(line) : () => {} });

export interface TestLink {
	link: Link;
	/** Waits until the link is up, with a session other than `than` if one is given. */
	up(than?: unknown): Promise<void>;
	/** Waits until the link is down or has failed with this code. */
	failed(code: string): Promise<NonNullable<Link["state"]["lastError"]>>;
	/** Changes where the next dials go. */
	retarget(change: Partial<DialTarget>): void;
	stop(): Promise<void>;
}

export type TestLinkOptions = Omit<Partial<LinkOptions>, "target"> & {
	host?: string;
	target?: Partial<DialTarget>;
	services?: Record<string, (stream: Duplex) => void>;
};

/** What the tests of the link stand on: a bus, a region's certificates, real gateways, links as `gp-agent run` makes them. */
export class LinkFixture {
	readonly directory = mkdtempSync(join(tmpdir(), "gp-link-"));
	certificates!: RegionCertificates;
	/** What the hosts service says of a host; admitted without. */
	readonly verdicts = new Map<string, object>();
	readonly #cleanups: (() => Promise<unknown> | unknown)[] = [];
	#nats!: TestNats;
	#caller: IssuedCertificate | undefined;
	#bus!: NatsConnection;

	async start(): Promise<void> {
		this.certificates = await regionCertificates(this.directory);
		this.#nats = await startNats();
		this.#bus = await connectNats({ servers: this.#nats.url.replace("nats://", "") });
		this.#bus.subscribe("hosts.admit", {
			callback: (_error, message) => {
				const { host } = message.json<{ host: string }>();
				message.respond(JSON.stringify(this.verdicts.get(host) ?? { admitted: true }));
			},
		});
	}

	/** Ends what the last test began. */
	async clean(): Promise<void> {
		for (const cleanup of this.#cleanups.splice(0).reverse()) await cleanup();
		this.verdicts.clear();
	}

	async stop(): Promise<void> {
		await this.#bus.close();
		await this.#nats.close();
		rmSync(this.directory, { recursive: true, force: true });
	}

	atEnd(cleanup: () => Promise<unknown> | unknown): void {
		this.#cleanups.push(cleanup);
	}

	async gateway(
		options: { name?: string; port?: number; oneOfSeveral?: boolean; maxHosts?: number } = {},
	): Promise<TestGateway> {
		const { directory, certificates } = this;
		const gateway = await startGateway({ directory, certificates, natsUrl: this.#nats.url, ...options });
		this.atEnd(gateway.stop);
		return gateway;
	}

	async target(port: number, host = "host-1"): Promise<DialTarget> {
		const { cert, key } = await this.certificates.host(host);
		return {
			address: `127.0.0.1:${port}`,
			serverName: SERVER_NAME,
			ca: this.certificates.caPem,
			certificate: cert,
			key,
		};
	}

	async link(port: number, options: TestLinkOptions = {}): Promise<TestLink> {
		const { host = "host-1", services = {}, target: change, ...rest } = options;
		const target = { ...(await this.target(port, host)), ...change };
		const link = new Link({
			hostName: host,
			bootId: "boot",
			log: quiet,
			onStream: (incoming: IncomingStream) => {
				const serve = services[incoming.service];
				if (serve) serve(incoming.accept());
				else incoming.refuse("ServiceNotAllowed", `no ${incoming.service} here`);
			},
			...rest,
			target: () => target,
		});
		const stop = new AbortController();
		const running = link.run(stop.signal);
		const end = async () => {
			stop.abort();
			await running;
		};
		this.atEnd(end);
		return {
			link,
			stop: end,
			retarget: (change) => void Object.assign(target, change),
			up: (than) =>
				vi.waitFor(
					() => {
						expect(link.session, link.state.lastError?.detail).toBeDefined();
						expect(link.session === than).toBe(false);
					},
					{ timeout: 30_000, interval: 10 },
				),
			failed: async (code) => {
				await vi.waitFor(() => expect(link.state.lastError?.code).toBe(code), { ...patience, interval: 10 });
				return link.state.lastError as NonNullable<Link["state"]["lastError"]>;
			},
		};
	}

	/** Orders all gateways to cut a host off, as the hosts service does. */
	cut(host: string, order: { reason: string; message: string }): void {
		this.#bus.publish(`hosts.${host}.cut`, JSON.stringify(order));
	}

	/** A figure of a gateway's, of the series with this label. */
	async metric({ healthPort }: TestGateway, name: string, label = ""): Promise<number> {
		const metrics = await (await fetch(`http://127.0.0.1:${healthPort}/metrics`)).text();
		const series = metrics.split("\n").find((line) => line.startsWith(`${name}{`) && line.includes(label));
		return Number(series?.split(" ").at(-1));
	}

	/** Opens a stream to a service of a host through a gateway, as `clusters` does. */
	async open(gateway: TestGateway, target: string, signal?: AbortSignal): Promise<Duplex> {
		this.#caller ??= await this.certificates.issueService("clusters");
		const { cert, key, ca } = this.#caller;
		return new Promise<Duplex>((resolve, reject) => {
			httpsRequest({
				host: "127.0.0.1",
				port: gateway.proxyPort,
				method: "CONNECT",
				path: target,
				cert,
				key,
				ca,
				agent: false,
				servername: "tunnel",
				...(signal && { signal }),
			})
				.once("connect", (response, raw, head) => {
					if (head.length > 0) raw.unshift(head);
					if (response.statusCode === 200) resolve(raw);
					else
						void text(raw).then((why) => reject(new Error(`CONNECT ${target}: ${response.statusCode} ${why}`)), reject);
				})
				.once("error", reject)
				.end();
		});
	}

	/** Says something to a service of a host, and gives its answer. */
	async ask(gateway: TestGateway, target: string, said: string): Promise<string> {
		const stream = await this.open(gateway, target);
		stream.end(said);
		return text(stream);
	}

	/** A proxy that opens up TLS: it has a certificate of its own CA for the gateway's name, and sees and may change all that passes. */
	async inspectingProxy(
		gatewayPort: () => number,
		{
			onClientBytes = (bytes: Buffer) => bytes,
		}: { onClientBytes?: (bytes: Buffer, connection: number) => Buffer } = {},
	): Promise<{ port: number; caPem: string; name: string }> {
		const own = await regionCertificates(join(this.directory, "proxy"), "inspection");
		const { cert, key } = await own.issueService("proxy", [SERVER_NAME]);
		let connections = 0;
		const server = createTlsServer({ cert, key }, (client) => {
			const number = connections++;
			const onward = connectTls({
				port: gatewayPort(),
				host: "127.0.0.1",
				servername: SERVER_NAME,
				ca: this.certificates.caPem,
			});
			client.on("data", (bytes: Buffer) => onward.write(onClientBytes(bytes, number)));
			onward.pipe(client);
			for (const [one, other] of [
				[client, onward],
				[onward, client],
			] as const) {
				one.on("error", () => other.destroy());
				one.on("close", () => other.destroy());
			}
		});
		server.listen(0, "127.0.0.1");
		await new Promise((resolve) => server.once("listening", resolve));
		this.atEnd(() => server.close());
		return { port: (server.address() as AddressInfo).port, caPem: own.caPem, name: "CN=region-inspection-ca" };
	}

	/** An address on which SYNs vanish, as behind a firewall that drops: a listener whose backlog is full. */
	async deadAddress(host: string, port: number): Promise<void> {
		const program = `require("net").createServer().listen({port: ${port}, host: "${host}", backlog: 1}, () => {
			console.log("listening");
			process.kill(process.pid, "SIGSTOP");
		})`;
		const child: ChildProcess = spawn(process.execPath, ["-e", program], { stdio: ["ignore", "pipe", "inherit"] });
		this.atEnd(() => child.kill("SIGKILL"));
		await once(child.stdout as NodeJS.ReadableStream, "data");
		const fill: Socket[] = [];
		this.atEnd(() => {
			for (const socket of fill) socket.destroy();
		});
		for (let full = false; !full; ) {
			const socket = connect({ host, port });
			socket.on("error", () => {});
			fill.push(socket);
			full = await Promise.race([once(socket, "connect").then(() => false), delay(400, true)]);
			if (fill.length > 16) throw new Error("the backlog does not fill up");
		}
	}

	/** A server with a certificate of the region's, which is to be believed, and does what the test wants. */
	async impostor(serve: (socket: TLSSocket) => void): Promise<number> {
		const { cert, key } = await this.certificates.issueService("tunnel", [SERVER_NAME]);
		const sockets = new Set<TLSSocket>();
		const server = createTlsServer({ cert, key }, (socket) => {
			socket.on("error", () => {});
			sockets.add(socket);
			serve(socket);
		});
		server.listen(0, "127.0.0.1");
		await new Promise((resolve) => server.once("listening", resolve));
		this.atEnd(() => {
			for (const socket of sockets) socket.destroy();
			server.close();
		});
		return (server.address() as AddressInfo).port;
	}
}

/** Answers on a stream once the other end has said all. */
export function answerAtTheEnd(stream: Duplex): void {
	let said = "";
	stream.on("data", (bytes: Buffer) => {
		said += bytes;
	});
	stream.on("end", () => stream.end(`you said ${said}`));
}
