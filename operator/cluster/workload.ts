import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { isAlreadyExists, isNotFound, type KubeClient } from "../kube/client.ts";
import { type Node, nodes, type Pod, pods, secrets } from "../kube/resources.ts";
import type { NodeState, WorkloadState } from "./plan.ts";

/** When the draining of a node began, so that its deadline survives a restart of the operator. */
const DRAIN_STARTED = "groundplane.io/drain-started";
/** Pods that mirror static pods can't be evicted: the kubelet makes them. */
const MIRROR_POD = "kubernetes.io/config.mirror";
/** Lifetime of a bootstrap token; it is taken away as soon as all hosts have joined. */
const TOKEN_LIFETIME_MS = 2 * 3_600_000;

/** Looks at a cluster through its own API server. `draining` names the nodes whose pods are to be counted. */
export async function observeWorkload(
	client: KubeClient,
	{ tokenId, draining, signal }: { tokenId: string | undefined; draining: ReadonlySet<string>; signal: AbortSignal },
): Promise<WorkloadState> {
	const [all, dns, token] = await Promise.all([
		client.listAll(nodes, { signal }),
		client.list(pods, { namespace: "kube-system", labelSelector: "k8s-app=kube-dns", signal }),
		tokenId === undefined ? undefined : client.find(secrets, `bootstrap-token-${tokenId}`, "kube-system", { signal }),
	]);
	return {
		nodes: await Promise.all(
			all.items.map(async (node) =>
				nodeState(node, draining.has(node.metadata.name) ? await evictable(client, node.metadata.name, signal) : []),
			),
		),
		dnsReady: dns.items.some(isPodReady),
		bootstrapToken: token !== undefined,
	};
}

function nodeState(node: Node, toEvict: readonly Pod[]): NodeState {
	const ready = node.status?.conditions?.find((condition) => condition.type === "Ready");
	const version = node.status?.nodeInfo?.kubeletVersion;
	const started = node.metadata.annotations?.[DRAIN_STARTED];
	return {
		name: node.metadata.name,
		ready: ready?.status === "True",
		labels: node.metadata.labels ?? {},
		unschedulable: node.spec?.unschedulable ?? false,
		evictable: toEvict.length,
		...(version === undefined ? {} : { version }),
		...(ready?.status === "True" || ready?.message === undefined ? {} : { message: ready.message }),
		...(started === undefined ? {} : { drainStarted: Date.parse(started) }),
	};
}

/** Pods that a drain moves away: not those of DaemonSets, not mirrors of static pods, not finished ones. */
async function evictable(client: KubeClient, node: string, signal: AbortSignal): Promise<Pod[]> {
	const { items } = await client.list(pods, { fieldSelector: `spec.nodeName=${node}`, signal });
	return items.filter(
		(pod) =>
			!pod.metadata.ownerReferences?.some((owner) => owner.controller && owner.kind === "DaemonSet") &&
			pod.metadata.annotations?.[MIRROR_POD] === undefined &&
			pod.status?.phase !== "Succeeded" &&
			pod.status?.phase !== "Failed",
	);
}

/** Cordons a node and asks for the eviction of its pods; with `force`, deletes those that their budgets still hold. */
export async function drain(
	client: KubeClient,
	node: string,
	{ force, now, signal }: { force: boolean; now: number; signal: AbortSignal },
): Promise<void> {
	const current = await client.find(nodes, node, undefined, { signal });
	if (current === undefined) return;
	if (!current.spec?.unschedulable || current.metadata.annotations?.[DRAIN_STARTED] === undefined) {
		await client.patch(
			nodes,
			{ name: node },
			{
				metadata: { annotations: { [DRAIN_STARTED]: new Date(now).toISOString() } },
				spec: { unschedulable: true },
			},
			{ type: "merge" },
		);
	}
	for (const { metadata } of await evictable(client, node, signal)) {
		if (metadata.deletionTimestamp !== undefined) continue;
		const ref = { name: metadata.name, namespace: metadata.namespace };
		try {
			if (force) await client.delete(pods, ref);
			else {
				await client.request("POST", `/api/v1/namespaces/${ref.namespace}/pods/${ref.name}/eviction`, {
					body: { apiVersion: "policy/v1", kind: "Eviction", metadata: ref },
					signal,
				});
			}
		} catch (error) {
			// 429: a PodDisruptionBudget says not yet. It is asked again at the next look, and the deadline ends it.
			if (!isNotFound(error) && asGroundplaneError(error).code !== "Overloaded") throw error;
		}
	}
}

/** Takes a Node out of the cluster's API; its host has been reset already, or is gone for good. */
export async function deleteNode(client: KubeClient, node: string): Promise<void> {
	await client.delete(nodes, { name: node });
}

export async function labelNode(
	client: KubeClient,
	node: string,
	labels: Readonly<Record<string, string>>,
): Promise<void> {
	await client.patch(nodes, { name: node }, { metadata: { labels } }, { type: "merge" });
}

/** Makes a bootstrap token known to the cluster (a Secret as kubeadm makes it: KEP `bootstrap-tokens`). */
export async function createBootstrapToken(client: KubeClient, token: string, now: number): Promise<void> {
	const [id, secret] = token.split(".");
	if (id === undefined || secret === undefined) {
		throw new GroundplaneError("Internal", "the join secret holds no bootstrap token", {
			next: "Delete the Secret cluster-NAME-join in the region's namespace: it is made anew.",
		});
	}
	try {
		await client.create(secrets, {
			apiVersion: "v1",
			kind: "Secret",
			metadata: { name: `bootstrap-token-${id}`, namespace: "kube-system" },
			type: "bootstrap.kubernetes.io/token",
			stringData: {
				"token-id": id,
				"token-secret": secret,
				expiration: new Date(now + TOKEN_LIFETIME_MS).toISOString(),
				"usage-bootstrap-authentication": "true",
				"usage-bootstrap-signing": "true",
				"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
			},
		});
	} catch (error) {
		if (!isAlreadyExists(error)) throw error;
	}
}

export async function deleteBootstrapToken(client: KubeClient, token: string): Promise<void> {
	await client.delete(secrets, { name: `bootstrap-token-${token.split(".")[0]}`, namespace: "kube-system" });
}

const isPodReady = (pod: Pod): boolean =>
	pod.status?.conditions?.some((condition) => condition.type === "Ready" && condition.status === "True") ?? false;
