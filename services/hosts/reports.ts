import { setTimeout as delay, setImmediate } from "node:timers/promises";
import { AckPolicy, DeliverPolicy, JetStreamApiError, type JsMsg } from "@nats-io/jetstream";
import { errors } from "@nats-io/nats-core";
import { z } from "zod";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { type DownMessage, type UpMessage, upMessage } from "../../protocol/messages.ts";
import { type Bus, EPOCH_HEADER, ensureHostStreams } from "../kit/bus.ts";
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
/** Name of the durable consumers: how far reports were read outlives the process. */
const CONSUMER = "hosts";
/** JetStream's error for a consumer that is there with other settings (nats-server, errors.json). */
const CONSUMER_EXISTS = 10148;
/** Of each gateway so many tunnels are asked for in every round, the oldest first; all of them within a slow one. */
const OLDEST = 8;
const SLOW_ROUND_MS = 10 * 60_000;
/** After the bus was away, so many rounds ask for every tunnel: who left meanwhile could not tell. */
const FULL_ROUNDS = 2;
/** More than so many tunnels that nobody holds, of which a tenth is back a round later, are those of hosts in a queue. */
const CROWD = 100;
const QUEUE_MOVES = 0.9;
/** A tunnel that is back within this time is no news: a status costs more to write than a reconnection. */
const GRACE_MS = 3_000;
/** Most messages that are kept in one go. */
const BATCH = 128;
/** When a report that could not be kept comes again. */
const AGAIN_MS = 5_000;
/** When a host is asked for everything because a report came late by an older tunnel. */
const ASK_AGAIN_MS = 1_000;
/** SQLSTATE class 22: PostgreSQL can't take the value, now or later. */
const BAD_VALUE = /^22/;
/** What JSON can say and `jsonb` can't hold: NUL, and half a surrogate pair, as when a command's output was cut off within a character. */
const UNHOLDABLE = /\\u(?:0000|d[89a-f])/i;

export interface ReportsOptions {
	readonly bus: Bus;
	readonly inventory: Inventory;
	readonly authority: CertificateAuthority;
	/** Something new is in the inventory about this host; it may wait for so many milliseconds. */
	readonly changed: (host: string, delay?: number) => void;
	readonly log: Log;
	readonly metrics: Metrics;
	/** How often to look for tunnels that no gateway holds. */
	readonly probeMs: number;
	readonly now: () => number;
}

/** A message as it came, and what it says. */
interface Incoming<T> {
	readonly message: JsMsg;
	readonly host: string;
	readonly type: string;
	/** Epoch of the tunnel by which it came, of what hosts say. */
	readonly epoch?: number | undefined;
	readonly body: T;
}

interface Tunnel {
	readonly name: string;
	readonly link: Link;
}

/** What hosts and gateways say, from the bus into the inventory. */
export class Reports {
	readonly #options: ReportsOptions;
	readonly #received: Counter<"type" | "result">;
	/** Hosts that are about to be asked for everything. */
	readonly #asked = new Set<string>();

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
			this.#consume("HOSTS_UP", signal, upMessage, (messages) => this.#keepReports(messages)),
			this.#consume("HOSTS_LINK", signal, link, (messages) => this.#keepLinks(messages)),
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

	/** Closes the tunnels of a host that is gone and drops its last messages. Throws BusUnavailable while the bus does not hear it. */
	async farewell(host: string): Promise<void> {
		const { jsm, check } = this.#options.bus;
		this.cut(host);
		await check();
		await jsm.streams.purge("HOSTS_UP", { filter: `hosts.${host}.up.*` });
		await jsm.streams.purge("HOSTS_LINK", { filter: `hosts.${host}.link` });
	}

	/**
	 * A gateway that dies tells nobody that its tunnels are gone, and a host may never come back. Whoever holds a tunnel listens
	 * for messages to its host: when nobody does, twice in a row, the tunnel is lost. A crowd that dials again is waited for.
	 *
	 * Asking for every host costs as much as there are hosts, so only the oldest tunnels of each gateway are asked for (the ones
	 * that a gateway which died does not hold), and a few more in turn. One that is not held makes all of its gateway suspect.
	 */
	async #findLost(signal: AbortSignal): Promise<void> {
		const { bus, inventory, log, probeMs } = this.#options;
		let suspects = new Set<string>();
		let turn = "";
		let full = FULL_ROUNDS;
		const forget = bus.onReturn(() => {
			full = FULL_ROUNDS;
		});
		signal.addEventListener("abort", forget, { once: true });
		while (!signal.aborted) {
			await delay(probeMs, undefined, { signal }).catch(() => undefined);
			if (signal.aborted) return;
			try {
				let asked: Tunnel[];
				if (full > 0) {
					full -= 1;
					asked = await inventory.connected();
				} else {
					const next = await inventory.tunnelsAfter(turn, this.#turnSize);
					turn = next.at(-1)?.name ?? "";
					asked = [...(await inventory.oldestTunnels(OLDEST)), ...next];
					const first = await this.#unheld(asked, signal);
					const doubtful = new Set(first.map(({ link }) => link.gateway));
					if (doubtful.size === 0 && suspects.size === 0) continue;
					const all = await inventory.connected();
					asked = all.filter(({ name, link }) => doubtful.has(link.gateway) || suspects.has(name));
				}
				const unheld = await this.#unheld(asked, signal);
				const lost = areReturning(suspects.size, unheld.length) ? [] : unheld;
				for (const tunnel of lost) if (suspects.has(tunnel.name)) await this.#lose(tunnel);
				suspects = new Set(unheld.map(({ name }) => name));
			} catch (err) {
				if (!signal.aborted) log.warn({ err }, "can't look for lost tunnels; trying again");
			}
		}
	}

	/** So many that a slow round comes past ten thousand hosts; fewer are done sooner. */
	get #turnSize(): number {
		return Math.ceil((10_000 * this.#options.probeMs) / SLOW_ROUND_MS);
	}

	async #lose({ name, link }: Tunnel): Promise<void> {
		const { inventory, changed, log, now } = this.#options;
		const lost: Link = { ...link, state: "disconnected", reason: "TunnelLost", at: new Date(now()).toISOString() };
		await inventory.keepLinks([{ host: name, link: lost }]);
		log.warn({ host: name, gateway: link.gateway }, "no gateway holds this host's tunnel any more");
		changed(name);
	}

	/** Those of the tunnels that nobody holds. */
	async #unheld(tunnels: readonly Tunnel[], signal: AbortSignal): Promise<Tunnel[]> {
		const unheld: Tunnel[] = [];
		const work = tunnels.values();
		const probe = async () => {
			for (const tunnel of work) if (!signal.aborted && !(await this.#isHeld(tunnel.name))) unheld.push(tunnel);
		};
		await Promise.all(Array.from({ length: PROBES_AT_ONCE }, probe));
		return unheld;
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

	/**
	 * Pulls from a stream through a durable consumer. Messages are about states: those of one host may overtake each other's types.
	 * A bus that was away may have lost stream and consumer: both are seen to again then, and whenever one of them is missing.
	 */
	async #consume<T>(
		stream: string,
		signal: AbortSignal,
		schema: z.ZodType<T>,
		keep: (messages: readonly Incoming<T>[]) => Promise<string[]>,
	): Promise<void> {
		const { bus, log } = this.#options;
		while (!signal.aborted) {
			try {
				await ensureHostStreams(bus);
				await this.#ensureConsumer(stream);
				const consumer = await bus.js.consumers.get(stream, CONSUMER);
				const messages = await consumer.consume({ max_messages: 2 * BATCH, abort_on_missing_resource: true });
				const stop = () => messages.stop();
				signal.addEventListener("abort", stop, { once: true });
				const forget = bus.onReturn(stop);
				if (signal.aborted) stop();
				try {
					for await (const batch of inBatches(messages, BATCH)) {
						await this.#take(
							batch.flatMap((message) => this.#read(message, schema)),
							keep,
						);
					}
				} finally {
					signal.removeEventListener("abort", stop);
					forget();
					messages.stop();
				}
			} catch (err) {
				if (!signal.aborted) log.warn({ err, stream }, "can't read from the bus; trying again");
			}
			await delay(1_000, undefined, { signal }).catch(() => undefined);
		}
	}

	/** Makes the durable consumer, or changes one of an older version to what is asked now. */
	async #ensureConsumer(stream: string): Promise<void> {
		const { consumers } = this.#options.bus.jsm;
		const limits = { ack_wait: 30_000_000_000, max_ack_pending: 4 * BATCH };
		try {
			await consumers.add(stream, {
				durable_name: CONSUMER,
				deliver_policy: DeliverPolicy.All,
				ack_policy: AckPolicy.Explicit,
				...limits,
			});
		} catch (error) {
			if (!(error instanceof JetStreamApiError) || error.code !== CONSUMER_EXISTS) throw error;
			await consumers.update(stream, CONSUMER, limits);
		}
	}

	/** A message that can't be read is dropped: it would never be better. */
	#read<T>(message: JsMsg, schema: z.ZodType<T>): Incoming<T>[] {
		const [, host = "", , type = "link"] = message.subject.split(".");
		try {
			const epoch = Number(message.headers?.get(EPOCH_HEADER) || Number.NaN);
			return [{ message, host, type, ...(Number.isSafeInteger(epoch) && { epoch }), body: parse(schema, message) }];
		} catch (error) {
			this.#drop({ message, host, type }, error);
			return [];
		}
	}

	/** Keeps a batch. What is wrong with one message must not hold up the others: a batch that fails is taken apart. */
	async #take<T>(
		batch: readonly Incoming<T>[],
		keep: (messages: readonly Incoming<T>[]) => Promise<string[]>,
	): Promise<void> {
		if (batch.length === 0) return;
		try {
			const results = await keep(batch);
			for (const [i, { message, type }] of batch.entries()) {
				message.ack();
				this.#received.inc({ type, result: results[i] ?? "kept" });
			}
		} catch (error) {
			const { code } = asGroundplaneError(error);
			if (code === "DatabaseUnavailable") {
				for (const one of batch) this.#later(one, error);
			} else if (batch.length > 1) {
				// What was kept of it already says nothing new the next time, so each host is looked at in any case.
				for (const one of batch) {
					await this.#take([one], keep);
					this.#options.changed(one.host);
				}
			} else if (batch[0] && code === "Internal" && !BAD_VALUE.test((error as { code?: string }).code ?? "")) {
				this.#later(batch[0], error);
			} else if (batch[0]) {
				this.#drop(batch[0], error);
			}
		}
	}

	/**
	 * A report to be kept when it comes again. It may be kept already, since a database that goes away may take its answer along:
	 * then it says nothing new the next time, so the host is looked at in any case.
	 */
	#later({ message, host, type }: Pick<Incoming<unknown>, "message" | "host" | "type">, error: unknown): void {
		const { log, changed } = this.#options;
		this.#received.inc({ type, result: asGroundplaneError(error).code });
		log.warn({ err: error, host, type }, "can't keep a report now; it comes again");
		message.nak(AGAIN_MS);
		changed(host, AGAIN_MS);
	}

	#drop({ message, host, type }: Pick<Incoming<unknown>, "message" | "host" | "type">, error: unknown): void {
		const { code } = asGroundplaneError(error);
		this.#received.inc({ type, result: code });
		this.#options.log.warn({ err: error, host, type }, "dropped a report");
		message.term(code);
	}

	async #keepReports(messages: readonly Incoming<UpMessage>[]): Promise<string[]> {
		const { inventory, changed } = this.#options;
		const reports = messages.flatMap(({ host, epoch, body }) =>
			body.type === "certificate-request" ? [] : [{ host, epoch, message: body }],
		);
		const kept = await inventory.keep(reports);
		for (const host of kept.changed) changed(host);
		for (const host of kept.late) this.#askAgain(host);
		const results: string[] = [];
		for (const { host, epoch, body } of messages) {
			if (body.type === "certificate-request") results.push(await this.#renew(host, epoch, body.csr));
			else results.push(kept.late.has(host) ? "late" : kept.known.has(host) ? "kept" : "unknown-host");
		}
		return results;
	}

	/**
	 * The bus keeps one report of each kind: one that came late may have taken the place of a newer one that was not read yet. So the
	 * host reports everything anew, once for all that comes late in a while.
	 */
	#askAgain(host: string): void {
		if (this.#asked.has(host)) return;
		this.#asked.add(host);
		setTimeout(() => {
			this.#asked.delete(host);
			if (!this.#options.bus.nc.isClosed()) this.send(host, { type: "report" });
		}, ASK_AGAIN_MS).unref();
	}

	async #keepLinks(messages: readonly Incoming<Link>[]): Promise<string[]> {
		const { inventory, changed } = this.#options;
		const kept = await inventory.keepLinks(messages.map(({ host, body }) => ({ host, link: body })));
		const states = new Map(messages.map(({ host, body }) => [host, body.state]));
		for (const host of kept.changed) changed(host, states.get(host) === "disconnected" ? GRACE_MS : undefined);
		return messages.map(({ host }) => (kept.known.has(host) ? "kept" : "unknown-host"));
	}

	/**
	 * A new certificate for a host that is connected with a good one; a request that comes again gets the same answer. None for who asks
	 * by a tunnel that the host has left: it may be the machine that had its name before.
	 */
	async #renew(host: string, epoch: number | undefined, pem: string): Promise<string> {
		const { inventory, authority, log, now } = this.#options;
		const request = await readCertificateRequest(pem);
		if (request.name !== host) {
			throw new GroundplaneError("HostNameMismatch", `${host} asked for a certificate of ${request.name}.`, {
				next: "Look at that host: its agent must ask for its own name.",
			});
		}
		const machine = await inventory.find(host);
		if (!machine) return "unknown-host";
		if (epoch !== undefined && machine.link !== undefined && epoch < machine.link.epoch) return "late";
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

/** What is there, at most `most` at a time: one when one comes, many when many wait. */
export async function* inBatches<T>(source: AsyncIterable<T>, most: number): AsyncGenerator<T[]> {
	const iterator = source[Symbol.asyncIterator]();
	const ask = () => {
		const next = iterator.next();
		// Whoever awaits it hears of a failure; while a batch is worked on nobody does.
		next.catch(() => undefined);
		return next;
	};
	let next = ask();
	for (;;) {
		const first = await next;
		if (first.done) return;
		const batch = [first.value];
		next = ask();
		while (batch.length < most) {
			// Whatever has arrived is there before the next turn of the event loop.
			const more = await Promise.race([next, setImmediate()]);
			if (more === undefined || more.done) break;
			batch.push(more.value);
			next = ask();
		}
		yield batch;
	}
}

/**
 * Whether a crowd of tunnels that nobody holds gets smaller from one round to the next: their hosts have lost a gateway that died, and
 * dial as fast as another one takes them. To say of thousands that they are gone, and then that they are back, keeps them waiting.
 */
export const areReturning = (before: number, now: number): boolean => now > CROWD && now <= before * QUEUE_MOVES;

const holdable = (_key: string, value: unknown) =>
	typeof value === "string" ? value.toWellFormed().replaceAll("\0", "\ufffd") : value;

function parse<T>(schema: z.ZodType<T>, message: JsMsg): T {
	let value: unknown;
	try {
		const text = message.string();
		value = JSON.parse(text, UNHOLDABLE.test(text) ? holdable : undefined);
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
