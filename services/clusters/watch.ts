import { randomUUID } from "node:crypto";
import type { Request, Response } from "express";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import type { Change, Reflector } from "../../operator/kube/reflector.ts";
import type { User } from "../kit/auth.ts";
import { Gauge, type Metrics } from "../kit/metrics.ts";

type Kind = "host" | "cluster";
interface Event {
	readonly sequence: number;
	readonly kind: Kind;
	readonly data: { type: Change<unknown>["type"]; object: Host | Cluster };
}

const HISTORY = 512;
const HEARTBEAT_MS = 15_000;
/** What a reader may lag behind before it is cut off; it resumes from where it was. */
const MAX_LAG_BYTES = 4 * 1024 * 1024;

/**
 * Hosts and clusters as server-sent events: first `snapshot` with all of them, then `host` and `cluster` with each change.
 * A reader that comes back with `Last-Event-ID` gets what it missed, or a new snapshot when that is too long ago.
 * The stream ends with the reader's access token.
 */
export class WatchHub {
	readonly #hosts: Reflector<Host>;
	readonly #clusters: Reflector<Cluster>;
	readonly #open = new Set<Response>();
	readonly #readers = new Set<(event: Event) => void>();
	readonly #history: Event[] = [];
	/** Tells sequences of this process from those of another. */
	readonly #epoch = randomUUID().slice(0, 8);
	#sequence = 0;

	constructor(options: {
		hosts: Reflector<Host>;
		clusters: Reflector<Cluster>;
		metrics: Metrics;
		signal: AbortSignal;
	}) {
		this.#hosts = options.hosts;
		this.#clusters = options.clusters;
		// Readers come back to another pod at once.
		const end = () => {
			for (const response of this.#open) response.end();
		};
		options.signal.addEventListener("abort", end, { once: true });
		options.hosts.onChange((change) => this.#publish("host", change));
		options.clusters.onChange((change) => this.#publish("cluster", change));
		const readers = this.#readers;
		new Gauge({
			name: "groundplane_watch_readers",
			help: "Open streams of changes.",
			registers: [options.metrics.registry],
			collect() {
				this.set(readers.size);
			},
		});
	}

	/** Writes the stream until the reader goes, its token ends or the service stops. */
	async serve(request: Request, response: Response, user: User): Promise<void> {
		response.writeHead(200, {
			"content-type": "text/event-stream",
			"cache-control": "no-store",
			// For proxies that would collect the stream.
			"x-accel-buffering": "no",
		});
		const send = (event: string, data: unknown, sequence: number) =>
			response.write(`id: ${this.#epoch}-${sequence}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`);

		response.write("retry: 2000\n\n");
		const missed = this.#missed(request.get("last-event-id"));
		if (missed) for (const { kind, data, sequence } of missed) send(kind, data, sequence);
		else send("snapshot", { hosts: this.#hosts.list(), clusters: this.#clusters.list() }, this.#sequence);

		const reader = (event: Event) => {
			send(event.kind, event.data, event.sequence);
			if (response.writableLength > MAX_LAG_BYTES) response.destroy();
		};
		this.#readers.add(reader);
		this.#open.add(response);
		const heartbeat = setInterval(() => response.write(": still here\n\n"), HEARTBEAT_MS);
		const expiry = setTimeout(() => response.end(), Math.max(0, user.expiresAt - Date.now()));
		await new Promise<void>((resolve) => response.once("close", resolve));
		this.#readers.delete(reader);
		this.#open.delete(response);
		clearInterval(heartbeat);
		clearTimeout(expiry);
	}

	/** Events after the one that the reader saw last; nothing when they are no longer known. */
	#missed(lastEventId: string | undefined): Event[] | undefined {
		const [, epoch, text] = /^(\w+)-(\d+)$/.exec(lastEventId ?? "") ?? [];
		const last = Number(text);
		if (epoch !== this.#epoch || last > this.#sequence) return undefined;
		if (last < this.#sequence - this.#history.length) return undefined;
		return this.#history.filter(({ sequence }) => sequence > last);
	}

	#publish(kind: Kind, { type, object }: Change<Host | Cluster>): void {
		const event: Event = { sequence: ++this.#sequence, kind, data: { type, object } };
		this.#history.push(event);
		if (this.#history.length > HISTORY) this.#history.shift();
		for (const reader of this.#readers) reader(event);
	}
}
