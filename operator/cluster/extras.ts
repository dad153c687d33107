import type { Cluster } from "../../crds/cluster.ts";

/** What a release holds of that which not every release holds, by its version; undefined where nobody knows. */
export type Extras = ReadonlyMap<string, readonly string[]> | undefined;

/** Why a cluster can't have what it asks for from this version's release, and what to do; empty when it can. */
export function lacking({ spec }: Pick<Cluster, "spec">, extras: Extras, version: string): string[] {
	const held = extras?.get(version);
	if (held === undefined) return [];
	const found: string[] = [];
	if (spec.network.cni === "calico" && !held.includes("calico"))
		found.push(
			`The release of Kubernetes ${version} here does not hold Calico, which has to be imported when it is built: ask your provider for it (docs/development.md, "Imports"), or delete this cluster, of which nothing is made yet, and take network.cni flannel, or none and install Calico yourself.`,
		);
	return found;
}
