import http from "node:http";
import type { Duplex } from "node:stream";
import { connectThrough } from "../../protocol/connect.ts";

export interface ConnectAgentOptions {
	proxyHost: string;
	proxyPort: number;
	/** Our identity towards the proxy. A function, so that a certificate minted anew is used from the next connection on. */
	tls: () => { ca: string; cert: string; key: string; servername?: string };
	/** What the proxy is asked for, such as `kube-apiserver.host-1:80`. */
	authority: string;
}

const CONNECT_MS = 15_000;
/**
 * How long a connection that nobody uses is kept: for the next look at a cluster on which something happens, not at one at rest, of which
 * there are hundreds: each is some 100 KiB here and as much at the gateway.
 */
const IDLE_MS = 15_000;

/**
 * An agent whose every connection is a stream through a region's gateway, with the plain bytes of the protocol spoken over it. This
 * is how the operator reaches the API server of a cluster.
 */
export class ConnectAgent extends http.Agent {
	readonly #options: ConnectAgentOptions;

	constructor(options: ConnectAgentOptions) {
		super({ keepAlive: true, maxFreeSockets: 2, timeout: IDLE_MS });
		this.#options = options;
	}

	override createConnection(
		_options: http.ClientRequestArgs,
		callback: (error: Error | null, stream: Duplex) => void,
	): undefined {
		const { proxyHost: host, proxyPort: port, tls, authority } = this.#options;
		connectThrough({ host, port, tls: tls(), authority, signal: AbortSignal.timeout(CONNECT_MS) }).then(
			(stream) => callback(null, stream),
			(error: Error) => callback(error, undefined as never),
		);
		return undefined;
	}
}
