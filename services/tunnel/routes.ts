import { EventEmitter } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import type { KV } from "@nats-io/kv";
import { z } from "zod";
import type { Bus } from "../kit/bus.ts";
import type { Log } from "../kit/log.ts";
import { backoffMs } from "../kit/retry.ts";

/** Where a host's tunnel is. The KV revision of the entry is the connection's epoch: the bus puts them in order. */
const route = z.object({
	gateway: z.string(),
	/** `IP:port` of that gateway's forward proxy. */
	address: z.string(),
	connectionId: z.string(),
	connectedAt: z.string(),
});
export type Route = z.output<typeof route>;

/** How long after a change of its route a host that isn't where it should be is waited for. */
const MOVING_MS = 3_000;

/**
 * The KV bucket `routes`: host → gateway. All of it is kept here while it is watched, so that finding a host asks nobody
 * and goes on while the bus is away.
 */
export class Routes {
	readonly #kv: KV;
	readonly #bus: Pick<Bus, "onReturn">;
	readonly #log: Log;
	readonly #known = new Map<string, Route>();
	/** When the routes of hosts have changed; the oldest first. */
	readonly #changed = new Map<string, number>();
	/** Connections that were not where their route says, by host. */
	readonly #lost = new Map<string, string>();
	readonly #changes = new EventEmitter<{ put: [host: string] }>().setMaxListeners(0);

	constructor(kv: KV, bus: Pick<Bus, "onReturn">, log: Log) {
		this.#kv = kv;
		this.#bus = bus;
		this.#log = log;
	}

	/** Writes where a host is and returns the epoch of that connection. */
	put(host: string, value: Route): Promise<number> {
		return this.#kv.put(host, JSON.stringify(value));
	}

	async find(host: string): Promise<Route | undefined> {
		const known = this.#known.get(host);
		if (known) return known;
		const entry = await this.#kv.get(host).catch((err: unknown) => {
			this.#log.debug({ err, host }, "the bus can't be asked where a host is");
			return undefined;
		});
		if (entry?.operation === "PUT") return parse(entry.string());
		this.#left(host, entry?.created);
		return undefined;
	}

	/** For how many milliseconds from now a host that could not be reached is worth waiting for; 0 when it isn't. */
	expected(host: string): number {
		return Math.max(0, (this.#changed.get(host) ?? Number.NEGATIVE_INFINITY) + MOVING_MS - performance.now());
	}

	/** Calls `listener` with each host whose route is written; returns the function that ends it. */
	onPut(listener: (host: string) => void): () => void {
		this.#changes.on("put", listener);
		return () => this.#changes.off("put", listener);
	}

	/** Removes a host's route if it is still the one of this epoch. */
	async remove(host: string, epoch: number): Promise<void> {
		// Refused when a newer one has taken its place, which is as good.
		await this.#kv.delete(host, { previousSeq: epoch }).catch(() => {});
	}

	/**
	 * Tells of every route there is and of those written from now on, until `signal` aborts. Begins anew when the bus was away: its
	 * bucket may be another one since, of which a watch that goes on where it was would see nothing.
	 */
	async watch(onPut: (host: string, route: Route, epoch: number) => void, signal: AbortSignal): Promise<void> {
		for (let attempt = 0; !signal.aborted; attempt++) {
			const again = new AbortController();
			const forget = this.#bus.onReturn(() => again.abort());
			try {
				const entries = await this.#kv.watch();
				const ending = AbortSignal.any([signal, again.signal]);
				ending.addEventListener("abort", () => entries.stop(), { once: true });
				if (ending.aborted) entries.stop();
				// What is gone meanwhile is not told: until it is told anew, the bus is asked.
				this.#known.clear();
				for await (const entry of entries) {
					attempt = 0;
					const value = entry.operation === "PUT" ? parse(entry.string()) : undefined;
					if (value) {
						this.#known.set(entry.key, value);
						this.#hasChanged(entry.key);
						this.#lost.delete(entry.key);
						onPut(entry.key, value, entry.revision);
						this.#changes.emit("put", entry.key);
					} else if (this.#known.delete(entry.key)) this.#hasChanged(entry.key);
					else this.#left(entry.key, entry.created);
				}
			} catch (err) {
				if (!signal.aborted) this.#log.warn({ err }, "watching routes failed; trying again");
			} finally {
				forget();
			}
			if (again.signal.aborted) continue;
			await delay(backoffMs(attempt), undefined, { signal }).catch(() => {});
		}
	}

	/** The gateway of this route does not answer, or has the host no more: it is expected elsewhere soon, but not for ever. */
	lost(host: string, { connectionId }: Route): void {
		const known = this.#known.get(host);
		if ((known && known.connectionId !== connectionId) || this.#lost.get(host) === connectionId) return;
		this.#lost.set(host, connectionId);
		this.#hasChanged(host);
	}

	/** A gateway that has just started learns of a host only that it left another one, a moment ago: it is on its way. */
	#left(host: string, at = new Date(0)): void {
		if (Math.abs(Date.now() - at.getTime()) < MOVING_MS && this.expected(host) === 0) this.#hasChanged(host);
	}

	#hasChanged(host: string): void {
		const now = performance.now();
		this.#changed.delete(host);
		this.#changed.set(host, now);
		for (const [other, at] of this.#changed) {
			if (now - at < MOVING_MS) break;
			this.#changed.delete(other);
		}
	}
}

function parse(text: string): Route | undefined {
	try {
		return route.parse(JSON.parse(text));
	} catch {
		return undefined;
	}
}
