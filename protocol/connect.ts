import { request as httpsRequest } from "node:https";
import { addAbortSignal, type Duplex, type Readable } from "node:stream";
import { GroundplaneError, problemOf } from "./errors.ts";

export interface ConnectOptions {
	readonly host: string;
	readonly port: number;
	/** Our identity towards the gateway, and the name that its certificate must have. */
	readonly tls: { readonly ca: string; readonly cert: string; readonly key: string; readonly servername?: string };
	/** What is asked for, such as `kube-apiserver.host-1:80`. */
	readonly authority: string;
	/** Ends the asking; the stream that comes of it lives on. */
	readonly signal: AbortSignal;
}

/** An answer of a gateway is short. */
const MAX_ANSWER = 64 * 1024;

/**
 * A stream to a service of a host: CONNECT (RFC 9110, 9.3.6) at a gateway, with a client certificate.
 *
 * @throws GroundplaneError what gateway or host decline with, in their own words; `TunnelClosed` when they have none;
 * `DeadlineExceeded` when the signal's time is over. Anything else is why the gateway could not be reached.
 */
export async function connectThrough({ host, port, tls, authority, signal }: ConnectOptions): Promise<Duplex> {
	const { promise, resolve, reject } = Promise.withResolvers<{ status: number; stream: Duplex | Readable }>();
	const request = httpsRequest({
		...tls,
		host,
		port,
		method: "CONNECT",
		path: authority,
		headers: { host: authority },
		agent: false,
		signal,
	});
	request.on("connect", ({ statusCode = 0 }, socket, head) => {
		socket.setNoDelay(true);
		if (head.length > 0) socket.unshift(head);
		resolve({ status: statusCode, stream: socket });
	});
	// Node gives `response` when the status line came without an upgrade.
	request.on("response", (response) => resolve({ status: response.statusCode ?? 0, stream: response }));
	request.on("error", reject);
	request.end();
	const { status, stream } = await promise.catch((error: unknown) => {
		if ((signal.reason as Error | undefined)?.name !== "TimeoutError") throw error;
		throw new GroundplaneError("DeadlineExceeded", `${authority}: the gateway ${host}:${port} did not answer in time`, {
			next: "Try again in a moment; if it lasts, look at the pods tunnel of the region.",
			cause: error,
		});
	});
	if (status === 200) return stream as Duplex;
	const problem = problemOf(await readText(addAbortSignal(signal, stream)).catch(() => ""));
	stream.destroy();
	throw (
		problem ??
		new GroundplaneError("TunnelClosed", `the gateway answered ${status} for ${authority}`, {
			next: "Try again; if it lasts, look at the gateway's log.",
		})
	);
}

/** Reads a short text. Throws when it breaks off or is long. */
export async function readText(stream: Readable): Promise<string> {
	let text = "";
	for await (const chunk of stream) {
		text += String(chunk);
		if (text.length > MAX_ANSWER) throw new Error("the answer is too long");
	}
	return text;
}
