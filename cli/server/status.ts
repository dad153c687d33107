import { gunzipSync } from "node:zlib";
import { parseAllDocuments } from "yaml";

export const CORE_NAMESPACE = "groundplane-system";
/** The component that stands for all others when they can't be asked for. */
export const API_SERVER = "kube-apiserver";
const STORAGE_NAMESPACE = "groundplane-storage";
/** What a node is without Kubernetes. */
export const NODE_UNITS = ["containerd.service", "kubelet.service"] as const;

/** What a node that `gp server init` has made runs, beside the core: namespace, kind, name. */
const OWN_WORKLOADS = [
	[STORAGE_NAMESPACE, "Deployment", "local-path-provisioner"],
	["kube-system", "Deployment", "coredns"],
	["kube-system", "DaemonSet", "kube-proxy"],
	["kube-flannel", "DaemonSet", "kube-flannel"],
] as const;
const CONTROL_PLANE = ["etcd", API_SERVER, "kube-controller-manager", "kube-scheduler"] as const;

export interface ServerComponent {
	readonly name: string;
	readonly version: string;
	readonly ready: boolean;
	readonly message: string;
}

export interface ServerStatus {
	/** The installed core's; undefined when there is none. */
	readonly version: string | undefined;
	readonly components: readonly ServerComponent[];
	readonly regions: readonly { name: string; phase: string }[];
}

/** Everything that a status is made of, as the machine and its cluster gave it. */
export interface Evidence {
	/** What systemd says of the node's units, by name; of the own node only. */
	readonly units: Readonly<Record<string, string>>;
	/** Why the API server could not be asked, if so. */
	readonly apiServer?: string;
	readonly nodes: readonly Node[];
	readonly workloads: readonly Workload[];
	/** Mirror pods of the own node's static pods. */
	readonly controlPlane: readonly Pod[];
	/** Helm's records of the core's release. */
	readonly releases: readonly ReleaseRecord[];
	readonly regions: readonly RegionObject[];
}

export interface Metadata {
	readonly name: string;
	readonly namespace?: string;
	readonly labels?: Record<string, string>;
	readonly annotations?: Record<string, string>;
}
interface Template {
	readonly spec: { containers: { image: string }[] };
}
export interface Workload {
	readonly kind: string;
	readonly metadata: Metadata;
	readonly spec: { replicas?: number; template: Template };
	readonly status?: { readyReplicas?: number; numberReady?: number; desiredNumberScheduled?: number };
}
export interface Pod {
	readonly metadata: Metadata;
	readonly spec: Template["spec"];
	readonly status?: { conditions?: readonly Condition[] };
}
interface Condition {
	readonly type: string;
	readonly status: string;
	readonly message?: string;
}
export interface Node {
	readonly metadata: Metadata;
	readonly status: { nodeInfo: { kubeletVersion: string }; conditions?: readonly Condition[] };
}
export interface RegionObject {
	readonly metadata: Metadata;
	readonly status?: { phase?: string };
}
/** A Secret of Helm: a revision of a release, its state in the labels. */
export interface ReleaseRecord {
	readonly metadata: Metadata;
	readonly data: { release: string };
}

/** How a management server does: everything that should be there, whether it is or not, and what it says of itself. */
export function statusOf(evidence: Evidence, { ownNode }: { readonly ownNode: boolean }): ServerStatus {
	const { units, apiServer, nodes, workloads, controlPlane, releases, regions } = evidence;
	const newest = releases.toSorted((a, b) => revisionOf(a) - revisionOf(b)).at(-1);
	const core = newest === undefined ? [] : workloadsOf(newest);
	const find = (namespace: string, kind: string, name: string) =>
		workloads.find((one) => one.kind === kind && one.metadata.name === name && one.metadata.namespace === namespace);
	const components: ServerComponent[] = [
		...Object.entries(units).map(([name, state]) =>
			part(name, "", state === "active", state === "active" ? "" : state),
		),
		...(apiServer === undefined ? [] : [part(API_SERVER, "", false, `does not answer: ${apiServer}`)]),
	];
	if (apiServer === undefined) {
		// Nodes of an existing cluster are their owner's affair.
		if (ownNode) components.push(...nodes.map(describeNode));
		if (newest && newest.metadata.labels?.status !== "deployed")
			components.push(
				part(`helm release ${newest.metadata.labels?.name}`, "", false, `${newest.metadata.labels?.status}`),
			);
		for (const { kind, metadata, spec } of core)
			components.push(describe(`${CORE_NAMESPACE}/${metadata.name}`, spec, find(CORE_NAMESPACE, kind, metadata.name)));
		for (const [namespace, kind, name] of ownNode ? OWN_WORKLOADS : [])
			components.push(describe(`${namespace}/${name}`, undefined, find(namespace, kind, name)));
		for (const name of ownNode ? CONTROL_PLANE : [])
			components.push(
				describePod(
					name,
					controlPlane.find(({ metadata }) => metadata.labels?.component === name),
				),
			);
	}
	const operator = core.find(({ metadata }) => metadata.name === "operator");
	return {
		version: operator && versionOf(operator.spec.template.spec),
		components,
		regions: regions.map(({ metadata, status }) => ({ name: metadata.name, phase: status?.phase ?? "Pending" })),
	};
}

const part = (name: string, version: string, ready: boolean, message: string): ServerComponent => ({
	name,
	version,
	ready,
	message,
});

const revisionOf = ({ metadata }: ReleaseRecord): number => Number(metadata.labels?.version ?? 0);

/**
 * The workloads that a release of Helm is made of. Its Secret holds, base64 once more, a gzipped JSON with the manifest as it
 * was applied (helm.sh/docs/topics/advanced, "Storage backends"; pkg/storage/driver/util.go).
 */
function workloadsOf({ data }: ReleaseRecord): Workload[] {
	const packed = Buffer.from(Buffer.from(data.release, "base64").toString(), "base64");
	const { manifest } = JSON.parse(gunzipSync(packed).toString()) as { manifest: string };
	const objects = parseAllDocuments(manifest).map((document) => document.toJS() as Workload | null);
	return objects.filter(
		(object): object is Workload => object !== null && ["Deployment", "DaemonSet", "StatefulSet"].includes(object.kind),
	);
}

function describe(name: string, wanted: Workload["spec"] | undefined, found: Workload | undefined): ServerComponent {
	if (!found) return part(name, wanted ? versionOf(wanted.template.spec) : "", false, "missing");
	const { spec, status } = found;
	const count = spec.replicas ?? status?.desiredNumberScheduled ?? 0;
	const ready = status?.readyReplicas ?? status?.numberReady ?? 0;
	return part(name, versionOf(spec.template.spec), ready >= count, `${ready}/${count}`);
}

function describePod(name: string, pod: Pod | undefined): ServerComponent {
	if (!pod) return part(`kube-system/${name}`, "", false, "missing");
	const ready = pod.status?.conditions?.find(({ type }) => type === "Ready");
	const isReady = ready?.status === "True";
	return part(`kube-system/${name}`, versionOf(pod.spec), isReady, isReady ? "" : (ready?.message ?? "not running"));
}

function describeNode({ metadata, status }: Node): ServerComponent {
	const ready = status.conditions?.find(({ type }) => type === "Ready");
	const isReady = ready?.status === "True";
	const message = isReady ? "" : (ready?.message ?? "no report");
	return part(`node ${metadata.name}`, status.nodeInfo.kubeletVersion, isReady, message);
}

/** The tag of the first container's image. */
const versionOf = ({ containers }: Template["spec"]): string =>
	/:([^:/@]+)$/.exec(containers[0]?.image ?? "")?.[1] ?? "";
