import { type Lane, lanes, type Session } from "../../protocol/mux.ts";
import { Counter, Gauge, Histogram, type Metrics } from "../kit/metrics.ts";

/** What the gateway counts. Nothing is labelled by host: a region may have thousands. */
export class TunnelMetrics {
	readonly connections: Counter<"result">;
	readonly disconnects: Counter<"reason">;
	readonly opens: Histogram<"service" | "result">;
	readonly dropped: Counter<"reason">;
	readonly #sessions = new Set<Session>();
	readonly #endedBytes: Record<"in" | "out", Record<Lane, number>> = {
		in: { control: 0, interactive: 0, bulk: 0 },
		out: { control: 0, interactive: 0, bulk: 0 },
	};

	constructor({ registry }: Metrics) {
		const registers = [registry];
		const sessions = this.#sessions;
		const ended = this.#endedBytes;
		this.connections = new Counter({
			name: "groundplane_tunnel_connections_total",
			help: "Connections of hosts, by result: accepted, or the code of the refusal.",
			labelNames: ["result"] as const,
			registers,
		});
		this.disconnects = new Counter({
			name: "groundplane_tunnel_disconnects_total",
			help: "Tunnels that ended, by reason.",
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
				this.set(sessions.size);
			},
		});
		new Gauge({
			name: "groundplane_tunnel_streams",
			help: "Open streams of all hosts, by service.",
			labelNames: ["service"] as const,
			registers,
			collect() {
				this.reset();
				for (const session of sessions) {
					for (const [service, count] of session.streamsByService()) this.inc({ service }, count);
				}
			},
		});
		new Gauge({
			name: "groundplane_tunnel_starved_streams",
			help: "Streams whose data waits for the other end to read.",
			registers,
			collect() {
				this.set(sum(sessions, (session) => session.stats().starvedStreams));
			},
		});
		new Gauge({
			name: "groundplane_tunnel_queued_bytes",
			help: "Bytes that wait to be sent to hosts.",
			registers,
			collect() {
				this.set(sum(sessions, (session) => session.stats().queuedBytes));
			},
		});
		new Gauge({
			name: "groundplane_tunnel_rtt_seconds",
			help: "Round trip to hosts: median and slowest.",
			labelNames: ["which"] as const,
			registers,
			collect() {
				const times = [...sessions]
					.flatMap(({ rttMs }) => (rttMs === undefined ? [] : [rttMs / 1000]))
					.sort((a, b) => a - b);
				this.set({ which: "median" }, times[times.length >> 1] ?? 0);
				this.set({ which: "slowest" }, times.at(-1) ?? 0);
			},
		});
		const bytes = new Counter({
			name: "groundplane_tunnel_bytes_total",
			help: "Payload carried for streams, by lane and direction (in: from hosts).",
			labelNames: ["lane", "direction"] as const,
			registers,
			collect() {
				this.reset();
				for (const lane of lanes) {
					bytes.inc(
						{ lane, direction: "in" },
						ended.in[lane] + sum(sessions, (session) => session.stats().bytesIn[lane]),
					);
					bytes.inc(
						{ lane, direction: "out" },
						ended.out[lane] + sum(sessions, (session) => session.stats().bytesOut[lane]),
					);
				}
			},
		});
	}

	/** Counts a session until it ends. */
	follow(session: Session): void {
		this.#sessions.add(session);
		void session.closed.then((error) => {
			this.#sessions.delete(session);
			this.disconnects.inc({ reason: error?.code ?? "Ended" });
			const { bytesIn, bytesOut } = session.stats();
			for (const lane of lanes) {
				this.#endedBytes.in[lane] += bytesIn[lane];
				this.#endedBytes.out[lane] += bytesOut[lane];
			}
		});
	}
}

function sum(sessions: Iterable<Session>, value: (session: Session) => number): number {
	let total = 0;
	for (const session of sessions) total += value(session);
	return total;
}
