import type { KubeClient } from "../kube/client.ts";

/** Connections to workload clusters, by cluster and control-plane host; closed when host, cluster or identity goes. */
export class WorkloadClients {
	readonly #clusters = new Map<string, { identity: string | undefined; hosts: Map<string, KubeClient> }>();

	/** Closes what is of other hosts, or was made with another identity (a version of the Secret). */
	keep(cluster: string, hosts: readonly string[], identity: string | undefined): void {
		const known = this.#clusters.get(cluster);
		if (known === undefined) {
			this.#clusters.set(cluster, { identity, hosts: new Map() });
			return;
		}
		for (const [host, client] of known.hosts) {
			if (known.identity === identity && hosts.includes(host)) continue;
			client.close();
			known.hosts.delete(host);
		}
		known.identity = identity;
	}

	/** The client of a host that was kept, made by `connect` when there is none. */
	of(cluster: string, host: string, connect: () => KubeClient): KubeClient {
		const known = this.#clusters.get(cluster)?.hosts;
		const client = known?.get(host) ?? connect();
		known?.set(host, client);
		return client;
	}

	forget(cluster: string): void {
		for (const client of this.#clusters.get(cluster)?.hosts.values() ?? []) client.close();
		this.#clusters.delete(cluster);
	}
}
