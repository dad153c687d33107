import type { Host, HostStatus } from "../../crds/host.ts";
import { type ControllerDeps, regionOf } from "../deps.ts";
import { addFinalizer, removeFinalizer } from "../kube/apply.ts";
import { getCondition, setCondition } from "../kube/conditions.ts";
import { Controller, type Result, type Runnable } from "../kube/controller.ts";
import { hosts } from "../kube/resources.ts";
import { mayBeRemoved, summarize } from "./summary.ts";

const FINALIZER = "groundplane.io/host";
const MANAGER = "groundplane-host";
/** The operator's election epoch: it goes into every signed document, and hosts refuse older ones. */
const EPOCH = "groundplane.io/epoch";
/** How soon a host that is being deleted is looked at again. */
const DELETING_MS = 5_000;

/** Sums up each host in `Ready` and `phase`, and lets a deleted one go when it is clean. */
export function createHostController(deps: ControllerDeps): Runnable {
	const { client, informers, events, now } = deps;

	async function reconcile(key: string, signal: AbortSignal): Promise<Result | undefined> {
		const host = informers.hosts.get(key);
		if (host === undefined) return undefined;
		const region = informers.regions.get(regionOf(host.metadata.namespace) ?? "");
		if (region?.spec.paused === true) return { requeueAfter: 60_000 };

		await writeStatus(host, signal);
		if (host.metadata.deletionTimestamp !== undefined) {
			const verdict = mayBeRemoved(host, region?.spec.hosts.forceRemoveAfter ?? "10m", now());
			if (verdict === "no") return { requeueAfter: DELETING_MS };
			if (verdict === "forced") {
				events.event(
					hosts,
					host,
					"Warning",
					"LeftBehind",
					"The host could not be reached, so its roles were not undone: install its system anew before it is used again.",
				);
			}
			await removeFinalizer(client, hosts, host, FINALIZER, signal);
			return undefined;
		}
		await addFinalizer(client, hosts, host, FINALIZER, signal);
		await writeEpoch(host, signal);
		return undefined;
	}

	async function writeStatus(host: Host, signal: AbortSignal): Promise<void> {
		const { phase, ready } = summarize(host);
		const observedGeneration = host.metadata.generation ?? 0;
		const old = getCondition(host.status?.conditions, "Ready");
		const [condition] = setCondition(old === undefined ? [] : [old], ready, now);
		if (condition === undefined) return;
		if (condition === old && host.status?.phase === phase && host.status.observedGeneration === observedGeneration)
			return;
		const { name, namespace, resourceVersion } = host.metadata;
		const status: HostStatus = { observedGeneration, phase, conditions: [condition] };
		await client.apply(
			hosts,
			{
				// The status subresource ignores a uid: only this keeps an old status from landing on a new object of that name.
				metadata: {
					name,
					...(namespace === undefined ? {} : { namespace }),
					...(resourceVersion === undefined ? {} : { resourceVersion }),
				},
				status,
			},
			{ manager: MANAGER, force: true, subresource: "status", signal },
		);
		if (host.status?.phase !== phase) {
			events.event(
				hosts,
				host,
				phase === "Failed" || phase === "Disconnected" ? "Warning" : "Normal",
				phase,
				ready.message,
			);
		}
	}

	async function writeEpoch(host: Host, signal: AbortSignal): Promise<void> {
		const epoch = String(deps.epoch);
		if (host.metadata.annotations?.[EPOCH] === epoch) return;
		const { name, namespace, uid } = host.metadata;
		await client.apply(
			hosts,
			{
				metadata: {
					name,
					...(namespace === undefined ? {} : { namespace }),
					...(uid === undefined ? {} : { uid }),
					annotations: { [EPOCH]: epoch },
				},
			},
			{ manager: MANAGER, force: true, signal },
		);
	}

	return new Controller({ name: "host", primary: informers.hosts, reconcile, concurrency: 4, log: deps.log });
}
