import { afterEach, beforeAll, describe, expect, it } from "vitest";
import {
	ALL,
	applyInside,
	become,
	expectClean,
	host,
	idleContainer,
	kubectl,
	NAME,
	on,
	timed,
	withFiveHosts,
} from "./support/changes.ts";
import { demo, eventually } from "./support/demo.ts";
import { differencesSince, saveSnapshots } from "./support/snapshots.ts";

const MINUTE = 60_000;
const TRACES = "ls -d /etc/kubernetes /etc/containerd /var/lib/etcd /usr/local/bin/kubelet 2>/dev/null; true";
/** What another region's agent has otherwise: where that is, and who it is there. */
const OF_ANOTHER_REGION =
	/^files ~ (\/etc\/groundplane\/agent\.json|\/var\/lib\/dpkg\/|\/var\/lib\/groundplane\/agent\/identity\.json)/;

/** Whatever is dead or stuck: a deletion ends, says what it could not clean, and that is cleaned on the next contact. */
describe("deleting a cluster", { timeout: 15 * MINUTE }, () => {
	beforeAll(withFiveHosts, 25 * MINUTE);
	afterEach(async () => {
		await demo.lab.heal();
		for (const name of ALL) await demo.lab.start(name);
	}, 5 * MINUTE);

	it("ends with a worker that lost its power without a word, and with finalizers inside that nobody serves", async () => {
		const small = { controlPlanes: ["host-1"], workers: ["host-4", "host-5"], drainTimeout: "20s" };
		await become(small);
		const stuck = { name: "stuck", finalizers: ["example.test/nobody"] };
		const containers = [await idleContainer("host-5")];
		const pod = (metadata: object, nodeName: string) => ({
			apiVersion: "v1",
			kind: "Pod",
			metadata: { ...metadata, namespace: "default" },
			spec: { nodeName, containers },
		});
		await applyInside([
			{ apiVersion: "v1", kind: "Namespace", metadata: { name: "stuck" } },
			{ apiVersion: "v1", kind: "ConfigMap", metadata: { ...stuck, namespace: "stuck" } },
			pod(stuck, "host-4"),
			pod({ name: "lost" }, "host-5"),
		]);
		await on("host-1", kubectl("wait --for=condition=Ready pod/stuck pod/lost --timeout=60s"));
		await on("host-1", kubectl("delete namespace stuck --wait=false"));
		await demo.lab.cut("host-5");
		await demo.lab.stop("host-5");
		const noticed = timed(
			() =>
				eventually(async () => expect((await host("host-5"))?.status?.connection?.state).toBe("Disconnected"), MINUTE),
			"a host without power noticed while it drains",
		);
		expect(await deletion("one host without power, finalizers stuck")).toBeLessThan(240);
		await noticed;
		await eventually(async () => expect(await leftOn("host-5")).toEqual(["kubernetes of changes"]));
		await expectClean(["host-1", "host-4"]);
		await demo.lab.heal("host-5");
		await demo.lab.start("host-5");
		await expectClean();
	});

	it("ends with all control planes dead", async () => {
		await become({ controlPlanes: ["host-1"], workers: ["host-4"] });
		await demo.lab.stop("host-1");
		expect(await deletion("its control plane dead")).toBeLessThan(240);
		await expectClean(["host-4"]);
		await eventually(async () => expect(await leftOn("host-1")).toEqual(["kubernetes of changes"]));
		await demo.lab.start("host-1");
		await expectClean();
	});

	it("ends at once when it is forced, whose price is told first, although a host has no power", async () => {
		await become({ controlPlanes: ["host-1"], workers: ["host-4"] });
		await demo.lab.stop("host-4");
		const force = ["cluster", "delete", NAME, "--force"];
		const { code, stderr } = await demo.gp(force, { check: false });
		expect(code).not.toBe(0);
		expect(stderr).toContain("pods are killed without notice or drain");
		const took = await timed(() => demo.gp([...force, "--yes", "--wait"]), "a cluster deleted by force, a host dead");
		expect(took).toBeLessThan(20);
		await eventually(async () => expect(await leftOn("host-4")).toEqual(["kubernetes of changes"]));
		await expectClean(["host-1"]);
		await demo.lab.start("host-4");
		await timed(() => expectClean(), "all hosts clean after the dead one was back");
	});

	it("ends with every tunnel gone, and the hosts clean themselves when they are back", async () => {
		await become({ controlPlanes: ["host-1"], workers: ["host-4"] });
		await demo.lab.cut();
		expect(await deletion("all its hosts out of reach")).toBeLessThan(180);
		for (const name of ["host-1", "host-4"]) {
			expect(await leftOn(name)).toEqual(["kubernetes of changes"]);
			// What nobody can reach runs on.
			expect(await on(name, "systemctl is-active kubelet")).toBe("active\n");
		}
		await demo.lab.heal();
		await timed(() => expectClean(), "all hosts clean after they were back");
	});

	// The last one: the hosts are in another region afterwards, of the same name.
	it("ends together with its region and a host that is dead, which is clean once it has joined again", async () => {
		await become({ controlPlanes: ["host-1"], workers: ["host-4"] });
		const patience = JSON.stringify({ spec: { hosts: { forceRemoveAfter: "1m" } } });
		await demo.kubectl(["patch", "region", demo.region, "--type=merge", "-p", patience]);
		await demo.lab.stop("host-4");
		const took = await timed(async () => {
			await demo.kubectl(["delete", "cluster", NAME, "-n", demo.namespace, "--wait=false"]);
			await demo.kubectl(["delete", "region", demo.region, "--timeout=600s"]);
		}, "cluster and region deleted together, one host dead");
		expect(took).toBeLessThan(400);
		expect(await demo.get("namespace", demo.namespace)).toBeUndefined();
		const told = await demo.kubectl(["get", "events", "-n", "default", "-o", "jsonpath={.items[*].message}"]);
		expect(told.stdout).toContain(
			"Host host-4 could not be reached, so its roles (kubernetes of cluster changes) were not undone",
		);
		expect(await differencesSince(demo, "host-1")).toEqual([]);
		await demo.lab.start("host-4");
		expect(await on("host-4", TRACES)).not.toBe("");
		await demo.makeRegion();
		await demo.signIn();
		await demo.enroll(ALL);
		await eventually(async () => {
			const { phase, roles = [] } = (await host("host-4"))?.status ?? {};
			expect({ phase, roles }).toEqual({ phase: "Ready", roles: [] });
			expect(await on("host-4", TRACES)).toBe("");
		}, 4 * MINUTE);
		const differences = await differencesSince(demo, "host-4");
		expect(differences.filter((line) => !OF_ANOTHER_REGION.test(line))).toEqual([]);
		await saveSnapshots(demo, ALL);
	});
});

const deletion = (what: string) =>
	timed(
		() => demo.kubectl(["delete", "cluster", NAME, "-n", demo.namespace, "--timeout=600s"]),
		`a cluster deleted, ${what}`,
	);

/** The ledger of a host. */
async function leftOn(name: string): Promise<string[]> {
	const { leftBehind = [] } = (await host(name))?.status ?? {};
	return leftBehind.map(({ role, cluster: of }) => `${role} of ${of}`);
}
