import { X509Certificate } from "node:crypto";
import { request } from "node:http";
import type { Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { type ErrorCode, GroundplaneError, problemOf } from "../../protocol/errors.ts";
import { isNonce, NONCE_HEADER, newNonce } from "../../protocol/hello.ts";
import type { Transport } from "../../protocol/transport.ts";
import { SPARE_SUBPROTOCOL, TUNNEL_PATH, TUNNEL_SUBPROTOCOL } from "../../protocol/tunnel.ts";
import { requestWebSocket } from "../../protocol/websocket.ts";
import { AddressBook, connectFastest } from "./addresses.ts";

/** How to get to the region. */
export interface Way {
	/** `host:port`. */
	address: string;
	/** `http://[user:password@]proxy:port`. */
	proxy?: string | undefined;
	/** Time for each phase: connection, proxy, TLS, WebSocket. */
	phaseMs?: number;
	addresses?: AddressBook;
	/** Hears of every phase that was passed. */
	trace?: (phase: DialPhase, detail: string) => void;
}

/** What a dial goes through, in this order; `proxy` only where there is one. */
export type DialPhase = "dns" | "connect" | "proxy" | "tls" | "tunnel";

/** Whom to believe at the other end. */
export interface Trust {
	/** SNI, and the name that the certificate must carry. */
	serverName: string;
	/** The region's root, PEM. */
	ca: string;
	/** CA of a proxy that opens up TLS, PEM: the customer put it there. */
	proxyCa?: string | undefined;
}

/** Where the tunnel is and who this host is. */
export interface DialTarget extends Way, Trust {
	/** Path of the tunnel, where something on the way wants another one than the usual. */
	path?: string | undefined;
	/** The host's certificate with its chain, and its key, PEM. */
	certificate: string;
	key: string;
}

/** An open WebSocket. Nothing is read before the transport is started. */
export interface Dialled {
	transport: Transport;
	localAddress: string | undefined;
	/** Lets the next dials try other addresses first. */
	avoid: () => void;
	/** Somebody on the way has opened up TLS, so both ends have to prove in HELLO who they are, over these nonces. */
	opened?: { hostNonce: string; gatewayNonce: string };
}

const PHASE_MS = 10_000;
/** Linux repeats a SYN after 1 s and after 3 s; a new dial then serves better than its long silences afterwards. */
const CONNECT_MS = 5_000;

const sharedAddresses = new AddressBook();

/** Opens the WebSocket of the tunnel, or of a spare one. Throws an error that tells a person what is in the way. */
export async function dial(target: DialTarget, signal: AbortSignal, spare = false): Promise<Dialled> {
	const { certificate: cert, key, addresses = sharedAddresses } = target;
	const { socket, opened } = await dialTls(target, { ...target, cert, key, tls13: true }, signal);
	const { localAddress, remoteAddress } = socket;
	try {
		const hostNonce = opened ? newNonce() : undefined;
		const { transport, gatewayNonce } = await upgrade(socket, target, { hostNonce, spare, signal });
		target.trace?.("tunnel", `the gateway took the WebSocket at ${target.path ?? TUNNEL_PATH}`);
		return {
			transport,
			localAddress,
			avoid: () => addresses.demote(remoteAddress),
			...(hostNonce !== undefined && gatewayNonce !== undefined && { opened: { hostNonce, gatewayNonce } }),
		};
	} catch (error) {
		if (!spare) addresses.demote(remoteAddress);
		throw error;
	}
}

/**
 * A TLS connection to the region, through the proxy if there is one; also used for enrolment. `opened` says that the
 * certificate is not the region's but one of the customer's proxy, which opens up TLS.
 */
export async function dialTls(
	way: Way,
	{ ca, proxyCa, serverName, cert, key, tls13 }: Trust & { cert?: string; key?: string; tls13?: boolean },
	signal: AbortSignal,
): Promise<{ socket: TLSSocket; opened: boolean }> {
	const { address, proxy, phaseMs = PHASE_MS, addresses = sharedAddresses, trace } = way;
	const raw = proxy === undefined ? await dialTcp(way, address, signal) : await dialProxy(way, proxy, signal);
	const { remoteAddress } = raw;
	const socket = connectTls({
		socket: raw,
		servername: serverName,
		ca: proxyCa === undefined ? ca : [ca, proxyCa],
		...(cert !== undefined && { cert }),
		...(key !== undefined && { key }),
		// A proxy of the customer's may be older than the region, which has 1.3 only.
		...(tls13 && proxyCa === undefined && { minVersion: "TLSv1.3" as const }),
		ALPNProtocols: ["http/1.1"],
		// Judged below, where the certificate that doesn't do can be named. Nothing is sent before that.
		rejectUnauthorized: false,
	});
	// Node tells of a TLS record that makes no sense, and keeps the socket open for ever.
	socket.on("error", () => socket.destroy());
	try {
		await within<void>(phaseMs, signal, `TLS handshake with ${address}`, (resolve, reject) => {
			socket.once("secureConnect", resolve);
			socket.once("error", (error) => reject(tlsError(error, address, serverName)));
			socket.once("close", () =>
				reject(
					new GroundplaneError("TunnelClosed", `${address} closed the connection during the TLS handshake`, {
						next: `Check that a firewall or proxy on the way lets TLS for the name ${serverName} through.`,
					}),
				),
			);
		});
		const shown = socket.getPeerX509Certificate();
		if (!socket.authorized || shown === undefined) {
			throw certificateError(String(socket.authorizationError), shown, address, serverName);
		}
		const opened = proxyCa !== undefined && !leadsTo(ca, shown);
		trace?.(
			"tls",
			opened
				? `${oneLine(shown.issuer)} opens up TLS; its CA is trusted by proxy-ca.pem`
				: `${socket.getProtocol()}, certificate of the region for ${serverName}, good until ${shown.validToDate.toISOString()}`,
		);
		return { socket, opened };
	} catch (error) {
		socket.destroy();
		addresses.demote(remoteAddress);
		throw error;
	}
}

async function dialTcp(
	{ phaseMs = PHASE_MS, addresses = sharedAddresses, trace }: Way,
	address: string,
	signal: AbortSignal,
): Promise<Socket> {
	const { host, port } = splitAddress(address);
	const found = await addresses.find(host, phaseMs).catch((error) => {
		throw networkError(error, host);
	});
	signal.throwIfAborted();
	trace?.("dns", `${host} is ${found.map((one) => one.address).join(", ")}`);
	const { connected, abandon } = connectFastest(found, port);
	try {
		const socket = await within<Socket>(
			Math.min(phaseMs, CONNECT_MS),
			signal,
			`connection to ${address}`,
			(resolve, reject) => {
				connected.then(resolve, (error) => reject(networkError(error, address)));
			},
		);
		trace?.("connect", `${socket.localAddress} reaches ${socket.remoteAddress} port ${port}`);
		return socket;
	} catch (error) {
		abandon();
		// It may have won in the meantime.
		connected.then(
			(socket) => socket.destroy(),
			() => {},
		);
		throw error;
	}
}

async function dialProxy(way: Way, proxy: string, signal: AbortSignal): Promise<Socket> {
	const { address, phaseMs = PHASE_MS } = way;
	const { at, credentials } = splitProxy(proxy);
	const raw = await dialTcp(way, at, signal);
	const connect = request({
		createConnection: () => raw,
		method: "CONNECT",
		path: address,
		headers: { host: address, ...(credentials && { "proxy-authorization": `Basic ${credentials}` }) },
	});
	try {
		const socket = await within<Socket>(phaseMs, signal, `CONNECT through the proxy ${at}`, (resolve, reject) => {
			connect.once("connect", (response, socket, head) => {
				if (response.statusCode === 200) {
					if (head.length > 0) socket.unshift(head);
					resolve(socket as Socket);
					return;
				}
				const needsPassword = response.statusCode === 407;
				reject(
					new GroundplaneError(
						needsPassword ? "Unauthenticated" : (response.statusCode ?? 0) >= 500 ? "Unreachable" : "Forbidden",
						`the proxy ${at} answered ${response.statusCode} ${response.statusMessage} to CONNECT ${address}`,
						{
							next: needsPassword
								? "Put user and password of the proxy into https_proxy in /etc/default/groundplane-agent."
								: (response.statusCode ?? 0) >= 500
									? `The proxy does not get to ${address} itself: look at its way out and its DNS.`
									: `Let the proxy allow CONNECT to ${address}.`,
						},
					),
				);
			});
			connect.once("error", (error) => reject(networkError(error, `proxy ${at}`)));
			connect.end();
		});
		way.trace?.("proxy", `${at} connects to ${address}`);
		return socket;
	} catch (error) {
		raw.destroy();
		throw error;
	}
}

async function upgrade(
	socket: TLSSocket,
	{ serverName, path = TUNNEL_PATH, address, phaseMs = PHASE_MS }: DialTarget,
	{ hostNonce, spare, signal }: { hostNonce: string | undefined; spare: boolean; signal: AbortSignal },
): Promise<{ transport: Transport; gatewayNonce: string | undefined }> {
	try {
		const answer = await within<Awaited<ReturnType<typeof requestWebSocket>>>(
			phaseMs,
			signal,
			`WebSocket handshake with ${address}`,
			(resolve, reject) => {
				requestWebSocket(socket, {
					host: serverName,
					path,
					subprotocol: spare ? SPARE_SUBPROTOCOL : TUNNEL_SUBPROTOCOL,
					...(hostNonce !== undefined && { headers: { [NONCE_HEADER]: hostNonce }, masked: true }),
				}).then(resolve, (error) =>
					reject(error instanceof GroundplaneError ? error : tlsError(error, address, serverName)),
				);
			},
		);
		if (answer.transport === undefined) {
			throw refusal(answer.status, answer.body, answer.headers["retry-after"]);
		}
		const gatewayNonce = answer.headers[NONCE_HEADER];
		if (hostNonce !== undefined && !isNonce(gatewayNonce)) {
			throw new GroundplaneError("CertificateInvalid", "the gateway did not say how to prove who this host is", {
				next: "Let the proxy pass the header groundplane-nonce and this address unopened, or upgrade the region.",
			});
		}
		return { transport: answer.transport, gatewayNonce: isNonce(gatewayNonce) ? gatewayNonce : undefined };
	} catch (error) {
		socket.destroy();
		throw error;
	}
}

/** Runs one phase with a deadline. What was begun is the caller's to end when it fails. */
async function within<Result>(
	ms: number,
	signal: AbortSignal,
	what: string,
	begin: (resolve: (value: Result) => void, reject: (error: unknown) => void) => void,
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
		else begin(resolve, reject);
		return await promise;
	} finally {
		clearTimeout(timer);
		signal.removeEventListener("abort", onAbort);
	}
}

/** What the gateway said instead of switching protocols. `details.retryAfterMs` is its hint when to come back. */
export function refusal(status: number, body: string, retryAfter: string | undefined): GroundplaneError {
	const seconds = Number(retryAfter ?? Number.NaN);
	const hint = Number.isFinite(seconds) && seconds >= 0 ? { details: { retryAfterMs: seconds * 1000 } } : {};
	const said = problemOf(body);
	if (said) return said.details ? said : new GroundplaneError(said.code, said.message, { next: said.next, ...hint });
	return new GroundplaneError(
		"TunnelProtocolError",
		`the address answered HTTP ${status} instead of opening a tunnel`,
		{
			next: "Check that no proxy on the way terminates TLS or forbids WebSocket, and that address and server name (tunnelServerName) are those of the region's tunnel.",
			...hint,
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

/** A certificate at the other end that doesn't do, and whose it is. */
function certificateError(
	code: string,
	shown: X509Certificate | undefined,
	address: string,
	serverName: string,
): GroundplaneError {
	const fail = (kind: ErrorCode, message: string, next: string) =>
		new GroundplaneError(kind, message, { next, details: { reason: code } });
	if (code === "CERT_NOT_YET_VALID" || code === "CERT_HAS_EXPIRED") {
		const life = shown ? `, it is from ${shown.validFromDate.toISOString()} to ${shown.validToDate.toISOString()}` : "";
		return fail(
			"ClockSkew",
			`the certificate of ${address} is not valid at this host's time (${new Date().toISOString()})${life}`,
			"Check the host's clock (timedatectl). If it is right, the region's certificate has ended: look at the operator.",
		);
	}
	if (code.startsWith("ERR_TLS_CERT_ALTNAME")) {
		return fail(
			"CertificateInvalid",
			`the certificate that ${address} shows is for ${shown?.subjectAltName ?? "no name"}, not for ${serverName}`,
			"Check the server name (tunnelServerName) and the address: it is another service or another region.",
		);
	}
	const issuer = shown ? oneLine(shown.issuer) : "nobody";
	const digest = shown ? ` (SHA-256 of the certificate ${shown.fingerprint256})` : "";
	return fail(
		"CertificateInvalid",
		`the certificate that ${address} shows for ${serverName} is not of this region: ${issuer} issued it${digest}`,
		`If "${issuer}" is a proxy of yours that opens up TLS, exempt ${serverName} there, or put its CA into /etc/groundplane/proxy-ca.pem. If not, check the address; a region that was made anew needs a new join command.`,
	);
}

const oneLine = (name: string): string => name.split("\n").reverse().join(", ");

/** What OpenSSL says in a handshake or after it (in TLS 1.3 a client's certificate is judged after it). */
export function tlsError(error: NodeJS.ErrnoException, address: string, serverName: string): GroundplaneError {
	const code = error.code ?? "";
	const fail = (kind: ErrorCode, message: string, next: string) =>
		new GroundplaneError(kind, message, { next, cause: error });
	if (!code.startsWith("ERR_SSL_")) return networkError(error, address);
	if (/ALERT_(BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|CERTIFICATE_|UNKNOWN_CA|ACCESS_DENIED)/.test(code)) {
		return fail(
			"CertificateInvalid",
			`the gateway did not accept this host's certificate (${code})`,
			"Enrol the host again with a new join command.",
		);
	}
	if (/ALERT_INTERNAL_ERROR/.test(code)) {
		return fail(
			"Overloaded",
			`the gateway at ${address} has no time for this host now (${code})`,
			"Nothing, it passes; if it lasts, look at the region's gateways and give it more of them (Region.spec.tunnel.replicas).",
		);
	}
	if (/UNRECOGNIZED_NAME/.test(code)) {
		return fail(
			"TunnelProtocolError",
			`${address} knows no ${serverName} (${code})`,
			"Check the server name (tunnelServerName) and that the region is there.",
		);
	}
	if (/PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS/.test(code)) {
		return fail(
			"TunnelProtocolError",
			`${address} does not speak TLS 1.3 (${code})`,
			"Something on the way ends TLS with an older version: exempt this name there.",
		);
	}
	return fail(
		"TunnelProtocolError",
		`what answers at ${address} does not speak TLS as it should (${code})`,
		"Check the address and the port, and that no firewall, proxy or sign-in page on the way answers in the region's place.",
	);
}

/** Whether a certificate is signed, by itself or through its chain, by one of these roots (PEM). */
function leadsTo(roots: string, leaf: X509Certificate): boolean {
	const anchors = certificatesIn(roots);
	const signedBy = (certificate: X509Certificate, issuer: X509Certificate) =>
		certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
	for (let at = leaf, depth = 0; depth < 8; depth++) {
		if (anchors.some((anchor) => signedBy(at, anchor))) return true;
		const issuer = at.issuerCertificate;
		if (issuer === undefined || issuer.fingerprint256 === at.fingerprint256 || !signedBy(at, issuer)) return false;
		at = issuer;
	}
	return false;
}

/** The certificates of a PEM file. */
export const certificatesIn = (pem: string): X509Certificate[] =>
	(pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []).map(
		(one) => new X509Certificate(one),
	);

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

/** What was percent-encoded; as it stands where somebody wrote a password with a % of its own. */
function decoded(text: string): string {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}

/** A proxy without a scheme is one of HTTP, as curl has it: `proxy:3128` alone would be a URL of the scheme `proxy`. */
export const proxyUrl = (proxy: string): string => (proxy.includes("://") ? proxy : `http://${proxy}`);

/** A proxy's `host:port`, and what goes into Proxy-Authorization. Port 80 is what a URL forgets; none at all means 3128. */
export function splitProxy(proxy: string): { at: string; credentials: string | undefined } {
	const url = proxyUrl(proxy);
	const { hostname, port, username, password } = new URL(url);
	const written = /^[a-z]+:\/\/(?:[^@/]*@)?(?:\[[^\]]*\]|[^:/]*):(\d+)/i.exec(url)?.[1];
	const plain = `${decoded(username)}:${decoded(password)}`;
	return {
		at: `${hostname}:${port || written || 3128}`,
		credentials: username === "" ? undefined : Buffer.from(plain).toString("base64"),
	};
}
