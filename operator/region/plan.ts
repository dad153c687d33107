import type { Region } from "../../crds/region.ts";
import { isTrue } from "../kube/conditions.ts";

/** A workload of the region's chart, or the lack of one. */
export interface Component {
	readonly name: string;
	readonly version?: string;
	readonly ready: boolean;
	readonly missing?: boolean;
	/** Ready and wanted, such as `1/1`. */
	readonly replicas?: string;
	readonly message?: string;
}

/** Everything that a plan looks at. */
export interface Observed {
	/** Milliseconds since the epoch. */
	readonly now: number;
	/** Version of the platform that this operator can install. */
	readonly operatorVersion: string;
	/** An older region that has the same domain. */
	readonly domainTakenBy?: string;
	readonly namespace: "missing" | "ours" | "foreign" | "terminating";
	/** Quota, limits and rights in the namespace are as the spec wants them. */
	readonly frameCurrent: boolean;
	readonly root: { readonly present: boolean; readonly digest?: string };
	/** Secrets that are not there, and certificates that are past two thirds of their life. */
	readonly secretsToMint: readonly string[];
	/** Irreplaceable Secrets that were minted once and are gone. */
	readonly secretsLost: readonly string[];
	/** Irreplaceable Secrets that are there, but of which nobody noted yet that they were minted. */
	readonly secretsToRecord: readonly string[];
	readonly edgeCurrent: boolean;
	/** What helm says of its newest revision, and which one is deployed. */
	readonly release: {
		readonly status: "none" | "deployed" | "failed" | "pending";
		readonly digest?: string;
		/** When helm last wrote it, milliseconds since the epoch. */
		readonly appliedAt?: number;
		readonly installed?: { readonly digest: string; readonly version: string };
	};
	/** What this process has helm do. */
	readonly helm: {
		readonly running?: "upgrade" | "uninstall";
		readonly failure?: {
			readonly job: "upgrade" | "uninstall";
			readonly digest: string;
			readonly message: string;
			readonly retryAt: number;
		};
	};
	/** Digest of chart, values and secrets; what {@link Observed.release} should carry. */
	readonly wantedDigest: string;
	readonly components: readonly Component[];
	/** A workload was changed by somebody else since helm last applied it. */
	readonly drifted: boolean;
	readonly clusters: readonly { readonly name: string; readonly ready: boolean; readonly deleting: boolean }[];
	readonly hosts: readonly { readonly name: string; readonly ready: boolean; readonly deleting: boolean }[];
	/** Volumes of a region that goes, of which nobody has said yet that they go too: the chart keeps them. */
	readonly claims: readonly string[];
	/** Pods of the region that may still take their time to stop; looked at once helm has removed what they belong to. */
	readonly stopping: number;
	/** What of the region is left in the core namespace. */
	readonly leftInCore: number;
}

/** Why a region is not Ready; the closed list of its condition's reasons. */
export type Reason =
	| "Ready"
	| "Paused"
	| "DomainTaken"
	| "NamespaceTaken"
	| "NamespaceTerminating"
	| "ReleaseUnknown"
	| "SecretLost"
	| "Installing"
	| "Upgrading"
	| "HelmFailed"
	| "ComponentsNotReady"
	| "Deleting";

/** One step. Each is idempotent; after it everything is observed again. */
export type Step =
	| { readonly do: "nothing" }
	/** Nothing can be done until a person, or time, has changed something. `again` in milliseconds. */
	| { readonly do: "wait"; readonly reason: Reason; readonly message: string; readonly again?: number }
	| { readonly do: "add-finalizer" }
	| { readonly do: "apply-frame" }
	| { readonly do: "mint-root" }
	| { readonly do: "mint"; readonly secrets: readonly string[] }
	| { readonly do: "record"; readonly secrets: readonly string[] }
	| { readonly do: "apply-edge" }
	| { readonly do: "clear-pending-release" }
	| { readonly do: "helm-upgrade"; readonly rollback: boolean; readonly why: string }
	| { readonly do: "delete-clusters"; readonly names: readonly string[] }
	| { readonly do: "delete-hosts"; readonly names: readonly string[] }
	| { readonly do: "helm-uninstall" }
	| { readonly do: "delete-claims"; readonly names: readonly string[] }
	| { readonly do: "delete-namespace" }
	| { readonly do: "delete-core" }
	| { readonly do: "remove-finalizer" };

export const FINALIZER = "groundplane.io/region";

/** What somebody changed by hand in what is no workload is put back after this long. */
const REAPPLY_MS = 3_600_000;
/** A workload that is missing or was changed is put back at most this often. */
const REPAIR_MS = 300_000;
const LOOK_AGAIN_MS = 5_000;
/** What takes a few seconds and is told by no watch. */
const SOON_MS = 1_000;

const wait = (reason: Reason, message: string, again?: number): Step => ({
	do: "wait",
	reason,
	message,
	...(again === undefined ? {} : { again }),
});

/** The next step for a region. Pure. */
export function plan(region: Region, seen: Observed): Step {
	if (region.metadata.deletionTimestamp !== undefined) return planDeletion(region, seen);
	if (region.spec.paused) {
		return wait("Paused", "Nothing is changed in this region: set spec.paused to false to go on.");
	}
	if (seen.domainTakenBy !== undefined) {
		return wait(
			"DomainTaken",
			`Region ${seen.domainTakenBy} has the domain ${region.spec.domain} already: delete this region and make it with a domain of its own.`,
		);
	}
	if (!hasFinalizer(region)) return { do: "add-finalizer" };
	if (seen.namespace === "foreign") {
		return wait(
			"NamespaceTaken",
			`Namespace region-${region.metadata.name} exists and belongs to something else: delete it, or give the region another name.`,
			60_000,
		);
	}
	if (seen.namespace === "terminating") {
		return wait(
			"NamespaceTerminating",
			`Namespace region-${region.metadata.name} of an earlier region is still being deleted.`,
			LOOK_AGAIN_MS,
		);
	}
	if (seen.namespace === "missing" || !seen.frameCurrent) return { do: "apply-frame" };
	return planSecrets(region, seen) ?? planEdge(seen) ?? planRelease(region, seen);
}

function planSecrets(region: Region, seen: Observed): Step | undefined {
	if (!seen.root.present && region.status?.caDigest !== undefined) return lost(["the region's root CA"]);
	if (!seen.root.present) return { do: "mint-root" };
	if (seen.secretsLost.length > 0) return lost(seen.secretsLost.map((name) => `Secret ${name}`));
	if (seen.secretsToMint.length > 0) return { do: "mint", secrets: seen.secretsToMint };
	if (seen.secretsToRecord.length > 0) return { do: "record", secrets: seen.secretsToRecord };
	return undefined;
}

const lost = (what: readonly string[]): Step =>
	wait(
		"SecretLost",
		`${what.join(", ")}: gone, and a new one would not be trusted by the region's hosts and data. Restore it from a backup, or delete the region and make it again.`,
		60_000,
	);

const planEdge = (seen: Observed): Step | undefined => (seen.edgeCurrent ? undefined : { do: "apply-edge" });

function planRelease(region: Region, seen: Observed): Step {
	const { release, helm, now } = seen;
	const pinned = region.spec.release;
	if (pinned !== undefined && pinned !== seen.operatorVersion) {
		if (release.installed?.version === pinned) return { do: "nothing" };
		return wait(
			"ReleaseUnknown",
			`Release ${pinned} can't be installed: this operator carries ${seen.operatorVersion}. Set spec.release to it or leave it out.`,
		);
	}
	if (helm.running !== undefined) {
		// Applied again to put back what was changed by hand: no news.
		if (release.installed?.digest === seen.wantedDigest) return { do: "nothing" };
		return release.installed === undefined
			? wait("Installing", "The region's parts are being installed.", LOOK_AGAIN_MS)
			: wait("Upgrading", "A change is being rolled out; it is rolled back if it fails.", LOOK_AGAIN_MS);
	}
	// Only one operator works at a time: what is pending now was left behind by one that ended in the middle.
	if (release.status === "pending") return { do: "clear-pending-release" };
	const { failure } = helm;
	if (
		failure !== undefined &&
		failure.job === "upgrade" &&
		failure.digest === seen.wantedDigest &&
		failure.retryAt > now
	) {
		return wait("HelmFailed", failure.message, failure.retryAt - now);
	}
	const why = upgradeReason(seen);
	if (why === undefined) return { do: "nothing" };
	// What isn't ready now is nothing worth going back to.
	const rollback =
		release.installed !== undefined &&
		release.installed.digest !== seen.wantedDigest &&
		isTrue(region.status?.conditions, "ComponentsReady");
	return { do: "helm-upgrade", rollback, why };
}

function upgradeReason({ release, wantedDigest, components, drifted, now }: Observed): string | undefined {
	if (release.status === "none") return "not installed";
	if (release.digest !== wantedDigest) return "wanted state has changed";
	if (release.status === "failed") return "the last attempt failed";
	const age = now - (release.appliedAt ?? 0);
	if (age > REAPPLY_MS) return "regular check";
	if (age <= REPAIR_MS) return undefined;
	const missing = components.filter((component) => component.missing === true);
	if (missing.length > 0) return `missing: ${missing.map(({ name }) => name).join(", ")}`;
	return drifted ? "changed by somebody else" : undefined;
}

function planDeletion(region: Region, seen: Observed): Step {
	if (!hasFinalizer(region)) return { do: "nothing" };
	if (region.spec.paused) {
		return wait("Paused", "The region is to be deleted, but it is paused: set spec.paused to false to go on.");
	}
	const clusters = seen.clusters.filter(({ deleting }) => !deleting).map(({ name }) => name);
	if (clusters.length > 0) return { do: "delete-clusters", names: clusters };
	if (seen.clusters.length > 0) {
		return wait("Deleting", `Waiting until ${list("cluster", seen.clusters)} left the hosts clean.`, LOOK_AGAIN_MS);
	}
	const hosts = seen.hosts.filter(({ deleting }) => !deleting).map(({ name }) => name);
	if (hosts.length > 0) return { do: "delete-hosts", names: hosts };
	if (seen.hosts.length > 0) {
		return wait("Deleting", `Waiting until ${list("host", seen.hosts)} let go of the region.`, LOOK_AGAIN_MS);
	}
	if (seen.helm.running !== undefined) return wait("Deleting", "Waiting for helm.", LOOK_AGAIN_MS);
	// Deleting the namespace takes everything with it: helm only makes it orderly, so its failure is no obstacle.
	const uninstallFailed = seen.helm.failure?.job === "uninstall";
	if (seen.namespace === "ours" && seen.release.status !== "none" && !uninstallFailed) return { do: "helm-uninstall" };
	// A namespace controller that finds volumes in use looks again after 8 s, and one that finds pods after half of the longest
	// time that one of them may take: a minute. So both go first.
	if (seen.namespace === "ours" && seen.claims.length > 0 && !uninstallFailed) {
		return { do: "delete-claims", names: seen.claims };
	}
	if (seen.namespace === "ours" && seen.stopping > 0 && !uninstallFailed) {
		return wait(
			"Deleting",
			`Waiting until ${seen.stopping} ${seen.stopping === 1 ? "pod has" : "pods have"} stopped.`,
			SOON_MS,
		);
	}
	if (seen.namespace === "ours") return { do: "delete-namespace" };
	if (seen.namespace === "terminating") {
		return wait("Deleting", `Waiting until namespace region-${region.metadata.name} is gone.`, SOON_MS);
	}
	if (seen.leftInCore > 0) return { do: "delete-core" };
	return { do: "remove-finalizer" };
}

const hasFinalizer = (region: Region): boolean => region.metadata.finalizers?.includes(FINALIZER) ?? false;

function list(noun: string, objects: readonly { readonly name: string }[]): string {
	const names = objects.slice(0, 3).map(({ name }) => name);
	const more = objects.length > 3 ? ` and ${objects.length - 3} more` : "";
	return `${noun}${objects.length === 1 ? "" : "s"} ${names.join(", ")}${more}`;
}
