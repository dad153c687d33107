import { Counter, Gauge, Histogram } from "prom-client";

// Names and labels of controller-runtime and client-go, so that their dashboards and alerts fit. All are in prom-client's
// default registry.

/** Buckets of controller_runtime_reconcile_time_seconds there. */
const reconcileBuckets = [
	0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 1.75,
	2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 40, 50, 60,
];
/** Buckets of the workqueue's histograms there: from 10 ns to 1000 s. */
const queueBuckets = Array.from({ length: 12 }, (_, i) => Number(`1e${i - 8}`));

export const restClientRequests = new Counter({
	name: "rest_client_requests_total",
	help: "Requests to API servers by status code, method and host; code <error> when no answer came.",
	labelNames: ["code", "method", "host"],
});
export const reconcileTotal = new Counter({
	name: "controller_runtime_reconcile_total",
	help: "Reconciliations by controller and result (success, requeue_after, error).",
	labelNames: ["controller", "result"],
});
export const reconcileErrors = new Counter({
	name: "controller_runtime_reconcile_errors_total",
	help: "Failed reconciliations by controller.",
	labelNames: ["controller"],
});
export const reconcileTimeouts = new Counter({
	name: "controller_runtime_reconcile_timeouts_total",
	help: "Reconciliations that did not end before their deadline.",
	labelNames: ["controller"],
});
export const reconcileTime = new Histogram({
	name: "controller_runtime_reconcile_time_seconds",
	help: "Length of a reconciliation.",
	labelNames: ["controller"],
	buckets: reconcileBuckets,
});
export const maxConcurrentReconciles = new Gauge({
	name: "controller_runtime_max_concurrent_reconciles",
	help: "Bound on simultaneous reconciliations.",
	labelNames: ["controller"],
});
export const activeWorkers = new Gauge({
	name: "controller_runtime_active_workers",
	help: "Reconciliations under way.",
	labelNames: ["controller"],
});

/** A queue as the metrics see it when they are asked. */
interface QueueSource {
	readonly name: string;
	snapshot(): { depth: number[]; unfinished: number; longest: number };
}
/** The queues that are in use. */
export const queueSources = new Set<QueueSource>();

new Gauge({
	name: "workqueue_depth",
	help: "Keys that wait, by priority: 2 for what people changed, 1 for other changes, 0 for what is only looked at again.",
	labelNames: ["name", "controller", "priority"],
	collect() {
		this.reset();
		for (const queue of queueSources) {
			for (const [priority, depth] of queue.snapshot().depth.entries())
				this.set({ name: queue.name, controller: queue.name, priority }, depth);
		}
	},
});
new Gauge({
	name: "workqueue_unfinished_work_seconds",
	help: "How long all that is under way has taken until now; grows without bound when a worker is stuck.",
	labelNames: ["name", "controller"],
	collect() {
		this.reset();
		for (const queue of queueSources)
			this.set({ name: queue.name, controller: queue.name }, queue.snapshot().unfinished);
	},
});
new Gauge({
	name: "workqueue_longest_running_processor_seconds",
	help: "How long the longest of what is under way has taken until now.",
	labelNames: ["name", "controller"],
	collect() {
		this.reset();
		for (const queue of queueSources) this.set({ name: queue.name, controller: queue.name }, queue.snapshot().longest);
	},
});
export const queueAdds = new Counter({
	name: "workqueue_adds_total",
	help: "Keys added.",
	labelNames: ["name", "controller"],
});
export const queueRetries = new Counter({
	name: "workqueue_retries_total",
	help: "Keys added to come after a delay: again after a failure, or to be looked at later.",
	labelNames: ["name", "controller"],
});
export const queueDuration = new Histogram({
	name: "workqueue_queue_duration_seconds",
	help: "How long a key waited.",
	labelNames: ["name", "controller"],
	buckets: queueBuckets,
});
export const queueWorkDuration = new Histogram({
	name: "workqueue_work_duration_seconds",
	help: "How long the work on a key took.",
	labelNames: ["name", "controller"],
	buckets: queueBuckets,
});

/** A reflector as the metrics see it when they are asked. */
interface CacheSource {
	readonly resource: { readonly kind: string };
	/** Objects held. */
	readonly size: number;
	/** Milliseconds since anything was heard. */
	readonly age: number;
}
/** The reflectors that run. */
export const cacheSources = new Set<CacheSource>();

new Gauge({
	name: "reflector_objects",
	help: "Objects held in memory by kind.",
	labelNames: ["kind"],
	collect() {
		this.reset();
		for (const { resource, size } of cacheSources) this.inc({ kind: resource.kind }, size);
	},
});
new Gauge({
	name: "reflector_last_event_age_seconds",
	help: "Time since a list, an event or a bookmark (one a minute) came, by kind: a higher one means that the copy may be old.",
	labelNames: ["kind"],
	collect() {
		this.reset();
		const oldest = new Map<string, number>();
		for (const { resource, age } of cacheSources)
			oldest.set(resource.kind, Math.max(oldest.get(resource.kind) ?? 0, age));
		for (const [kind, age] of oldest) this.set({ kind }, age / 1000);
	},
});
export const reflectorLists = new Counter({
	name: "reflector_lists_total",
	help: "Full lists by kind; more than a few a day means that watches break off.",
	labelNames: ["kind"],
});
export const reflectorWatches = new Counter({
	name: "reflector_watches_total",
	help: "Watches started by kind.",
	labelNames: ["kind"],
});
export const reflectorFailures = new Counter({
	name: "reflector_failures_total",
	help: "Lists and watches that failed, by kind and error code.",
	labelNames: ["kind", "code"],
});
export const reflectorAudits = new Counter({
	name: "reflector_audits_total",
	help: "Comparisons of the copy with the API server, by kind.",
	labelNames: ["kind"],
});
export const reflectorMissed = new Counter({
	name: "reflector_audit_missed_total",
	help: "Changes that an audit found and the watch had not told, by kind. Anything but 0 is a fault.",
	labelNames: ["kind"],
});
export const eventsDropped = new Counter({
	name: "events_dropped_total",
	help: "Kubernetes Events that were not written because too many waited.",
});
export const leaderStatus = new Gauge({
	name: "leader_election_master_status",
	help: "1 while this process holds the lease.",
	labelNames: ["name"],
});
