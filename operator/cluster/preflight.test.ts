import { describe, expect, it } from "vitest";
import type { Pod } from "../kube/resources.ts";
import { allowsNone, type Budget, blockedBy, removedApis } from "./preflight.ts";

it("finds the APIs in use that a version removes in the API server's metrics", () => {
	const metrics = `# HELP apiserver_requested_deprecated_apis [STABLE] Gauge of deprecated APIs
apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="batch",removed_release="1.36",resource="cronjobs",subresource="",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="policy",removed_release="1.37",resource="podsecuritypolicies",subresource="",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="apps",removed_release="1.35",resource="deployments",subresource="status",version="v1beta1"} 0
apiserver_request_total{code="200"} 7`;
	expect(removedApis(metrics, "v1.36.3")).toEqual(["batch/v1beta1/cronjobs"]);
	expect(removedApis(metrics, "v1.37.0")).toEqual(["batch/v1beta1/cronjobs", "policy/v1beta1/podsecuritypolicies"]);
	expect(removedApis(metrics, "v1.35.4")).toEqual([]);
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
