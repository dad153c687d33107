import { randomUUID } from "node:crypto";
import { createServer as createHttpsServer } from "node:https";
import { connect as connectTcp, createServer as createTcpServer, type Server, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { connect as connectTls, createServer as createTlsServer, type TLSSocket } from "node:tls";
import { type Lane, Session } from "../../../protocol/mux.ts";
import { TUNNEL_PATH, TUNNEL_SUBPROTOCOL } from "../../../protocol/tunnel.ts";
import { acceptWebSocket, requestWebSocket } from "../../../protocol/websocket.ts";
import { SESSION_LIMITS } from "../../../services/tunnel/gateway.ts";

/** What carries streams between two processes: a connection for each, or the tunnel. */
export const carriers = ["tcp", "tls", "tunnel"] as const;
export type CarrierName = (typeof carriers)[number];

export interface CarrierOptions {
	carrier: CarrierName;
	/** Certificates of this end, and the CA of the other's, PEM. */
	tls: { cert: string; key: string; ca: string };
}

/** Takes a stream that the other end opened with `label`. */
export type Acceptor = (label: string, stream: Duplex) => void;

/** Opens a stream; its label tells the other end what to do with it. */
export type Opener = (label: string, lane: Lane) => Promise<Duplex>;

const hello = (name: string) => ({ name, software: "bench", bootId: randomUUID(), connectionId: randomUUID() });
const SERVER_NAME = "localhost";

/** The accepting end. Resolves with its port, and a count of the tunnels' open streams. */
export async function serve(
	{ carrier, tls }: CarrierOptions,
	accept: Acceptor,
): Promise<{ port: number; streams: () => number }> {
	const secure = { ...tls, requestCert: true, rejectUnauthorized: true, minVersion: "TLSv1.3" as const };
	const sessions = new Set<Session>();
	let server: Server;
	if (carrier === "tunnel") {
		server = createHttpsServer(secure);
		server.on("upgrade", (request, socket: TLSSocket, head) => {
			socket.setNoDelay(true);
			const session = new Session(acceptWebSocket(request, socket, head, { subprotocol: TUNNEL_SUBPROTOCOL }), {
				role: "server",
				hello: hello("gateway"),
				limits: SESSION_LIMITS,
			});
			sessions.add(session);
			void session.closed.then(() => sessions.delete(session));
			session.on("stream", (incoming) => accept(incoming.service, incoming.accept()));
		});
	} else if (carrier === "tls") {
		server = createTlsServer({ ...secure, noDelay: true }, (socket) => readLabel(socket, accept));
	} else {
		server = createTcpServer({ noDelay: true }, (socket) => readLabel(socket, accept));
	}
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	return {
		port: (server.address() as { port: number }).port,
		streams: () => [...sessions].reduce((sum, session) => sum + session.stats().streams, 0),
	};
}

/** The dialling end. */
export async function dial({ carrier, tls }: CarrierOptions, port: number): Promise<Opener> {
	if (carrier === "tunnel") {
		const session = await dialTunnel(tls, port);
		return (label, lane) => session.open(label, { lane });
	}
	return async (label) => {
		const socket = carrier === "tls" ? await dialTls(tls, port) : await dialTcp(port);
		socket.write(`${label}\n`);
		return socket;
	};
}

async function dialTunnel(tls: CarrierOptions["tls"], port: number): Promise<Session> {
	const socket = await dialTls(tls, port);
	const answer = await requestWebSocket(socket, {
		host: SERVER_NAME,
		path: TUNNEL_PATH,
		subprotocol: TUNNEL_SUBPROTOCOL,
	});
	if (answer.transport === undefined) throw new Error(`the gateway answered ${answer.status}`);
	const session = new Session(answer.transport, { role: "client", hello: hello("host") });
	await session.ready;
	return session;
}

async function dialTls(tls: CarrierOptions["tls"], port: number): Promise<Socket> {
	const socket = connectTls({ ...tls, port, host: "127.0.0.1", servername: SERVER_NAME, minVersion: "TLSv1.3" });
	socket.setNoDelay(true);
	await new Promise<void>((resolve, reject) => socket.once("secureConnect", resolve).once("error", reject));
	return socket;
}

async function dialTcp(port: number): Promise<Socket> {
	const socket = connectTcp({ port, host: "127.0.0.1", noDelay: true });
	await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
	return socket;
}

/** Where every stream has a connection of its own, its first line is the label. */
function readLabel(socket: Socket, accept: Acceptor): void {
	let line = Buffer.alloc(0);
	socket.on("error", () => {});
	const onData = (chunk: Buffer) => {
		line = Buffer.concat([line, chunk]);
		const end = line.indexOf(10);
		if (end === -1) return;
		socket.removeListener("data", onData);
		socket.pause();
		if (end + 1 < line.length) socket.unshift(line.subarray(end + 1));
		accept(line.subarray(0, end).toString(), socket);
	};
	socket.on("data", onData);
}
