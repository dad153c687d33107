import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { RoleFacts } from "../../agent/engine/facts.ts";
import { render } from "../../agent/engine/pack.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";

const files = new Map(
	readdirSync(import.meta.dirname, { recursive: true, withFileTypes: true })
		.filter((entry) => entry.isFile() && !entry.name.endsWith(".ts"))
		.map((entry) => join(entry.parentPath, entry.name))
		.map((path) => [`pack/${path.slice(import.meta.dirname.length + 1)}`, readFileSync(path, "utf8")]),
);
const image = { path: "images/pause.tar", kind: "image" as const, reference: "registry.k8s.io/pause:3.10.2" };
const manifest = {
	schema: 1 as const,
	name: "kubernetes",
	version: "v1.36.3",
	architecture: "amd64" as const,
	createdAt: "2026-11-01T00:00:00Z",
	components: {},
	files: [
		{ ...image, size: 1, sha256: "0".repeat(64) },
		{ path: "bin/kubelet", kind: "binary" as const, size: 1, sha256: "1".repeat(64) },
	],
};
const facts: RoleFacts = {
	hostname: "a",
	architecture: "amd64",
	cgroup: "v2",
	resourceCapability: true,
	cores: 2,
	primaryAddress: "10.0.0.11",
};
const stepsOf = (mode: KubernetesRoleInput["mode"], more: Partial<KubernetesRoleInput> = {}) =>
	render(
		manifest,
		files,
		{ cluster: "old", mode, kubernetesVersion: "v1.36.3", nodeName: "a", ...more } satisfies KubernetesRoleInput,
		facts,
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
	const addons = { metricsServer: true, nodeExporter: true, localPathStorage: { enabled: true } };
	expect(stepsOf(mode, { addons, cni: "flannel" }).map(({ name }) => name)).toEqual(names);
});

it("leads to the API server where it listens", () => {
	const [content] = stepsOf("adopt-control-plane", { nodeAddress: "192.0.2.7" })
		.filter(({ name }) => name === "plane-service")
		.map(({ want }) => (want as { content: string }).content);
	expect(JSON.parse(content ?? "")).toMatchObject({ address: "192.0.2.7:6443", caFile: "/etc/kubernetes/pki/ca.crt" });
});
