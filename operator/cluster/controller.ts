import { randomBytes, randomInt } from "node:crypto";
import type { Cluster, ClusterStatus } from "../../crds/cluster.ts";
import { asGroundplaneError, type GroundplaneError } from "../../protocol/errors.ts";
import { type ControllerDeps, regionOf } from "../deps.ts";
import { addFinalizer, applyStatus, removeFinalizer } from "../kube/apply.ts";
import { KubeClient } from "../kube/client.ts";
import { setConditions } from "../kube/conditions.ts";
import { Controller, type Result, type Runnable, watch } from "../kube/controller.ts";
import { ConnectAgent } from "../kube/proxy.ts";
import { clusters, hosts, keyOf, type Secret, secrets } from "../kube/resources.ts";
import { clusterOf } from "./assign.ts";
import { type Action, joinSecretName, type Observed, plan } from "./plan.ts";
import {
	createBootstrapToken,
	deleteBootstrapToken,
	deleteNode,
	drain,
	labelNode,
	observeWorkload,
} from "./workload.ts";

const FINALIZER = "groundplane.io/cluster";
const MANAGER = "groundplane-cluster";

/** Makes hosts into Kubernetes clusters: observes, asks {@link plan} what to do, does it, and writes what it sees into status. */
export function createClusterController(deps: ControllerDeps): Runnable {
	const { informers } = deps;
	const reconciler = new ClusterReconciler(deps);
	const clustersOfNamespace = (namespace: string | undefined) =>
		informers.clusters.list(inNamespace(namespace)).map(keyOf);
	return new Controller({
		name: "cluster",
		primary: informers.clusters,
		// A host that comes, goes or changes may concern any cluster of its region: one that names it, selects it, or waits for one.
		watches: [watch(informers.hosts, (host) => clustersOfNamespace(host.metadata.namespace))],
		reconcile: (key, signal) => reconciler.reconcile(key, signal),
		concurrency: 4,
		log: deps.log,
	});
}

class ClusterReconciler {
	readonly #deps: ControllerDeps;
	/** Connections to workload clusters through their region's gateway, by namespace and control-plane host. */
	readonly #workloads = new Map<string, KubeClient>();

	constructor(deps: ControllerDeps) {
		this.#deps = deps;
	}

	async reconcile(key: string, signal: AbortSignal): Promise<Result | undefined> {
		const { client, informers } = this.#deps;
		const found = informers.clusters.get(key);
		if (found === undefined) return undefined;
		const region = this.#regionOf(found);
		if (region?.spec.paused === true) return { requeueAfter: 60_000 };
		if (found.metadata.deletionTimestamp !== undefined && !found.metadata.finalizers?.includes(FINALIZER))
			return undefined;
		const cluster =
			found.metadata.deletionTimestamp === undefined
				? await addFinalizer(client, clusters, found, FINALIZER, signal)
				: found;

		const secret = await client.find(secrets, joinSecretName(cluster.metadata.name), cluster.metadata.namespace, {
			signal,
		});
		const { observed, workload } = await this.#observe(cluster, secret, signal);
		const { actions, status, conditions, requeueAfter } = plan(observed);

		await this.#writeStatus(
			cluster,
			{ ...status, conditions: [...setConditions(cluster.status?.conditions ?? [], conditions, this.#deps.now)] },
			signal,
		);
		const failures: GroundplaneError[] = [];
		for (const action of actions) {
			signal.throwIfAborted();
			try {
				await this.#do(action, cluster, secret, workload, signal);
			} catch (error) {
				// One host's failure must not keep the others waiting; all of them are seen in the end.
				failures.push(asGroundplaneError(error));
			}
		}
		const [first] = failures;
		if (first !== undefined) throw first;
		return { requeueAfter };
	}

	async #observe(
		cluster: Cluster,
		secret: Secret | undefined,
		signal: AbortSignal,
	): Promise<{ observed: Observed; workload: KubeClient | undefined }> {
		const { informers, config, now } = this.#deps;
		const { namespace, name } = cluster.metadata;
		const base: Observed = {
			cluster,
			hosts: informers.hosts.list(inNamespace(namespace)),
			others: informers.clusters.list(inNamespace(namespace)).filter((other) => other.metadata.name !== name),
			versions: config.bundles.filter((bundle) => bundle.name === "kubernetes").map((bundle) => bundle.version),
			joinSecret: secret !== undefined,
			now: now(),
		};
		const workload = this.#workload(base, await this.#identity(cluster, signal));
		if (workload === undefined)
			return { observed: { ...base, unreachable: "no control plane is up and connected" }, workload };
		const wanted = new Set([...cluster.spec.controlPlane.hosts, ...cluster.spec.workers.flatMap((pool) => pool.hosts)]);
		const usesSelectors = [cluster.spec.controlPlane, ...cluster.spec.workers].some(
			(pick) => pick.selector !== undefined,
		);
		const draining = base.hosts
			.filter((host) => clusterOf(host) === name)
			.map((host) => host.metadata.name)
			.filter((host) => cluster.metadata.deletionTimestamp !== undefined || usesSelectors || !wanted.has(host));
		try {
			const state = await observeWorkload(workload, {
				tokenId: tokenOf(secret)?.split(".")[0],
				draining: new Set(draining),
				signal,
			});
			return { observed: { ...base, workload: state }, workload };
		} catch (error) {
			signal.throwIfAborted();
			return { observed: { ...base, unreachable: asGroundplaneError(error).message }, workload: undefined };
		}
	}

	/** A client of the cluster's API server, through a control plane that is up and connected. */
	#workload({ cluster, hosts: all }: Observed, identity: Secret | undefined): KubeClient | undefined {
		const { config } = this.#deps;
		const { namespace, name } = cluster.metadata;
		const host = all.find(
			(candidate) =>
				clusterOf(candidate) === name &&
				candidate.status?.connection?.state === "Connected" &&
				candidate.status.roles?.some((role) => role.name === "kubernetes" && role.outputs?.caCertHash !== undefined),
		)?.metadata.name;
		if (host === undefined || identity === undefined) return undefined;
		const id = `${namespace}/${host}/${identity.metadata.resourceVersion}`;
		const known = this.#workloads.get(id);
		if (known !== undefined) return known;
		const decode = (field: string) => Buffer.from(identity.data?.[field] ?? "", "base64").toString();
		const tls = { ca: decode("ca.crt"), cert: decode("tls.crt"), key: decode("tls.key") };
		const proxyHost = `tunnel.${namespace}.svc.${config.clusterDomain}`;
		const agent = new ConnectAgent({
			proxyHost,
			proxyPort: 8444,
			tls: () => ({ ...tls, servername: proxyHost }),
			authority: `kube-apiserver.${host}:80`,
		});
		const client = new KubeClient(
			{ server: `http://kube-apiserver.${host}`, tls: {} },
			{ agent, userAgent: "groundplane-operator", timeout: 15_000 },
		);
		this.#workloads.set(id, client);
		return client;
	}

	async #identity(cluster: Cluster, signal: AbortSignal): Promise<Secret | undefined> {
		const region = regionOf(cluster.metadata.namespace);
		return this.#deps.client.find(secrets, `region-${region}-operator-tls`, this.#deps.config.namespace, { signal });
	}

	#regionOf(cluster: Cluster) {
		const name = regionOf(cluster.metadata.namespace);
		return name === undefined ? undefined : this.#deps.informers.regions.get(name);
	}

	async #writeStatus(cluster: Cluster, status: ClusterStatus, signal: AbortSignal): Promise<void> {
		const { client, events } = this.#deps;
		const domain = this.#regionOf(cluster)?.spec.domain;
		const wanted: ClusterStatus =
			domain === undefined
				? status
				: { ...status, endpoint: `https://${domain}/k8s/clusters/${cluster.metadata.name}` };
		if (!(await applyStatus(client, clusters, cluster, wanted, MANAGER, signal))) return;
		const before = cluster.status;
		const { phase, progress } = status;
		const step =
			progress === undefined
				? undefined
				: `${progress.step}${progress.host === undefined ? "" : ` on ${progress.host}`}`;
		const readyNow = status.conditions?.find((condition) => condition.type === "Ready");
		if (before?.phase !== phase && phase !== undefined) {
			events.event(
				clusters,
				cluster,
				phase === "Failed" || phase === "Degraded" ? "Warning" : "Normal",
				phase,
				readyNow?.message ?? phase,
			);
		} else if (
			step !== undefined &&
			(before?.progress?.step !== progress?.step || before?.progress?.host !== progress?.host)
		) {
			events.event(clusters, cluster, "Normal", "Progress", step);
		}
	}

	async #do(
		action: Action,
		cluster: Cluster,
		secret: Secret | undefined,
		workload: KubeClient | undefined,
		signal: AbortSignal,
	): Promise<void> {
		const { client, now } = this.#deps;
		const { namespace } = cluster.metadata;
		switch (action.type) {
			case "createJoinSecret":
				await this.#createJoinSecret(cluster, signal);
				return;
			case "deleteJoinSecret":
				await client.delete(secrets, { name: joinSecretName(cluster.metadata.name), namespace });
				return;
			case "applyRole":
				await this.#applyRoles(cluster, action.host, [action.role], signal);
				return;
			case "removeRole":
				await this.#applyRoles(cluster, action.host, [], signal);
				return;
			case "createBootstrapToken":
				if (workload !== undefined && secret !== undefined)
					await createBootstrapToken(workload, tokenOf(secret) ?? "", now());
				return;
			case "deleteBootstrapToken":
				if (workload !== undefined && secret !== undefined) await deleteBootstrapToken(workload, tokenOf(secret) ?? "");
				return;
			case "drain":
				if (workload !== undefined) await drain(workload, action.host, { force: action.force, now: now(), signal });
				return;
			case "labelNode":
				if (workload !== undefined) await labelNode(workload, action.host, action.labels);
				return;
			case "deleteNode":
				if (workload !== undefined) await deleteNode(workload, action.host);
				return;
			case "removeFinalizer":
				await this.#finish(cluster, action.leftBehind, signal);
				return;
		}
	}

	/** Owns the entry `kubernetes` of Host.spec.roles and nothing else: server-side apply merges the list by name. */
	async #applyRoles(cluster: Cluster, name: string, roles: readonly unknown[], signal: AbortSignal): Promise<void> {
		const { client, informers } = this.#deps;
		const { namespace } = cluster.metadata;
		const host = informers.hosts.get(`${namespace}/${name}`);
		// The uid keeps an apply from making a host that is gone.
		if (host === undefined) return;
		await client.apply(
			hosts,
			{
				metadata: { name, ...(namespace === undefined ? {} : { namespace }), uid: host.metadata.uid ?? "" },
				spec: { roles },
			},
			{ manager: MANAGER, force: true, signal },
		);
	}

	/** Secrets that joining hosts need. Made once: `create` refuses a second one. */
	async #createJoinSecret(cluster: Cluster, signal: AbortSignal): Promise<void> {
		const { name, namespace, uid } = cluster.metadata;
		const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789";
		const text = (length: number) => Array.from({ length }, () => alphabet[randomInt(alphabet.length)]).join("");
		await this.#deps.client.create(
			secrets,
			{
				metadata: {
					name: joinSecretName(name),
					...(namespace === undefined ? {} : { namespace }),
					labels: { "groundplane.io/cluster": name },
					ownerReferences: [{ apiVersion: cluster.apiVersion, kind: "Cluster", name, uid: uid ?? "" }],
				},
				stringData: { bootstrapToken: `${text(6)}.${text(16)}`, certificateKey: randomBytes(32).toString("hex") },
			},
			{ manager: MANAGER, signal },
		);
	}

	async #finish(cluster: Cluster, leftBehind: readonly string[], signal: AbortSignal): Promise<void> {
		const { client, events } = this.#deps;
		if (leftBehind.length > 0) {
			events.event(
				clusters,
				cluster,
				"Warning",
				"LeftBehind",
				`Not reached while the cluster was deleted: ${leftBehind.join(", ")}. Each cleans itself when it is back.`,
			);
		}
		await removeFinalizer(client, clusters, cluster, FINALIZER, signal);
	}
}

const tokenOf = (secret: Secret | undefined): string | undefined =>
	secret?.data?.bootstrapToken === undefined ? undefined : Buffer.from(secret.data.bootstrapToken, "base64").toString();

const inNamespace = (namespace: string | undefined) => (namespace === undefined ? {} : { namespace });
