import type { Cluster } from "../../crds/cluster.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";

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
	if (spec.addons.prometheus.enabled && !held.includes("prometheus"))
		found.push(
			`The release of Kubernetes ${version} here does not hold Prometheus: ask your provider for one that does (a whole hack/build makes it), or leave addons.prometheus off.`,
		);
	if (spec.addons.sriov && !held.includes("sriov"))
		found.push(
			`The release of Kubernetes ${version} here does not hold SR-IOV, which has to be imported when it is built: ask your provider for it (docs/development.md, "Imports"), or leave addons.sriov off and install it yourself.`,
		);
	return found;
}

/** The add-ons that hosts are asked for: those of the cluster that the release holds. */
export function addonsFor(
	{ spec }: Pick<Cluster, "spec">,
	extras: Extras,
	version: string,
): KubernetesRoleInput["addons"] {
	const { prometheus, sriov, ...others } = spec.addons;
	const isHeld = (name: string) => extras?.get(version)?.includes(name) ?? true;
	return {
		...others,
		prometheus: {
			...prometheus,
			enabled: prometheus.enabled && isHeld("prometheus"),
			dataSize: dataSize(prometheus.storage),
		},
		sriov: sriov && isHeld("sriov"),
	};
}

/** Four fifths of a storage size, as Prometheus writes it (its MB are MiB): it needs the rest to write new blocks beside old ones. */
const dataSize = (storage: string): string => `${Math.floor(Number.parseInt(storage, 10) * 1024 * 0.8)}MB`;
