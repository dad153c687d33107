import { type Lane, lanes, type Session, type SessionStats } from "../../protocol/mux.ts";
import { Counter, Gauge, Histogram, type Metrics } from "../kit/metrics.ts";

/** Hosts that have series of their own at a gateway; those that come later are counted together, as host "other". */
const MAX_HOSTS = 200;
/** How old the sum of what waits for hosts may be when it is asked whether there is room for more. */
const QUEUED_FRESH_MS = 100;

type Bytes = Record<"in" | "out", Record<Lane, number>>;

/** All open sessions, looked at once. */
interface Totals {
	streams: Map<string, number>;
	bytes: Map<string, Bytes>;
	rtts: number[];
	queuedBytes: number;
	starvedStreams: number;
	stalledMs: number;
	restedMs: Record<Lane, number>;
}

/** What the gateway counts. Labels by host end at {@link MAX_HOSTS}: a region may have thousands. */
export class TunnelMetrics {
	readonly connections: Counter<"result">;
	readonly disconnects: Counter<"reason">;
	readonly reconnects: Counter<"reason">;
	readonly opens: Histogram<"service" | "result">;
	readonly refused: Counter<"service">;
	readonly dropped: Counter<"reason">;
	readonly #now: () => number;
	readonly #registers: Metrics["registry"][];
	readonly #sessions = new Map<Session, string>();
	/** What the sessions that have ended carried, by label, and for how long their streams were stalled. */
	readonly #ended = new Map<string, Bytes>();
	#endedStalledMs = 0;
	readonly #endedRestedMs = none();
	#totals: Totals | undefined;
	#queued = { bytes: 0, at: Number.NEGATIVE_INFINITY };

	constructor(
		{ registry }: Metrics,
		{ maxHosts }: { readonly maxHosts: number },
		now: () => number = () => performance.now(),
	) {
		this.#now = now;
		this.#registers = [registry];
		const registers = this.#registers;
		const totals = () => this.#look();
		const hosts = () => this.#sessions.size;
		this.connections = new Counter({
			name: "groundplane_tunnel_connections_total",
			help: "Connections of hosts, by result: accepted, Full (no memory for one more host), SpareDeclined (a spare tunnel that is of no use here, or has no room), or the code of the refusal.",
			labelNames: ["result"] as const,
			registers,
		});
		this.disconnects = new Counter({
			name: "groundplane_tunnel_disconnects_total",
			help: "Tunnels that ended, by reason.",
			labelNames: ["reason"] as const,
			registers,
		});
		this.reconnects = new Counter({
			name: "groundplane_tunnel_reconnects_total",
			help: "Hosts that came back to this gateway, by the reason for which their last tunnel had ended.",
			labelNames: ["reason"] as const,
			registers,
		});
		this.opens = new Histogram({
			name: "groundplane_tunnel_open_seconds",
			help: "Time until a stream to a host was open, by service and result (ok, or the code of the error).",
			labelNames: ["service", "result"] as const,
			buckets: [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10],
			registers,
		});
		this.refused = new Counter({
			name: "groundplane_tunnel_refused_streams_total",
			help: "Streams that hosts wanted to open beyond their budget, by service.",
			labelNames: ["service"] as const,
			registers,
		});
		this.dropped = new Counter({
			name: "groundplane_tunnel_control_dropped_total",
			help: "Control messages that were dropped: not on the list of messages, or not taken by the bus.",
			labelNames: ["reason"] as const,
			registers,
		});
		new Gauge({
			name: "groundplane_tunnel_hosts",
			help: "Hosts whose tunnel ends here.",
			registers,
			collect() {
				this.set(hosts());
			},
		});
		new Gauge({
			name: "groundplane_tunnel_max_hosts",
			help: "Hosts for which this gateway has memory; further ones are refused.",
			registers,
		}).set(maxHosts);
		new Gauge({
			name: "groundplane_tunnel_streams",
			help: "Open streams of all hosts, by service.",
			labelNames: ["service"] as const,
			registers,
			collect() {
				this.reset();
				for (const [service, count] of totals().streams) this.set({ service }, count);
			},
		});
		new Gauge({
			name: "groundplane_tunnel_starved_streams",
			help: "Streams whose data waits for the other end to read.",
			registers,
			collect() {
				this.set(totals().starvedStreams);
			},
		});
		const stalled = () => (this.#endedStalledMs + totals().stalledMs) / 1000;
		new Counter({
			name: "groundplane_tunnel_stalled_seconds_total",
			help: "Seconds for which tunnels had a stream whose data waited for the other end to read, summed over tunnels.",
			registers,
			collect() {
				this.reset();
				this.inc(stalled());
			},
		});
		const endedRestedMs = this.#endedRestedMs;
		new Counter({
			name: "groundplane_tunnel_throttled_seconds_total",
			help: "Seconds for which lanes of tunnels rested since their host had used up its budget of bytes, summed over tunnels.",
			labelNames: ["lane"] as const,
			registers,
			collect() {
				this.reset();
				const { restedMs } = totals();
				for (const lane of lanes) this.inc({ lane }, (endedRestedMs[lane] + restedMs[lane]) / 1000);
			},
		});
		new Gauge({
			name: "groundplane_tunnel_queued_bytes",
			help: "Bytes that wait to be sent to hosts.",
			registers,
			collect() {
				this.set(totals().queuedBytes);
			},
		});
		new Gauge({
			name: "groundplane_tunnel_rtt_seconds",
			help: "Round trip to hosts: median, 99 of 100, and slowest.",
			labelNames: ["which"] as const,
			registers,
			collect() {
				const times = totals().rtts.sort((a, b) => a - b);
				const at = (share: number) => (times[Math.min(times.length - 1, Math.floor(share * times.length))] ?? 0) / 1000;
				this.set({ which: "median" }, at(0.5));
				this.set({ which: "p99" }, at(0.99));
				this.set({ which: "slowest" }, at(1));
			},
		});
		const ended = this.#ended;
		new Counter({
			name: "groundplane_tunnel_bytes_total",
			help: "Payload carried for streams, by lane and direction (in: from hosts).",
			labelNames: ["lane", "direction"] as const,
			registers,
			collect() {
				this.reset();
				const all = emptyBytes();
				for (const bytes of [...ended.values(), ...totals().bytes.values()]) add(all, bytes);
				for (const lane of lanes) {
					for (const direction of directions) this.inc({ lane, direction }, all[direction][lane]);
				}
			},
		});
		new Counter({
			name: "groundplane_tunnel_host_bytes_total",
			help: `Payload by host and lane, both directions, for the first ${MAX_HOSTS} hosts; the rest is host "other".`,
			labelNames: ["host", "lane"] as const,
			registers,
			collect() {
				this.reset();
				for (const [host, bytes] of [...ended, ...totals().bytes]) {
					for (const lane of lanes) {
						// A lane that carried nothing has no series.
						const carried = bytes.in[lane] + bytes.out[lane];
						if (carried > 0) this.inc({ host, lane }, carried);
					}
				}
			},
		});
	}

	/** Counts the connections that are coming in. */
	watch(handshakes: { readonly waiting: number; readonly underWay: number }): void {
		new Gauge({
			name: "groundplane_tunnel_handshakes",
			help: "Connections that are not open yet: waiting for their turn, and under way.",
			labelNames: ["state"] as const,
			registers: this.#registers,
			collect() {
				this.set({ state: "waiting" }, handshakes.waiting);
				this.set({ state: "under-way" }, handshakes.underWay);
			},
		});
	}

	/** Spare tunnels, as they are now. */
	watchSpares(count: () => number): void {
		new Gauge({
			name: "groundplane_tunnel_spares",
			help: "Hosts whose spare tunnel ends here: it takes over when their own, at another gateway, breaks.",
			registers: this.#registers,
			collect() {
				this.set(count());
			},
		});
	}

	/** Counts a session until it ends. */
	follow(session: Session, host: string): void {
		const label = this.#label(host);
		this.#sessions.set(session, label);
		void session.closed.then((error) => {
			this.#sessions.delete(session);
			this.disconnects.inc({ reason: error?.code ?? "Ended" });
			const stats = session.stats();
			add(bytesOf(this.#ended, label), inAndOut(stats));
			this.#endedStalledMs += stats.stalledMs;
			for (const lane of lanes) this.#endedRestedMs[lane] += stats.restedMs[lane];
		});
	}

	/** Bytes that wait for hosts, as they were a moment ago. */
	queuedBytes(): number {
		const now = this.#now();
		if (now - this.#queued.at > QUEUED_FRESH_MS) {
			let bytes = 0;
			for (const session of this.#sessions.keys()) bytes += session.stats().queuedBytes;
			this.#queued = { bytes, at: now };
		}
		return this.#queued.bytes;
	}

	/** A label is a host's for good, so that its counters never fall. */
	#label(host: string): string {
		if (this.#ended.has(host)) return host;
		if (this.#ended.size < MAX_HOSTS) {
			this.#ended.set(host, emptyBytes());
			return host;
		}
		return "other";
	}

	/** One look for all metrics of a scrape, which are collected in one go. */
	#look(): Totals {
		if (this.#totals) return this.#totals;
		const totals: Totals = {
			streams: new Map(),
			bytes: new Map(),
			rtts: [],
			queuedBytes: 0,
			starvedStreams: 0,
			stalledMs: 0,
			restedMs: none(),
		};
		for (const [session, label] of this.#sessions) {
			const stats = session.stats();
			add(bytesOf(totals.bytes, label), inAndOut(stats));
			totals.queuedBytes += stats.queuedBytes;
			totals.starvedStreams += stats.starvedStreams;
			totals.stalledMs += stats.stalledMs;
			for (const lane of lanes) totals.restedMs[lane] += stats.restedMs[lane];
			if (stats.rttMs !== undefined) totals.rtts.push(stats.rttMs);
			for (const [service, count] of session.streamsByService()) {
				totals.streams.set(service, (totals.streams.get(service) ?? 0) + count);
			}
		}
		this.#totals = totals;
		queueMicrotask(() => {
			this.#totals = undefined;
		});
		return totals;
	}
}

const directions = ["in", "out"] as const;
const none = (): Record<Lane, number> => ({ control: 0, interactive: 0, bulk: 0 });
const emptyBytes = (): Bytes => ({ in: none(), out: none() });
const inAndOut = ({ bytesIn, bytesOut }: SessionStats): Bytes => ({ in: bytesIn, out: bytesOut });

function bytesOf(map: Map<string, Bytes>, label: string): Bytes {
	let bytes = map.get(label);
	if (bytes === undefined) {
		bytes = emptyBytes();
		map.set(label, bytes);
	}
	return bytes;
}

function add(sum: Bytes, bytes: Bytes): void {
	for (const direction of directions) {
		for (const lane of lanes) sum[direction][lane] += bytes[direction][lane];
	}
}
