import { setTimeout as delay } from "node:timers/promises";
import { AckPolicy, DeliverPolicy, type JsMsg } from "@nats-io/jetstream";
import { errors } from "@nats-io/nats-core";
import { z } from "zod";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { type DownMessage, upMessage } from "../../protocol/messages.ts";
import { type Bus, ensureHostStreams } from "../kit/bus.ts";
import type { Log } from "../kit/log.ts";
import { Counter, type Metrics } from "../kit/metrics.ts";
import { type CertificateAuthority, readCertificateRequest } from "./certificate-authority.ts";
import type { Link } from "./database.ts";
import type { Inventory } from "./inventory.ts";

const link = z.object({
	state: z.enum(["connected", "disconnected"]),
	gateway: z.string().optional(),
	epoch: z.number().default(0),
	address: z.string().optional(),
	reason: z.string().optional(),
	at: z.iso.datetime({ offset: true }),
});

const admitRequest = z.object({ host: z.string(), serial: z.string() });

const PROBES_AT_ONCE = 16;

export interface ReportsOptions {
	readonly bus: Bus;
	readonly inventory: Inventory;
	readonly authority: CertificateAuthority;
	/** Something new is in the inventory about this host. */
	readonly changed: (host: string) => void;
	readonly log: Log;
	readonly metrics: Metrics;
	/** How often to look for tunnels that no gateway holds. */
	readonly probeMs: number;
	readonly now: () => number;
}

/** What hosts and gateways say, from the bus into the inventory. */
export class Reports {
	readonly #options: ReportsOptions;
	readonly #received: Counter<"type" | "result">;

	constructor(options: ReportsOptions) {
		this.#options = options;
		this.#received = new Counter({
			name: "groundplane_host_reports_total",
			help: "Messages about hosts by type and what became of them.",
			labelNames: ["type", "result"],
			registers: [options.metrics.registry],
		});
	}

	/** Reads until `signal` aborts; a bus or a database that is away makes it wait, never end. */
	async run(signal: AbortSignal): Promise<void> {
		this.#answerAdmissions(signal);
		await Promise.all([
			this.#findLost(signal),
			this.#consume("HOSTS_UP", signal, (message) => this.#report(message)),
			this.#consume("HOSTS_LINK", signal, (message) => this.#link(message)),
		]);
	}

	/** Sends a message to a host, if some gateway holds it. */
	send(host: string, message: DownMessage): void {
		this.#options.bus.nc.publish(`hosts.${host}.down`, JSON.stringify(message));
	}

	/** Closes the host's tunnels, all but the one that was opened with the certificate `keepSerial`. */
	cut(host: string, keepSerial?: string): void {
		const body = keepSerial
			? {
					reason: "CertificateRevoked",
					message: "The host enrolled anew: its earlier certificates were revoked.",
					keepSerial,
				}
			: { reason: "CertificateRevoked", message: "The host was deleted: enrol it again." };
		this.#options.bus.nc.publish(`hosts.${host}.cut`, JSON.stringify(body));
	}

	/** Closes the tunnels of a host that is gone and drops its last messages. */
	async farewell(host: string): Promise<void> {
		const { jsm } = this.#options.bus;
		this.cut(host);
		await jsm.streams.purge("HOSTS_UP", { filter: `hosts.${host}.up.*` });
		await jsm.streams.purge("HOSTS_LINK", { filter: `hosts.${host}.link` });
	}

	/**
	 * A gateway that dies tells nobody that its tunnels are gone, and a host may never come back. Whoever holds a tunnel listens
	 * for messages to its host: when nobody does, twice in a row, the tunnel is lost.
	 */
	async #findLost(signal: AbortSignal): Promise<void> {
		const { inventory, changed, log, now } = this.#options;
		let suspects = new Set<string>();
		while (!signal.aborted) {
			await delay(this.#options.probeMs, undefined, { signal }).catch(() => undefined);
			if (signal.aborted) return;
			try {
				const unheld = new Set<string>();
				const connected = await inventory.connected();
				const work = connected.values();
				const probe = async () => {
					for (const { name, link } of work) {
						if (signal.aborted || (await this.#isHeld(name))) continue;
						unheld.add(name);
						if (!suspects.has(name)) continue;
						const lost: Link = {
							...link,
							state: "disconnected",
							reason: "TunnelLost",
							at: new Date(now()).toISOString(),
						};
						await inventory.recordLink(name, lost);
						log.warn({ host: name, gateway: link.gateway }, "no gateway holds this host's tunnel any more");
						changed(name);
					}
				};
				await Promise.all(Array.from({ length: PROBES_AT_ONCE }, probe));
				suspects = unheld;
			} catch (err) {
				if (!signal.aborted) log.warn({ err }, "can't look for lost tunnels; trying again");
			}
		}
	}

	/** Whether a gateway listens for messages to this host. An empty message is a probe, which gateways answer or ignore. */
	async #isHeld(host: string): Promise<boolean> {
		try {
			await this.#options.bus.nc.request(`hosts.${host}.down`, "", { timeout: 1_000 });
			return true;
		} catch (error) {
			return !(error instanceof errors.RequestError && error.isNoResponders());
		}
	}

	/** Gateways ask at every connect; several pods of this service share the questions. */
	#answerAdmissions(signal: AbortSignal): void {
		const { bus, inventory, now } = this.#options;
		const subscription = bus.nc.subscribe("hosts.admit", {
			queue: "hosts",
			callback: (_error, message) => {
				const answer = async () => {
					const { host, serial } = admitRequest.parse(message.json());
					return inventory.admit(host, serial, now());
				};
				answer()
					.catch((error: unknown) => {
						const { code, message: text } = asGroundplaneError(error);
						return { admitted: false, reason: code, message: text };
					})
					.then((admission) => message.respond(JSON.stringify(admission)))
					.catch(() => undefined);
			},
		});
		signal.addEventListener("abort", () => subscription.unsubscribe(), { once: true });
	}

	/** Pulls from a stream through a durable consumer. Messages are about states: those of one host may overtake each other's types. */
	async #consume(stream: string, signal: AbortSignal, handle: (message: JsMsg) => Promise<string>): Promise<void> {
		const { bus, log } = this.#options;
		while (!signal.aborted) {
			try {
				await ensureHostStreams(bus);
				await bus.jsm.consumers.add(stream, {
					durable_name: "hosts",
					deliver_policy: DeliverPolicy.All,
					ack_policy: AckPolicy.Explicit,
					ack_wait: 30_000_000_000,
					max_ack_pending: 256,
				});
				const consumer = await bus.js.consumers.get(stream, "hosts");
				const messages = await consumer.consume({ max_messages: 64 });
				const stop = () => messages.stop();
				signal.addEventListener("abort", stop, { once: true });
				try {
					for await (const message of messages) await this.#take(message, handle);
				} finally {
					signal.removeEventListener("abort", stop);
				}
			} catch (err) {
				if (!signal.aborted) log.warn({ err, stream }, "can't read from the bus; trying again");
			}
			await delay(1_000, undefined, { signal }).catch(() => undefined);
		}
	}

	async #take(message: JsMsg, handle: (message: JsMsg) => Promise<string>): Promise<void> {
		const [, host = "", , type = "link"] = message.subject.split(".");
		try {
			const result = await handle(message);
			message.ack();
			this.#received.inc({ type, result });
		} catch (error) {
			const { code } = asGroundplaneError(error);
			this.#received.inc({ type, result: code });
			if (code === "DatabaseUnavailable" || code === "Internal") {
				this.#options.log.warn({ err: error, host, type }, "can't keep a report now; it comes again");
				message.nak(5_000);
				return;
			}
			this.#options.log.warn({ err: error, host, type }, "dropped a report");
			message.term(code);
		}
	}

	async #report(message: JsMsg): Promise<string> {
		const { inventory, changed } = this.#options;
		const host = message.subject.split(".")[1] ?? "";
		const report = parse(upMessage, message);
		if (report.type === "certificate-request") return this.#renew(host, report.csr);
		const isKnown = await inventory.report(host, report);
		if (isKnown) changed(host);
		return isKnown ? "kept" : "unknown-host";
	}

	async #link(message: JsMsg): Promise<string> {
		const { inventory, changed } = this.#options;
		const host = message.subject.split(".")[1] ?? "";
		const isKnown = await inventory.recordLink(host, parse(link, message));
		if (isKnown) changed(host);
		return isKnown ? "kept" : "unknown-host";
	}

	/** A new certificate for a host that is connected with a good one; a request that comes again gets the same answer. */
	async #renew(host: string, pem: string): Promise<string> {
		const { inventory, authority, log, now } = this.#options;
		const request = await readCertificateRequest(pem);
		if (request.name !== host) {
			throw new GroundplaneError("HostNameMismatch", `${host} asked for a certificate of ${request.name}.`, {
				next: "Look at that host: its agent must ask for its own name.",
			});
		}
		if (!(await inventory.find(host))) return "unknown-host";
		let certificate = await inventory.issuedFor(host, request, now());
		if (!certificate) {
			const issued = await authority.issue(host, request);
			await inventory.addCertificate(host, request, issued);
			certificate = issued.pem;
			log.info({ host, notAfter: issued.notAfter }, "renewed a host's certificate");
		}
		this.send(host, { type: "certificate", certificate, caBundle: await authority.roots() });
		return "renewed";
	}
}

function parse<Schema extends z.ZodType>(schema: Schema, message: JsMsg): z.output<Schema> {
	let value: unknown;
	try {
		value = message.json();
	} catch (cause) {
		throw new GroundplaneError("InvalidInput", "A message on the bus is not JSON.", {
			next: "Update the gateway.",
			cause,
		});
	}
	const result = schema.safeParse(value);
	if (result.success) return result.data;
	throw new GroundplaneError(
		"InvalidInput",
		`A message on the bus is not what it should be: ${z.prettifyError(result.error)}`,
		{
			next: "Gateway, hosts service and agent must be of versions that go together: update the oldest of them.",
		},
	);
}
