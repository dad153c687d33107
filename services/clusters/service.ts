import { z } from "zod";
import { KubeClient } from "../../operator/kube/client.ts";
import { loadKubeConfig } from "../../operator/kube/config.ts";
import { Reflector } from "../../operator/kube/reflector.ts";
import { clusters, hosts } from "../../operator/kube/resources.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { createAuth } from "../kit/auth.ts";
import { defineService } from "../kit/service.ts";
import { createApi } from "./api.ts";
import { linkOf } from "./link.ts";
import { KubeProxy } from "./proxy.ts";
import { SupportShell } from "./shell.ts";
import { WatchHub } from "./watch.ts";

/** The region's REST API over its custom resources, and the way into its clusters. */
export const clustersService = defineService({
	name: "clusters",
	config: {
		/** The gateway's forward proxy. */
		tunnelUrl: z.url().default("https://tunnel:8444"),
		version: z.string().default("dev"),
		customer: z.string().optional(),
		/** A kubeconfig instead of the pod's service account. */
		kubeconfig: z.string().optional(),
	},
	async start(context) {
		const { config, log, metrics, signal, tls, internal } = context;
		const { namespace } = config;
		const client = new KubeClient(await loadKubeConfig(config.kubeconfig ? { kubeconfig: config.kubeconfig } : {}), {
			userAgent: "groundplane-clusters",
		});
		const reflectors = {
			hosts: new Reflector({ client, resource: hosts, namespace, log }),
			clusters: new Reflector({ client, resource: clusters, namespace, log }),
		};
		// The hub listens before the first list, so that it misses nothing.
		const watch = new WatchHub({ ...reflectors, metrics, signal });
		for (const reflector of Object.values(reflectors)) {
			reflector.run(signal).catch((error: unknown) => context.fail(error));
		}
		await Promise.all(Object.values(reflectors).map((reflector) => reflector.waitForSync(signal)));

		const auth = createAuth({ ...config, internal });
		const proxy = new KubeProxy({
			auth,
			reflectors,
			namespace,
			tunnelUrl: config.tunnelUrl,
			tls,
			log,
			metrics,
			signal,
		});
		const { tunnelUrl } = config;
		const shell = new SupportShell({ auth, hosts: reflectors.hosts, namespace, tunnelUrl, tls, log });
		const api = createApi({
			client,
			reflectors,
			watch,
			link: (host) => linkOf(host, { tunnelUrl: config.tunnelUrl, internal }),
			config,
			tls,
			log,
		});
		let document: unknown;
		return {
			onRequest: (request, response) => proxy.request(request, response),
			onUpgrade: (request, socket, head) => {
				if (!shell.upgrade(request, socket, head)) proxy.upgrade(request, socket, head);
			},
			app: (app) => {
				app.use(api.router(auth));
				app.get("/openapi.json", (_request, response) => {
					document ??= api.openapi();
					response.json(document);
				});
			},
			checks: {
				// Not "does it answer now": the way into the clusters stays open while the management cluster is away.
				kubernetes: async () => {
					if (Object.values(reflectors).every(({ hasSynced }) => hasSynced)) return;
					throw new GroundplaneError("KubernetesUnavailable", "the first list is not there yet", { next: "Wait." });
				},
			},
			stop: async () => {
				proxy.close();
				client.close();
			},
		};
	},
});
