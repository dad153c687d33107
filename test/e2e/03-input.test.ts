import { beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import type { Region } from "../../crds/region.ts";
import { clusterManifest, regionManifest } from "../../hack/demo/manifests.ts";
import { demo, eventually, withCluster } from "./support/demo.ts";

/** Bad input gets a clear answer, and nothing half-made stays. */
describe("what the API server refuses at once", () => {
	beforeAll(withCluster);

	const base = () => clusterManifest("bad", demo.namespace, ["host-1", "host-2", "host-3"]);
	const refused = async (manifest: unknown): Promise<string> => {
		const { code, stderr } = await demo.kubectl(["apply", "-f", "-"], {
			input: JSON.stringify(manifest),
			check: false,
		});
		expect(code).not.toBe(0);
		return stderr;
	};

	it.each<[string, Record<string, unknown>, RegExp]>([
		["a host named twice", { workers: [{ name: "w", hosts: ["host-1"] }] }, /named twice/],
		[
			"a host in two pools",
			{
				workers: [
					{ name: "a", hosts: ["host-2"] },
					{ name: "b", hosts: ["host-2"] },
				],
			},
			/named twice/,
		],
		["an even control plane", { controlPlane: { hosts: ["host-1", "host-2"] }, workers: [] }, /1, 3 or 5/],
		["overlapping networks", { network: { podSubnet: "10.96.0.0/16", serviceSubnet: "10.96.0.0/12" } }, /overlap/],
		["a network that is none", { network: { podSubnet: "10.300.0.0/16" } }, /CIDR/],
		["a version that is none", { version: "latest" }, /version/],
		["a field that does not exist", { colour: "blue" }, /unknown field "spec.colour"/],
	])("%s", async (_name, change, message) => {
		const manifest = base();
		expect(await refused({ ...manifest, spec: { ...manifest.spec, ...change } })).toMatch(message);
	});
});

describe("what only the plane can know", () => {
	const expectCondition = async (name: string, reason: string, message: RegExp) => {
		await eventually(async () => {
			const cluster = await demo.get<Cluster>("cluster", name, demo.namespace);
			const ready = cluster?.status?.conditions?.find((condition) => condition.type === "Ready");
			expect(ready).toMatchObject({ status: "False", reason, message: expect.stringMatching(message) });
		}, 30_000);
		await demo.kubectl(["delete", "cluster", name, "-n", demo.namespace, "--timeout=30s"]);
	};

	it("a host that another cluster has", async () => {
		await demo.apply(clusterManifest("taken", demo.namespace, ["host-2"]));
		await expectCondition("taken", "HostTaken", /host-2 belongs to cluster demo/);
	});

	it("a host that does not exist", async () => {
		await demo.apply(clusterManifest("nowhere", demo.namespace, ["host-9"]));
		await expectCondition("nowhere", "HostNotFound", /gp host join-command/);
	});

	it("a version that is not offered", async () => {
		const manifest = clusterManifest("old", demo.namespace, ["host-2"]);
		await demo.apply({ ...manifest, spec: { ...manifest.spec, version: "v1.20.0" } });
		await expectCondition("old", "VersionNotOffered", /Offered: v1\./);
	});

	it("a region whose domain is taken", async () => {
		await demo.apply(regionManifest("thief", demo.domain()));
		await eventually(async () => {
			const region = await demo.get<Region>("region", "thief");
			const ready = region?.status?.conditions?.find((condition) => condition.type === "Ready");
			expect(ready).toMatchObject({ status: "False", reason: "DomainTaken" });
		}, 30_000);
		await demo.kubectl(["delete", "region", "thief", "--timeout=60s"]);
		expect(await demo.get("namespace", "region-thief")).toBeUndefined();
	});
});
