import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import type { HostMeasurements } from "../../protocol/facts.ts";
import type { NewCondition } from "../kube/conditions.ts";

/** Label of a Host that names its failure domain; its Node bears it, too (kubernetes.io, Well-Known Labels). */
export const ZONE = "topology.kubernetes.io/zone";
/** Condition of a Cluster: how its control planes' hosts measure up to what etcd wants. */
export const PLACEMENT = "Placement";

/** p99 of `wal_fsync` under 10 ms (etcd's FAQ). Above the second a disk is worse than slow. */
const FSYNC_MS = [10, 50] as const;
/** etcd complains of peers whose clocks are further apart (rafthttp, "the clock difference against peer is too high"). */
const CLOCK_MS = 1_000;
/** A heartbeat is sent every 100 ms, which suits round trips up to half of that (etcd's tuning guide: 0.5 to 1.5 of the interval). */
const ROUND_TRIP_MS = [10, 50] as const;

/**
 * Hosts for a control plane. Control planes stay, whatever was measured since; those that leave already come last. Others are added
 * one by one: from the failure domain that has the fewest, there the one with the best evidence, then by name; the cluster's workers
 * only when no other is left. Pure.
 *
 * @param present control planes of the cluster that may stay.
 * @param candidates other hosts that may be taken.
 */
export function chooseControlPlanes(
	{ status }: Pick<Cluster, "status">,
	{ present, candidates, count }: { present: readonly Host[]; candidates: readonly Host[]; count: number },
): Host[] {
	const memberOf = ({ metadata }: Host) => status?.members?.find(({ host }) => host === metadata.name);
	const isLeaving = (host: Host) => memberOf(host)?.phase === "Leaving";
	const chosen: Host[] = [];
	const add = (from: readonly Host[], marks: readonly Mark[]) => {
		const left = new Set(from);
		while (chosen.length < count && left.size > 0) {
			const best = leastOf([...left], [inZone(chosen), ...marks]);
			chosen.push(best);
			left.delete(best);
		}
	};
	add(
		present.filter((host) => !isLeaving(host)),
		[],
	);
	add(present.filter(isLeaving), []);
	const kept = chosen.length;
	if (kept >= count) return chosen.sort(byName);
	const addresses = new Set(candidates.map(addressOf));
	for (const from of [
		candidates.filter((host) => memberOf(host) === undefined),
		candidates.filter((host) => memberOf(host) !== undefined),
	])
		add(from, [disk, clock, (host) => distance(host, chosen, addresses)]);
	// In a stable order: hosts are told of each other, and an order that changes would be news to them.
	return [...chosen.slice(0, kept).sort(byName), ...chosen.slice(kept).sort(byName)];
}

/** What speaks against a host; less is better. In classes, so that noise in the figures decides nothing. */
type Mark = (host: Host) => number;

/** The host with the least of the first mark, of those the one with the least of the next, and so on; at last by name. */
function leastOf(hosts: readonly Host[], marks: readonly Mark[]): Host {
	let left = hosts;
	for (const mark of marks) {
		const values = left.map(mark);
		const least = values.reduce((a, b) => Math.min(a, b));
		left = left.filter((_, index) => values[index] === least);
	}
	return left.reduce((best, one) => (byName(one, best) < 0 ? one : best));
}

const byName = (a: Host, b: Host): number => (a.metadata.name < b.metadata.name ? -1 : 1);

function inZone(chosen: readonly Host[]): Mark {
	const zones = chosen.map(zoneOf);
	return (host) => zones.filter((zone) => zone === zoneOf(host)).length;
}

/** The failure domain of a host. Those without a label are all in one. */
export const zoneOf = ({ metadata }: Host): string => metadata.labels?.[ZONE] ?? "";

/** Not to know the disk is better than to know that it is slow. */
const disk: Mark = (host) => {
	const { fsync } = measuredOf(host);
	return fsync === undefined ? 0.5 : classOf(fsync.p99Ms, FSYNC_MS);
};

const clock: Mark = (host) => {
	const measured = measuredOf(host).clock;
	return measured !== undefined && isSkewed(measured) ? 1 : 0;
};

/** How far a host is from the ones that were chosen; for the first one, from most of those that could be. */
function distance(host: Host, chosen: readonly Host[], candidates: ReadonlySet<string>): number {
	if (chosen.length > 0) return Math.max(...chosen.map((other) => classOf(roundTrip(host, other) ?? 0, ROUND_TRIP_MS)));
	const trips = (measuredOf(host).peers?.roundTrips ?? [])
		.filter(({ address }) => candidates.has(address))
		.map(({ ms }) => ms ?? Number.POSITIVE_INFINITY)
		.sort((a, b) => a - b);
	return classOf(trips[Math.floor((trips.length - 1) / 2)] ?? 0, ROUND_TRIP_MS);
}

const classOf = (value: number, limits: readonly number[]): number => limits.filter((limit) => value >= limit).length;

/** Milliseconds between two hosts as either has measured it; infinite when nothing answered, undefined when nobody has tried. */
function roundTrip(a: Host, b: Host): number | undefined {
	const from = (one: Host, other: Host) =>
		measuredOf(one).peers?.roundTrips.find(({ address }) => address === addressOf(other));
	const tried = [from(a, b), from(b, a)].filter((trip) => trip !== undefined);
	return tried.length === 0 ? undefined : Math.min(...tried.map(({ ms }) => ms ?? Number.POSITIVE_INFINITY));
}

const measuredOf = ({ status }: Host): HostMeasurements => status?.facts?.measured ?? {};
const addressOf = ({ status }: Host): string => status?.facts?.primaryAddress ?? "";
/** Whether a clock is surely off by more than etcd takes. */
const isSkewed = ({ offsetMs, uncertaintyMs }: NonNullable<HostMeasurements["clock"]>): boolean =>
	Math.abs(offsetMs) - uncertaintyMs > CLOCK_MS;

/** What was measured on the hosts of a control plane that etcd does not want, each a sentence with the figures. Pure. */
export function findingsOn(hosts: readonly Host[]): string[] {
	const alone = hosts.flatMap((host) => {
		const { name } = host.metadata;
		const { fsync, clock } = measuredOf(host);
		const found: string[] = [];
		if (fsync !== undefined && fsync.p99Ms >= FSYNC_MS[0])
			found.push(`${name}: fdatasync p99 ${figure(fsync.p99Ms)} ms; etcd wants under ${FSYNC_MS[0]} ms.`);
		if (clock !== undefined && isSkewed(clock)) {
			const off = `${figure(Math.abs(clock.offsetMs) / 1000)} s ${clock.offsetMs < 0 ? "behind" : "ahead of"} the region's`;
			found.push(
				`${name}: its clock is ${off} (± ${figure(clock.uncertaintyMs / 1000)} s); etcd wants its members within ${CLOCK_MS / 1000} s.`,
			);
		}
		return found;
	});
	const apart = hosts.flatMap((a, index) =>
		hosts.slice(index + 1).flatMap((b) => {
			const ms = roundTrip(a, b);
			// What did not answer when it was measured says nothing of now: the members themselves do.
			if (ms === undefined || ms < ROUND_TRIP_MS[1] || ms === Number.POSITIVE_INFINITY) return [];
			return [
				`${a.metadata.name} and ${b.metadata.name}: a round trip of ${figure(ms)} ms; etcd's heartbeat suits up to ${ROUND_TRIP_MS[1]} ms.`,
			];
		}),
	);
	return [...alone, ...apart];
}

/** Two significant digits and no false precision: 38, 4.2, 0.31. */
const figure = (value: number): string =>
	value >= 10 ? String(Math.round(value)) : String(Number(value.toPrecision(2)));

/** What people should know of where etcd runs. It keeps nothing from being done. Pure. */
export function placementCondition(controlPlanes: readonly Host[]): NewCondition {
	const findings = findingsOn(controlPlanes);
	if (findings.length > 0) {
		const message = `${findings.join(" ")} The cluster works, and will be slow or change its leader under load: mend the host, or choose another (gp host get NAME has the figures).`;
		return { type: PLACEMENT, status: "False", reason: "BelowAdvice", message };
	}
	const unknown = controlPlanes.filter((host) => measuredOf(host).fsync === undefined);
	if (unknown.length > 0) {
		const message = `Not measured yet: ${unknown.map(({ metadata }) => metadata.name).join(", ")}.`;
		return { type: PLACEMENT, status: "Unknown", reason: "NotMeasured", message };
	}
	return {
		type: PLACEMENT,
		status: "True",
		reason: "AsAdvised",
		message: "The control planes' hosts are what etcd wants.",
	};
}
