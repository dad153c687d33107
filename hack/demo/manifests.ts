import { GROUP_VERSION } from "../../crds/common.ts";

/** Kubernetes version of the demo's cluster. */
export const DEMO_KUBERNETES = "v1.36.3";

/** The demo's Region: small volumes, because everything runs on one machine. */
export const regionManifest = (name: string, domain: string) => ({
	apiVersion: GROUP_VERSION,
	kind: "Region",
	metadata: { name },
	spec: {
		customer: "Example Ltd",
		domain,
		database: { storage: "1Gi" },
		bus: { storage: "256Mi" },
		monitoring: { storage: "1Gi", retention: "24h" },
	},
});

/** The demo's Cluster: the first host is the control plane, the others are workers. */
export const clusterManifest = (name: string, namespace: string, [controlPlane, ...workers]: readonly string[]) => ({
	apiVersion: GROUP_VERSION,
	kind: "Cluster",
	metadata: { name, namespace },
	spec: {
		version: DEMO_KUBERNETES,
		controlPlane: { hosts: [controlPlane] },
		...(workers.length === 0 ? { controlPlaneSchedulable: true } : { workers: [{ name: "workers", hosts: workers }] }),
	},
});
