import { randomBytes, randomInt } from "node:crypto";
import type { Cluster, ClusterStatus } from "../../crds/cluster.ts";
import { ASKED, EPOCH, type Host } from "../../crds/host.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { type ControllerDeps, type Informers, regionOf } from "../deps.ts";
import { FORMER_CLUSTER } from "../host/summary.ts";
import { addFinalizer, applyStatus, removeFinalizer } from "../kube/apply.ts";
import { KubeClient } from "../kube/client.ts";
import { getCondition, setConditions } from "../kube/conditions.ts";
import { Controller, type Result, type Runnable, watch, watchChanges } from "../kube/controller.ts";
import { ConnectAgent } from "../kube/proxy.ts";
import { clusters, hosts, keyOf, type Secret, secrets } from "../kube/resources.ts";
import { BY_CLUSTER, BY_HOST, clusterOf, hostKeysOf, letGoBy } from "./assign.ts";
import { WorkloadClients } from "./clients.ts";
import { joinSecretName } from "./joining.ts";
import { isConnected, outputsOf } from "./members.ts";
import { PLACEMENT } from "./placement.ts";
import { plan } from "./plan.ts";
import type { Action, Observed } from "./state.ts";
import { needsPreflight } from "./upgrade.ts";
import {
	approveServing,
	askApiServers,
	createBootstrapToken,
	deleteBootstrapToken,
	deleteNode,
	drain,
	markNode,
	observePreflight,
	observeWorkload,
	uncordon,
} from "./workload.ts";

const FINALIZER = "groundplane.io/cluster";
const MANAGER = "groundplane-cluster";

/** Makes hosts into Kubernetes clusters: observes, asks {@link plan} what to do, does it, and writes what it sees into status. */
export function createClusterController(deps: ControllerDeps): Runnable {
	const { informers } = deps;
	const reconciler = new ClusterReconciler(deps);
	return new Controller({
		name: "cluster",
		primary: informers.clusters,
		watches: [
			watch(informers.hosts, (host) => clustersOf(informers, host)),
			// A host that two want is told of by nobody when the one that has it goes.
			watchChanges(informers.clusters, ({ type, object, previous }) =>
				letGoBy(previous, type === "deleted" ? undefined : object)
					.flatMap((key) => informers.clusters.byIndex(BY_HOST, key))
					.map(keyOf),
			),
		],
		reconcile: (key, signal) => reconciler.reconcile(key, signal),
		concurrency: 16,
		// The gateway of one region that does not answer must not take all of them.
		perNamespace: 12,
		// What fails for long, as a pod that can't be evicted, must not make a drain miss the minute in which it is forced.
		maxDelay: 30_000,
		log: deps.log,
	});
}

/** Clusters that a host's change may concern: those that name it, have it, or select hosts by labels. */
function clustersOf({ clusters: all }: Informers, host: Host): string[] {
	const { namespace, name } = host.metadata;
	const owner = clusterOf(host);
	return [
		...(owner === undefined ? [] : [`${namespace}/${owner}`]),
		...[name, "*"].flatMap((each) => all.byIndex(BY_HOST, `${namespace}/${each}`)).map(keyOf),
	];
}

/**
 * What a decision about a cluster can depend on: its hosts and who else names them; all of the region only when it selects hosts by
 * labels. A decision over ten thousand hosts takes five milliseconds, and there are a thousand clusters.
 */
function relevantTo(
	{ hosts: all, clusters: every }: Informers,
	cluster: Cluster,
): { hosts: Host[]; others: Cluster[] } {
	const { namespace, name } = cluster.metadata;
	const isOther = (other: Cluster) => other.metadata.name !== name;
	const keys = hostKeysOf(cluster);
	if (keys.includes(`${namespace}/*`))
		return { hosts: all.list(inNamespace(namespace)), others: every.list(inNamespace(namespace)).filter(isOther) };
	const mine = [...all.byIndex(BY_CLUSTER, `${namespace}/${name}`), ...keys.flatMap((key) => all.get(key) ?? [])];
	return {
		hosts: [...new Set(mine)].sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1)),
		others: [...new Set(keys.flatMap((key) => every.byIndex(BY_HOST, key)))].filter(isOther),
	};
}

class ClusterReconciler {
	readonly #deps: ControllerDeps;
	readonly #workloads = new WorkloadClients();

	constructor(deps: ControllerDeps) {
		this.#deps = deps;
	}

	async reconcile(key: string, signal: AbortSignal): Promise<Result | undefined> {
		const { client, informers } = this.#deps;
		const found = informers.clusters.get(key);
		if (found === undefined) {
			this.#workloads.forget(key);
			return undefined;
		}
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
		const isPreflight = needsPreflight({ cluster });
		const relevant = relevantTo(informers, cluster);
		const releases = config.bundles.filter(({ name }) => name === "kubernetes");
		const base: Observed = {
			cluster,
			// The informer's copy leaves disks out.
			hosts: isPreflight ? await this.#whole(relevant.hosts, signal) : relevant.hosts,
			others: relevant.others,
			versions: releases.map(({ version }) => version),
			extras: new Map(releases.map(({ version, extras = [] }) => [version, extras])),
			joinSecret: secret !== undefined,
			now: now(),
		};
		const servers = this.#apiServers(base, await this.#identity(cluster, signal));
		if (servers.length === 0)
			return { observed: { ...base, unreachable: "no control plane is up and connected" }, workload: undefined };
		const asked = await askApiServers(servers, signal);
		const best = asked.find(({ ready }) => ready) ?? asked[0];
		const workload = best?.client as KubeClient;
		try {
			const state = await observeWorkload(workload, { tokenId: tokenOf(secret)?.split(".")[0], signal });
			const answering = asked.filter(({ ready }) => ready).map(({ client }) => client);
			const preflight = needsPreflight(base)
				? await observePreflight(workload, answering, cluster.spec.version, signal)
				: undefined;
			const apiServers = new Map(
				asked.map(({ host, ready, message }) => [host, { ready, ...(message === undefined ? {} : { message }) }]),
			);
			return {
				observed: {
					...base,
					workload: { ...state, apiServers, ...(preflight === undefined ? {} : { preflight }) },
				},
				workload,
			};
		} catch (error) {
			signal.throwIfAborted();
			return { observed: { ...base, unreachable: asGroundplaneError(error).message }, workload: undefined };
		}
	}

	/** The hosts as the API server has them: one by one, or in pages when they are many. */
	async #whole(known: readonly Host[], signal: AbortSignal): Promise<Host[]> {
		const { client } = this.#deps;
		const [first] = known;
		if (known.length > 50)
			return (await client.listAll(hosts, { ...inNamespace(first?.metadata.namespace), signal })).items;
		const found = await Promise.all(
			known.map(({ metadata }) => client.find(hosts, metadata.name, metadata.namespace, { signal })),
		);
		return found.filter((host) => host !== undefined);
	}

	/** Clients of the API servers of a cluster's control planes that have been up and are connected, each through its host's tunnel. */
	#apiServers({ cluster, hosts: all }: Observed, identity: Secret | undefined): { host: string; client: KubeClient }[] {
		const { namespace, name } = cluster.metadata;
		const mine = all
			.filter((host) => clusterOf(host) === name && isConnected(host) && outputsOf(host)?.caCertHash !== undefined)
			.map(({ metadata }) => metadata.name);
		this.#workloads.keep(
			`${namespace}/${name}`,
			identity === undefined ? [] : mine,
			identity?.metadata.resourceVersion,
		);
		if (identity === undefined) return [];
		return mine.map((host) => ({
			host,
			client: this.#workloads.of(`${namespace}/${name}`, host, () => this.#connect(namespace, host, identity)),
		}));
	}

	#connect(namespace: string | undefined, host: string, identity: Secret): KubeClient {
		const decode = (field: string) => Buffer.from(identity.data?.[field] ?? "", "base64").toString();
		const tls = { ca: decode("ca.crt"), cert: decode("tls.crt"), key: decode("tls.key") };
		const proxyHost = `tunnel.${namespace}.svc.${this.#deps.config.clusterDomain}`;
		const agent = new ConnectAgent({
			proxyHost,
			proxyPort: 8444,
			tls: () => ({ ...tls, servername: proxyHost }),
			authority: `kube-apiserver.${host}:80`,
		});
		return new KubeClient(
			// One name for all of them: it is a label of metrics, and the agent knows which one is meant.
			{ server: "http://kube-apiserver", tls: {} },
			{ agent, userAgent: "groundplane-operator", timeout: 15_000 },
		);
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
		if (status.upgrade?.since !== before?.upgrade?.since)
			for (const note of status.upgrade?.notes ?? []) events.event(clusters, cluster, "Normal", "UpgradeNote", note);
		const placement = getCondition(status.conditions, PLACEMENT);
		if (placement?.status === "False" && getCondition(before?.conditions, PLACEMENT)?.message !== placement.message)
			events.event(clusters, cluster, "Warning", placement.reason, placement.message);
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
				if (workload !== undefined) {
					const options = { force: action.force, now: now(), signal };
					// A host without power drains for ever, and nothing is said to it meanwhile.
					if (await drain(workload, action.host, options)) await this.#ask(cluster, action.host);
				}
				return;
			case "uncordon":
				if (workload !== undefined) await uncordon(workload, action.host);
				return;
			case "markNode":
				if (workload !== undefined) await markNode(workload, action.host, action.patch);
				return;
			case "deleteNode":
				if (workload !== undefined) await deleteNode(workload, action.host);
				return;
			case "approveServing":
				if (workload !== undefined) await approveServing(workload, action.request);
				return;
			case "removeFinalizer":
				await this.#finish(cluster, action.leftBehind, signal);
				return;
		}
	}

	/** Has a host asked whether it is there. */
	async #ask({ metadata: { namespace } }: Cluster, name: string): Promise<void> {
		const { client, now } = this.#deps;
		const annotations = { [ASKED]: new Date(now()).toISOString() };
		await client.patch(hosts, { name, ...(namespace && { namespace }) }, { metadata: { annotations } });
	}

	/** Owns the entry `kubernetes` of Host.spec.roles and nothing else: server-side apply merges the list by name. */
	async #applyRoles(cluster: Cluster, name: string, roles: readonly unknown[], signal: AbortSignal): Promise<void> {
		const { client, informers, epoch } = this.#deps;
		const { namespace } = cluster.metadata;
		const host = informers.hosts.get(`${namespace}/${name}`);
		// The uid keeps an apply from making a host that is gone.
		if (host === undefined) return;
		await client.apply(
			hosts,
			{
				metadata: {
					name,
					...(namespace === undefined ? {} : { namespace }),
					uid: host.metadata.uid ?? "",
					annotations: {
						[EPOCH]: String(epoch),
						...(roles.length > 0 ? {} : { [FORMER_CLUSTER]: cluster.metadata.name }),
					},
				},
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
		const { client, events, informers } = this.#deps;
		const { name } = cluster.metadata;
		// A copy may be older than the role that was written a moment ago, and taking one away may have failed: nobody else would.
		const held = (await this.#whole(relevantTo(informers, cluster).hosts, signal)).filter(
			(host) => clusterOf(host) === name,
		);
		if (held.length > 0)
			throw new GroundplaneError(
				"Conflict",
				`roles of cluster ${name} are still on ${held.map(({ metadata }) => metadata.name).join(", ")}`,
				{ next: "Nothing: they are taken away, and then it goes." },
			);
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
