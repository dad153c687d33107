import type { Region } from "../../crds/region.ts";
import { type ControllerDeps, regionNamespace, regionOf } from "../deps.ts";
import { addFinalizer, applyStatus, removeFinalizer } from "../kube/apply.ts";
import { KubeError } from "../kube/client.ts";
import { getCondition, isTrue } from "../kube/conditions.ts";
import { Controller, type Result, type Runnable, watch, watchChanges } from "../kube/controller.ts";
import { Reflector } from "../kube/reflector.ts";
import {
	clusters,
	deployments,
	hosts,
	type KubeObject,
	keyOf,
	limitRanges,
	namespaces,
	persistentVolumeClaims,
	pods,
	type Resource,
	regions,
	resourceQuotas,
	roleBindings,
	secrets,
	services,
	statefulSets,
	type Workload,
} from "../kube/resources.ts";
import { chartDigest, DIGEST_LABEL, Helm, RELEASE, VERSION_LABEL } from "./helm.ts";
import { type Component, FINALIZER, type Observed, plan, type Step } from "./plan.ts";
import { RegionSecrets } from "./secrets.ts";
import { statusOf } from "./status.ts";
import {
	components as componentNames,
	digest,
	edgeServices,
	frame,
	operatorTlsSecret,
	REGION_LABEL,
	rootSecret,
	values,
} from "./wanted.ts";

const MANAGER = "groundplane-region";
/** A plan has some ten steps; more in one go means that a step does not do what it says. */
const MAX_STEPS = 30;
/** The frame and the edge's routes are written again after this long, whether or not they seem right. */
const FRAME_MS = 600_000;
/** Rights that were bound just now take a moment to be seen. */
const RIGHTS_MS = 300;
const LOOK_AGAIN_MS = 5_000;
/** After helm the workloads' new generations take a moment to come by the watch. */
const SETTLE_MS = 15_000;
/** Beyond its grace period a pod takes a moment to be taken down. */
const STOP_SLACK_MS = 5_000;
const noRelease: Observed["release"] = { status: "none" };

/** Steps after which everything is looked at again at once. */
const quick: ReadonlySet<Step["do"]> = new Set([
	"add-finalizer",
	"apply-frame",
	"mint-root",
	"mint",
	"record",
	"apply-edge",
	"clear-pending-release",
]);

const frameResources: Record<string, Resource> = {
	Namespace: namespaces,
	RoleBinding: roleBindings,
	ResourceQuota: resourceQuotas,
	LimitRange: limitRanges,
};

/** Makes regions what their specs say: observe, plan, do one step, observe again. */
export async function createRegionController(deps: ControllerDeps): Promise<Runnable> {
	const { client, config, informers, events, log, now, random } = deps;
	const chart = await chartDigest(config.chart);
	const helm = new Helm({
		helm: config.helm,
		workDir: config.workDir,
		chart: config.chart,
		timeout: config.helmTimeout,
		log,
		now,
		random,
	});
	const regionSecrets = new RegionSecrets(client, config, now);
	const workloads = [deployments, statefulSets].map(
		(resource) =>
			new Reflector<Workload>({ client, resource, labelSelector: REGION_LABEL, transform: slim, log, random }),
	);
	/** By region: what was written last and when, so that steady state costs no writes. */
	const written = new Map<string, { frame?: Written; edge?: Written }>();
	/** By region: generations of the workloads as helm left them. */
	const generations = new Map<string, Map<string, number>>();

	async function reconcile(name: string, signal: AbortSignal): Promise<Result> {
		for (let steps = 0; steps < MAX_STEPS; steps++) {
			// The first look takes what the watch knows; after a step of our own only the API server knows enough.
			const region =
				steps === 0 ? informers.regions.get(name) : await client.find(regions, name, undefined, { signal });
			if (region === undefined) {
				forget(name);
				return {};
			}
			const { seen, chartValues } = await observe(region, signal);
			const step = plan(region, seen);
			await writeStatus(region, seen, step, signal);
			if (step.do === "nothing") return { requeueAfter: FRAME_MS };
			if (step.do === "wait") return { requeueAfter: step.again ?? FRAME_MS };
			log.info({ region: name, step: step.do }, "step");
			const pause = await take(step, region, seen, chartValues, signal);
			if (pause !== undefined) return { requeueAfter: pause };
			if (step.do === "remove-finalizer") {
				forget(name);
				return {};
			}
		}
		return { requeueAfter: LOOK_AGAIN_MS };
	}

	/** Does one step. Answers after how long to look again, or nothing to look at once. */
	async function take(
		step: Step,
		region: Region,
		seen: Observed,
		chartValues: Record<string, unknown>,
		signal: AbortSignal,
	): Promise<number | undefined> {
		const { name } = region.metadata;
		const namespace = regionNamespace(name);
		switch (step.do) {
			case "nothing":
			case "wait":
				return undefined;
			case "add-finalizer":
				await addFinalizer(client, regions, region, FINALIZER, signal);
				return undefined;
			case "apply-frame": {
				const wanted = frame(region, config);
				// First the namespace and the rights in it, which take a moment to be seen; then what needs the rights.
				const fresh = seen.namespace === "missing";
				for (const object of fresh ? wanted.slice(0, 2) : wanted) {
					const resource = frameResources[object.kind as string];
					if (resource !== undefined) await client.apply(resource, object, { manager: MANAGER, force: true, signal });
				}
				if (fresh) return RIGHTS_MS;
				note(name, "frame", wanted);
				return undefined;
			}
			case "mint-root":
				await regionSecrets.mintRoot(region, signal);
				return undefined;
			case "mint":
				await regionSecrets.mint(region, step.secrets, signal);
				events.event(regions, region, "Normal", "Minted", `Made ${step.secrets.join(", ")}.`);
				return undefined;
			case "record":
				await regionSecrets.record(region, step.secrets, signal);
				return undefined;
			case "apply-edge": {
				const objects = edgeServices(region, config);
				for (const object of objects) await client.apply(services, object, { manager: MANAGER, force: true, signal });
				note(name, "edge", objects);
				return undefined;
			}
			case "clear-pending-release":
				await clearPendingRelease(namespace, signal);
				return undefined;
			case "helm-upgrade":
				log.info({ region: name, why: step.why, rollback: step.rollback }, "running helm");
				helm.upgrade(name, namespace, chartValues, {
					digest: seen.wantedDigest,
					version: config.version,
					rollback: step.rollback,
				});
				return LOOK_AGAIN_MS;
			case "helm-uninstall":
				helm.uninstall(name, namespace);
				return LOOK_AGAIN_MS;
			case "delete-clusters":
				for (const cluster of step.names) await client.delete(clusters, { name: cluster, namespace }, { signal });
				return undefined;
			case "delete-hosts":
				for (const host of step.names) await client.delete(hosts, { name: host, namespace }, { signal });
				return undefined;
			case "delete-claims":
				for (const claim of step.names)
					await client.delete(persistentVolumeClaims, { name: claim, namespace }, { signal });
				return undefined;
			case "delete-namespace":
				await client.delete(namespaces, { name: namespace }, { signal });
				return undefined;
			case "delete-core":
				await deleteCore(name, signal);
				return undefined;
			case "remove-finalizer":
				await removeFinalizer(client, regions, region, FINALIZER, signal);
				return undefined;
		}
	}

	async function observe(
		region: Region,
		signal: AbortSignal,
	): Promise<{ seen: Observed; chartValues: Record<string, unknown> }> {
		const { name } = region.metadata;
		const namespace = regionNamespace(name);
		const deleting = region.metadata.deletionTimestamp !== undefined;
		const found = await client.find(namespaces, namespace, undefined, { signal });
		const state =
			found === undefined
				? "missing"
				: found.metadata.labels?.[REGION_LABEL] !== name
					? "foreign"
					: found.metadata.deletionTimestamp !== undefined
						? "terminating"
						: "ours";
		// Rights in the namespace come with the frame: before that there is nothing to see, and nothing that may be seen.
		const framed = state === "ours" && isCurrent(name, "frame", frame(region, config));
		const untouched = region.spec.paused || deleting;
		const readable = state === "ours" && (framed || untouched);
		const orForbidden =
			<T>(fallback: T) =>
			(error: unknown): T => {
				if (untouched && error instanceof KubeError && error.httpStatus === 403) return fallback;
				throw error;
			};
		const [secretsSeen, release, members] = await Promise.all([
			readable && !deleting ? regionSecrets.observe(region, signal).catch(orForbidden(undefined)) : undefined,
			readable ? observeRelease(namespace, signal).catch(orForbidden(noRelease)) : noRelease,
			observeMembers(region, state, signal),
		]);
		const chartValues = values(region, config, secretsSeen?.checksums ?? {});
		const wantedDigest = digest([chart, config.version, chartValues]);
		const failure = helm.failure(name);
		const running = helm.running(name);
		const parts = observeComponents(namespace);
		const domainTakenBy = olderWithSameDomain(region);
		const seen: Observed = {
			now: now(),
			operatorVersion: config.version,
			...(domainTakenBy === undefined ? {} : { domainTakenBy }),
			namespace: state,
			frameCurrent: framed,
			root: secretsSeen?.root ?? { present: true },
			secretsToMint: secretsSeen?.toMint ?? [],
			secretsLost: secretsSeen?.lost ?? [],
			secretsToRecord: secretsSeen?.toRecord ?? [],
			edgeCurrent: isCurrent(name, "edge", edgeServices(region, config)),
			release,
			helm: { ...(running === undefined ? {} : { running }), ...(failure === undefined ? {} : { failure }) },
			wantedDigest,
			components: release.status === "none" && parts.length === 0 ? [] : withMissing(parts.map(componentOf)),
			drifted: drifted(name, parts, release.appliedAt ?? 0),
			...members,
			...(readable && deleting && release.status === "none"
				? await observeLeftovers(name, namespace, signal)
				: { claims: [], stopping: 0 }),
			leftInCore: deleting ? await leftInCore(name, signal) : 0,
		};
		return { seen, chartValues };
	}

	/** What helm has recorded, by the labels of its Secrets alone: their content is big. */
	async function observeRelease(namespace: string, signal: AbortSignal): Promise<Observed["release"]> {
		const { items } = await client.request<{ items: KubeObject[] | null }>(
			"GET",
			`/api/v1/namespaces/${namespace}/secrets`,
			{
				query: { labelSelector: `owner=helm,name=${RELEASE}` },
				headers: { accept: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1" },
				signal,
			},
		);
		// An empty list of this kind is null.
		const revisions = (items ?? [])
			.map(({ metadata: { labels = {} } }) => labels)
			.sort((a, b) => Number(b.version) - Number(a.version));
		const [newest] = revisions;
		if (newest === undefined) return { status: "none" };
		const installed = revisions.find((labels) => labels.status === "deployed");
		const { status = "", modifiedAt, createdAt } = newest;
		return {
			status:
				status.startsWith("pending") || status === "uninstalling"
					? "pending"
					: status === "deployed"
						? "deployed"
						: "failed",
			...(newest[DIGEST_LABEL] === undefined ? {} : { digest: newest[DIGEST_LABEL] }),
			appliedAt: Number(modifiedAt ?? createdAt ?? 0) * 1000,
			...(installed === undefined
				? {}
				: { installed: { digest: installed[DIGEST_LABEL] ?? "", version: installed[VERSION_LABEL] ?? "" } }),
		};
	}

	/** Clusters and hosts of a region. Before its namespace is deleted the API server is asked, not our copy. */
	async function observeMembers(
		region: Region,
		state: Observed["namespace"],
		signal: AbortSignal,
	): Promise<Pick<Observed, "clusters" | "hosts">> {
		const namespace = regionNamespace(region.metadata.name);
		if (state === "foreign") return { clusters: [], hosts: [] };
		const live = region.metadata.deletionTimestamp !== undefined && state !== "missing";
		const [someClusters, someHosts] = live
			? await Promise.all([
					client.listAll(clusters, { namespace, signal }).then(({ items }) => items),
					client.listAll(hosts, { namespace, signal }).then(({ items }) => items),
				])
			: [informers.clusters.list({ namespace }), informers.hosts.list({ namespace })];
		const member = ({ metadata, status }: KubeObject & { status?: { conditions?: never[] } }) => ({
			name: metadata.name,
			ready: isTrue(status?.conditions, "Ready"),
			deleting: metadata.deletionTimestamp !== undefined,
		});
		return { clusters: someClusters.map((c) => member(c as never)), hosts: someHosts.map((h) => member(h as never)) };
	}

	const observeComponents = (namespace: string): Workload[] =>
		workloads.flatMap((reflector) => reflector.list({ namespace }));

	/** Whether a workload is not as helm left it. The first look after a start counts as how helm left it. */
	function drifted(name: string, parts: readonly Workload[], appliedAt: number): boolean {
		const current = new Map(parts.map((part) => [keyOf(part), part.metadata.generation ?? 0]));
		const known = generations.get(name);
		if (known === undefined || helm.running(name) !== undefined || now() - appliedAt < SETTLE_MS) {
			generations.set(name, current);
			return false;
		}
		return [...current].some(([key, generation]) => generation !== (known.get(key) ?? generation));
	}

	/** What helm left: volumes, and pods that are yet to stop. One that is past its time is not waited for: its node may be gone. */
	async function observeLeftovers(
		name: string,
		namespace: string,
		signal: AbortSignal,
	): Promise<Pick<Observed, "claims" | "stopping">> {
		const ofRegion = { namespace, labelSelector: `${REGION_LABEL}=${name}`, signal };
		const [volumes, running] = await Promise.all([
			client.list(persistentVolumeClaims, ofRegion),
			client.list(pods, ofRegion),
		]);
		const claims = volumes.items.filter(({ metadata }) => metadata.deletionTimestamp === undefined);
		// The time of deletion is when the grace period ends (metav1.ObjectMeta).
		const stopping = running.items.filter(
			({ metadata: { deletionTimestamp } }) =>
				deletionTimestamp === undefined || Date.parse(deletionTimestamp) + STOP_SLACK_MS > now(),
		);
		return { claims: claims.map(({ metadata }) => metadata.name), stopping: stopping.length };
	}

	async function leftInCore(name: string, signal: AbortSignal): Promise<number> {
		const { namespace } = config;
		const labelSelector = `${REGION_LABEL}=${name}`;
		const [a, b] = await Promise.all([
			client.list(secrets, { namespace, labelSelector, signal }),
			client.list(services, { namespace, labelSelector, signal }),
		]);
		return a.items.length + b.items.length;
	}

	/** Removes the region's keys and routes from the core namespace. */
	async function deleteCore(name: string, signal: AbortSignal): Promise<void> {
		const { namespace } = config;
		const labelSelector = `${REGION_LABEL}=${name}`;
		for (const secret of [rootSecret(name), operatorTlsSecret(name)]) {
			await client.delete(secrets, { name: secret, namespace }, { signal });
		}
		const { items } = await client.list(services, { namespace, labelSelector, signal });
		for (const { metadata } of items) await client.delete(services, { name: metadata.name, namespace }, { signal });
	}

	/**
	 * A helm that ended in the middle leaves a revision that blocks the next one. Only its record is removed: its objects are taken
	 * over by the next run, because they carry the release's name.
	 */
	async function clearPendingRelease(namespace: string, signal: AbortSignal): Promise<void> {
		const { items } = await client.list(secrets, {
			namespace,
			labelSelector: `owner=helm,name=${RELEASE},status in (pending-install,pending-upgrade,pending-rollback,uninstalling)`,
			signal,
		});
		for (const { metadata } of items) {
			log.warn({ namespace, revision: metadata.name }, "clearing a helm revision that was left in the middle");
			await client.delete(secrets, { name: metadata.name, namespace }, { uid: metadata.uid, signal });
		}
	}

	function olderWithSameDomain(region: Region): string | undefined {
		const age = ({ metadata }: Region) => `${metadata.creationTimestamp ?? ""} ${metadata.name}`;
		return informers.regions
			.list()
			.filter((other) => other.metadata.uid !== region.metadata.uid && other.spec.domain === region.spec.domain)
			.filter((other) => age(other) < age(region))
			.map(({ metadata }) => metadata.name)
			.sort()[0];
	}

	async function writeStatus(region: Region, seen: Observed, step: Step, signal: AbortSignal): Promise<void> {
		// The first one would be written over, the last one is gone with its object.
		if (step.do === "add-finalizer" || step.do === "remove-finalizer") return;
		// On the way to a step that lasts there is nothing to tell, and not everything was looked at.
		if (quick.has(step.do) && region.status?.phase !== undefined) return;
		const status = statusOf(region, seen, step);
		await applyStatus(client, regions, region, status, MANAGER, signal);
		const before = getCondition(region.status?.conditions, "Ready");
		const after = getCondition(status.conditions, "Ready");
		if (after !== undefined && (before?.reason !== after.reason || before.status !== after.status)) {
			const bad = ["DomainTaken", "NamespaceTaken", "ReleaseUnknown", "SecretLost", "HelmFailed"].includes(
				after.reason,
			);
			events.event(regions, region, bad ? "Warning" : "Normal", after.reason, after.message);
		}
	}

	function note(name: string, what: "frame" | "edge", objects: unknown): void {
		written.set(name, { ...written.get(name), [what]: { digest: digest(objects), at: now() } });
	}

	function isCurrent(name: string, what: "frame" | "edge", objects: unknown): boolean {
		const last = written.get(name)?.[what];
		return last !== undefined && last.digest === digest(objects) && now() - last.at < FRAME_MS;
	}

	function forget(name: string): void {
		written.delete(name);
		generations.delete(name);
		helm.forget(name);
	}

	const ofNamespace = ({ metadata }: KubeObject): string[] => {
		const region = regionOf(metadata.namespace);
		return region === undefined ? [] : [region];
	};
	const controller = new Controller({
		name: "region",
		primary: informers.regions,
		watches: [
			// A region that leaves may free a domain that others wait for.
			watch(informers.regions, (region) =>
				informers.regions
					.list()
					.filter((other) => other.spec.domain === region.spec.domain)
					.map((other) => other.metadata.name),
			),
			...workloads.map((reflector) => watch(reflector, ofNamespace)),
			...[informers.hosts, informers.clusters].map((reflector) =>
				watchChanges(
					reflector as unknown as Reflector<KubeObject & { status?: { conditions?: never[] } }>,
					({ type, object, previous }) => {
						// Regions count members: what else changes in them is no news.
						const same =
							type === "updated" &&
							isTrue(previous?.status?.conditions, "Ready") === isTrue(object.status?.conditions, "Ready");
						return same ? [] : ofNamespace(object);
					},
				),
			),
		],
		concurrency: 4,
		reconcile,
		log,
		random,
	});
	helm.onEnd = (region) => {
		generations.delete(region);
		controller.enqueue(region);
	};
	return {
		name: controller.name,
		async run(signal) {
			try {
				await Promise.all([...workloads.map((reflector) => reflector.run(signal)), controller.run(signal)]);
			} finally {
				await helm.stop();
			}
		},
	};
}

interface Written {
	digest: string;
	at: number;
}

/** Keeps what readiness needs: a workload's spec is big. */
function slim(workload: Workload): Workload {
	const { name, namespace, generation, resourceVersion, labels } = workload.metadata;
	const containers = workload.spec?.template?.spec?.containers?.map(({ name: container, image }) => ({
		name: container,
		...(image === undefined ? {} : { image }),
	}));
	return {
		metadata: {
			name,
			...(namespace === undefined ? {} : { namespace }),
			...(generation === undefined ? {} : { generation }),
			...(resourceVersion === undefined ? {} : { resourceVersion }),
			...(labels === undefined ? {} : { labels }),
		},
		spec: {
			...(workload.spec?.replicas === undefined ? {} : { replicas: workload.spec.replicas }),
			...(containers === undefined ? {} : { template: { spec: { containers } } }),
		},
		...(workload.status === undefined ? {} : { status: workload.status }),
	};
}

/** Readiness of a workload: all replicas of the newest generation run. */
export function componentOf({ metadata, spec, status }: Workload): Component {
	const wanted = spec?.replicas ?? 1;
	const ready = status?.readyReplicas ?? 0;
	const observed = (status?.observedGeneration ?? 0) >= (metadata.generation ?? 0);
	const updated = status?.updatedReplicas ?? 0;
	const image = spec?.template?.spec?.containers?.[0]?.image;
	const version = image === undefined ? undefined : /:([^:/@]+)(@.*)?$/.exec(image)?.[1];
	const isReady = observed && ready >= wanted && updated >= wanted;
	const trouble = status?.conditions?.find(
		(c) => (c.type === "ReplicaFailure" && c.status === "True") || (c.type === "Progressing" && c.status === "False"),
	);
	return {
		name: metadata.labels?.["app.kubernetes.io/name"] ?? metadata.name,
		ready: isReady,
		replicas: `${ready}/${wanted}`,
		...(version === undefined ? {} : { version }),
		...(isReady ? {} : { message: trouble?.message ?? `${ready} of ${wanted} ready` }),
	};
}

/** The parts that a region has, in the order of the platform, with those that are not there. */
export function withMissing(found: readonly Component[]): Component[] {
	const missing = componentNames
		.filter((name) => !found.some((component) => component.name === name))
		.map((name) => ({ name, ready: false, missing: true, message: "is missing" }));
	return [...found, ...missing].sort((a, b) => (a.name < b.name ? -1 : 1));
}
