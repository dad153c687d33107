import { expect, it } from "vitest";
import { roleOf } from "./members.ts";
import { plan } from "./plan.ts";
import { Site } from "./site.fixture.ts";

const OLD = "v1.35.4";
const NEW = "v1.36.3";
const spec = { controlPlane: { hosts: ["h1"] }, controlPlaneSchedulable: true, network: { cni: "calico" } };

it("a cluster that asks for what its release lacks is not begun, and says what to do", () => {
	const site = new Site({ ...spec, version: NEW }, ["h1"]);
	site.extras = new Map([[NEW, []]]);
	const { actions, conditions } = plan(site.observed);
	expect(actions).toEqual([]);
	expect(conditions[0]).toMatchObject({
		status: "False",
		reason: "NotInRelease",
		message: expect.stringMatching(/does not hold Calico.*ask your provider/),
	});
	site.extras = new Map([[NEW, ["calico"]]]);
	expect(site.run(30).cluster.status?.phase).toBe("Ready");
});

it("a change to a version whose release lacks it does not begin, and the cluster stays as it is", () => {
	const site = new Site({ ...spec, version: OLD }, ["h1"]);
	site.extras = new Map([
		[OLD, ["calico"]],
		[NEW, []],
	]);
	site.run(30);
	site.cluster.spec.version = NEW;
	site.run(10);
	expect(site.message).toMatch(/release of Kubernetes v1.36.3 here does not hold Calico/);
	expect(roleOf(site.host("h1"))?.version).toBe(OLD);
});
