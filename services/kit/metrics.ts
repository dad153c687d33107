import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

export { Counter, Gauge, Histogram };

/** Metrics of one service: a registry of its own, Node's defaults and the duration of HTTP requests. */
export interface Metrics {
	readonly registry: Registry;
	/** Labels: `method`, `route` (the pattern, never the path), `code`. Seconds. */
	readonly httpRequests: Histogram<"method" | "route" | "code">;
}

export function createMetrics(service: string): Metrics {
	const registry = new Registry();
	registry.setDefaultLabels({ service });
	collectDefaultMetrics({ register: registry });
	const httpRequests = new Histogram({
		name: "groundplane_http_request_duration_seconds",
		help: "Duration of HTTP requests by route pattern.",
		labelNames: ["method", "route", "code"] as const,
		buckets: [0.005, 0.02, 0.1, 0.5, 2, 10],
		registers: [registry],
	});
	return { registry, httpRequests };
}
