import { createHash } from "node:crypto";
import type { Region } from "../../crds/region.ts";
import type { OperatorConfig } from "../config.ts";
import { regionNamespace } from "../deps.ts";
import type { KubeObject } from "../kube/resources.ts";

// What a region consists of beside its chart, as pure functions of its spec.

export const MANAGED_BY = "groundplane-operator";
export const REGION_LABEL = "groundplane.io/region";

/** Parts of `charts/region`, by `app.kubernetes.io/name`. */
export const components = [
	"front",
	"tunnel",
	"auth",
	"clusters",
	"hosts",
	"artifacts",
	"prometheus",
	"postgresql",
	"nats",
] as const;

/** A Secret of the region's namespace, and how it is made. */
export type SecretPlan =
	| { readonly name: string; readonly kind: "tls"; readonly service: string }
	| { readonly name: string; readonly kind: "hosts-ca" | "desired-state-key" | "auth-keys" }
	| { readonly name: string; readonly kind: "passwords"; readonly keys: readonly string[]; readonly username?: string };

/** Every Secret that the operator mints in the region's namespace. */
export const regionSecrets: readonly SecretPlan[] = [
	...components.map((service) => ({ name: `tls-${service}`, kind: "tls" as const, service })),
	{ name: "hosts-ca", kind: "hosts-ca" },
	{ name: "desired-state-key", kind: "desired-state-key" },
	{ name: "auth-keys", kind: "auth-keys" },
	{ name: "auth-admin", kind: "passwords", keys: ["password"], username: "admin" },
	{ name: "postgresql", kind: "passwords", keys: ["password", "auth-password", "hosts-password"] },
	{ name: "nats", kind: "passwords", keys: ["tunnel-password", "hosts-password", "clusters-password"] },
];

/**
 * Secrets that can't be made anew without losing something: hosts trust only this CA and this key, and the database knows only
 * these passwords. When one has disappeared a person must restore it.
 */
export const irreplaceable: readonly string[] = ["hosts-ca", "desired-state-key", "postgresql"];

/** Secrets of the core namespace. */
export const rootSecret = (region: string): string => `region-${region}-ca`;
export const operatorTlsSecret = (region: string): string => `region-${region}-operator-tls`;

const labels = (region: string): Record<string, string> => ({
	[REGION_LABEL]: region,
	"app.kubernetes.io/part-of": "groundplane",
	"app.kubernetes.io/managed-by": MANAGED_BY,
});

/** Names in the certificate of a service (docs/architecture.md, "Certificates and keys"). */
export function dnsNames(service: string, region: Region, clusterDomain: string): string[] {
	const namespace = regionNamespace(region.metadata.name);
	return [
		service,
		`${service}.${namespace}`,
		`${service}.${namespace}.svc`,
		`${service}.${namespace}.svc.${clusterDomain}`,
		...(service === "front" ? [region.spec.domain] : []),
		...(service === "tunnel" ? [`tunnel.${region.spec.domain}`] : []),
	];
}

/** The namespace and what bounds it: quota, defaults for pods that state nothing, and the operator's rights in it. */
export function frame(region: Region, config: OperatorConfig): (KubeObject & Record<string, unknown>)[] {
	const name = regionNamespace(region.metadata.name);
	const inNamespace = (object: string) => ({ name: object, namespace: name, labels: labels(region.metadata.name) });
	return [
		{
			apiVersion: "v1",
			kind: "Namespace",
			metadata: {
				name,
				labels: {
					...labels(region.metadata.name),
					// Pod Security Standards: what runs next to other customers' regions gets no privilege.
					"pod-security.kubernetes.io/enforce": "restricted",
					"pod-security.kubernetes.io/warn": "restricted",
				},
			},
		},
		{
			apiVersion: "rbac.authorization.k8s.io/v1",
			kind: "RoleBinding",
			metadata: inNamespace("groundplane-operator"),
			roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "groundplane-region-manager" },
			subjects: [{ kind: "ServiceAccount", name: config.serviceAccount, namespace: config.namespace }],
		},
		{
			apiVersion: "v1",
			kind: "ResourceQuota",
			metadata: inNamespace("region"),
			spec: {
				hard: {
					"requests.cpu": region.spec.quota.cpu,
					"limits.memory": region.spec.quota.memory,
					// The edge is the only way in.
					"services.nodeports": "0",
					"services.loadbalancers": "0",
				},
			},
		},
		{
			apiVersion: "v1",
			kind: "LimitRange",
			metadata: inNamespace("region"),
			spec: {
				limits: [
					{
						type: "Container",
						default: { memory: "128Mi" },
						defaultRequest: { cpu: "10m", memory: "32Mi" },
					},
				],
			},
		},
	];
}

/** The region's two routes: what the edge looks up when a ClientHello names the domain or the tunnel. */
export function edgeServices(region: Region, config: OperatorConfig): (KubeObject & Record<string, unknown>)[] {
	const namespace = regionNamespace(region.metadata.name);
	const route = (serverName: string, service: string) => ({
		apiVersion: "v1",
		kind: "Service",
		metadata: {
			// A name of fixed length for any server name, which can't be that of another Service.
			name: `edge-${createHash("sha224").update(serverName.toLowerCase()).digest("hex")}`,
			namespace: config.namespace,
			labels: labels(region.metadata.name),
			annotations: { "groundplane.io/server-name": serverName },
		},
		spec: { type: "ExternalName", externalName: `${service}.${namespace}.svc.${config.clusterDomain}` },
	});
	return [route(region.spec.domain, "front"), route(`tunnel.${region.spec.domain}`, "tunnel")];
}

/** Values of `charts/region`. */
export function values(
	region: Region,
	config: OperatorConfig,
	secretChecksums: Readonly<Record<string, string>>,
): Record<string, unknown> {
	const { customer, domain, tunnel, database, bus, monitoring, identity, hosts, storageClass } = region.spec;
	return {
		region: region.metadata.name,
		domain,
		customer,
		clusterDomain: config.clusterDomain,
		image: config.image,
		release: { publicJwks: config.releaseJwks },
		bundles: config.bundles,
		storageClass: storageClass ?? "",
		secretChecksums,
		tunnel,
		database,
		bus,
		monitoring,
		identity,
		hosts: { certificateLifetime: hosts.certificateLifetime, desiredStateLifetime: hosts.desiredStateLifetime },
	};
}

/** A short digest of anything that JSON can hold; the order of keys counts for nothing. Fits into a label. */
export function digest(value: unknown): string {
	const sorted = JSON.stringify(value, (_, v: unknown) =>
		typeof v === "object" && v !== null && !Array.isArray(v)
			? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
			: v,
	);
	return createHash("sha256").update(sorted).digest("hex").slice(0, 32);
}
