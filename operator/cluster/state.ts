import type { Cluster, ClusterStatus } from "../../crds/cluster.ts";
import type { Host, HostRole } from "../../crds/host.ts";
import type { NewCondition } from "../kube/conditions.ts";
import type { Extras } from "./extras.ts";

/** What the controller saw: custom resources from the caches, the cluster itself through the tunnel. */
export interface Observed {
	readonly cluster: Cluster;
	readonly hosts: readonly Host[];
	readonly others: readonly Cluster[];
	/** Kubernetes versions that the region offers. */
	readonly versions: readonly string[];
	/** What each of them holds of that which not every release holds. */
	readonly extras?: Extras;
	/** Whether the Secret with the join token and the certificate key exists. */
	readonly joinSecret: boolean;
	/** The cluster's own API server; absent while it can't be reached, with the cause in `unreachable`. */
	readonly workload?: WorkloadState;
	readonly unreachable?: string;
	readonly now: number;
}

export interface WorkloadState {
	readonly nodes: readonly NodeState[];
	/** Whether a CoreDNS pod is ready. */
	readonly dnsReady: boolean;
	/** Whether the bootstrap token is known to the cluster. */
	readonly bootstrapToken: boolean;
	/** Whether the certificates that further control planes need are published (they last two hours). */
	readonly certificates: boolean;
	/** `/readyz` of each control plane that could be asked, by host: its API server, and etcd as that one sees it. */
	readonly apiServers: ReadonlyMap<string, { readonly ready: boolean; readonly message?: string }>;
	/** What kubelets ask to serve with, and nobody has decided about yet. */
	readonly servingRequests: readonly ServingRequest[];
	/** What speaks against another version; looked at only before one is rolled out. */
	readonly preflight?: { readonly removedApis: readonly string[]; readonly blockedBudgets: readonly string[] };
}

/** A kubelet's request for the certificate that it serves with. */
export interface ServingRequest {
	/** Name of the CertificateSigningRequest. */
	readonly name: string;
	readonly node: string;
	/** Names and addresses that it wants to be known by. */
	readonly names: readonly string[];
}

export interface NodeState {
	readonly name: string;
	readonly ready: boolean;
	readonly version?: string;
	readonly message?: string;
	/** It is not ready for want of a network plugin. */
	readonly networkMissing?: boolean;
	readonly labels: Readonly<Record<string, string>>;
	readonly taints: readonly Taint[];
	/** Names of the labels and taints that are the pool's, as we wrote them last (annotation on the Node). */
	readonly pool?: PoolMarks;
	readonly resourceVersion?: string;
	readonly unschedulable: boolean;
	/** When draining began (annotation on the Node), milliseconds since the epoch. */
	readonly drainStarted?: number;
	/** Pods that a drain has yet to move away; counted while the node drains. */
	readonly evictable?: number;
	/** PodDisruptionBudgets that allow no eviction of one of them now, as `namespace/name (pod NAME)`. */
	readonly blockedBy?: readonly string[];
}

export interface Taint {
	readonly key: string;
	readonly value?: string;
	readonly effect: string;
}

/** What of a Node is its pool's: names of labels, and taints as `key:effect`. */
export interface PoolMarks {
	readonly labels: readonly string[];
	readonly taints: readonly string[];
}

/** One effect. Every one is idempotent, so a crash between two costs a repetition and nothing else. */
export type Action =
	| { readonly type: "createJoinSecret" }
	| { readonly type: "deleteJoinSecret" }
	| { readonly type: "createBootstrapToken" }
	| { readonly type: "deleteBootstrapToken" }
	| { readonly type: "applyRole"; readonly host: string; readonly role: HostRole }
	| { readonly type: "removeRole"; readonly host: string }
	| { readonly type: "drain"; readonly host: string; readonly force: boolean }
	| { readonly type: "uncordon"; readonly host: string }
	| { readonly type: "markNode"; readonly host: string; readonly patch: NodePatch }
	| { readonly type: "deleteNode"; readonly host: string }
	| { readonly type: "approveServing"; readonly host: string; readonly request: string }
	| { readonly type: "removeFinalizer"; readonly leftBehind: readonly string[] };

/** A merge patch (RFC 7386) of a Node's labels and taints. */
export interface NodePatch {
	readonly labels: Readonly<Record<string, string | null>>;
	/** The whole list: a merge patch replaces lists. */
	readonly taints: readonly Taint[];
	readonly pool: PoolMarks;
	/** Of the Node that this was made from: a list must not be written over a newer one. */
	readonly resourceVersion?: string;
}

export interface Plan {
	readonly actions: readonly Action[];
	/** Wanted status without conditions. */
	readonly status: Omit<ClusterStatus, "conditions">;
	readonly conditions: readonly NewCondition[];
	/** Look again after this many milliseconds, even if nothing is heard. */
	readonly requeueAfter: number;
}

export type MemberStatus = NonNullable<ClusterStatus["members"]>[number];
export type UpgradeStatus = NonNullable<ClusterStatus["upgrade"]>;
export type Progress = NonNullable<ClusterStatus["progress"]>;

/** How soon to look again while something is under way, and when all is well: a look travels through the tunnel. */
export const BUSY_MS = 3_000;
export const STEADY_MS = 120_000;
/** How soon to look again when something stands in the way of beginning; nothing travels for that. */
export const WAITING_MS = 30_000;
