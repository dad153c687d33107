import { beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import { GROUP_VERSION } from "../../crds/common.ts";
import type { Host } from "../../crds/host.ts";
import { demo, eventually, withRegion } from "./support/demo.ts";
import { kubectlOn, makeKubeadmCluster, POD_SUBNET, sh } from "./support/kubeadm.ts";

const VERSION = "v1.35.4";
const CONTROL_PLANE = "host-2";
const WORKER = "host-3";

/** A cluster that a customer has had for years. Some minutes long: it runs when `GROUNDPLANE_ADOPTION` is set. */
describe("a cluster that is there already", () => {
	let before: unknown;
	beforeAll(async () => {
		await withRegion();
		await makeKubeadmCluster(VERSION, [CONTROL_PLANE, WORKER]);
		await kubectlOn(CONTROL_PLANE, "wait --for=condition=Ready nodes --all --timeout=120s");
		await kubectlOn(CONTROL_PLANE, "rollout status deployment/coredns --namespace=kube-system --timeout=120s");
		before = await whatRuns();
	});

	it("its hosts enrol, and say whose they are: nothing else takes them", async () => {
		for (const name of [CONTROL_PLANE, WORKER]) {
			const { stdout } = await demo.gp(["host", "join-command", "--name", name]);
			await sh(name, stdout.trim());
		}
		await eventually(async () => {
			const host = await demo.get<Host>("host", CONTROL_PLANE, demo.namespace);
			expect(host?.status?.facts?.kubernetes).toMatchObject({
				nodeName: CONTROL_PLANE,
				networks: ["site"],
				controlPlane: { version: VERSION, podSubnet: POD_SUBNET, etcd: "stacked", missing: [] },
			});
			expect(host?.status?.phase).toBe("Failed");
			const worker = await demo.get<Host>("host", WORKER, demo.namespace);
			expect(worker?.status?.facts?.kubernetes?.controlPlane).toBeUndefined();
			expect(worker?.status?.phase).toBe("Failed");
		});
	});

	it("is refused with all that differs, and nothing is begun", async () => {
		await demo.apply(manifest({ version: "v1.36.3", network: { cni: "none" } }));
		await eventually(async () => {
			const message = ready(await cluster(), "False", "AdoptionRefused");
			expect(message).toContain(`the cluster has ${POD_SUBNET}`);
			expect(message).toContain(`the cluster runs ${VERSION}`);
		});
		for (const name of [CONTROL_PLANE, WORKER])
			expect((await demo.get<Host>("host", name, demo.namespace))?.spec.roles).toEqual([]);
		await demo.kubectl(["delete", "cluster", "old", "-n", demo.namespace, "--timeout=60s"]);
	});

	it("is adopted as it is: ready, and reached through the region, while everything in it runs on", async () => {
		await demo.apply(manifest({}));
		await demo.waitReady<Cluster>("cluster", "old", demo.namespace, 120_000);
		expect((await cluster())?.status).toMatchObject({ phase: "Ready", ready: "2/2", version: VERSION });
		await demo.clusterKubeconfig("old");
		const { stdout } = await demo.clusterKubectl("old", ["get", "nodes", "--output=name"]);
		expect(stdout.trim().split("\n")).toEqual([`node/${CONTROL_PLANE}`, `node/${WORKER}`]);
		expect(await whatRuns()).toEqual(before);
		for (const name of [CONTROL_PLANE, WORKER]) await demo.waitReady<Host>("host", name, demo.namespace, 120_000);
	});

	it("refuses another version, says what does it, and is ready again when it is taken back", async () => {
		await demo.apply(manifest({ version: "v1.36.3" }));
		await eventually(async () => {
			expect(ready(await cluster(), "False", "ChangeNotSupported")).toContain("run kubeadm upgrade on its hosts");
		});
		await demo.apply(manifest({}));
		await demo.waitReady<Cluster>("cluster", "old", demo.namespace, 60_000);
		expect(await whatRuns()).toEqual(before);
	});

	it("is released when it is deleted: it runs on, and nothing of the region is left in it", async () => {
		await demo.kubectl(["delete", "cluster", "old", "-n", demo.namespace, "--timeout=120s"]);
		expect(await whatRuns()).toEqual(before);
		expect(await kubectlOn(CONTROL_PLANE, "get clusterroles,clusterrolebindings --output=name")).not.toContain(
			"groundplane",
		);
		expect(await sh(CONTROL_PLANE, "ls -A /etc/groundplane")).not.toContain("kubernetes");
	});
});

const manifest = (change: object) => ({
	apiVersion: GROUP_VERSION,
	kind: "Cluster",
	metadata: { name: "old", namespace: demo.namespace },
	spec: {
		adopt: true,
		version: VERSION,
		controlPlane: { hosts: [CONTROL_PLANE] },
		workers: [{ name: "workers", hosts: [WORKER] }],
		network: { cni: "none", podSubnet: POD_SUBNET },
		...change,
	},
});

const cluster = () => demo.get<Cluster>("cluster", "old", demo.namespace);

/** The message of `Ready`, which must be as given. */
function ready(found: Cluster | undefined, status: string, reason: string): string {
	const condition = found?.status?.conditions?.find(({ type }) => type === "Ready");
	expect(condition).toMatchObject({ status, reason });
	return condition?.message ?? "";
}

/** Every pod with its uid and how often its containers were started, and since when runtime and kubelet have run. */
async function whatRuns(): Promise<unknown> {
	const { items } = JSON.parse(await kubectlOn(CONTROL_PLANE, "get pods --all-namespaces --output=json")) as {
		items: {
			metadata: { name: string; uid: string };
			status: { containerStatuses?: { containerID?: string; restartCount: number }[] };
		}[];
	};
	const pods = items.map(({ metadata: { name, uid }, status }) => [
		name,
		uid,
		...(status.containerStatuses ?? []).map(({ containerID, restartCount }) => [containerID, restartCount]),
	]);
	const services = [CONTROL_PLANE, WORKER].map((host) =>
		sh(host, "systemctl show --property=MainPID containerd kubelet; cat /var/lib/kubelet/config.yaml | sha256sum"),
	);
	return { pods, services: await Promise.all(services) };
}
