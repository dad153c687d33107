import { setTimeout as delay } from "node:timers/promises";
import type { KV } from "@nats-io/kv";
import { z } from "zod";
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

/** The KV bucket `routes`: host → gateway. */
export class Routes {
	readonly #kv: KV;
	readonly #log: Log;

	constructor(kv: KV, log: Log) {
		this.#kv = kv;
		this.#log = log;
	}

	/** Writes where a host is and returns the epoch of that connection. */
	put(host: string, value: Route): Promise<number> {
		return this.#kv.put(host, JSON.stringify(value));
	}

	async find(host: string): Promise<Route | undefined> {
		const entry = await this.#kv.get(host);
		return entry?.operation === "PUT" ? parse(entry.string()) : undefined;
	}

	/** Removes a host's route if it is still the one of this epoch. */
	async remove(host: string, epoch: number): Promise<void> {
		// Refused when a newer one has taken its place, which is as good.
		await this.#kv.delete(host, { previousSeq: epoch }).catch(() => {});
	}

	/** Tells of every route there is and of those written from now on, until `signal` aborts. */
	async watch(onPut: (host: string, route: Route, epoch: number) => void, signal: AbortSignal): Promise<void> {
		for (let attempt = 0; !signal.aborted; attempt++) {
			try {
				const entries = await this.#kv.watch();
				const stop = () => entries.stop();
				signal.addEventListener("abort", stop, { once: true });
				for await (const entry of entries) {
					attempt = 0;
					const value = entry.operation === "PUT" ? parse(entry.string()) : undefined;
					if (value) onPut(entry.key, value, entry.revision);
				}
				signal.removeEventListener("abort", stop);
			} catch (err) {
				if (!signal.aborted) this.#log.warn({ err }, "watching routes failed; trying again");
			}
			await delay(backoffMs(attempt), undefined, { signal }).catch(() => {});
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
