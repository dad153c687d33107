import type { Logger } from "pino";
import type { Cluster } from "../crds/cluster.ts";
import type { Host } from "../crds/host.ts";
import type { Region } from "../crds/region.ts";
import { BY_CLUSTER, BY_HOST, clusterOf, hostKeysOf } from "./cluster/assign.ts";
import type { OperatorConfig } from "./config.ts";
import type { KubeClient } from "./kube/client.ts";
import type { EventRecorder } from "./kube/events.ts";
import { Reflector } from "./kube/reflector.ts";
import { clusters, hosts, regions } from "./kube/resources.ts";

/** Copies of all regions, hosts and clusters. */
export interface Informers {
	readonly regions: Reflector<Region>;
	readonly hosts: Reflector<Host>;
	readonly clusters: Reflector<Cluster>;
}

/** Makes the copies that the controllers work on; `main.ts` runs them. */
export const createInformers = (client: KubeClient, log: Logger): Informers => ({
	regions: new Reflector({ client, resource: regions, log }),
	hosts: new Reflector({
		client,
		resource: hosts,
		log,
		transform: slimHost,
		indexers: {
			[BY_CLUSTER]: (host) => {
				const cluster = clusterOf(host);
				return cluster === undefined ? [] : [`${host.metadata.namespace}/${cluster}`];
			},
		},
	}),
	clusters: new Reflector({ client, resource: clusters, log, indexers: { [BY_HOST]: hostKeysOf } }),
});

const nothing: never[] = [];

/**
 * A host without what no controller of the operator reads: lists of facts, checks that are fulfilled. They are half of it, and
 * ten thousand hosts are held in memory.
 */
export function slimHost(host: Host): Host {
	const { status } = host;
	if (status === undefined) return host;
	const { facts, checks } = status;
	return {
		...host,
		status: {
			...status,
			...(facts === undefined
				? {}
				: { facts: { ...facts, disks: nothing, filesystems: nothing, interfaces: nothing } }),
			...(checks === undefined ? {} : { checks: checks.filter(({ ok }) => !ok) }),
		},
	};
}

/** What the operator's controllers share. `main.ts` makes it, and runs the informers. */
export interface ControllerDeps {
	readonly client: KubeClient;
	readonly config: OperatorConfig;
	/** Copies of all regions, hosts and clusters, kept true. */
	readonly informers: Informers;
	readonly events: EventRecorder;
	readonly log: Logger;
	/** Number of this operator's holding of the Lease; a later one has a higher number. */
	readonly epoch: number;
	/** Milliseconds since the epoch. */
	readonly now: () => number;
	readonly random: () => number;
}

/** Namespace of a region. */
export const regionNamespace = (region: string): string => `region-${region}`;

/** Region that a namespace belongs to; `undefined` when it is not a region's. */
export const regionOf = (namespace: string | undefined): string | undefined =>
	namespace?.startsWith("region-") ? namespace.slice("region-".length) : undefined;
