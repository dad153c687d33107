import { z } from "zod";

/** A CEL rule of a CRD schema (`x-kubernetes-validations`, KEP-2876). */
export interface CelRule {
	readonly rule: string;
	readonly message: string;
	/** What is wrong in one word, as the API server reports it. */
	readonly reason?: "FieldValueInvalid" | "FieldValueForbidden" | "FieldValueRequired" | "FieldValueDuplicate";
	readonly fieldPath?: string;
}

/** Metadata that `crds/generate.ts` carries from zod into the OpenAPI schema of a CRD. */
export const cel = (...rules: CelRule[]) => ({ "x-kubernetes-validations": rules });
/** Marks an array as a map keyed by `keys`, so that server-side apply owns it entry by entry. */
export const listMap = (...keys: string[]) => ({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys });
/** Marks an array of scalars as a set: the API server refuses duplicates. */
export const listSet = () => ({ "x-kubernetes-list-type": "set" });

export const API_GROUP = "groundplane.io";
export const API_VERSION = "v1alpha1";
export const GROUP_VERSION = `${API_GROUP}/${API_VERSION}` as const;

/** RFC 1123 label: what Kubernetes takes as a namespace or a node name without dots. */
export const dnsLabel = z
	.string()
	.min(1)
	.max(63)
	.regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/);

/** A domain name of at least two labels; 245 characters at most, so that `tunnel.` fits in front of it. */
export const domainName = z
	.string()
	.max(245)
	.regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+$/);

/** IPv4 network in CIDR notation. */
export const cidr = z
	.string()
	.max(18)
	.regex(/^(\d{1,3}\.){3}\d{1,3}\/\d{1,2}$/);

/** A Kubernetes resource quantity such as `10Gi` or `500m`. */
export const quantity = z
	.string()
	.max(32)
	.regex(/^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$/);

/** Go-style duration as Kubernetes uses it, from seconds to hours: `90s`, `10m`, `2h`. */
export const duration = z
	.string()
	.regex(/^([0-9]+h)?([0-9]+m)?([0-9]+s)?$/)
	.min(2)
	.max(32);

export const timestamp = z.string().meta({ format: "date-time" });

/** A condition by the Kubernetes API conventions (`metav1.Condition`). */
export const condition = z.object({
	type: z.string().max(316).describe("Kind of the condition, in CamelCase."),
	status: z.enum(["True", "False", "Unknown"]),
	observedGeneration: z.int().min(0).optional().describe("metadata.generation that the condition was computed from."),
	lastTransitionTime: timestamp.describe("When status last changed."),
	reason: z
		.string()
		.min(1)
		.max(1024)
		.describe("Programmatic identifier of the cause, from a closed list, in CamelCase."),
	message: z.string().max(32768).describe("What it means and what to do, for a person."),
});
export type Condition = z.infer<typeof condition>;

export const conditions = z
	.array(condition)
	.meta(listMap("type"))
	.describe("Current state by aspect; Ready is the summary.");

/** Object metadata as far as we read it. */
export interface ObjectMeta {
	name: string;
	namespace?: string;
	uid?: string;
	resourceVersion?: string;
	generation?: number;
	creationTimestamp?: string;
	deletionTimestamp?: string;
	finalizers?: string[];
	labels?: Record<string, string>;
	annotations?: Record<string, string>;
}

/** One of our custom resources with a typed spec and status. */
export interface CustomResource<Kind extends string, Spec, Status> {
	apiVersion: typeof GROUP_VERSION;
	kind: Kind;
	metadata: ObjectMeta;
	spec: Spec;
	status?: Status;
}

/** What `crds/generate.ts` needs to know of a kind beside its schema. */
export interface CrdDefinition {
	readonly kind: string;
	readonly plural: string;
	readonly singular: string;
	readonly shortNames: readonly string[];
	readonly scope: "Cluster" | "Namespaced";
	readonly description: string;
	readonly spec: z.ZodType;
	readonly status: z.ZodType;
	/** CEL rules on the whole object (metadata.name and spec together). */
	readonly rules?: readonly CelRule[];
	readonly printerColumns: readonly {
		readonly name: string;
		readonly type: "string" | "integer" | "number" | "date" | "boolean";
		readonly jsonPath: string;
		readonly description?: string;
		readonly priority?: number;
	}[];
}
