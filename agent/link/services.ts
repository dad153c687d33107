import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { connect, type TLSSocket } from "node:tls";
import { z } from "zod";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { IncomingStream } from "../../protocol/mux.ts";
import { splice } from "../../protocol/splice.ts";
import type { Log } from "../log.ts";
import { splitAddress } from "./dial.ts";

const CONNECT_MS = 5_000;

/** `/etc/groundplane/services.d/NAME.json`: written by the role that runs the service, never by the plane. */
const tlsService = z.object({
	/** `host:port` on this host. */
	address: z.string(),
	caFile: z.string(),
	certFile: z.string(),
	keyFile: z.string(),
	serverName: z.string(),
});

export interface LocalServicesOptions {
	/** Where roles describe their services. */
	directory: string;
	/** The customer's policy has the last word. */
	allows: (service: string) => boolean;
	metrics: (stream: Duplex) => void;
	/** Takes a support shell, or throws why not. */
	shell: (incoming: IncomingStream) => void;
	log: Log;
}

/**
 * The only things that the region can reach on this host, by name. A host or port never comes from the region.
 * `metrics` and `shell` are the agent's own; `kube-apiserver` is there once the kubernetes role has described it.
 */
export class LocalServices {
	readonly #options: LocalServicesOptions;

	constructor(options: LocalServicesOptions) {
		this.#options = options;
	}

	/** Answers a stream that the gateway opens. */
	readonly onStream = (incoming: IncomingStream): void => {
		void this.#serve(incoming).catch((error: unknown) => {
			const { code, message } = asGroundplaneError(error);
			this.#options.log.debug({ service: incoming.service, code }, message);
			incoming.refuse(code, message);
		});
	};

	async #serve(incoming: IncomingStream): Promise<void> {
		const { service } = incoming;
		const { allows, metrics, shell } = this.#options;
		if (service !== "metrics" && service !== "kube-apiserver" && service !== "shell") {
			throw new GroundplaneError("ServiceNotAllowed", `this host has no service "${service}"`, {
				next: "Ask for metrics or kube-apiserver.",
			});
		}
		if (service === "shell" && !allows(service)) {
			// Told in one sentence, since no next step goes over the tunnel; and logged: its owner may want to know who tries.
			const message =
				'this host allows no support shell; its owner decides, by "supportShell": true in /etc/groundplane/policy.json';
			this.#options.log.info({}, `support shell refused: ${message}`);
			throw new GroundplaneError("ServiceNotAllowed", message, { next: "Ask the host's owner." });
		}
		if (!allows(service)) {
			throw new GroundplaneError("ServiceNotAllowed", `the policy of this host does not allow "${service}"`, {
				next: "Its owner decides, in /etc/groundplane/policy.json.",
			});
		}
		if (service === "metrics") {
			metrics(incoming.accept());
			return;
		}
		if (service === "shell") {
			shell(incoming);
			return;
		}
		const local = await connectLocal(this.#read(service));
		let stream: Duplex;
		try {
			stream = incoming.accept();
		} catch (error) {
			local.destroy();
			throw error;
		}
		splice(stream, local);
	}

	#read(service: string): z.output<typeof tlsService> {
		let text: string;
		try {
			text = readFileSync(join(this.#options.directory, `${service}.json`), "utf8");
		} catch (cause) {
			throw new GroundplaneError("NotFound", `${service} does not run on this host`, {
				next: "Wait until the role that brings it is applied, or ask another host.",
				cause,
			});
		}
		try {
			return tlsService.parse(JSON.parse(text));
		} catch (cause) {
			throw new GroundplaneError("InvalidConfiguration", `the description of ${service} can't be read`, {
				next: "The kubernetes role writes it again at its next check.",
				cause,
			});
		}
	}
}

/** TLS to a service of this host, with the client certificate that never leaves it. */
async function connectLocal(service: z.output<typeof tlsService>): Promise<TLSSocket> {
	const { host, port } = splitAddress(service.address);
	const read = (file: string) => readFileSync(file);
	const socket = connect({
		host,
		port,
		servername: service.serverName,
		ca: read(service.caFile),
		cert: read(service.certFile),
		key: read(service.keyFile),
		ALPNProtocols: ["http/1.1"],
	});
	socket.setNoDelay(true);
	const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
	const timer = setTimeout(() => reject(new Error(`no answer within ${CONNECT_MS} ms`)), CONNECT_MS);
	socket.once("secureConnect", () => resolve(socket));
	socket.once("error", reject);
	try {
		return await promise;
	} catch (cause) {
		socket.destroy();
		throw new GroundplaneError(
			"KubernetesUnavailable",
			`the API server on this host can't be reached: ${(cause as Error).message}`,
			{
				next: "Try another control plane; on the host look at crictl ps and journalctl -u kubelet.",
				cause,
			},
		);
	} finally {
		clearTimeout(timer);
	}
}
