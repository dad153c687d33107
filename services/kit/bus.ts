import { readFile } from "node:fs/promises";
import {
	JetStreamApiError,
	type JetStreamClient,
	type JetStreamManager,
	jetstream,
	jetstreamManager,
	type StreamConfig,
} from "@nats-io/jetstream";
import { type KV, Kvm, type KvOptions } from "@nats-io/kv";
import type { NatsConnection } from "@nats-io/nats-core";
import { connect } from "@nats-io/transport-node";
import type { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { busConfig } from "./config.ts";
import type { Log } from "./log.ts";
import { Counter, Gauge } from "./metrics.ts";
import { backoffMs, retry } from "./retry.ts";
import type { ServiceContext } from "./service.ts";

/** The region's message bus. */
export interface Bus {
	readonly nc: NatsConnection;
	readonly js: JetStreamClient;
	readonly jsm: JetStreamManager;
	/** Makes a stream, or changes it to what is asked. Safe to call from several services at once. */
	ensureStream(config: Partial<StreamConfig> & { name: string; subjects: string[] }): Promise<void>;
	/** Makes a KV bucket if it isn't there, and opens it. */
	ensureKv(bucket: string, options?: Partial<KvOptions>): Promise<KV>;
	/** For `checks`: one round trip. Throws BusUnavailable. */
	check(): Promise<void>;
	/** Publishes what is buffered, then closes. */
	close(): Promise<void>;
}

const START_DEADLINE_MS = 5 * 60_000;

/**
 * Connects (waiting up to five minutes at the start) and then reconnects for ever with jitter: whether the bus is there
 * shows in `groundplane_bus_connected` and in the log. A password that the server refuses is tried for ever too, because
 * a rotated Secret reaches server and client at different times.
 */
export async function connectBus({
	name,
	config,
	tls,
	log,
	metrics,
	signal,
}: ServiceContext<z.output<z.ZodObject<typeof busConfig>>>): Promise<Bus> {
	const connected = new Gauge({
		name: "groundplane_bus_connected",
		help: "1 while the message bus is connected.",
		registers: [metrics.registry],
	});
	const reconnects = new Counter({
		name: "groundplane_bus_reconnects_total",
		help: "Times that the connection to the message bus was made again.",
		registers: [metrics.registry],
	});
	const password = (await readFile(config.natsPasswordFile, "utf8")).trim();
	const nc = await retry(
		() =>
			connect({
				servers: config.natsUrl.replace(/^(tls|nats):\/\//, ""),
				name,
				user: config.natsUser,
				pass: password,
				// `nats://` is for a server on the loopback in tests.
				tls: config.natsUrl.startsWith("tls:") ? { caFile: tls.caFile } : null,
				maxReconnectAttempts: -1,
				ignoreAuthErrorAbort: true,
				reconnectDelayHandler: () => 100 + backoffMs(5),
				pingInterval: 20_000,
				maxPingOut: 2,
				timeout: 5_000,
			}),
		{ signal, deadlineMs: START_DEADLINE_MS, onError: (err) => log.warn({ err }, "the message bus is not there yet") },
	).catch((cause: unknown) => {
		throw unavailable(cause);
	});
	connected.set(1);
	void followStatus(nc, log, connected, reconnects);

	const js = jetstream(nc, { timeout: 5_000 });
	const jsm = await jetstreamManager(nc, { timeout: 5_000, checkAPI: false });
	const kvm = new Kvm(js);
	const patiently = <Result>(work: () => Promise<Result>) =>
		retry(work, {
			signal,
			deadlineMs: 60_000,
			onError: (err) => log.warn({ err }, "JetStream is not ready yet"),
		}).catch((cause: unknown) => {
			throw unavailable(cause);
		});

	return {
		nc,
		js,
		jsm,
		ensureStream: (config) =>
			patiently(async () => {
				try {
					await jsm.streams.update(config.name, config);
				} catch (error) {
					if (!(error instanceof JetStreamApiError) || error.status !== 404) throw error;
					await jsm.streams.add(config);
				}
			}),
		ensureKv: (bucket, kvOptions) => patiently(() => kvm.create(bucket, kvOptions)),
		check: async () => {
			if (nc.isClosed()) throw unavailable();
			await nc.flush().catch((cause: unknown) => {
				throw unavailable(cause);
			});
		},
		close: () => nc.drain().catch(() => nc.close()),
	};
}

/** The two streams that carry what hosts say (docs/architecture.md, Bus); gateway and hosts service both see to them. */
export async function ensureHostStreams(bus: Bus): Promise<void> {
	const lastOfEach = { max_msgs_per_subject: 1, storage: "file", discard: "old" } as const;
	await bus.ensureStream({ name: "HOSTS_UP", subjects: ["hosts.*.up.*"], ...lastOfEach });
	await bus.ensureStream({ name: "HOSTS_LINK", subjects: ["hosts.*.link"], ...lastOfEach });
}

const unavailable = (cause?: unknown) =>
	new GroundplaneError("BusUnavailable", "The message bus can't be reached.", {
		next: "Look at the pod nats-0 of the region; this gets well by itself as soon as it answers.",
		cause,
	});

async function followStatus(nc: NatsConnection, log: Log, connected: Gauge, reconnects: Counter): Promise<void> {
	for await (const status of nc.status()) {
		switch (status.type) {
			case "disconnect":
				connected.set(0);
				log.warn({ server: status.server }, "lost the message bus; reconnecting");
				break;
			case "reconnect":
				connected.set(1);
				reconnects.inc();
				log.info({ server: status.server }, "the message bus is back");
				break;
			case "error":
				log.warn({ err: status.error }, "the message bus reported an error");
				break;
			case "slowConsumer":
				log.warn({ pending: status.pending }, "a subscription falls behind");
				break;
		}
	}
	connected.set(0);
}
