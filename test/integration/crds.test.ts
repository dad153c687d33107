import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { clusterSpec } from "../../crds/cluster.ts";
import { GROUP_VERSION } from "../../crds/common.ts";
import { hostSpec } from "../../crds/host.ts";
import { regionSpec } from "../../crds/region.ts";
import { clusters, collectionPath, hosts, type KubeObject, regions } from "../../operator/kube/resources.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";

const fixtures = fileURLToPath(new URL("../../crds/fixtures/", import.meta.url));
const kinds = { Region: regions, Host: hosts, Cluster: clusters };
const schemas = { Region: regionSpec, Host: hostSpec, Cluster: clusterSpec };

interface Fixture extends KubeObject {
	kind: keyof typeof kinds;
	spec: unknown;
}

async function load(directory: string): Promise<{ file: string; text: string; object: Fixture }[]> {
	const files = await readdir(join(fixtures, directory));
	return Promise.all(
		files.sort().map(async (file) => {
			const text = await readFile(join(fixtures, directory, file), "utf8");
			return { file, text, object: parse(text) as Fixture };
		}),
	);
}

const good = await load("good");
const bad = await load("bad");
let api: TestApiServer;
beforeAll(async () => {
	api = await startApiServer();
});
afterAll(() => api?.stop());

const create = (object: Fixture): Promise<Fixture> =>
	api.client.request("POST", collectionPath(kinds[object.kind], object.metadata.namespace), {
		query: { dryRun: "All", fieldValidation: "Strict" },
		body: object,
	});

describe("custom resource definitions", () => {
	it.each(good)("take $file, and default it as zod does", async ({ object }) => {
		const created = await create(object);
		expect(created.spec).toEqual(JSON.parse(JSON.stringify(schemas[object.kind].parse(object.spec))));
	});

	it.each(bad)("refuse $file", async ({ text, object }) => {
		const expected = /^# expect: (.*)$/m.exec(text)?.[1];
		expect(expected).toBeDefined();
		await expect(create(object)).rejects.toThrow(expected);
	});

	it("keep a region's domain and a cluster's networks as they are", async () => {
		const region = await api.client.create(regions, {
			metadata: { name: "fixed" },
			spec: { customer: "Example", domain: "fixed.example.com" },
		} as never);
		const move = { spec: { domain: "moved.example.com" } };
		await expect(api.client.patch(regions, region.metadata, move)).rejects.toThrow("domain can't be changed");
		const cluster = await api.client.create(clusters, {
			metadata: { name: "fixed", namespace: "default" },
			spec: { version: "v1.36.3", controlPlane: { hosts: ["host-1"] } },
		} as never);
		const widen = { spec: { network: { podSubnet: "10.0.0.0/11" } } };
		await expect(api.client.patch(clusters, cluster.metadata, widen)).rejects.toThrow(
			"the networks of a cluster can't be changed",
		);
	});

	it("keep the size of Prometheus' storage while it is on", async () => {
		const { metadata } = await api.client.create(clusters, {
			metadata: { name: "measured", namespace: "default" },
			spec: { version: "v1.36.3", controlPlane: { hosts: ["host-1"] }, addons: { prometheus: { enabled: true } } },
		} as never);
		const to = (prometheus: object) => api.client.patch(clusters, metadata, { spec: { addons: { prometheus } } });
		await expect(to({ storage: "9Gi" })).rejects.toThrow("can't be changed while it is on");
		await to({ retention: "30d" });
		await to({ enabled: false, storage: "9Gi" });
		expect((await to({ enabled: true })).spec.addons.prometheus).toEqual({
			enabled: true,
			retention: "30d",
			storage: "9Gi",
		});
	});

	it("keep what is decided when a cluster is made: kube-proxy and the endpoint; CoreDNS comes and goes", async () => {
		const create = (name: string, spec: object) =>
			api.client.create(clusters, {
				metadata: { name, namespace: "default" },
				spec: { version: "v1.36.3", controlPlane: { hosts: ["host-1"] }, ...spec },
			} as never);
		const { metadata } = await create("decided", { endpoint: "k8s.example.com" });
		const bare = await create("without-endpoint", {});
		const to = (of: { name: string }, spec: object) => api.client.patch(clusters, of, { spec });
		await expect(to(metadata, { addons: { kubeProxy: false } })).rejects.toThrow("decided when it is made");
		for (const endpoint of ["other.example.com", null])
			await expect(to(metadata, { endpoint })).rejects.toThrow("the endpoint of a cluster is decided");
		await expect(to(bare.metadata, { endpoint: "k8s.example.com" })).rejects.toThrow("the endpoint of a cluster");
		for (const coredns of [false, true])
			expect((await to(metadata, { addons: { coredns } })).spec).toMatchObject({
				addons: { coredns, kubeProxy: true },
				endpoint: "k8s.example.com",
			});
	});

	it("let a cluster's version go one minor up or down at a time", async () => {
		const { metadata } = await api.client.create(clusters, {
			metadata: { name: "rolling", namespace: "default" },
			spec: { version: "v1.35.4", controlPlane: { hosts: ["host-1"] } },
		} as never);
		const to = (version: string) => api.client.patch(clusters, metadata, { spec: { version } });
		for (const version of ["v1.35.9", "v1.36.3", "v1.35.4"]) expect((await to(version)).spec.version).toBe(version);
		for (const version of ["v1.37.0", "v1.33.1"])
			await expect(to(version)).rejects.toThrow("one minor version at a time");
	});

	it("keep status apart: it is written by its subresource only", async () => {
		const status = { phase: "Ready", conditions: [] };
		const name = "status";
		await api.client.create(regions, {
			metadata: { name },
			spec: { customer: "Example", domain: "status.example.com" },
			status,
		} as never);
		expect((await api.client.get(regions, name)).status).toBeUndefined();
		await api.client.patch(regions, { name }, { status }, { subresource: "status" });
		expect((await api.client.get(regions, name)).status?.phase).toBe("Ready");
		const impossible = { status: { phase: "Perfect" } };
		await expect(api.client.patch(regions, { name }, impossible, { subresource: "status" })).rejects.toThrow(
			"status.phase",
		);
	});

	it("print the columns that people look for, and are of the category groundplane", async () => {
		const table = await api.client.request<{ columnDefinitions: { name: string }[] }>("GET", collectionPath(regions), {
			headers: { accept: "application/json;as=Table;v=v1;g=meta.k8s.io" },
		});
		expect(table.columnDefinitions.map(({ name }) => name)).toEqual(
			expect.arrayContaining(["Name", "Customer", "Domain", "Phase", "Release", "Hosts", "Clusters", "Age"]),
		);
		const { columnDefinitions } = await api.client.request<{ columnDefinitions: { name: string; priority: number }[] }>(
			"GET",
			collectionPath(clusters),
			{ headers: { accept: "application/json;as=Table;v=v1;g=meta.k8s.io" } },
		);
		expect(columnDefinitions.filter(({ priority }) => priority === 0).map(({ name }) => name)).toEqual([
			"Name",
			"Phase",
			"Version",
			"Ready",
			"Step",
			"Host",
			"Since",
			"Usual",
			"Next",
			"Age",
		]);
		const { resources } = await api.client.request<{ resources: { name: string; categories?: string[] }[] }>(
			"GET",
			`/apis/${GROUP_VERSION}`,
		);
		for (const name of ["regions", "hosts", "clusters"]) {
			expect(resources.find((r) => r.name === name)?.categories).toEqual(["groundplane"]);
		}
	});
});
