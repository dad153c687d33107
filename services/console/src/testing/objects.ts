import type { Cluster, Host } from "../api/types.ts";

/** A host as the region would tell of it; free and ready unless `status` says otherwise. */
export function host(
	name: string,
	status: Partial<NonNullable<Host["status"]>> = {},
	metadata: Partial<Host["metadata"]> = {},
): Host {
	return {
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Host",
		metadata: { name, uid: `uid-${name}`, resourceVersion: "1", ...metadata },
		spec: { approved: true, maintenance: false, roles: [] },
		status: { phase: "Ready", connection: { state: "Connected" }, ...status },
	};
}

export function cluster(
	name: string,
	status: Partial<NonNullable<Cluster["status"]>> = {},
	metadata: Partial<Cluster["metadata"]> = {},
): Cluster {
	return {
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Cluster",
		metadata: { name, uid: `uid-${name}`, resourceVersion: "1", ...metadata },
		spec: { version: "v1.36.3" } as Cluster["spec"],
		status: { phase: "Ready", ...status },
	};
}
