import type { Request } from "express";
import { z } from "zod";
import { ACCEPT, type Cluster, clusterSpec, clusterStatus, FORCE_DELETE, RETRY } from "../../crds/cluster.ts";
import { dnsLabel, GROUP_VERSION } from "../../crds/common.ts";
import { type Host, hostSpec, hostStatus } from "../../crds/host.ts";
import { collectionPath, type KubeClient, KubeError, objectPath } from "../../operator/kube/client.ts";
import type { Reflector } from "../../operator/kube/reflector.ts";
import { clusters, hosts, type Resource } from "../../operator/kube/resources.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type LinkFigures, linkFigures } from "../../protocol/link.ts";
import { SHELL_PROTOCOL } from "../../protocol/shell.ts";
import type { User } from "../kit/auth.ts";
import type { Log } from "../kit/log.ts";
import { Api } from "../kit/routes.ts";
import type { TlsFiles } from "../kit/tls.ts";
import { kubeconfig } from "./kubeconfig.ts";
import type { WatchHub } from "./watch.ts";

/** Field manager of what people change through this API. */
const MANAGER = "groundplane-api";

const metadata = z.object({
	name: z.string(),
	uid: z.string().optional(),
	resourceVersion: z.string().optional(),
	generation: z.int().optional(),
	creationTimestamp: z.string().optional(),
	deletionTimestamp: z.string().optional(),
	labels: z.record(z.string(), z.string()).optional(),
	annotations: z.record(z.string(), z.string()).optional(),
});
const labels = z.record(z.string().max(317), z.string().max(63)).describe("Labels, by which clusters select hosts.");
const host = z.object({ metadata, spec: hostSpec, status: hostStatus.optional() });
const cluster = z.object({ metadata, spec: clusterSpec, status: clusterStatus.optional() });
const listOf = <Item extends z.ZodType>(item: Item) => z.object({ items: z.array(item) });
const named = z.object({ name: dnsLabel });
const dryRun = z.object({
	dryRun: z.enum(["true", "false"]).default("false").describe("Check the request and change nothing."),
});
const count = z.object({ total: z.int(), ready: z.int() });
const region = z.object({
	name: z.string(),
	customer: z.string().optional(),
	domain: z.string(),
	version: z.string(),
	endpoints: z.object({ console: z.url(), api: z.url(), issuer: z.url() }),
	hosts: count,
	clusters: count,
});

export interface ApiOptions {
	readonly client: KubeClient;
	readonly reflectors: { readonly hosts: Reflector<Host>; readonly clusters: Reflector<Cluster> };
	readonly watch: WatchHub;
	/** Asks the gateways about a host's tunnel. */
	readonly link: (host: Host) => Promise<LinkFigures>;
	readonly config: {
		region: string;
		domain: string;
		namespace: string;
		issuer: string;
		version: string;
		customer?: string | undefined;
	};
	readonly tls: TlsFiles;
	readonly log: Log;
}

/** The region's REST API over its custom resources: what `kubectl` on the management cluster does, for people of this region alone. */
export function createApi({ client, reflectors, watch, link, config, tls, log }: ApiOptions): Api {
	const { namespace } = config;
	const audit = (request: Request, user: User, event: string, facts: Record<string, unknown>) =>
		log.info({ audit: true, event, by: user.name, ip: request.ip, ...facts }, event);
	const dryRunQuery = (query: { dryRun: "true" | "false" }) => (query.dryRun === "true" ? { dryRun: "All" } : {});
	const readyOf = (items: readonly (Host | Cluster)[]) => ({
		total: items.length,
		ready: items.filter(({ status }) => status?.phase === "Ready").length,
	});

	return new Api({
		title: "Groundplane: a region's hosts and clusters",
		version: config.version,
		description: "Users, sign-in and API tokens are described at /auth/openapi.json.",
	})
		.route({
			method: "get",
			path: "/api/v1/region",
			summary: "Read what the region is and how much of it is ready.",
			roles: [],
			answer: region,
			handler: async () => ({
				name: config.region,
				customer: config.customer,
				domain: config.domain,
				version: config.version,
				endpoints: {
					console: `https://${config.domain}/`,
					api: `https://${config.domain}/api/v1`,
					issuer: config.issuer,
				},
				hosts: readyOf(reflectors.hosts.list()),
				clusters: readyOf(reflectors.clusters.list()),
			}),
		})
		.route({
			method: "get",
			path: "/api/v1/watch",
			summary:
				"Follow hosts and clusters as server-sent events: `snapshot`, then `host` and `cluster` with each change.",
			roles: [],
			mediaType: "text/event-stream",
			handler: ({ request, response, user }) => watch.serve(request, response, user),
		})
		.route({
			method: "get",
			path: "/api/v1/hosts",
			summary: "List hosts.",
			roles: [],
			answer: listOf(host),
			handler: async () => ({ items: (await calling("hosts", client.listAll(hosts, { namespace }))).items.map(shown) }),
		})
		.route({
			method: "get",
			path: "/api/v1/hosts/:name",
			summary: "Read a host.",
			roles: [],
			params: named,
			answer: host,
			handler: async ({ params }) =>
				shown(await calling(`host ${params.name}`, client.get(hosts, params.name, namespace))),
		})
		.route({
			method: "get",
			path: "/api/v1/hosts/:name/link",
			summary: "Read how a host's tunnel is doing, live.",
			roles: [],
			params: named,
			answer: linkFigures,
			handler: async ({ params }) =>
				link(await calling(`host ${params.name}`, client.get(hosts, params.name, namespace))),
		})
		.route({
			method: "get",
			path: "/api/v1/hosts/:name/shell",
			summary: `Open a support shell on a host whose owner allows it: an upgrade to ${SHELL_PROTOCOL}, which gp host shell speaks.`,
			roles: ["admin"],
			params: named,
			mediaType: "text/plain",
			status: 101,
			// What is an upgrade does not come here.
			handler: async ({ params }) => {
				throw new GroundplaneError("InvalidInput", `A shell is an upgrade to ${SHELL_PROTOCOL}.`, {
					next: `Use gp host shell ${params.name}.`,
				});
			},
		})
		.route({
			method: "patch",
			path: "/api/v1/hosts/:name",
			summary: "Approve a host, take it into or out of maintenance, or set its labels.",
			roles: ["operator"],
			params: named,
			query: dryRun,
			body: z
				.strictObject({
					approved: z.boolean(),
					maintenance: z.boolean(),
					labels: z.record(z.string(), z.string().nullable()),
				})
				.partial(),
			answer: host,
			handler: async ({ params, query, body, user, request }) => {
				const { labels: changedLabels, ...spec } = body;
				const changed = await calling(
					`host ${params.name}`,
					client.request<Host>("PATCH", objectPath(hosts, { name: params.name, namespace }), {
						query: { fieldManager: MANAGER, ...dryRunQuery(query) },
						contentType: "application/merge-patch+json",
						body: { spec, ...(changedLabels && { metadata: { labels: changedLabels } }) },
					}),
				);
				audit(request, user, "host-changed", { host: params.name, ...body, dryRun: query.dryRun });
				return shown(changed);
			},
		})
		.route({
			method: "delete",
			path: "/api/v1/hosts/:name",
			summary: "Remove a host: its roles are undone, then its certificate is revoked.",
			roles: ["operator"],
			params: named,
			query: dryRun,
			status: 202,
			handler: async ({ params, query, user, request }) => {
				await remove(hosts, params.name, query);
				audit(request, user, "host-deleted", { host: params.name, dryRun: query.dryRun });
			},
		})
		.route({
			method: "get",
			path: "/api/v1/clusters",
			summary: "List clusters.",
			roles: [],
			answer: listOf(cluster),
			handler: async () => ({
				items: (await calling("clusters", client.listAll(clusters, { namespace }))).items.map(shown),
			}),
		})
		.route({
			method: "post",
			path: "/api/v1/clusters",
			summary: "Make a cluster.",
			roles: ["operator"],
			query: dryRun,
			body: z.object({ metadata: z.object({ name: dnsLabel.max(40), labels: labels.optional() }), spec: clusterSpec }),
			answer: cluster,
			status: 201,
			handler: async ({ query, body, user, request }) => {
				const { name } = body.metadata;
				const created = await create(name, body.metadata.labels, body.spec, query);
				audit(request, user, "cluster-created", { cluster: name, dryRun: query.dryRun });
				return shown(created);
			},
		})
		.route({
			method: "get",
			path: "/api/v1/clusters/:name",
			summary: "Read a cluster.",
			roles: [],
			params: named,
			answer: cluster,
			handler: async ({ params }) =>
				shown(await calling(`cluster ${params.name}`, client.get(clusters, params.name, namespace))),
		})
		.route({
			method: "put",
			path: "/api/v1/clusters/:name",
			summary: "Make or replace a cluster. With a resourceVersion it is refused when the cluster was changed since.",
			roles: ["operator"],
			params: named,
			query: dryRun,
			body: z.object({
				metadata: z.object({ resourceVersion: z.string().optional(), labels: labels.optional() }).prefault({}),
				spec: clusterSpec,
			}),
			answer: cluster,
			handler: async ({ params, query, body, user, request, response }) => {
				const what = `cluster ${params.name}`;
				const current = await calling(what, client.find(clusters, params.name, namespace));
				if (!current) {
					if (body.metadata.resourceVersion) throw gone(what);
					const created = await create(params.name, body.metadata.labels, body.spec, query);
					audit(request, user, "cluster-created", { cluster: params.name, dryRun: query.dryRun });
					response.status(201);
					return shown(created);
				}
				// What controllers keep in the metadata (finalizers, annotations) stays as it is.
				const next = {
					...current,
					metadata: {
						...current.metadata,
						...(body.metadata.labels && { labels: body.metadata.labels }),
						...(body.metadata.resourceVersion && { resourceVersion: body.metadata.resourceVersion }),
					},
					spec: body.spec,
				};
				const changed = await calling(
					what,
					client.request<Cluster>("PUT", objectPath(clusters, { name: params.name, namespace }), {
						query: { fieldManager: MANAGER, ...dryRunQuery(query) },
						body: next,
					}),
				);
				audit(request, user, "cluster-changed", { cluster: params.name, dryRun: query.dryRun });
				return shown(changed);
			},
		})
		.route({
			method: "delete",
			path: "/api/v1/clusters/:name",
			summary:
				"Delete a cluster: workers and then control planes are drained and reset. With force nothing is drained or waited for.",
			roles: ["operator"],
			params: named,
			query: dryRun.extend({
				force: z
					.enum(["true", "false"])
					.default("false")
					.describe(
						"Drain nothing and wait for no host: what is left on hosts is told in their status, and cleaned later.",
					),
			}),
			status: 202,
			handler: async ({ params, query, user, request }) => {
				const { dryRun, force } = query;
				if (force === "true") await annotate(params.name, { [FORCE_DELETE]: "true" }, {}, { dryRun });
				await remove(clusters, params.name, { dryRun });
				audit(request, user, "cluster-deleted", { cluster: params.name, dryRun, force });
			},
		})
		.route({
			method: "post",
			path: "/api/v1/clusters/:name/upgrade",
			summary: "Bring a cluster to another version, or try again a change of version that stopped.",
			roles: ["operator"],
			params: named,
			query: dryRun,
			body: z.strictObject({
				version: clusterSpec.shape.version,
				accept: z.boolean().default(false).describe("Go on although clients still use APIs that the version removes."),
			}),
			answer: cluster,
			handler: async ({ params, query, body, user, request }) => {
				const { version, accept } = body;
				const annotations = { [RETRY]: new Date().toISOString(), ...(accept && { [ACCEPT]: version }) };
				const changed = await annotate(params.name, annotations, { version }, query);
				audit(request, user, "cluster-upgraded", { cluster: params.name, version, accept, dryRun: query.dryRun });
				return shown(changed);
			},
		})
		.route({
			method: "get",
			path: "/api/v1/clusters/:name/kubeconfig",
			summary: "A kubeconfig that leads through the region. It holds no secret.",
			roles: [],
			params: named,
			mediaType: "application/yaml",
			handler: async ({ params, response }) => {
				await calling(`cluster ${params.name}`, client.get(clusters, params.name, namespace));
				response.type("application/yaml").send(kubeconfig({ ...config, cluster: params.name, ca: tls.current.ca }));
			},
		});

	function create(
		name: string,
		withLabels: Record<string, string> | undefined,
		spec: unknown,
		query: { dryRun: "true" | "false" },
	): Promise<Cluster> {
		const metadata = { name, namespace, ...(withLabels && { labels: withLabels }) };
		return calling(
			`cluster ${name}`,
			client.request<Cluster>("POST", collectionPath(clusters, namespace), {
				query: { fieldManager: MANAGER, ...dryRunQuery(query) },
				body: { apiVersion: GROUP_VERSION, kind: "Cluster", metadata, spec },
			}),
		);
	}

	function annotate(
		name: string,
		annotations: Record<string, string>,
		spec: Partial<Cluster["spec"]>,
		query: { dryRun: "true" | "false" },
	): Promise<Cluster> {
		return calling(
			`cluster ${name}`,
			client.request<Cluster>("PATCH", objectPath(clusters, { name, namespace }), {
				query: { fieldManager: MANAGER, ...dryRunQuery(query) },
				contentType: "application/merge-patch+json",
				body: { metadata: { annotations }, spec },
			}),
		);
	}

	async function remove(resource: Resource, name: string, query: { dryRun: "true" | "false" }): Promise<void> {
		const path = objectPath(resource, { name, namespace });
		await calling(
			`${resource.kind.toLowerCase()} ${name}`,
			client.request("DELETE", path, { query: { propagationPolicy: "Background", ...dryRunQuery(query) } }),
		);
	}
}

/** An object as people of the region see it: without what is only the management cluster's business. */
function shown<Kind extends Host | Cluster>({
	metadata,
	spec,
	status,
}: Kind): Pick<Kind, "spec" | "status"> & {
	metadata: Kind["metadata"];
} {
	const { namespace, managedFields, finalizers, ...rest } = metadata as Kind["metadata"] & { managedFields?: unknown };
	return { metadata: rest as Kind["metadata"], spec, ...(status && { status }) } as never;
}

const gone = (what: string, cause?: unknown) =>
	new GroundplaneError("NotFound", `There is no ${what}.`, { next: "Check the name against the list.", cause });

/** The management cluster's refusals in the words of this API. Its own troubles with us are not the caller's. */
async function calling<Result>(what: string, work: Promise<Result>): Promise<Result> {
	try {
		return await work;
	} catch (error) {
		if (!(error instanceof KubeError)) throw error;
		const message = error.message.replace(/^[A-Z]+ \/\S+: /, "");
		switch (error.httpStatus) {
			case 400:
			case 422:
				throw new GroundplaneError("InvalidInput", message, {
					next: "Correct the fields that the message names.",
					cause: error,
				});
			case 404:
				throw gone(what, error);
			case 409:
				throw error.reason === "AlreadyExists"
					? new GroundplaneError("AlreadyExists", `There is a ${what} already.`, {
							next: "Choose another name, or change that one.",
							cause: error,
						})
					: new GroundplaneError("Conflict", `The ${what} was changed in the meantime.`, {
							next: "Read it again and repeat the change.",
							cause: error,
						});
			case 429:
			case 0:
				throw new GroundplaneError("KubernetesUnavailable", "The management cluster does not answer.", {
					next: "Try again in a minute; if it lasts, tell the provider.",
					cause: error,
				});
			default:
				throw new GroundplaneError("KubernetesUnavailable", `The management cluster refused: ${message}`, {
					next: "Tell the provider: this is between the region and its management cluster.",
					cause: error,
				});
		}
	}
}
