import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { Host } from "../../crds/host.ts";
import type { Reflector } from "../../operator/kube/reflector.ts";
import { connectThrough } from "../../protocol/connect.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { Channel, encodeShell, SHELL_PROTOCOL } from "../../protocol/shell.ts";
import { splice } from "../../protocol/splice.ts";
import { type Auth, mayDo } from "../kit/auth.ts";
import { publicError, requestId } from "../kit/http.ts";
import type { Log } from "../kit/log.ts";
import type { TlsFiles } from "../kit/tls.ts";
import { writeHead } from "./proxy.ts";

export interface SupportShellOptions {
	readonly auth: Pick<Auth, "verify">;
	readonly hosts: Pick<Reflector<Host>, "get">;
	readonly namespace: string;
	readonly tunnelUrl: string;
	readonly tls: TlsFiles;
	readonly log: Log;
	/** Milliseconds since the epoch. */
	readonly now?: () => number;
}

const PATH = /^\/api\/v1\/hosts\/([a-z0-9](?:[-a-z0-9]*[a-z0-9])?)\/shell$/;
const CONNECT_MS = 20_000;

/**
 * The way to a host's support shell: an HTTP upgrade, for administrators of the region alone. Whether there is one is the host's to
 * decide. The region tells the host who it is, and carries the rest as it comes; that somebody asked, got in and left is audited.
 */
export class SupportShell {
	readonly #options: SupportShellOptions;
	readonly #now: () => number;

	constructor(options: SupportShellOptions) {
		this.#options = options;
		this.#now = options.now ?? Date.now;
	}

	/** Takes an upgrade of `/api/v1/hosts/NAME/shell`; false when it is another one. */
	upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): boolean {
		const host = PATH.exec(request.url ?? "")?.[1];
		if (host === undefined) return false;
		// Until the streams are joined nobody else listens.
		socket.on("error", () => socket.destroy());
		this.#serve(host, request, socket, head).catch((error: unknown) => {
			const shown = publicError(error);
			if (shown.status >= 500) this.#options.log.warn({ err: error, host, requestId: requestId(request) }, "no shell");
			const body = JSON.stringify({ ...shown.toJSON(), instance: requestId(request) });
			writeHead(socket, shown.status, {
				"content-type": "application/problem+json",
				"content-length": Buffer.byteLength(body),
				connection: "close",
			});
			socket.end(body);
		});
		return true;
	}

	async #serve(host: string, request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
		const { auth, hosts, namespace, log } = this.#options;
		const user = await auth.verify(request.headers.authorization);
		const facts = { audit: true, by: user.name, host, requestId: requestId(request) };
		const audit = (event: string, more: object = {}) => log.info({ ...facts, event, ...more }, event);
		let stream: Duplex;
		try {
			if (!mayDo(user, ["admin"])) {
				throw new GroundplaneError("Forbidden", `${user.name} may not open a shell on hosts.`, {
					next: "It takes the role admin: ask an administrator of the region.",
				});
			}
			if (!hosts.get(`${namespace}/${host}`)) {
				throw new GroundplaneError("NotFound", `There is no host ${host}.`, { next: "List the hosts: gp host list" });
			}
			if (request.headers.upgrade?.toLowerCase() !== SHELL_PROTOCOL) {
				throw new GroundplaneError("InvalidInput", `A shell is an upgrade to ${SHELL_PROTOCOL}.`, {
					next: `Use gp host shell ${host}; one of another version may not do.`,
				});
			}
			stream = await this.#open(host);
		} catch (error) {
			audit("shell-refused", { code: publicError(error).code });
			throw error;
		}
		if (socket.destroyed) {
			stream.destroy();
			return;
		}
		audit("shell-opened");
		const since = this.#now();
		stream.once("close", () => audit("shell-closed", { seconds: Math.round((this.#now() - since) / 1000) }));
		stream.write(encodeShell(Channel.caller, { user: user.name, requestId: requestId(request) }));
		if (head.length > 0) stream.write(head);
		writeHead(socket, 101, { connection: "Upgrade", upgrade: SHELL_PROTOCOL });
		splice(socket, stream);
	}

	/** A stream to the host's shell. What the host or a gateway declines with is thrown in its own words. */
	async #open(host: string): Promise<Duplex> {
		const { tls, tunnelUrl } = this.#options;
		const { hostname, port } = new URL(tunnelUrl);
		try {
			return await connectThrough({
				host: hostname,
				port: Number(port || 443),
				tls: { ...tls.current, servername: hostname },
				authority: `shell.${host}:80`,
				signal: AbortSignal.timeout(CONNECT_MS),
			});
		} catch (cause) {
			if (!(cause instanceof GroundplaneError)) {
				throw new GroundplaneError("Overloaded", "The region's tunnel gateway does not answer.", {
					next: "Try again in a moment; if it lasts, look at the pods tunnel of the region.",
					cause,
				});
			}
			const { code, message } = cause;
			const next = code === "ServiceNotAllowed" ? ALLOW : cause.next;
			throw new GroundplaneError(code, `${host}: ${message}`, { next, cause });
		}
	}
}

const ALLOW = `On the host, its owner: put {"supportShell": true} into /etc/groundplane/policy.json, and take it out afterwards.`;
