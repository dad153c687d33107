import type { Region, RegionStatus } from "../../crds/region.ts";
import { type NewCondition, setConditions } from "../kube/conditions.ts";
import type { Observed, Step } from "./plan.ts";

/** The status of a region after what was observed and what its plan says. Pure. */
export function statusOf(region: Region, seen: Observed, step: Step): RegionStatus {
	const old = region.status ?? {};
	const { domain } = region.spec;
	const observedGeneration = region.metadata.generation ?? 0;
	const allReady = seen.components.length > 0 && seen.components.every(({ ready }) => ready);
	const { installed } = seen.release;
	// The version that runs is the new one only once all of it runs.
	const release =
		installed !== undefined && allReady && seen.helm.running === undefined ? installed.version : old.release;
	const ready = readiness(region, seen, step, allReady);
	const conditions = setConditions(
		old.conditions ?? [],
		[
			ready,
			{
				type: "Installed",
				...installation(seen),
			},
			componentsReady(seen, allReady),
			region.spec.paused
				? { type: "Paused", status: "True", reason: "Paused", message: "The operator changes nothing in this region." }
				: { type: "Paused", status: "False", reason: "Active", message: "The operator keeps this region as wanted." },
		].map((condition) => ({ ...condition, observedGeneration }) as NewCondition),
		() => seen.now,
	);
	const caDigest = seen.root.digest ?? old.caDigest;
	return {
		observedGeneration,
		phase: phaseOf(region, seen, ready.reason, old.release),
		...(release === undefined ? {} : { release }),
		namespace: `region-${region.metadata.name}`,
		endpoints: {
			console: `https://${domain}/`,
			api: `https://${domain}/api`,
			issuer: `https://${domain}/auth`,
			tunnel: `tunnel.${domain}:443`,
		},
		...(caDigest === undefined ? {} : { caDigest }),
		components: seen.components.map(({ name, version, ready: isReady, replicas, message }) => ({
			name,
			ready: isReady,
			...(version === undefined ? {} : { version }),
			...(replicas === undefined ? {} : { replicas }),
			...(message === undefined ? {} : { message }),
		})),
		hosts: count(seen.hosts),
		clusters: count(seen.clusters),
		conditions: [...conditions],
	};
}

function installation({ helm, release, wantedDigest }: Observed): Pick<NewCondition, "status" | "reason" | "message"> {
	if (helm.failure?.job === "upgrade" && helm.running === undefined && release.installed?.digest !== wantedDigest) {
		return { status: "False", reason: "HelmFailed", message: helm.failure.message };
	}
	if (release.installed === undefined) {
		return { status: "False", reason: "NotInstalled", message: "The chart is not installed yet." };
	}
	return release.installed.digest === wantedDigest
		? { status: "True", reason: "Installed", message: "What is installed is what is wanted." }
		: { status: "False", reason: "OutOfDate", message: "What is installed is not yet what is wanted." };
}

const count = (objects: readonly { readonly ready: boolean }[]) => ({
	total: objects.length,
	ready: objects.filter(({ ready }) => ready).length,
});

function readiness(region: Region, seen: Observed, step: Step, allReady: boolean): NewCondition {
	const not = (reason: string, message: string): NewCondition => ({ type: "Ready", status: "False", reason, message });
	if (step.do === "wait") return not(step.reason, step.message);
	if (region.metadata.deletionTimestamp !== undefined) return not("Deleting", "The region is being taken down.");
	const settled =
		step.do === "nothing" || (step.do === "helm-upgrade" && seen.release.installed?.digest === seen.wantedDigest);
	if (!settled) {
		return region.status?.release === undefined
			? not("Installing", "The region is being set up.")
			: not("Upgrading", "A change is being rolled out.");
	}
	if (!allReady) return not("ComponentsNotReady", notReady(seen));
	return { type: "Ready", status: "True", reason: "Ready", message: "All parts of the region run." };
}

const componentsReady = (seen: Observed, allReady: boolean): NewCondition =>
	allReady
		? { type: "ComponentsReady", status: "True", reason: "Ready", message: "All parts of the region run." }
		: { type: "ComponentsReady", status: "False", reason: "ComponentsNotReady", message: notReady(seen) };

function notReady({ components }: Observed): string {
	const waiting = components.filter(({ ready }) => !ready);
	if (components.length === 0) return "No part of the region is installed yet.";
	return `Not ready: ${waiting.map(({ name, message }) => (message === undefined ? name : `${name} (${message})`)).join(", ")}.`;
}

function phaseOf(
	region: Region,
	seen: Observed,
	reason: string,
	running: string | undefined,
): NonNullable<RegionStatus["phase"]> {
	if (region.metadata.deletionTimestamp !== undefined) return "Deleting";
	switch (reason) {
		case "Ready":
			return "Ready";
		case "Paused":
			return "Paused";
		case "DomainTaken":
		case "NamespaceTaken":
		case "ReleaseUnknown":
		case "SecretLost":
		case "HelmFailed":
			return "Failed";
		case "Upgrading":
			return "Upgrading";
		case "ComponentsNotReady":
			return running === undefined ? "Installing" : "Degraded";
		default:
			return seen.release.status === "none" && seen.namespace === "missing" ? "Pending" : "Installing";
	}
}
