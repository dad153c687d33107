import { EventEmitter } from "node:events";
import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import {
	DiscardPolicy,
	JetStreamApiError,
	type JetStreamClient,
	type JetStreamManager,
	jetstream,
	jetstreamManager,
	StorageType,
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
	/**
	 * Makes a stream, or changes it to what is asked; and again each time the bus was away, since a server that lost its disk comes
	 * back empty. Safe to call from several services at once.
	 */
	ensureStream(config: Partial<StreamConfig> & { name: string; subjects: string[] }): Promise<void>;
	/** Makes a KV bucket if it isn't there, now and each time the bus was away, and opens it. */
	ensureKv(bucket: string, options?: Partial<KvOptions>): Promise<KV>;
	/** Calls `back` each time the bus was away and is there again with its streams and buckets. Returns the function that ends it. */
	onReturn(back: () => void): () => void;
	/** For `checks`: one round trip. Throws BusUnavailable. */
	check(): Promise<void>;
	/** Publishes what is buffered, then closes. */
	close(): Promise<void>;
}

/** How long to wait until what was published has left and what is on its way was taken. */
const FAREWELL_MS = 2_000;
const START_DEADLINE_MS = 5 * 60_000;
/** JetStream's error for a stream that is there with other settings (nats-server, errors.json). */
const STREAM_EXISTS = 10058;

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

	const needed = new Map<string, () => Promise<unknown>>();
	const need = <Result>(name: string, make: () => Promise<Result>): Promise<Result> => {
		needed.set(name, make);
		return patiently(make);
	};
	const returns = new EventEmitter<{ back: [] }>().setMaxListeners(0);
	let returned = 0;
	/** Makes what the server may have lost before anybody is told that it is back. */
	const restore = async () => {
		const turn = ++returned;
		for (let attempt = 0; ; attempt++) {
			try {
				for (const make of needed.values()) await make();
				break;
			} catch (err) {
				log.warn({ err }, "can't make sure of the streams on the bus; trying again");
				await delay(backoffMs(attempt), undefined, { signal }).catch(() => undefined);
			}
			if (turn !== returned || signal.aborted || nc.isClosed()) return;
		}
		returns.emit("back");
	};
	void followStatus(nc, log, connected, () => {
		reconnects.inc();
		void restore();
	});

	return {
		nc,
		js,
		jsm,
		ensureStream: (config) =>
			need(config.name, async () => {
				try {
					await jsm.streams.update(config.name, config);
				} catch (error) {
					if (!isMissing(error)) throw error;
					await addStream(jsm, config);
				}
			}),
		ensureKv: (bucket, kvOptions = {}) =>
			need(`KV_${bucket}`, async () => {
				try {
					await jsm.streams.info(`KV_${bucket}`);
				} catch (error) {
					if (!isMissing(error)) throw error;
					await addStream(jsm, bucketConfig(bucket, kvOptions));
				}
				return kvm.create(bucket, kvOptions);
			}),
		onReturn(back) {
			returns.on("back", back);
			return () => returns.off("back", back);
		},
		check: async () => {
			if (nc.isClosed()) throw unavailable();
			await nc.flush().catch((cause: unknown) => {
				throw unavailable(cause);
			});
		},
		// A connection that is lost would wait for its return to say farewell.
		close: () =>
			Promise.race([nc.drain(), delay(FAREWELL_MS)])
				.catch(() => undefined)
				.then(() => nc.close()),
	};
}

/** Header of what hosts say: epoch of the tunnel by which it came. */
export const EPOCH_HEADER = "Groundplane-Epoch";

/** The two streams that carry what hosts say (docs/architecture.md, Bus); gateway and hosts service both see to them. */
export async function ensureHostStreams(bus: Bus): Promise<void> {
	const kept = { storage: "file", discard: "old" } as const;
	await bus.ensureStream({ name: "HOSTS_UP", subjects: ["hosts.*.up.*"], max_msgs_per_subject: 1, ...kept });
	// Of tunnels a few: the one that a host has left may be heard of after the one that it has opened, and must not take its place.
	await bus.ensureStream({ name: "HOSTS_LINK", subjects: ["hosts.*.link"], max_msgs_per_subject: 4, ...kept });
}

const isMissing = (error: unknown): boolean => error instanceof JetStreamApiError && error.status === 404;

/**
 * Makes a stream whose sequence numbers begin at the time: one that is made anew after its disk was lost must not give numbers a
 * second time. The revisions of `routes` put tunnels in order, and an acknowledgement names a number.
 */
async function addStream(jsm: JetStreamManager, config: Partial<StreamConfig> & { name: string }): Promise<void> {
	try {
		await jsm.streams.add({ ...config, first_seq: Date.now() });
	} catch (error) {
		// Another service was quicker: its stream differs in nothing but the first number.
		if (!(error instanceof JetStreamApiError) || error.code !== STREAM_EXISTS) throw error;
	}
}

/** The stream under a KV bucket (NATS ADR-8), since a bucket's own options know no first number. */
const bucketConfig = (bucket: string, { history = 1, description }: Partial<KvOptions>) => ({
	name: `KV_${bucket}`,
	subjects: [`$KV.${bucket}.>`],
	...(description !== undefined && { description }),
	max_msgs_per_subject: history,
	storage: StorageType.File,
	discard: DiscardPolicy.New,
	allow_rollup_hdrs: true,
	deny_delete: true,
	allow_direct: true,
});

const unavailable = (cause?: unknown) =>
	new GroundplaneError("BusUnavailable", "The message bus can't be reached.", {
		next: "Look at the pod nats-0 of the region; this gets well by itself as soon as it answers.",
		cause,
	});

async function followStatus(nc: NatsConnection, log: Log, connected: Gauge, isBack: () => void): Promise<void> {
	for await (const status of nc.status()) {
		switch (status.type) {
			case "disconnect":
				connected.set(0);
				log.warn({ server: status.server }, "lost the message bus; reconnecting");
				break;
			case "reconnect":
				connected.set(1);
				log.info({ server: status.server }, "the message bus is back");
				isBack();
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
