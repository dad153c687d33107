import { followRegion, type WatchState } from "../api/watch.ts";
import { emptyState, type LiveState, reduce } from "./state.ts";

/** The region's hosts and clusters as they are now, kept so by one stream for the whole page. */
export class LiveRegion {
	/** When this page began to look. */
	readonly openedAt = Date.now();
	readonly #fetch: (url: string, init: RequestInit) => Promise<Response>;
	readonly #listeners = new Set<() => void>();
	#state: LiveState = emptyState;
	#connection: WatchState = { state: "connecting" };
	#wake: (() => void) | undefined;

	constructor(fetch: (url: string, init: RequestInit) => Promise<Response>) {
		this.#fetch = fetch;
	}

	readonly subscribe = (listener: () => void): (() => void) => {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	};
	readonly state = (): LiveState => this.#state;
	readonly connection = (): WatchState => this.#connection;

	/** Follows until `signal` aborts. */
	async follow(signal: AbortSignal): Promise<void> {
		const hope = () => this.reconnect();
		window.addEventListener("online", hope, { signal });
		document.addEventListener("visibilitychange", hope, { signal });
		await followRegion({
			fetch: this.#fetch,
			signal,
			onEvents: (events) => {
				this.#state = reduce(this.#state, events, Date.now());
				this.#tell();
			},
			onState: (connection) => {
				if (connection.state === this.#connection.state && connection.state !== "lost") return;
				this.#connection = connection;
				this.#tell();
			},
			wait: (ms, stop) =>
				new Promise((resolve) => {
					const timer = setTimeout(resolve, ms);
					const end = () => {
						clearTimeout(timer);
						resolve();
					};
					this.#wake = end;
					stop.addEventListener("abort", end, { once: true });
				}),
		});
	}

	/** Tries at once instead of waiting. */
	reconnect(): void {
		this.#wake?.();
	}

	#tell(): void {
		for (const listener of this.#listeners) listener();
	}
}
