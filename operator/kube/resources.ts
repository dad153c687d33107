import type { Cluster } from "../../crds/cluster.ts";
import { API_GROUP, API_VERSION, type ObjectMeta } from "../../crds/common.ts";
import type { Host } from "../../crds/host.ts";
import type { Region } from "../../crds/region.ts";
import { GroundplaneError } from "../../protocol/errors.ts";

/** Any Kubernetes object as far as this library looks at it. */
export interface KubeObject {
	apiVersion?: string;
	kind?: string;
	metadata: ObjectMeta & {
		ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string; controller?: boolean }[];
	};
}

/** Where a kind lives in the API, typed by what it holds (the type parameter exists at compile time only). */
export interface Resource<T extends KubeObject = KubeObject> {
	readonly group: string;
	readonly version: string;
	readonly plural: string;
	readonly kind: string;
	readonly namespaced: boolean;
	/** Never set: carries `T` to the client's methods. */
	readonly object?: T;
}

const define = <T extends KubeObject>(
	group: string,
	version: string,
	plural: string,
	kind: string,
	namespaced = true,
): Resource<T> => ({ group, version, plural, kind, namespaced });

export interface Secret extends KubeObject {
	type?: string;
	/** Base64, as Kubernetes has it. */
	data?: Record<string, string>;
	stringData?: Record<string, string>;
}
export interface ConfigMap extends KubeObject {
	data?: Record<string, string>;
}
export interface Namespace extends KubeObject {
	status?: { phase?: string };
}
export interface Service extends KubeObject {
	spec?: { type?: string; externalName?: string; ports?: unknown[]; selector?: Record<string, string> };
}
export interface Workload extends KubeObject {
	spec?: {
		replicas?: number;
		template?: { spec?: { containers?: { name: string; image?: string }[] } };
	};
	status?: {
		observedGeneration?: number;
		replicas?: number;
		readyReplicas?: number;
		updatedReplicas?: number;
		conditions?: { type: string; status: string; reason?: string; message?: string }[];
	};
}
export interface Node extends KubeObject {
	spec?: {
		unschedulable?: boolean;
		taints?: { key: string; value?: string; effect: string }[];
		providerID?: string;
	};
	status?: {
		conditions?: { type: string; status: string; reason?: string; message?: string }[];
		addresses?: { type: string; address: string }[];
		nodeInfo?: { kubeletVersion?: string };
	};
}
export interface Pod extends KubeObject {
	spec?: {
		nodeName?: string;
		volumes?: { name: string; emptyDir?: unknown }[];
		terminationGracePeriodSeconds?: number;
	};
	status?: { phase?: string; conditions?: { type: string; status: string }[] };
}
export interface Lease extends KubeObject {
	spec?: {
		holderIdentity?: string | null;
		leaseDurationSeconds?: number;
		acquireTime?: string;
		renewTime?: string;
		leaseTransitions?: number;
	};
}

/** `events.k8s.io/v1`. */
export interface EventObject extends KubeObject {
	eventTime: string;
	reportingController: string;
	reportingInstance: string;
	action: string;
	reason: string;
	note: string;
	type: string;
	regarding: {
		apiVersion: string;
		kind: string;
		name: string;
		namespace?: string;
		uid: string;
		resourceVersion?: string;
	};
	series?: { count: number; lastObservedTime: string };
}

export const regions = define<Region>(API_GROUP, API_VERSION, "regions", "Region", false);
export const hosts = define<Host>(API_GROUP, API_VERSION, "hosts", "Host");
export const clusters = define<Cluster>(API_GROUP, API_VERSION, "clusters", "Cluster");

export const namespaces = define<Namespace>("", "v1", "namespaces", "Namespace", false);
export const nodes = define<Node>("", "v1", "nodes", "Node", false);
export const persistentVolumeClaims = define<KubeObject>("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim");
export const pods = define<Pod>("", "v1", "pods", "Pod");
export const secrets = define<Secret>("", "v1", "secrets", "Secret");
export const configMaps = define<ConfigMap>("", "v1", "configmaps", "ConfigMap");
export const services = define<Service>("", "v1", "services", "Service");
export const resourceQuotas = define("", "v1", "resourcequotas", "ResourceQuota");
export const limitRanges = define("", "v1", "limitranges", "LimitRange");
export const deployments = define<Workload>("apps", "v1", "deployments", "Deployment");
export const statefulSets = define<Workload>("apps", "v1", "statefulsets", "StatefulSet");
export const roleBindings = define("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding");
export const leases = define<Lease>("coordination.k8s.io", "v1", "leases", "Lease");
export const events = define<EventObject>("events.k8s.io", "v1", "events", "Event");

/** `apiVersion` of a resource, such as `v1` or `apps/v1`. */
export const apiVersionOf = ({ group, version }: Resource): string => (group === "" ? version : `${group}/${version}`);

/** Key of an object in stores and queues: `namespace/name`, or `name` when it has no namespace. */
export const keyOf = ({ metadata }: KubeObject): string =>
	metadata.namespace === undefined ? metadata.name : `${metadata.namespace}/${metadata.name}`;

/** Name of an object, and its namespace if it has one. */
export interface ObjectRef {
	name: string;
	namespace?: string | undefined;
}

/** Path of a kind's collection, in all namespaces when none is given. */
export function collectionPath({ group, version, plural, namespaced }: Resource, namespace?: string): string {
	const root = group === "" ? `/api/${version}` : `/apis/${group}/${version}`;
	return namespaced && namespace !== undefined
		? `${root}/namespaces/${encodeURIComponent(namespace)}/${plural}`
		: `${root}/${plural}`;
}

/** Path of an object, or of one of its subresources. */
export function objectPath(resource: Resource, { name, namespace }: ObjectRef, subresource?: string): string {
	if (resource.namespaced && namespace === undefined) {
		throw new GroundplaneError("Internal", `${resource.kind} ${name}: a namespace is needed`, {
			next: "This is a fault in Groundplane: report it.",
		});
	}
	const path = `${collectionPath(resource, namespace)}/${encodeURIComponent(name)}`;
	return subresource === undefined ? path : `${path}/${subresource}`;
}
