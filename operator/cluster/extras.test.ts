import { describe, expect, it } from "vitest";
import { addonsFor } from "./extras.ts";
import { roleOf } from "./members.ts";
import { plan } from "./plan.ts";
import { Site } from "./site.fixture.ts";

const OLD = "v1.35.4";
const NEW = "v1.36.3";
const spec = { version: NEW, controlPlane: { hosts: ["h1"] }, controlPlaneSchedulable: true };
const withPrometheus = { ...spec, addons: { prometheus: { enabled: true, storage: "10Gi" } } };
const all = ["h1"];
const asked = (site: Site) => roleOf(site.host("h1"))?.parameters.addons;

describe("what a release may lack", () => {
	it.each([
		["Calico", { ...spec, network: { cni: "calico" } }, /does not hold Calico.*ask your provider/],
		["SR-IOV", { ...spec, addons: { sriov: true } }, /does not hold SR-IOV.*leave addons.sriov off/],
		["Prometheus", withPrometheus, /does not hold Prometheus.*leave addons.prometheus off/],
	])("a cluster that asks for %s is not begun, and says what to do", (_what, wanted, text) => {
		const site = new Site(wanted, all);
		site.extras = new Map([[NEW, []]]);
		const { actions, conditions } = plan(site.observed);
		expect(actions).toEqual([]);
		expect(conditions[0]).toMatchObject({
			status: "False",
			reason: "NotInRelease",
			message: expect.stringMatching(text),
		});
		site.extras = new Map([[NEW, ["calico", "prometheus", "sriov"]]]);
		expect(site.run(30).cluster.status?.phase).toBe("Ready");
	});

	it("an add-on switched on later is said to be missing, and no host is asked for it", () => {
		const site = new Site(spec, all);
		site.extras = new Map([[NEW, []]]);
		site.run(30);
		expect(site.cluster.status?.phase).toBe("Ready");
		site.cluster.spec = new Site(withPrometheus, all).cluster.spec;
		site.run(5);
		expect(site.reason).toBe("NotInRelease");
		expect(asked(site)).toMatchObject({ prometheus: { enabled: false } });
		site.extras = new Map([[NEW, ["prometheus"]]]);
		site.run(10);
		expect(site.cluster.status?.phase).toBe("Ready");
		expect(asked(site)).toMatchObject({ prometheus: { enabled: true, storage: "10Gi" } });
	});

	it("a change to a version whose release lacks it does not begin, and the cluster stays as it is", () => {
		const site = new Site({ ...withPrometheus, version: OLD }, all);
		site.extras = new Map([
			[OLD, ["prometheus"]],
			[NEW, []],
		]);
		site.run(30);
		site.cluster.spec.version = NEW;
		site.run(10);
		expect(site.message).toMatch(/release of Kubernetes v1.36.3 here does not hold Prometheus/);
		expect(roleOf(site.host("h1"))?.version).toBe(OLD);
		expect(asked(site)).toMatchObject({ prometheus: { enabled: true } });
	});
});

it("Prometheus keeps four fifths of its storage, in its own units", () => {
	const { cluster } = new Site(withPrometheus, all);
	expect(addonsFor(cluster, undefined, NEW)).toMatchObject({ prometheus: { enabled: true, dataSize: "8192MB" } });
});
