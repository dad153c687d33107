import { request } from "node:http";
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { WebSocket } from "ws";
import { type ErrorCode, errorCodes, GroundplaneError } from "../../protocol/errors.ts";
import { TUNNEL_PATH, TUNNEL_SUBPROTOCOL } from "../../protocol/tunnel.ts";

/** Where the tunnel is and who this host is. */
export interface DialTarget {
	/** `host:port`. */
	address: string;
	/** SNI, and the name that the gateway's certificate must carry. */
	serverName: string;
	/** The region's root, PEM. */
	ca: string;
	/** The host's certificate with its chain, and its key, PEM. */
	certificate: string;
	key: string;
	/** `http://[user:password@]proxy:port`. */
	proxy?: string | undefined;
	/** Time for each phase: connection (and proxy), TLS, WebSocket. */
	phaseMs?: number;
}

const PHASE_MS = 10_000;

/** Opens the WebSocket of the tunnel, paused. Throws an error that tells a person what is in the way. */
export async function dial(target: DialTarget, signal: AbortSignal): Promise<WebSocket> {
	const { ca, certificate: cert, key, serverName: servername } = target;
	const socket = await dialTls(target, { ca, cert, key, servername, minVersion: "TLSv1.3" }, signal);
	return upgrade(socket, target, signal);
}

/** A TLS connection to the region, through the proxy if there is one; also used for enrolment. */
export async function dialTls(
	{ address, proxy, phaseMs = PHASE_MS }: Pick<DialTarget, "address" | "proxy" | "phaseMs">,
	options: { ca: string; servername: string; cert?: string; key?: string; minVersion?: "TLSv1.3" },
	signal: AbortSignal,
): Promise<TLSSocket> {
	const raw =
		proxy === undefined ? await dialTcp(address, phaseMs, signal) : await dialProxy(proxy, address, phaseMs, signal);
	const socket = connectTls({ ...options, socket: raw, ALPNProtocols: ["http/1.1"] });
	await within(
		phaseMs,
		signal,
		`TLS handshake with ${address}`,
		(resolve, reject) => {
			socket.once("secureConnect", resolve);
			socket.once("error", (error) => reject(tlsError(error, address, options.servername)));
			socket.once("close", () =>
				reject(
					new GroundplaneError("TunnelClosed", `${address} closed the connection during the TLS handshake`, {
						next: "Check that a firewall or proxy on the way lets TLS with this server name through.",
					}),
				),
			);
		},
		() => socket.destroy(),
	);
	return socket;
}

async function dialTcp(address: string, ms: number, signal: AbortSignal): Promise<Socket> {
	const { host, port } = splitAddress(address);
	// Both address families, the faster wins (RFC 8305).
	const socket = connectTcp({ host, port, autoSelectFamily: true, noDelay: true, keepAlive: true });
	await within(
		ms,
		signal,
		`connection to ${address}`,
		(resolve, reject) => {
			socket.once("connect", resolve);
			socket.once("error", (error) => reject(networkError(error, address)));
		},
		() => socket.destroy(),
	);
	return socket;
}

async function dialProxy(proxy: string, address: string, ms: number, signal: AbortSignal): Promise<Socket> {
	const { hostname, port, username, password } = new URL(proxy);
	const at = `${hostname}:${port || 3128}`;
	const raw = await dialTcp(at, ms, signal);
	const credentials = Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`).toString("base64");
	const connect = request({
		createConnection: () => raw,
		method: "CONNECT",
		path: address,
		headers: { host: address, ...(username && { "proxy-authorization": `Basic ${credentials}` }) },
	});
	return within<Socket>(
		ms,
		signal,
		`CONNECT through the proxy ${at}`,
		(resolve, reject) => {
			connect.once("connect", (response, socket, head) => {
				if (response.statusCode === 200) {
					if (head.length > 0) socket.unshift(head);
					resolve(socket as Socket);
					return;
				}
				socket.destroy();
				reject(
					new GroundplaneError(
						response.statusCode === 407 ? "Unauthenticated" : "Forbidden",
						`the proxy ${at} answered ${response.statusCode} ${response.statusMessage} to CONNECT ${address}`,
						{
							next:
								response.statusCode === 407
									? "Put user and password of the proxy into https_proxy in /etc/default/groundplane-agent."
									: `Let the proxy allow CONNECT to ${address}.`,
						},
					),
				);
			});
			connect.once("error", (error) => reject(networkError(error, `proxy ${at}`)));
			connect.end();
		},
		() => raw.destroy(),
	);
}

async function upgrade(socket: TLSSocket, target: DialTarget, signal: AbortSignal): Promise<WebSocket> {
	const webSocket = new WebSocket(`ws://${target.serverName}${TUNNEL_PATH}`, TUNNEL_SUBPROTOCOL, {
		createConnection: () => socket,
		perMessageDeflate: false,
		maxPayload: 1024 * 1024,
		// Masking protects old proxies from plain text (RFC 6455 §10.3); inside TLS there is none, and zeros cost nothing.
		generateMask: (mask) => mask.fill(0),
	});
	webSocket.on("error", () => {});
	await within<void>(
		target.phaseMs ?? PHASE_MS,
		signal,
		`WebSocket handshake with ${target.address}`,
		(resolve, reject) => {
			webSocket.once("open", () => {
				webSocket.pause();
				resolve();
			});
			webSocket.once("unexpected-response", (_request, response) => {
				const chunks: Buffer[] = [];
				response.on("data", (chunk: Buffer) => {
					if (chunks.length < 16) chunks.push(chunk);
				});
				response.on("end", () => reject(refusal(response.statusCode ?? 0, Buffer.concat(chunks).toString("utf8"))));
				response.on("error", reject);
			});
			webSocket.once("error", (error) => reject(tlsError(error, target.address, target.serverName)));
		},
		() => {
			webSocket.terminate();
			socket.destroy();
		},
	);
	return webSocket;
}

/** Runs one phase with a deadline; when it fails, what was begun is thrown away. */
async function within<Result>(
	ms: number,
	signal: AbortSignal,
	what: string,
	begin: (resolve: (value: Result) => void, reject: (error: unknown) => void) => void,
	undo: () => void,
): Promise<Result> {
	const { promise, resolve, reject } = Promise.withResolvers<Result>();
	const timer = setTimeout(
		() =>
			reject(
				new GroundplaneError("DeadlineExceeded", `${what} took longer than ${ms / 1000} s`, {
					next: "Check that the host's firewall and the proxy, if there is one, let it out to this address.",
				}),
			),
		ms,
	);
	const onAbort = () => reject(signal.reason);
	signal.addEventListener("abort", onAbort, { once: true });
	try {
		if (signal.aborted) onAbort();
		begin(resolve, reject);
		return await promise;
	} catch (error) {
		undo();
		throw error;
	} finally {
		clearTimeout(timer);
		signal.removeEventListener("abort", onAbort);
	}
}

/** What the gateway said instead of switching protocols. */
function refusal(status: number, body: string): GroundplaneError {
	try {
		const { code, detail, next } = JSON.parse(body) as { code: string; detail: string; next: string };
		if (Object.hasOwn(errorCodes, code)) return new GroundplaneError(code as ErrorCode, detail, { next });
	} catch {
		// Not ours; said below.
	}
	return new GroundplaneError(
		"TunnelProtocolError",
		`the address answered HTTP ${status} instead of opening a tunnel`,
		{
			next: "Check that no proxy on the way terminates TLS or forbids WebSocket, and that the address is the region's.",
		},
	);
}

export function networkError(error: NodeJS.ErrnoException, where: string): GroundplaneError {
	const [message, next] = reasons[error.code ?? ""] ?? [`failed: ${error.message}`, "Check the host's network."];
	return new GroundplaneError("TunnelClosed", `${where}: ${message}`, { next, cause: error });
}

const reasons: Record<string, [message: string, next: string]> = {
	ENOTFOUND: ["its name does not resolve", "Check the name and the host's DNS (resolvectl query NAME)."],
	EAI_AGAIN: ["the host's DNS does not answer", "Check the host's DNS servers (resolvectl status)."],
	ECONNREFUSED: [
		"nothing listens there, or a firewall rejects",
		"Check the address, and that the region's front door runs.",
	],
	ECONNRESET: ["the connection was reset", "Check firewalls and proxies on the way."],
	EPIPE: ["the connection was closed", "Check firewalls and proxies on the way."],
	ETIMEDOUT: ["no answer", "Check that the host's firewall lets it out to this address on TCP."],
	EHOSTUNREACH: ["there is no route to it", "Check the host's routes (ip route get ADDRESS)."],
	ENETUNREACH: ["the network is unreachable", "Check the host's default route (ip route)."],
};

export function tlsError(error: NodeJS.ErrnoException, address: string, serverName: string): GroundplaneError {
	const code = error.code ?? "";
	const fail = (kind: ErrorCode, message: string, next: string) =>
		new GroundplaneError(kind, message, { next, cause: error });
	if (code === "CERT_NOT_YET_VALID" || code === "CERT_HAS_EXPIRED") {
		return fail(
			"ClockSkew",
			`the certificate of ${address} is not valid at this host's time (${new Date().toISOString()})`,
			"Check the host's clock (timedatectl). If it is right, the region's certificate has ended: look at the operator.",
		);
	}
	if (/^(SELF_SIGNED|UNABLE_TO|DEPTH_ZERO|CERT_|ERR_TLS_CERT_ALTNAME)/.test(code)) {
		return fail(
			"CertificateInvalid",
			`the certificate that ${address} shows is not ${serverName}'s of this region (${code})`,
			"Check the address, and that no proxy on the way opens up TLS; a region that was made anew needs a new join command.",
		);
	}
	if (code.startsWith("ERR_SSL_")) {
		return fail(
			"CertificateInvalid",
			`the gateway did not accept this host's certificate (${code})`,
			"Enrol the host again with a new join command.",
		);
	}
	return networkError(error, address);
}

/** `host:port`, with IPv6 in brackets. */
export function splitAddress(address: string): { host: string; port: number } {
	const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(address);
	if (!match) {
		throw new GroundplaneError("InvalidConfiguration", `"${address}" is not host:port`, {
			next: "Correct `address` in /etc/groundplane/agent.json.",
		});
	}
	return { host: (match[1] ?? match[2]) as string, port: Number(match[3]) };
}
