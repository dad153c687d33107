import http from "node:http";
import https from "node:https";
import type { Duplex } from "node:stream";
import { GroundplaneError } from "../../protocol/errors.ts";

export interface ConnectAgentOptions {
	proxyHost: string;
	proxyPort: number;
	/** Our identity towards the proxy. A function, so that a certificate minted anew is used from the next connection on. */
	tls: () => { ca: string; cert: string; key: string; servername?: string };
	/** What the proxy is asked for, such as `kube-apiserver.host-1:80`. */
	authority: string;
	/** Deadline for a connection, in milliseconds. */
	connectTimeout?: number;
}

/**
 * An agent whose every connection is a stream through an HTTP proxy: CONNECT (RFC 9110, 9.3.6) over TLS with a client
 * certificate, then the plain bytes of the protocol spoken over it. This is how the operator reaches the API server of a cluster
 * through its region's gateway.
 */
export class ConnectAgent extends http.Agent {
	readonly #options: ConnectAgentOptions;

	constructor(options: ConnectAgentOptions) {
		super({ keepAlive: true, maxFreeSockets: 2, timeout: 120_000 });
		this.#options = options;
	}

	override createConnection(
		_options: http.ClientRequestArgs,
		callback: (error: Error | null, stream: Duplex) => void,
	): undefined {
		const { proxyHost, proxyPort, tls, authority, connectTimeout = 15_000 } = this.#options;
		const fail = (error: Error) => callback(error, undefined as never);
		const request = https.request({
			host: proxyHost,
			port: proxyPort,
			method: "CONNECT",
			path: authority,
			headers: { host: authority },
			agent: false,
			...tls(),
		});
		const timer = setTimeout(
			() =>
				request.destroy(
					new GroundplaneError("DeadlineExceeded", `${authority}: no answer of ${proxyHost}:${proxyPort}`, {
						next: "It is tried again; check that the region's tunnel gateway runs.",
					}),
				),
			connectTimeout,
		);
		request.on("error", (error) => {
			clearTimeout(timer);
			fail(error);
		});
		request.on("connect", (response, socket, head) => {
			clearTimeout(timer);
			if (response.statusCode === 200) {
				if (head.length > 0) socket.unshift(head);
				callback(null, socket);
				return;
			}
			socket.destroy();
			fail(refused(authority, response.statusCode ?? 0));
		});
		// A proxy that answers CONNECT without a tunnel (Node gives `response` when the status line came without an upgrade).
		request.on("response", (response) => {
			clearTimeout(timer);
			response.resume();
			fail(refused(authority, response.statusCode ?? 0));
		});
		request.end();
		return undefined;
	}
}

function refused(authority: string, status: number): GroundplaneError {
	if (status === 403) {
		return new GroundplaneError("ServiceNotAllowed", `the gateway refused ${authority}`, {
			next: "Check the host's policy file and the service's certificate.",
		});
	}
	if (status === 503 || status === 404) {
		return new GroundplaneError("HostNotConnected", `the gateway holds no connection for ${authority}`, {
			next: "It is tried again when the host has dialled in.",
		});
	}
	return new GroundplaneError("TunnelClosed", `the gateway answered ${status} for ${authority}`, {
		next: "It is tried again; look at the gateway's log.",
	});
}
