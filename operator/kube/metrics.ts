import { Counter, Gauge, Histogram } from "prom-client";

// Names and labels of controller-runtime and client-go, so that their dashboards and alerts fit. All are in prom-client's
// default registry.

const latency = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

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
	help: "Failed reconciliations by controller and error code.",
	labelNames: ["controller", "code"],
});
export const reconcileTime = new Histogram({
	name: "controller_runtime_reconcile_time_seconds",
	help: "Length of a reconciliation.",
	labelNames: ["controller"],
	buckets: latency,
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
export const queueDepth = new Gauge({
	name: "workqueue_depth",
	help: "Keys that wait.",
	labelNames: ["name"],
});
export const queueAdds = new Counter({
	name: "workqueue_adds_total",
	help: "Keys added.",
	labelNames: ["name"],
});
export const queueRetries = new Counter({
	name: "workqueue_retries_total",
	help: "Keys added again after a failure.",
	labelNames: ["name"],
});
export const queueDuration = new Histogram({
	name: "workqueue_queue_duration_seconds",
	help: "How long a key waited.",
	labelNames: ["name"],
	buckets: latency,
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
export const reflectorObjects = new Gauge({
	name: "reflector_objects",
	help: "Objects held in memory by kind.",
	labelNames: ["kind"],
});
export const leaderStatus = new Gauge({
	name: "leader_election_master_status",
	help: "1 while this process holds the lease.",
	labelNames: ["name"],
});
