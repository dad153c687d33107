import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { applyInside, become, idleContainer, NEW, OLD, on, withFiveHosts } from "./support/changes.ts";
import { demo, eventually } from "./support/demo.ts";
import { copyPrograms, filesOf, importImages, kubectlOn, sh } from "./support/kubeadm.ts";

const MINUTE = 60_000;
const CONTROL_PLANE = "host-1";
const WORKER = "host-4";
const NODES = [CONTROL_PLANE, WORKER];
const VERSIONS =
	"get nodes -o jsonpath='{range .items[*]}{.metadata.name} {.status.nodeInfo.kubeletVersion}{\"\\n\"}{end}'";
const STARTED = "get pod stays -o jsonpath='{.status.containerStatuses[0].state.running.startedAt}'";
/** What docs/customers.md tells who leaves us; the hosts of the lab have control groups v1. */
const FLAGS = "--patches /etc/groundplane/kubernetes/patches --ignore-preflight-errors=SystemVerification";

/**
 * The last of the files: its hosts have no agent any more. Step by step what docs/customers.md says under "Leaving".
 */
describe("a cluster that the region has made, without the region", { timeout: 15 * MINUTE }, () => {
	beforeAll(async () => {
		await withFiveHosts();
		await become({ controlPlanes: [CONTROL_PLANE], workers: [WORKER] });
		const pod = {
			apiVersion: "v1",
			kind: "Pod",
			metadata: { name: "stays", namespace: "default" },
			spec: { nodeName: WORKER, containers: [await idleContainer(WORKER)] },
		};
		await applyInside([pod]);
		await on(CONTROL_PLANE, "kubectl --kubeconfig /etc/kubernetes/admin.conf wait --for=condition=Ready pod/stays");
	}, 30 * MINUTE);
	afterAll(() => demo.lab.start("mgmt"), 5 * MINUTE);

	it("starts anew on hosts that have no agent, while nobody answers for the region", async () => {
		for (const host of NODES) {
			await sh(host, "systemctl disable --now gp-agent");
			await sh(host, "dpkg --purge groundplane-agent-config groundplane-agent");
		}
		await demo.lab.stop("mgmt");
		for (const host of NODES) await demo.lab.reboot(host);
		await expectNodes(OLD);
	});

	it("is brought to another version by plain kubeadm, and its pods run on", async () => {
		const startedAt = await kubectlOn(CONTROL_PLANE, STARTED);
		const files = await filesOf(NEW);
		// On all of them first: kubeadm starts a Job of the new version on whichever node takes it.
		for (const host of NODES) await importImages(host, files);
		for (const host of NODES) {
			await copyPrograms(host, files, "bin", "/root/new");
			await sh(host, "cd /root/new && install -m 755 kubeadm /usr/local/bin/");
			const upgrade = host === CONTROL_PLANE ? `apply ${NEW} --yes` : "node";
			await sh(host, `kubeadm upgrade ${upgrade} ${FLAGS}`);
			await sh(host, "cd /root/new && install -m 755 kubelet kubectl /usr/local/bin/ && systemctl restart kubelet");
		}
		await expectNodes(NEW);
		const version = () => kubectlOn(CONTROL_PLANE, "version -o json");
		await eventually(async () => expect(await version()).toContain(`"gitVersion": "${NEW}"`));
		expect(await kubectlOn(CONTROL_PLANE, STARTED)).toBe(startedAt);
	});
});

/** Waits until both nodes run a version and take pods, and all that runs in the cluster is ready. */
async function expectNodes(version: string): Promise<void> {
	await eventually(async () => {
		const nodes = (await kubectlOn(CONTROL_PLANE, VERSIONS)).trim().split("\n");
		expect(nodes).toEqual(NODES.map((name) => `${name} ${version}`));
	}, 3 * MINUTE);
	const ready = (what: string) => kubectlOn(CONTROL_PLANE, `wait --for=condition=Ready ${what} --timeout=60s`);
	// An API server that has just started refuses for a moment what it will allow.
	await eventually(() => ready("nodes --all"), 3 * MINUTE);
	await eventually(() => ready("pods --all --all-namespaces"), 3 * MINUTE);
}
