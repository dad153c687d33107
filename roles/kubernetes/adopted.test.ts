import { expect, it } from "vitest";
import { render } from "../../agent/engine/pack.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { packFacts, packFiles, packManifest } from "../../test/support/role-pack.ts";

const image = { path: "images/pause.tar", kind: "image" as const, reference: "registry.k8s.io/pause:3.10.2" };
const manifest = packManifest([image, { path: "bin/kubelet", kind: "binary" }]);
const stepsOf = (mode: KubernetesRoleInput["mode"], more: Partial<KubernetesRoleInput> = {}) =>
	render(
		manifest,
		packFiles,
		{ cluster: "old", mode, kubernetesVersion: "v1.36.3", nodeName: "a", ...more } satisfies KubernetesRoleInput,
		packFacts,
	).steps;

// Closed lists on purpose: whatever is added to the pack is not for nodes that others made, unless it is added here.
it.each<[KubernetesRoleInput["mode"], string[]]>([
	[
		"adopt-control-plane",
		["directory/etc/groundplane/kubernetes", "adopted-node", "adopted-access", "plane-certificate", "plane-service"],
	],
	["adopt-worker", ["directory/etc/groundplane/kubernetes", "adopted-node"]],
])("%s touches nothing but the region's own way in", (mode, names) => {
	expect(stepsOf(mode).map(({ name }) => name)).toEqual(names);
	const addons = { metricsServer: true, nodeExporter: true, localPathStorage: { enabled: true }, sriov: true };
	expect(stepsOf(mode, { addons, cni: "flannel" }).map(({ name }) => name)).toEqual(names);
});

it("leads to the API server where it listens", () => {
	const [content] = stepsOf("adopt-control-plane", { nodeAddress: "192.0.2.7" })
		.filter(({ name }) => name === "plane-service")
		.map(({ want }) => (want as { content: string }).content);
	expect(JSON.parse(content ?? "")).toMatchObject({ address: "192.0.2.7:6443", caFile: "/etc/kubernetes/pki/ca.crt" });
});
