import { isDeepStrictEqual } from "node:util";
import { EPOCH, type Host, type HostStatus } from "../../crds/host.ts";
import { type ControllerDeps, regionOf } from "../deps.ts";
import { addFinalizer, removeFinalizer } from "../kube/apply.ts";
import { getCondition, setCondition } from "../kube/conditions.ts";
import { Controller, type Result } from "../kube/controller.ts";
import { hosts, regions } from "../kube/resources.ts";
import { givenUp, leftBehindOn, mayBeRemoved, summarize } from "./summary.ts";

const FINALIZER = "groundplane.io/host";
const MANAGER = "groundplane-host";
/** How soon a host that is being deleted is looked at again. */
const DELETING_MS = 5_000;
/** How long a host that has just enrolled may take to dial in before it is said that it did not. */
const ARRIVING_MS = 10_000;

/** Sums up each host in `Ready` and `phase`, and lets a deleted one go when it is clean. */
export function createHostController(deps: ControllerDeps): Controller<Host> {
	const { client, informers, events, now } = deps;

	async function reconcile(key: string, signal: AbortSignal): Promise<Result | undefined> {
		const host = informers.hosts.get(key);
		if (host === undefined) return undefined;
		const region = informers.regions.get(regionOf(host.metadata.namespace) ?? "");
		if (region?.spec.paused === true) return { requeueAfter: 60_000 };

		// A host that has just enrolled dials in at once: its first status waits for that, which saves a write of each.
		const age = now() - Date.parse(host.metadata.creationTimestamp ?? "");
		const isArriving = host.status?.connection === undefined && age >= 0 && age < ARRIVING_MS;
		if (!isArriving) await writeStatus(host, signal);
		if (host.metadata.deletionTimestamp !== undefined) {
			const verdict = mayBeRemoved(host, region?.spec.hosts.forceRemoveAfter ?? "10m", now());
			if (verdict === "no") return { requeueAfter: DELETING_MS };
			if (verdict === "forced") {
				const note = givenUp(host);
				events.event(hosts, host, "Warning", "LeftBehind", note);
				// What is said of the host goes with the region's namespace.
				if (region?.metadata.deletionTimestamp !== undefined)
					events.event(regions, region, "Warning", "LeftBehind", note);
			}
			await removeFinalizer(client, hosts, host, FINALIZER, signal);
			return undefined;
		}
		// A new host gets the epoch of whoever looks after it first; from then on it comes with what is wanted of the host.
		const epoch = host.metadata.annotations?.[EPOCH] ?? String(deps.epoch);
		await addFinalizer(client, hosts, host, FINALIZER, signal, { [EPOCH]: epoch });
		return isArriving ? { requeueAfter: ARRIVING_MS } : undefined;
	}

	async function writeStatus(host: Host, signal: AbortSignal): Promise<void> {
		const { phase, ready } = summarize(host);
		const observedGeneration = host.metadata.generation ?? 0;
		const old = getCondition(host.status?.conditions, "Ready");
		const [condition] = setCondition(old === undefined ? [] : [old], ready, now);
		if (condition === undefined) return;
		const leftBehind = leftBehindOn(host, now());
		if (
			condition === old &&
			host.status?.phase === phase &&
			host.status.observedGeneration === observedGeneration &&
			isDeepStrictEqual(host.status.leftBehind ?? [], leftBehind)
		)
			return;
		const { name, namespace, resourceVersion } = host.metadata;
		const status: HostStatus = {
			observedGeneration,
			phase,
			conditions: [condition],
			...(leftBehind.length > 0 ? { leftBehind } : {}),
		};
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
		const [first] = leftBehind;
		if (first !== undefined && host.status?.leftBehind === undefined) {
			const of = first.cluster === undefined ? "" : ` of cluster ${first.cluster}`;
			events.event(hosts, host, "Warning", "LeftBehind", `Role ${first.role}${of}: ${first.message}`);
		}
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

	return new Controller({ name: "host", primary: informers.hosts, reconcile, concurrency: 4, log: deps.log });
}
