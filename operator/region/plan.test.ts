import { describe, expect, it } from "vitest";
import type { Region, RegionStatus } from "../../crds/region.ts";
import { regionSpec } from "../../crds/region.ts";
import { getCondition } from "../kube/conditions.ts";
import { FINALIZER, type Observed, plan } from "./plan.ts";
import { statusOf } from "./status.ts";

const now = Date.UTC(2026, 10, 21);
const minutes = (n: number) => n * 60_000;

interface Change {
	spec?: Record<string, unknown>;
	metadata?: Partial<Region["metadata"]>;
	status?: RegionStatus;
}
const region = ({ spec, metadata, status }: Change = {}): Region => ({
	apiVersion: "groundplane.io/v1alpha1",
	kind: "Region",
	metadata: { name: "demo", generation: 3, finalizers: [FINALIZER], ...metadata },
	spec: regionSpec.parse({ customer: "Example", domain: "demo.example.com", ...spec }),
	...(status === undefined ? {} : { status }),
});
const conditions = (ready: boolean): RegionStatus => ({
	release: "0.1.0",
	caDigest: "ab",
	conditions: [
		{
			type: "ComponentsReady",
			status: ready ? "True" : "False",
			reason: "Ready",
			message: "",
			lastTransitionTime: "2026-11-01T00:00:00Z",
		},
	],
});
const installed = { digest: "wanted", version: "0.1.0" };
/** A region in which nothing is left to do. */
const settled: Observed = {
	now,
	operatorVersion: "0.1.0",
	namespace: "ours",
	frameCurrent: true,
	root: { present: true, digest: "ab" },
	secretsToMint: [],
	secretsLost: [],
	secretsToRecord: [],
	edgeCurrent: true,
	release: { status: "deployed", digest: "wanted", appliedAt: now - minutes(10), installed },
	helm: {},
	wantedDigest: "wanted",
	components: [{ name: "front", ready: true, replicas: "1/1" }],
	drifted: false,
	clusters: [],
	hosts: [],
	claims: [],
	stopping: 0,
	leftInCore: 0,
};
const failure = (job: "upgrade" | "uninstall", digest: string, retryAt: number) => ({
	helm: { failure: { job, digest, message: "helm said no", retryAt } },
});
const old = { digest: "old", version: "0.1.0" };
const changed = { release: { ...settled.release, digest: "old", installed: old } };
const deleted = { metadata: { deletionTimestamp: "2026-11-21T00:00:00Z" } };
const member = { name: "a", ready: true, deleting: false };

describe("the plan of a region", () => {
	const table: [string, Change, Partial<Observed>, Record<string, unknown>][] = [
		["rests when all is as wanted", {}, {}, { do: "nothing" }],
		[
			"touches nothing while paused",
			{ spec: { paused: true } },
			{ namespace: "missing" },
			{ do: "wait", reason: "Paused" },
		],
		[
			"refuses a taken domain before it makes anything",
			{ metadata: { finalizers: [] } },
			{ domainTakenBy: "first", namespace: "missing" },
			{ do: "wait", reason: "DomainTaken" },
		],
		[
			"holds on to the object before it makes anything",
			{ metadata: { finalizers: [] } },
			{ namespace: "missing" },
			{ do: "add-finalizer" },
		],
		[
			"leaves a foreign namespace alone",
			{},
			{ namespace: "foreign", frameCurrent: false },
			{ do: "wait", reason: "NamespaceTaken" },
		],
		[
			"waits for an old namespace to go",
			{},
			{ namespace: "terminating", frameCurrent: false },
			{ do: "wait", reason: "NamespaceTerminating" },
		],
		["frames the namespace first", {}, { namespace: "missing", root: { present: false } }, { do: "apply-frame" }],
		["mints a root once", {}, { root: { present: false } }, { do: "mint-root" }],
		[
			"never mints a second root",
			{ status: conditions(true) },
			{ root: { present: false } },
			{ do: "wait", reason: "SecretLost" },
		],
		[
			"never mints an irreplaceable secret again",
			{},
			{ secretsLost: ["hosts-ca"], secretsToMint: ["tls-front"] },
			{ do: "wait", reason: "SecretLost" },
		],
		["mints what is missing", {}, { secretsToMint: ["nats"] }, { do: "mint", secrets: ["nats"] }],
		["notes what was minted", {}, { secretsToRecord: ["hosts-ca"] }, { do: "record", secrets: ["hosts-ca"] }],
		[
			"opens the edge before the parts start",
			{},
			{ edgeCurrent: false, release: { status: "none" } },
			{ do: "apply-edge" },
		],
		["installs", {}, { release: { status: "none" }, components: [] }, { do: "helm-upgrade", rollback: false }],
		[
			"upgrades what ran with a way back",
			{ status: conditions(true) },
			changed,
			{ do: "helm-upgrade", rollback: true },
		],
		["rolls forward what did not run", { status: conditions(false) }, changed, { do: "helm-upgrade", rollback: false }],
		["waits for helm", {}, { ...changed, helm: { running: "upgrade" } }, { do: "wait", reason: "Upgrading" }],
		[
			"does not speak of a helm that only checks",
			{},
			{ helm: { running: "upgrade" }, release: { ...settled.release, status: "pending" } },
			{ do: "nothing" },
		],
		["clears what a killed helm left", {}, { release: { status: "pending" } }, { do: "clear-pending-release" }],
		[
			"backs off after a failure",
			{},
			{ ...changed, ...failure("upgrade", "wanted", now + 1000) },
			{ do: "wait", reason: "HelmFailed", again: 1000 },
		],
		[
			"tries again when the time has come",
			{},
			{ ...changed, ...failure("upgrade", "wanted", now) },
			{ do: "helm-upgrade" },
		],
		[
			"tries a corrected spec at once",
			{},
			{ ...changed, ...failure("upgrade", "other", now + minutes(9)) },
			{ do: "helm-upgrade" },
		],
		[
			"puts back a missing part",
			{},
			{ components: [{ name: "nats", ready: false, missing: true }] },
			{ do: "helm-upgrade", rollback: false, why: "missing: nats" },
		],
		[
			"puts back no more than every five minutes",
			{},
			{ drifted: true, release: { ...settled.release, appliedAt: now - minutes(4) } },
			{ do: "nothing" },
		],
		["puts back what was changed", {}, { drifted: true }, { do: "helm-upgrade", why: "changed by somebody else" }],
		[
			"checks every hour",
			{},
			{ release: { ...settled.release, appliedAt: now - minutes(61) } },
			{ do: "helm-upgrade", why: "regular check" },
		],
		[
			"leaves a region at the release it is pinned to",
			{ spec: { release: "0.0.9" } },
			{ release: { ...settled.release, digest: "old", installed: { digest: "old", version: "0.0.9" } } },
			{ do: "nothing" },
		],
		[
			"can't install a release it does not carry",
			{ spec: { release: "9.9.9" } },
			{},
			{ do: "wait", reason: "ReleaseUnknown" },
		],

		[
			"deletes clusters before hosts",
			deleted,
			{ clusters: [member], hosts: [member] },
			{ do: "delete-clusters", names: ["a"] },
		],
		[
			"waits for clusters",
			deleted,
			{ clusters: [{ ...member, deleting: true }], hosts: [member] },
			{ do: "wait", reason: "Deleting" },
		],
		["deletes hosts", deleted, { hosts: [member] }, { do: "delete-hosts", names: ["a"] }],
		["waits for hosts", deleted, { hosts: [{ ...member, deleting: true }] }, { do: "wait", reason: "Deleting" }],
		["uninstalls", deleted, {}, { do: "helm-uninstall" }],
		[
			"does not stop at a helm that can't",
			deleted,
			failure("uninstall", "", now + minutes(9)),
			{ do: "delete-namespace" },
		],
		[
			"lets volumes go with the pods that use them",
			deleted,
			{ release: { status: "none" }, claims: ["a"], stopping: 2 },
			{ do: "delete-claims", names: ["a"] },
		],
		[
			"lets pods stop before the namespace goes",
			deleted,
			{ release: { status: "none" }, stopping: 2 },
			{ do: "wait", reason: "Deleting" },
		],
		[
			"does not wait for pods that helm could not remove",
			deleted,
			{ ...failure("uninstall", "", now + minutes(9)), claims: ["a"], stopping: 2 },
			{ do: "delete-namespace" },
		],
		["deletes the namespace", deleted, { release: { status: "none" } }, { do: "delete-namespace" }],
		[
			"waits for the namespace",
			deleted,
			{ release: { status: "none" }, namespace: "terminating" },
			{ do: "wait", reason: "Deleting" },
		],
		["clears the core", deleted, { namespace: "missing", leftInCore: 4 }, { do: "delete-core" }],
		["lets go", deleted, { namespace: "missing" }, { do: "remove-finalizer" }],
		["lets go of a foreign namespace", deleted, { namespace: "foreign" }, { do: "remove-finalizer" }],
		[
			"holds a paused region even when deleted",
			{ ...deleted, spec: { paused: true } },
			{},
			{ do: "wait", reason: "Paused" },
		],
		["has nothing to do once it let go", { metadata: { ...deleted.metadata, finalizers: [] } }, {}, { do: "nothing" }],
	];
	it.each(table)("%s", (_, change, seen, step) => {
		expect(plan(region(change), { ...settled, ...seen })).toMatchObject(step);
	});
});

describe("the status of a region", () => {
	const status = (change: Change, seen: Partial<Observed>) => {
		const all = { ...settled, ...seen };
		return statusOf(region(change), all, plan(region(change), all));
	};
	const ready = (s: RegionStatus) => getCondition(s.conditions, "Ready");

	it("is Ready when everything runs, and then names the release", () => {
		const s = status({}, {});
		expect(ready(s)).toMatchObject({ status: "True", observedGeneration: 3 });
		expect(s).toMatchObject({ phase: "Ready", release: "0.1.0" });
		expect(s.conditions?.[0]?.type).toBe("Ready");
	});
	it("stays Ready during the regular check", () => {
		const s = status({ status: conditions(true) }, { release: { ...settled.release, appliedAt: 0 } });
		expect(ready(s)?.status).toBe("True");
	});
	it("is installing until everything ran once, degraded after that", () => {
		const components = [{ name: "nats", ready: false, message: "0 of 1 ready" }];
		expect(status({}, { components }).phase).toBe("Installing");
		const degraded = status({ status: conditions(true) }, { components });
		expect(degraded.phase).toBe("Degraded");
		expect(ready(degraded)?.message).toContain("nats (0 of 1 ready)");
	});
	it("says why helm failed, until what is wanted is installed", () => {
		const s = status({ status: conditions(true) }, { ...changed, ...failure("upgrade", "wanted", now + 1000) });
		expect(ready(s)).toMatchObject({ status: "False", reason: "HelmFailed", message: "helm said no" });
		expect(getCondition(s.conditions, "Installed")?.reason).toBe("HelmFailed");
		expect(s.phase).toBe("Failed");
	});
	it("does not change when nothing did", () => {
		const first = status({}, {});
		expect(status({ status: first }, { now: now + minutes(1) })).toEqual(first);
	});
});
