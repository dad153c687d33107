import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import {
	applyInside,
	become,
	expectClean,
	idleContainer,
	imageOf,
	kubectl,
	manifest,
	NEW,
	OLD,
	on,
	readyOf,
	timed,
	withFiveHosts,
} from "./support/changes.ts";
import { demo, eventually } from "./support/demo.ts";
import { installNetwork, removeNetwork } from "./support/kubeadm.ts";

const MINUTE = 60_000;
const SMALL = { controlPlanes: ["host-1"], workers: ["host-4"] };
const OWN = ["host-2", "host-5"] as const;
/** What kubeadm makes of CoreDNS. */
const COREDNS = [
	"clusterrole.rbac.authorization.k8s.io/system:coredns",
	"clusterrolebinding.rbac.authorization.k8s.io/system:coredns",
	"configmap/coredns",
	"deployment.apps/coredns",
	"service/kube-dns",
	"serviceaccount/coredns",
];
const VOLUMES = "/var/lib/local-path-provisioner";

/** What a cluster takes of us, and what it leaves to its people. Runs like `09-changes`. */
describe("parts of a cluster", { timeout: 15 * MINUTE }, () => {
	beforeAll(withFiveHosts, 25 * MINUTE);
	afterEach(async () => {
		await demo.kubectl(["delete", "cluster", "own", "-n", demo.namespace, "--ignore-not-found", "--timeout=240s"]);
		for (const name of OWN) await removeNetwork(name);
	}, 5 * MINUTE);

	it("waits for a network plugin of one's own, says so, and is ready when it is there", async () => {
		await become(SMALL);
		const own = manifest({ controlPlanes: ["host-2"], workers: ["host-5"] }, "own");
		await demo.apply({ ...own, spec: { ...own.spec, network: { cni: "none" } } });
		await eventually(async () => {
			const found = await demo.get<Cluster>("cluster", "own", demo.namespace);
			expect(readyOf(found)).toMatchObject({ status: "False", reason: "NetworkPluginMissing" });
			expect(found?.status?.members?.map(({ message }) => message)).toEqual(OWN.map(() => expect.anything()));
		}, 5 * MINUTE);
		for (const [index, name] of OWN.entries()) await installNetwork(name, index);
		const ready = () => demo.waitReady("cluster", "own", demo.namespace, 3 * MINUTE);
		expect(await timed(ready, "ready after a network plugin was installed")).toBeLessThan(90);
		await on("host-2", kubectl("rollout status deployment/coredns -n kube-system --timeout=60s"));
		await demo.kubectl(["delete", "cluster", "own", "-n", demo.namespace, "--timeout=240s"]);
		for (const name of OWN) await removeNetwork(name);
		await expectClean(OWN);
	});

	it("has storage, numbers of hosts and Prometheus when they are wanted, and nothing of them when they are not", async () => {
		// Where it can't be downloaded or built a release is without it.
		const hasPrometheus = (await imageOf(OLD, "prometheus")) !== "";
		const storage = { localPathStorage: { enabled: true } };
		await become(SMALL);
		const took = await timed(async () => {
			await become({
				...SMALL,
				addons: { ...storage, nodeExporter: true, prometheus: { enabled: hasPrometheus, storage: "1Gi" } },
			});
			for (const what of [
				...["deployment/local-path-provisioner", "daemonset/node-exporter"],
				...(hasPrometheus ? ["deployment/prometheus"] : []),
			])
				await on("host-1", kubectl(`rollout status ${what} -n kube-system --timeout=110s`));
		}, "add-ons switched on, and all their pods ready");
		expect(took).toBeLessThan(240);
		await applyInside(await podWithVolume("host-4"));
		await on("host-1", kubectl("wait --for=condition=Ready pod/keeps --timeout=90s"));
		expect(await on("host-1", kubectl("get pvc keeps -o jsonpath='{.status.phase}'"))).toBe("Bound");
		if (hasPrometheus) await eventually(async () => expect(await scraped()).toEqual(["1", "1"]), 2 * MINUTE);
		await on("host-1", kubectl("delete pod/keeps pvc/keeps"));

		// Volumes outlive the add-on that made them, so they go while it is still there.
		await become({ ...SMALL, addons: storage });
		await on("host-1", kubectl("delete pvc/prometheus -n kube-system --ignore-not-found"));
		await eventually(async () => expect(await on("host-1", kubectl("get pv -o name"))).toBe(""), MINUTE);
		await become(SMALL);
		await eventually(async () => expect(await addonObjects()).toEqual(COREDNS), MINUTE);
		for (const name of ["host-1", "host-4"]) expect(await on(name, `ls -d ${VOLUMES} 2>/dev/null; true`)).toBe("");
	});

	it("loses CoreDNS when it is switched off, stays without it through a change of version, and has it again when it is switched on", async () => {
		await become(SMALL);
		expect(await addonObjects()).toEqual(COREDNS);
		const off = { ...SMALL, addons: { coredns: false } };
		await become(off);
		await eventually(async () => expect(await addonObjects()).toEqual([]), MINUTE);
		await become({ ...off, version: NEW });
		expect(await addonObjects()).toEqual([]);
		await become({ ...SMALL, version: NEW });
		expect(await addonObjects()).toEqual(COREDNS);
		await on("host-1", kubectl("rollout status deployment/coredns -n kube-system --timeout=60s"));
	});
});

/** What add-ons have made in the cluster, by kind and name. */
async function addonObjects(): Promise<string[]> {
	const kinds =
		"deployments,daemonsets,services,configmaps,storageclasses,serviceaccounts,clusterroles,clusterrolebindings";
	const found = await on("host-1", kubectl(`get ${kinds} -A -l groundplane.io/addon -o name`));
	return found.split("\n").filter(Boolean).sort();
}

/** What Prometheus found when it last asked each host's node-exporter. */
async function scraped(): Promise<string[]> {
	const query = "query?query=up%7Bjob%3D%22node-exporter%22%7D";
	const path = `/api/v1/namespaces/kube-system/services/prometheus:http/proxy/api/v1/${query}`;
	const { data } = JSON.parse(await on("host-1", kubectl(`get --raw '${path}'`))) as {
		data: { result: { value: [number, string] }[] };
	};
	return data.result.map(({ value }) => value[1]);
}

/** A claim of the default class, and a pod with it on a host. */
async function podWithVolume(name: string) {
	const metadata = { name: "keeps", namespace: "default" };
	const container = { ...(await idleContainer(name)), volumeMounts: [{ name: "data", mountPath: "/data" }] };
	return [
		{
			apiVersion: "v1",
			kind: "PersistentVolumeClaim",
			metadata,
			spec: { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Mi" } } },
		},
		{
			apiVersion: "v1",
			kind: "Pod",
			metadata,
			spec: {
				nodeSelector: { "kubernetes.io/hostname": name },
				containers: [container],
				volumes: [{ name: "data", persistentVolumeClaim: { claimName: "keeps" } }],
			},
		},
	];
}
