import { beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../../crds/host.ts";
import { demo, eventually, HOSTS, withCluster } from "./support/demo.ts";
import { differencesSince } from "./support/snapshots.ts";

/** Every delete finishes, and leaves nothing behind that was not there before. */
describe("deleting a cluster", () => {
	beforeAll(withCluster);

	it("finishes by itself", async () => {
		await demo.kubectl(["delete", "cluster", "demo", "-n", demo.namespace, "--timeout=300s"]);
		expect(await demo.get("secret", "cluster-demo-join", demo.namespace)).toBeUndefined();
	});

	it.each(HOSTS)("%s is ready for another cluster, and as it was found", async (name) => {
		await eventually(async () => {
			const host = await demo.get<Host>("host", name, demo.namespace);
			expect(host?.status?.phase).toBe("Ready");
			expect(host?.spec.roles ?? []).toEqual([]);
		}, 120_000);
		expect(await differencesSince(demo, name)).toEqual([]);
	});
});
