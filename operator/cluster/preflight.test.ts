import { describe, expect, it } from "vitest";
import { type Cluster, clusterSpec } from "../../crds/cluster.ts";
import type { Pod } from "../kube/resources.ts";
import { allowsNone, type Budget, blockedBy, notesOf, preflight, removedApis } from "./preflight.ts";

it("finds the APIs in use that a version removes in the API server's metrics", () => {
	const metrics = `# HELP apiserver_requested_deprecated_apis [STABLE] Gauge of deprecated APIs
apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="batch",removed_release="1.36",resource="cronjobs",subresource="",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="policy",removed_release="1.37",resource="podsecuritypolicies",subresource="",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="apps",removed_release="1.35",resource="deployments",subresource="status",version="v1beta1"} 0
apiserver_request_total{code="200"} 7`;
	expect(removedApis([metrics], "v1.36.3")).toEqual(["batch/v1beta1/cronjobs"]);
	expect(removedApis([metrics], "v1.37.0")).toEqual(["batch/v1beta1/cronjobs", "policy/v1beta1/podsecuritypolicies"]);
	expect(removedApis([metrics], "v1.35.4")).toEqual([]);
	// Each API server counts its own clients.
	const another = metrics.replaceAll('"cronjobs"', '"jobs"');
	expect(removedApis([metrics, another], "v1.36.3")).toEqual(["batch/v1beta1/cronjobs", "batch/v1beta1/jobs"]);
});

describe("budgets", () => {
	const pod = (namespace: string, labels: Record<string, string>): Pod => ({
		metadata: { name: "web-1", namespace, labels },
	});
	const budget = (selector: NonNullable<Budget["spec"]>["selector"], disruptionsAllowed = 0): Budget => ({
		metadata: { name: "never", namespace: "shop" },
		spec: selector === undefined ? {} : { selector },
		status: { disruptionsAllowed, expectedPods: 1 },
	});
	const held = ["shop/never (pod web-1)"];
	it.each<[string, NonNullable<Budget["spec"]>["selector"], Pod, string[]]>([
		["by labels", { matchLabels: { app: "web" } }, pod("shop", { app: "web" }), held],
		["not of another namespace", { matchLabels: { app: "web" } }, pod("other", { app: "web" }), []],
		["an empty selector selects all", {}, pod("shop", {}), held],
		["none selects nothing", undefined, pod("shop", {}), []],
		["In", { matchExpressions: [{ key: "app", operator: "In", values: ["web"] }] }, pod("shop", { app: "web" }), held],
		[
			"NotIn",
			{ matchExpressions: [{ key: "app", operator: "NotIn", values: ["web"] }] },
			pod("shop", { app: "web" }),
			[],
		],
		["Exists", { matchExpressions: [{ key: "app", operator: "Exists" }] }, pod("shop", { app: "x" }), held],
		["DoesNotExist", { matchExpressions: [{ key: "app", operator: "DoesNotExist" }] }, pod("shop", { app: "x" }), []],
	])("hold pods back: %s", (_name, selector, one, expected) => {
		expect(blockedBy([one], [budget(selector)])).toEqual(expected);
	});

	it("that allow an eviction, or have no pods, hold nothing", () => {
		expect(allowsNone(budget({}))).toBe(true);
		expect(allowsNone(budget({}, 1))).toBe(false);
		expect(allowsNone({ ...budget({}), status: { disruptionsAllowed: 0, expectedPods: 0 } })).toBe(false);
	});
});

const cluster: Pick<Cluster, "metadata" | "spec"> = {
	metadata: { name: "shop" },
	spec: clusterSpec.parse({ version: "v1.35.4", controlPlane: { hosts: ["c1"] } }),
};

it.each([
	["a minor up", ["v1.35.4"], "v1.36.3", []],
	["a patch up, others passed over", ["v1.36.0"], "v1.36.9", []],
	["a minor down", ["v1.36.3"], "v1.35.4", []],
	[
		"two minors up",
		["v1.34.2"],
		"v1.36.3",
		[/^w1 is at v1.34.2: v1.36.3 is more than one minor away, take the one between first\.$/],
	],
	["a kubelet that stayed behind", ["v1.35.4", "v1.34.2"], "v1.36.3", [/^w1 is at v1.34.2/]],
	["two minors down", ["v1.36.3"], "v1.34.2", [/^w1 is at v1.36.3/]],
])("version skew: %s", (_name, versions, target, expected) => {
	const found = preflight(cluster, { target, versions: [], removedApis: [] }, [
		{ host: "w1", versions, healthy: true, filesystems: [] },
	]);
	expect(found).toEqual(expected.map((words) => expect.stringMatching(words)));
});

describe("notes", () => {
	const up = { from: "v1.35.4", to: "v1.36.3", blocking: [] };
	const loses = /^The way back to v1.35 stays open, but it loses something: .* only v1.36 has/;
	it.each<[string, Parameters<typeof notesOf>[1], RegExp[]]>([
		["a patch: nothing", { from: "v1.36.0", to: "v1.36.3", blocking: [] }, []],
		["a minor up, etcd of the same minor", { ...up, etcd: { from: "v3.6.6", to: "v3.6.8" } }, [loses]],
		[
			"a minor up, etcd of another",
			{ ...up, etcd: { from: "v3.5.9", to: "v3.6.8" } },
			[loses, /^etcd changes from v3.5.9 to v3.6.8 and stays there on the way back/],
		],
		["a minor up, nothing known of etcd", up, [loses, /^Should the release bring a newer minor of etcd, it stays/]],
		["a minor down", { ...up, from: up.to, to: up.from }, [/only v1.36 has can't be seen or written on v1.35/]],
		[
			"budgets",
			{ from: "v1.36.0", to: "v1.36.3", blocking: ["shop/never", "db/one"] },
			[/allow no eviction now: shop\/never, db\/one\. .* after 5 min \(upgradePolicy.drainTimeout\)/],
		],
	])("%s", (_name, change, expected) => {
		expect(notesOf(cluster, change)).toEqual(expected.map((words) => expect.stringMatching(words)));
	});
});
