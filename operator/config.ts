import { z } from "zod";
import { GroundplaneError } from "../protocol/errors.ts";

/** A release bundle that this platform ships, as an image (`groundplane/bundle-NAME:TAG`, the tag being the version by default). */
const bundle = z.strictObject({
	name: z.string().min(1),
	version: z.string().min(1),
	tag: z.string().min(1).optional(),
	/** What it holds of that which not every release holds (prometheus, calico). */
	extras: z.array(z.string().min(1)).optional(),
});

const json = <T extends z.ZodType>(schema: T) =>
	z
		.string()
		.transform((text, context) => {
			try {
				return JSON.parse(text) as unknown;
			} catch {
				context.addIssue({ code: "custom", message: "is no JSON" });
				return z.NEVER;
			}
		})
		.pipe(schema);

/** The operator's environment. Everything has a default but what can't be guessed. */
const environment = z.object({
	GROUNDPLANE_NAMESPACE: z.string().min(1).default("groundplane-system"),
	OPERATOR_SERVICE_ACCOUNT: z.string().min(1).default("groundplane-operator"),
	/** Unique to the process: the pod's name. */
	POD_NAME: z.string().min(1).default("operator"),
	/** Version of the platform: of the chart and of the images. */
	VERSION: z.string().min(1),
	REGION_CHART: z.string().min(1).default("/opt/groundplane/charts/region"),
	HELM: z.string().min(1).default("helm"),
	/** Where helm keeps its caches, and values pass through. Memory in the pod. */
	WORK_DIR: z.string().min(1).default("/tmp"),
	HELM_TIMEOUT: z.string().default("5m"),
	IMAGE_REGISTRY: z.string().default(""),
	/** The operator's own version when empty. */
	IMAGE_TAG: z.string().default(""),
	IMAGE_PULL_POLICY: z.enum(["IfNotPresent", "Always", "Never"]).default("IfNotPresent"),
	IMAGE_PULL_SECRETS: json(z.array(z.strictObject({ name: z.string().min(1) }))).default([]),
	/** Public keys that sign release bundles (RFC 7517, JSON). */
	RELEASE_JWKS: json(z.looseObject({ keys: z.array(z.record(z.string(), z.unknown())).min(1) })),
	BUNDLES: json(z.array(bundle)).default([]),
	CLUSTER_DOMAIN: z.string().default("cluster.local"),
	LISTEN_ADDRESS: z.string().default("0.0.0.0"),
	METRICS_PORT: z.coerce.number().int().min(0).max(65535).default(9090),
	LOG_LEVEL: z.enum(["trace", "debug", "info", "warn", "error"]).default("info"),
});

export interface OperatorConfig {
	/** Namespace of the core. */
	readonly namespace: string;
	readonly serviceAccount: string;
	readonly podName: string;
	readonly version: string;
	readonly chart: string;
	readonly helm: string;
	readonly workDir: string;
	/** Go duration, as helm takes it. */
	readonly helmTimeout: string;
	readonly image: {
		readonly registry: string;
		readonly tag: string;
		readonly pullPolicy: string;
		readonly pullSecrets: readonly string[];
	};
	/** JSON Web Key Set, as text. */
	readonly releaseJwks: string;
	readonly bundles: readonly z.output<typeof bundle>[];
	readonly clusterDomain: string;
	readonly listenAddress: string;
	readonly metricsPort: number;
	readonly logLevel: string;
}

/** Reads the operator's configuration; every fault is listed in one error. */
export function readConfig(env: NodeJS.ProcessEnv): OperatorConfig {
	const parsed = environment.safeParse(env);
	if (!parsed.success) {
		const faults = parsed.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`);
		throw new GroundplaneError("InvalidConfiguration", `the environment is wrong: ${faults.join("; ")}`, {
			next: "Correct the values of the chart groundplane (operator) and upgrade it.",
		});
	}
	const e = parsed.data;
	return {
		namespace: e.GROUNDPLANE_NAMESPACE,
		serviceAccount: e.OPERATOR_SERVICE_ACCOUNT,
		podName: e.POD_NAME,
		version: e.VERSION,
		chart: e.REGION_CHART,
		helm: e.HELM,
		workDir: e.WORK_DIR,
		helmTimeout: e.HELM_TIMEOUT,
		image: {
			registry: e.IMAGE_REGISTRY,
			tag: e.IMAGE_TAG === "" ? e.VERSION : e.IMAGE_TAG,
			pullPolicy: e.IMAGE_PULL_POLICY,
			pullSecrets: e.IMAGE_PULL_SECRETS.map(({ name }) => name),
		},
		releaseJwks: JSON.stringify(e.RELEASE_JWKS),
		bundles: e.BUNDLES,
		clusterDomain: e.CLUSTER_DOMAIN,
		listenAddress: e.LISTEN_ADDRESS,
		metricsPort: e.METRICS_PORT,
		logLevel: e.LOG_LEVEL,
	};
}
