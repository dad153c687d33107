import type { Cluster } from "../../crds/cluster.ts";
import { durationMs } from "../../protocol/duration.ts";
import type { Action, NodeState, Observed } from "./state.ts";

export type DrainStep = "drain" | "force" | "drained";

/** After the deadline pods are deleted without asking their budgets; this much later the node is taken as it is. */
const FORCE_MS = 60_000;

/** Whether a node still has to drain. A cluster that can't be asked is not waited for: its node is taken as it is. */
export function drainStep({ cluster, workload, now }: Observed, node: NodeState | undefined): DrainStep {
	if (workload === undefined || node === undefined) return "drained";
	if (node.drainStarted === undefined) return "drain";
	if (node.unschedulable && node.evictable === 0) return "drained";
	const over = now - deadlineOf(cluster, node.drainStarted);
	return over < 0 ? "drain" : over < FORCE_MS ? "force" : "drained";
}

/** The action of a drain, or `undefined` when the node is drained. */
export function drainAction(observed: Observed, host: string, node: NodeState | undefined): Action | undefined {
	const step = drainStep(observed, node);
	return step === "drained" ? undefined : { type: "drain", host, force: step === "force" };
}

const deadlineOf = (cluster: Cluster, started: number): number =>
	started + durationMs(cluster.spec.upgradePolicy.drainTimeout);

/** What a drain waits for, since when, and what happens at its deadline. */
export function drainMessage({ cluster, now }: Pick<Observed, "cluster" | "now">, node: NodeState | undefined): string {
	const { drainStarted, evictable = 0, blockedBy = [] } = node ?? {};
	if (drainStarted === undefined || evictable === 0) return "Draining.";
	const left = `Draining since ${clock(drainStarted)}: ${evictable} ${evictable === 1 ? "pod" : "pods"} left`;
	const deadline = deadlineOf(cluster, drainStarted);
	if (now >= deadline) return `${left}; the drain timeout is over, they are deleted without asking their budgets.`;
	if (blockedBy.length === 0) return `${left}.`;
	const budgets = `${blockedBy.slice(0, 3).join(", ")}${blockedBy.length > 3 ? " and others" : ""}`;
	return `${left}; PodDisruptionBudget ${budgets} allows no eviction. At ${clock(deadline)} the pods are deleted all the same.`;
}

/** Time of day, UTC. */
const clock = (at: number): string => `${new Date(at).toISOString().slice(11, 19)}Z`;
