import type { Logger } from "pino";
import type { Cluster } from "../crds/cluster.ts";
import type { Host } from "../crds/host.ts";
import type { Region } from "../crds/region.ts";
import type { OperatorConfig } from "./config.ts";
import type { KubeClient } from "./kube/client.ts";
import type { EventRecorder } from "./kube/events.ts";
import type { Reflector } from "./kube/reflector.ts";

/** What the operator's controllers share. `main.ts` makes it, and runs the informers. */
export interface ControllerDeps {
	readonly client: KubeClient;
	readonly config: OperatorConfig;
	/** Copies of all regions, hosts and clusters, kept true. */
	readonly informers: {
		readonly regions: Reflector<Region>;
		readonly hosts: Reflector<Host>;
		readonly clusters: Reflector<Cluster>;
	};
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
