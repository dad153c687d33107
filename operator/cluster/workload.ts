import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { isAlreadyExists, type KubeClient, KubeError } from "../kube/client.ts";
import { type Node, nodes, type Pod, pods, type Resource, secrets } from "../kube/resources.ts";
import { allowsNone, type Budget, blockedBy, removedApis } from "./preflight.ts";
import { certificateSigningRequests, isUndecided, KUBELET_SERVING, servingRequestOf } from "./serving.ts";
import type { NodePatch, NodeState, PoolMarks, ServingRequest, WorkloadState } from "./state.ts";

/** When the draining of a node began, so that its deadline survives a restart of the operator. */
const DRAIN_STARTED = "groundplane.io/drain-started";
/** Whether a person had cordoned the node before it was drained. */
const CORDONED = "groundplane.io/cordoned-before";
/** Which labels and taints of a Node are its pool's. */
const POOL = "groundplane.io/pool";
/** Where kubeadm publishes the control plane's certificates. */
const CERTIFICATES = "kubeadm-certs";
/** How long a control plane may take to say how it is. */
const READYZ_MS = 5_000;
/** And how long once another one is ready. */
const OTHERS_MS = 2_000;
/** Pods that mirror static pods can't be evicted: the kubelet makes them. */
const MIRROR_POD = "kubernetes.io/config.mirror";
/** Lifetime of a bootstrap token; it is taken away as soon as all hosts have joined. */
const TOKEN_LIFETIME_MS = 2 * 3_600_000;

const budgets: Resource<Budget> = {
	group: "policy",
	version: "v1",
	plural: "poddisruptionbudgets",
	kind: "PodDisruptionBudget",
	namespaced: true,
};

/** Looks at a cluster through its own API server. Pods are counted on nodes that drain. */
export async function observeWorkload(
	client: KubeClient,
	{ tokenId, signal }: { tokenId: string | undefined; signal: AbortSignal },
): Promise<Omit<WorkloadState, "apiServers" | "preflight">> {
	const [all, dns, token, certificates, requests] = await Promise.all([
		client.listAll(nodes, { signal }),
		client.list(pods, { namespace: "kube-system", labelSelector: "k8s-app=kube-dns", signal }),
		tokenId === undefined ? undefined : client.find(secrets, `bootstrap-token-${tokenId}`, "kube-system", { signal }),
		client.find(secrets, CERTIFICATES, "kube-system", { signal }),
		servingRequests(client, signal),
	]);
	const draining = all.items.filter(isDraining);
	const blocking = draining.length === 0 ? [] : await blockedBudgets(client, signal);
	return {
		nodes: await Promise.all(
			all.items.map(async (node) => {
				if (!isDraining(node)) return nodeState(node);
				const left = await evictable(client, node.metadata.name, signal);
				return { ...nodeState(node), evictable: left.length, blockedBy: blockedBy(left, blocking) };
			}),
		),
		dnsReady: dns.items.some(isPodReady),
		bootstrapToken: token !== undefined,
		certificates: certificates !== undefined,
		servingRequests: requests,
	};
}

/** How a control plane is, of itself. */
export interface Asked<T> {
	readonly host: string;
	readonly client: T;
	readonly ready: boolean;
	readonly message?: string;
}

/**
 * What control planes say of themselves: their API server, and etcd as that one sees it (`/readyz`, KEP-1040 and kubeadm's own
 * check). Once one is ready the others are not waited for as long: one whose power went would hold up every look.
 */
export async function askApiServers<T extends Pick<KubeClient, "requestText">>(
	servers: readonly { readonly host: string; readonly client: T }[],
	signal: AbortSignal,
): Promise<Asked<T>[]> {
	const end = new AbortController();
	const timers = [setTimeout(() => end.abort(), READYZ_MS)];
	try {
		return await Promise.all(
			servers.map(async ({ host, client }): Promise<Asked<T>> => {
				try {
					await client.requestText("GET", "/readyz", { signal: AbortSignal.any([signal, end.signal]) });
					timers.push(setTimeout(() => end.abort(), OTHERS_MS));
					return { host, client, ready: true };
				} catch (error) {
					signal.throwIfAborted();
					const message = end.signal.aborted ? "it does not answer in time" : asGroundplaneError(error).message;
					return { host, client, ready: false, message };
				}
			}),
		);
	} finally {
		for (const timer of timers) clearTimeout(timer);
	}
}

/** What speaks against another version: APIs in use that it removes, and budgets that allow no eviction now. */
export async function observePreflight(
	client: KubeClient,
	apiServers: readonly Pick<KubeClient, "requestText">[],
	version: string,
	signal: AbortSignal,
): Promise<NonNullable<WorkloadState["preflight"]>> {
	const [metrics, blocking] = await Promise.all([metricsOf(apiServers, signal), blockedBudgets(client, signal)]);
	return {
		removedApis: removedApis(metrics, version),
		blockedBudgets: blocking.map(({ metadata }) => `${metadata.namespace}/${metadata.name}`),
	};
}

/** Metrics of all that give theirs: who lost its API server meanwhile is not waited for. */
export async function metricsOf(
	apiServers: readonly Pick<KubeClient, "requestText">[],
	signal: AbortSignal,
): Promise<string[]> {
	const answers = await Promise.allSettled(
		apiServers.map((client) => client.requestText("GET", "/metrics", { signal, headers: { accept: "text/plain" } })),
	);
	const texts = answers.flatMap((answer) => (answer.status === "fulfilled" ? [answer.value] : []));
	const refused = answers.find((answer) => answer.status === "rejected");
	if (texts.length === 0 && refused !== undefined) throw refused.reason;
	return texts;
}

/** How a kubelet says that the container runtime has no network plugin (condition `NetworkReady` of the CRI). */
const NETWORK_MISSING = /\bNetworkPluginNotReady\b/;

const isDraining = ({ metadata }: Node): boolean => metadata.annotations?.[DRAIN_STARTED] !== undefined;

function nodeState(node: Node): NodeState {
	const ready = node.status?.conditions?.find((condition) => condition.type === "Ready");
	const version = node.status?.nodeInfo?.kubeletVersion;
	const { annotations = {}, resourceVersion } = node.metadata;
	const started = annotations[DRAIN_STARTED];
	const pool = marksOf(annotations[POOL]);
	return {
		name: node.metadata.name,
		ready: ready?.status === "True",
		labels: node.metadata.labels ?? {},
		taints: node.spec?.taints ?? [],
		unschedulable: node.spec?.unschedulable ?? false,
		...(resourceVersion === undefined ? {} : { resourceVersion }),
		...(pool === undefined ? {} : { pool }),
		...(version === undefined ? {} : { version }),
		...(ready?.status === "True" || ready?.message === undefined ? {} : { message: ready.message }),
		...(ready?.status === "False" && NETWORK_MISSING.test(ready.message ?? "") ? { networkMissing: true } : {}),
		...(started === undefined ? {} : { drainStarted: Date.parse(started) }),
	};
}

/** An annotation that someone has spoilt counts as none: it is written anew. */
function marksOf(text: string | undefined): PoolMarks | undefined {
	if (text === undefined) return undefined;
	try {
		const { labels, taints } = JSON.parse(text) as Partial<PoolMarks>;
		return { labels: labels ?? [], taints: taints ?? [] };
	} catch {
		return undefined;
	}
}

/** Budgets that allow no eviction just now. A cluster whose role is older than the right to read them shows none. */
async function blockedBudgets(client: KubeClient, signal: AbortSignal): Promise<Budget[]> {
	try {
		const { items } = await client.listAll(budgets, { signal });
		return items.filter(allowsNone);
	} catch (error) {
		if (error instanceof KubeError && error.httpStatus === 403) return [];
		throw error;
	}
}

/** A cluster whose role is older than the right to read them shows none; its kubelets ask for none either. */
async function servingRequests(client: KubeClient, signal: AbortSignal): Promise<ServingRequest[]> {
	try {
		const fieldSelector = `spec.signerName=${KUBELET_SERVING}`;
		const { items } = await client.listAll(certificateSigningRequests, { fieldSelector, signal });
		const undecided = items.filter(isUndecided);
		if (undecided.length === 0) return [];
		const { readCertificateRequest } = await import("./certificate-request.ts");
		return undecided
			.map((request) => servingRequestOf(request, readCertificateRequest))
			.filter((request) => request !== undefined);
	} catch (error) {
		if (error instanceof KubeError && error.httpStatus === 403) return [];
		throw error;
	}
}

/** Approves a kubelet's request; the cluster's own controller manager signs it then. */
export async function approveServing(client: KubeClient, name: string): Promise<void> {
	const approved = {
		type: "Approved",
		status: "True",
		reason: "HostKnown",
		message: "The name and the addresses are those of the host, as its agent tells them.",
	};
	try {
		await client.patch(
			certificateSigningRequests,
			{ name },
			{ status: { conditions: [approved] } },
			{ subresource: "approval" },
		);
	} catch (error) {
		// The kubelet asks again, under another name.
		if (!(error instanceof KubeError && error.httpStatus === 404)) throw error;
	}
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

/**
 * Cordons a node and asks for the eviction of its pods; with `force`, deletes those that their budgets still hold. Tells whether
 * the drain begins now.
 */
export async function drain(
	client: KubeClient,
	node: string,
	{ force, now, signal }: { force: boolean; now: number; signal: AbortSignal },
): Promise<boolean> {
	const current = await client.find(nodes, node, undefined, { signal });
	if (current === undefined) return false;
	if (!current.spec?.unschedulable || !isDraining(current)) {
		// A node that a person has cordoned stays so afterwards.
		const cordoned = current.spec?.unschedulable && !isDraining(current) ? { [CORDONED]: "true" } : {};
		const started = current.metadata.annotations?.[DRAIN_STARTED] ?? new Date(now).toISOString();
		await client.patch(
			nodes,
			{ name: node },
			{ metadata: { annotations: { [DRAIN_STARTED]: started, ...cordoned } }, spec: { unschedulable: true } },
		);
	}
	const failures: unknown[] = [];
	for (const { metadata } of await evictable(client, node, signal)) {
		if (metadata.deletionTimestamp !== undefined) continue;
		const ref = { name: metadata.name, namespace: metadata.namespace };
		try {
			if (force) await client.delete(pods, ref);
			else {
				await client.request("POST", `/api/v1/namespaces/${ref.namespace}/pods/${ref.name}/eviction`, {
					body: { apiVersion: "policy/v1", kind: "Eviction", metadata: ref },
					// 429 is a PodDisruptionBudget that says not yet: it is asked again at the next look, and the deadline ends it.
					retryThrottled: false,
					signal,
				});
			}
		} catch (error) {
			signal.throwIfAborted();
			// One that can't be evicted, since two budgets hold it (500) or a webhook refuses, must not keep the others from going.
			if (!(error instanceof KubeError && (error.httpStatus === 404 || error.httpStatus === 429))) failures.push(error);
		}
	}
	const [first] = failures;
	if (first !== undefined) throw first;
	return !isDraining(current);
}

/** Ends a drain: the node takes pods again, unless a person had cordoned it before. */
export async function uncordon(client: KubeClient, node: string): Promise<void> {
	const current = await client.find(nodes, node);
	if (current === undefined) return;
	const stays = current.metadata.annotations?.[CORDONED] === "true";
	await client.patch(
		nodes,
		{ name: node },
		{
			metadata: { annotations: { [DRAIN_STARTED]: null, [CORDONED]: null } },
			...(stays ? {} : { spec: { unschedulable: null } }),
		},
	);
}

/** Takes a Node out of the cluster's API; its host has been reset already, or is gone for good. */
export async function deleteNode(client: KubeClient, node: string): Promise<void> {
	await client.delete(nodes, { name: node });
}

/** Writes a pool's labels and taints. A Node that has changed since is a conflict: Kubernetes writes taints there too. */
export async function markNode(
	client: KubeClient,
	node: string,
	{ labels, taints, pool, resourceVersion }: NodePatch,
): Promise<void> {
	await client.patch(
		nodes,
		{ name: node },
		{
			metadata: {
				labels,
				annotations: { [POOL]: JSON.stringify(pool) },
				...(resourceVersion === undefined ? {} : { resourceVersion }),
			},
			spec: { taints },
		},
	);
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
