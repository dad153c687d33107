import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { stringify } from "yaml";
import type { ZodRawShape } from "zod";
import { type Region, regionSpec } from "../crds/region.ts";
import { tool } from "../hack/builder/tools.ts";
import { readConfig } from "../operator/config.ts";
import type { KubeConfig } from "../operator/kube/config.ts";
import { regionSecrets, values } from "../operator/region/wanted.ts";
import { commonConfig, loadConfig } from "../services/kit/config.ts";
import { startApiServer, type TestApiServer } from "../test/support/apiserver.ts";
import { type PackagedCharts, packageCharts } from "./package.ts";
import { containerOf, coreValues, execute, helm, manifests, publicJwks, regionValues, render } from "./testing.ts";

/** Values that switch on everything the charts can make. */
const fullCore = {
	...coreValues,
	image: { registry: "registry.example.com/team", pullSecrets: [{ name: "pull" }] },
	operator: { replicas: 2 },
	edge: { replicas: 2, service: { type: "LoadBalancer", sourceRanges: ["192.0.2.0/24"], annotations: { a: "b" } } },
};
const fullRegion = {
	...regionValues,
	image: { ...fullCore.image, pullSecrets: ["pull"] },
	storageClass: "fast",
	secretChecksums: { "tls-front": "1234", nats: "abcd" },
	tunnel: { replicas: 2 },
};
const cases = [
	{ chart: "groundplane", namespace: "groundplane-system", values: coreValues },
	{ chart: "groundplane", namespace: "groundplane-system", values: { ...coreValues, edge: { hostPort: 443 } } },
	{ chart: "groundplane", namespace: "groundplane-system", values: fullCore },
	{ chart: "region", namespace: "region-demo", values: regionValues },
	{ chart: "region", namespace: "region-demo", values: fullRegion },
] as const;

let directory: string;
let charts: PackagedCharts;
let api: TestApiServer;

const kubectl = async (args: readonly string[], input?: string) =>
	execute(await tool("kubectl"), ["--kubeconfig", api.kubeconfig, ...args], input === undefined ? {} : { input });

beforeAll(async () => {
	directory = await mkdtemp(join(tmpdir(), "gp-charts-"));
	charts = await packageCharts({ out: directory, version: "0.2.0" });
	api = await startApiServer({ crds: false });
	await Promise.all([tool("helm"), tool("kubectl"), tool("kubeconform"), tool("kube-score")]);
	for (const [name, level] of [
		["groundplane-system", "restricted"],
		["region-demo", "restricted"],
	] as const) {
		await kubectl(
			["apply", "-f", "-"],
			JSON.stringify({
				apiVersion: "v1",
				kind: "Namespace",
				metadata: {
					name,
					labels: {
						"pod-security.kubernetes.io/enforce": level,
						"pod-security.kubernetes.io/warn": level,
						"groundplane.io/region": name === "region-demo" ? "demo" : "none",
					},
				},
			}),
		);
	}
});

afterAll(async () => {
	await api?.stop();
	await rm(directory, { recursive: true, force: true });
});

describe.each(cases)("chart $chart with $values", ({ chart, namespace, values }) => {
	const path = () => charts[chart];

	test("helm lint --strict finds nothing", async () => {
		expect(await helm(["lint", "--strict", path()], values)).toContain("0 chart(s) failed");
	});

	test("kubeconform accepts every object by the schemas of a real API server", async () => {
		const schemas = join(directory, "schemas");
		await writeSchemas(schemas);
		const yaml = await render(path(), namespace, values);
		const report = JSON.parse(
			await execute(
				await tool("kubeconform"),
				[
					"-strict",
					"-output",
					"json",
					"-summary",
					"-schema-location",
					`${schemas}/{{.ResourceKind}}{{.KindSuffix}}.json`,
				],
				{ input: yaml },
			),
		) as { summary: { valid: number; invalid: number; errors: number; skipped: number } };
		expect(report.summary).toEqual({ valid: manifests(yaml).length, invalid: 0, errors: 0, skipped: 0 });
	});

	test("kube-score finds nothing critical", async () => {
		const yaml = await render(path(), namespace, values);
		const findings = await execute(await tool("kube-score"), ["score", "--output-format", "ci", "-"], { input: yaml });
		expect(findings.split("\n").filter((line) => line.startsWith("[CRITICAL]"))).toEqual([]);
	});

	test("a real API server would make every object, and pods meet the restricted profile", async () => {
		const yaml = await render(path(), namespace, values);
		const binary = await tool("kubectl");
		// A host port is what the restricted profile forbids and a management server of one node needs.
		const usesHostPort = JSON.stringify(values).includes("hostPort");
		const output = await execute(
			"/bin/sh",
			[
				"-c",
				'"$0" "$@" 2>&1',
				binary,
				"--kubeconfig",
				api.kubeconfig,
				"apply",
				"--server-side",
				"--dry-run=server",
				"-f",
				"-",
			],
			{ input: yaml },
		);
		expect(
			output
				.trim()
				.split("\n")
				.filter((line) => line.includes("serverside-applied")),
		).toHaveLength(manifests(yaml).length);
		const warnings = output.split("\n").filter((line) => line.includes("Warning"));
		if (usesHostPort) expect(warnings.join()).toMatch(/^[^,]*hostPort[^,]*$/);
		else expect(warnings).toEqual([]);
	});
});

test.each([
	[{}, "LoadBalancer", undefined],
	[{ hostPort: 443 }, "ClusterIP", 443],
])("an edge with %o is published by a Service of type %s and the node's port %s", async (edge, type, hostPort) => {
	const made = manifests(await render(charts.groundplane, "groundplane-system", { ...coreValues, edge }));
	const service = made.find(({ kind, metadata }) => kind === "Service" && metadata.name === "edge");
	expect(service?.spec).toMatchObject({ type });
	expect(containerOf(made, "edge").ports?.find(({ name }) => name === "https")?.hostPort).toBe(hostPort);
});

test("values that are not in the schema are refused", async () => {
	for (const [chart, values] of [
		[charts.region, { ...regionValues, tunnel: { replicas: 0 } }],
		[charts.region, { ...regionValues, typo: true }],
		[charts.region, { ...regionValues, domain: "not a domain" }],
		[charts.region, { ...regionValues, monitoring: { retention: "forever" } }],
		[charts.region, { ...regionValues, bundles: [{ name: "kubernetes", version: "../x" }] }],
		[charts.groundplane, { ...coreValues, edge: { hostPort: 70000 } }],
		[charts.groundplane, { ...coreValues, edge: { service: { type: "ExternalName" } } }],
		[charts.groundplane, { bundles: [] }],
	] as const) {
		await expect(render(chart, "x", values), JSON.stringify(values)).rejects.toThrow(
			/don't meet the specifications|give the public keys/,
		);
	}
});

describe("releases", () => {
	const get = async (...args: string[]) => JSON.parse(await kubectl(["get", "-o", "json", ...args]));
	const flags = () => ["--kubeconfig", api.kubeconfig];

	const install = () => [
		"upgrade",
		"--install",
		"groundplane",
		charts.groundplane,
		"-n",
		"groundplane-system",
		...flags(),
	];

	test("the core is installed, upgraded, rolled back and uninstalled, and the custom resources stay", async () => {
		await helm(install(), coreValues);
		await kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
		const crds = await get("crd");
		expect(crds.items.map((crd: { metadata: { name: string } }) => crd.metadata.name)).toEqual([
			"clusters.groundplane.io",
			"hosts.groundplane.io",
			"regions.groundplane.io",
		]);
		await helm(install(), fullCore);
		expect((await get("-n", "groundplane-system", "deploy", "edge")).spec.replicas).toBe(2);
		await helm(["rollback", "groundplane", "1", "-n", "groundplane-system", ...flags()]);
		expect((await get("-n", "groundplane-system", "deploy", "edge")).spec.replicas).toBe(1);
		await helm(["uninstall", "groundplane", "-n", "groundplane-system", "--wait=hookOnly", ...flags()]);
		expect((await get("crd")).items).toHaveLength(3);
		// What was kept is taken over by the next installation.
		await helm(install(), coreValues);
	});

	test("the operator's account installs, upgrades and rolls back a region with no more rights than it has", async () => {
		await helm(install(), coreValues);
		const kubeconfig = join(directory, "operator.kubeconfig");
		await writeFile(kubeconfig, kubeconfigOf(await api.serviceAccount("groundplane-system", "groundplane-operator")));
		const operator = async (args: readonly string[], input?: string) =>
			execute(await tool("kubectl"), ["--kubeconfig", kubeconfig, ...args], input === undefined ? {} : { input });
		const bind = (namespace: string) =>
			operator([
				...["create", "rolebinding", "groundplane-operator", "-n", namespace],
				...[
					"--clusterrole",
					"groundplane-region-manager",
					"--serviceaccount",
					"groundplane-system:groundplane-operator",
				],
			]);

		await expect(operator(["get", "secrets", "-n", "region-demo"])).rejects.toThrow(/forbidden/);
		// The admission policy takes a moment to be in force after it was made.
		for (let tries = 0; ; tries += 1) {
			const refused = await bind("kube-system").then(
				() => false,
				(error: Error) => error.message.includes("region namespaces only"),
			);
			if (refused) break;
			if (tries === 50) throw new Error("the operator could grant itself rights in kube-system");
			await kubectl(["delete", "rolebinding", "groundplane-operator", "-n", "kube-system", "--ignore-not-found"]);
			await delay(200);
		}
		await expect(operator(["create", "namespace", "mine"])).rejects.toThrow(/region namespaces only/);
		await expect(operator(["delete", "namespace", "groundplane-system"])).rejects.toThrow(/region namespaces only/);
		await expect(
			operator(["create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--user=x"]),
		).rejects.toThrow(/forbidden/);
		await bind("region-demo");

		const flags = ["-n", "region-demo", "--kubeconfig", kubeconfig];
		await helm(["upgrade", "--install", "region", charts.region, ...flags], { ...regionValues, storageClass: "fast" });
		const before = await get("-n", "region-demo", "deploy", "tunnel");
		expect(before.spec.replicas).toBe(1);
		await helm(["upgrade", "region", charts.region, ...flags], fullRegion);
		expect((await get("-n", "region-demo", "deploy", "tunnel")).spec.replicas).toBe(2);
		expect(await get("-n", "region-demo", "pdb", "tunnel")).toBeTruthy();
		await helm(["rollback", "region", "1", ...flags]);
		const after = await get("-n", "region-demo", "deploy", "tunnel");
		expect(after.spec).toEqual(before.spec);
		// Data outlives the release; the namespace takes it along.
		await helm(["uninstall", "region", "--wait=hookOnly", ...flags]);
		const claims = await get("-n", "region-demo", "pvc");
		expect(claims.items.map((claim: { metadata: { name: string } }) => claim.metadata.name)).toEqual([
			"nats-data",
			"postgresql-data",
			"prometheus-data",
		]);
	});

	test("an upgrade with the same values rolls no pod", async () => {
		const first = manifests(await render(charts.region, "region-demo", regionValues));
		const newer = await packageCharts({ out: join(directory, "newer"), version: "0.3.0" });
		const second = manifests(await render(newer.region, "region-demo", { ...regionValues, image: { tag: "0.2.0" } }));
		const templates = (objects: typeof first) =>
			objects
				.filter(({ kind }) => /Deployment|StatefulSet/.test(kind))
				.map(({ spec }) => (spec as { template: unknown }).template);
		expect(templates(second)).toEqual(templates(first));
	});
});

test("a Secret's checksum rolls exactly the pods that can't read it anew", async () => {
	const annotations = async (secretChecksums: Record<string, string>) =>
		new Map(
			manifests(await render(charts.region, "region-demo", { ...regionValues, secretChecksums }))
				.filter(({ kind }) => /Deployment|StatefulSet/.test(kind))
				.map(({ metadata, spec }) => [
					metadata.name,
					JSON.stringify((spec as { template: { metadata: unknown } }).template.metadata),
				]),
		);
	const none = await annotations({});
	const rolled = async (secret: string) => {
		const changed = await annotations({ [secret]: "new" });
		return [...none.keys()].filter((name) => none.get(name) !== changed.get(name)).sort();
	};
	expect(await rolled("postgresql")).toEqual(["auth", "hosts", "postgresql"]);
	expect(await rolled("nats")).toEqual(["hosts", "nats", "tunnel"]);
	expect(await rolled("tls-front")).toEqual(["front"]);
	expect(await rolled("tls-hosts")).toEqual([]);
});

describe("what the chart and the code agree on", () => {
	test("every variable that a service gets is one that it reads, and none is missing", async () => {
		const definitions: Record<string, { config: ZodRawShape }> = {
			tunnel: (await import("../services/tunnel/service.ts")).tunnelService,
			auth: (await import("../services/auth/service.ts")).authService,
			clusters: (await import("../services/clusters/service.ts")).clustersService,
			hosts: (await import("../services/hosts/service.ts")).hostsService,
			artifacts: (await import("../services/artifacts/service.ts")).artifactsService,
		};
		// Read by node, by libuv and by libc, or given to every service whether it needs it or not.
		const others = [
			"NODE_OPTIONS",
			"UV_THREADPOOL_SIZE",
			"MALLOC_ARENA_MAX",
			"MALLOC_MMAP_THRESHOLD_",
			"POD_NAME",
			"POD_IP",
			"VERSION",
		];
		const objects = manifests(await render(charts.region, "region-demo", regionValues));
		for (const [name, { config }] of Object.entries(definitions)) {
			const variables = containerOf(objects, name).env ?? [];
			const env = Object.fromEntries(variables.map(({ name, value }) => [name, value ?? "from the pod"]));
			expect(() => loadConfig(config, env), name).not.toThrow();
			const known = Object.keys({ ...commonConfig, ...config }).map((key) =>
				key.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase(),
			);
			expect(Object.keys(env).filter((variable) => ![...known, ...others].includes(variable))).toEqual([]);
		}
	});

	test("every Secret that is mounted is one that the operator mints, and every key is there", async () => {
		const objects = manifests(await render(charts.region, "region-demo", regionValues));
		const mounted = new Set([...JSON.stringify(objects).matchAll(/"secretName":"([^"]+)"/g)].map(([, name]) => name));
		expect([...mounted].sort()).toEqual(regionSecrets.map(({ name }) => name).sort());
	});

	test("the operator's values of a Region with nothing but its name and domain fit the chart", async () => {
		const region = {
			metadata: { name: "demo" },
			spec: regionSpec.parse({ customer: "Example", domain: "demo.example.com" }),
		};
		const config = readConfig({
			VERSION: "0.2.0",
			RELEASE_JWKS: publicJwks,
			BUNDLES: JSON.stringify(regionValues.bundles),
		});
		const yaml = await render(charts.region, "region-demo", values(region as Region, config, { nats: "1234" }));
		expect(manifests(yaml).length).toBeGreaterThan(50);
		// A bundle that changes within a version is another image, and the pods that hold it start anew.
		const images = [...yaml.matchAll(/reference: "?(\S+?)"?$/gm)].map(([, reference]) => reference);
		expect(images).toEqual([
			"groundplane/bundle-kubernetes:v1.36.3-0123456789ab",
			"groundplane/bundle-kubernetes:v1.35.4",
		]);
		const operator = containerOf(
			manifests(await render(charts.groundplane, "groundplane-system", fullCore)),
			"operator",
		);
		const env = Object.fromEntries((operator.env ?? []).map(({ name, value }) => [name, value ?? "operator-0"]));
		expect(readConfig(env)).toMatchObject({
			version: "0.2.0",
			image: { registry: "registry.example.com/team", tag: "0.2.0", pullSecrets: ["pull"] },
			bundles: regionValues.bundles,
		});
	});
});

type Schema = { [key: string]: unknown };

let written: Promise<void> | undefined;
/** Turns `/openapi/v2` of the API server into what kubeconform reads: one strict JSON schema for each kind. */
function writeSchemas(to: string): Promise<void> {
	written ??= (async () => {
		const { definitions } = JSON.parse(await kubectl(["get", "--raw", "/openapi/v2"])) as {
			definitions: Record<string, Schema>;
		};
		const strict = (schema: unknown): unknown => {
			if (Array.isArray(schema)) return schema.map(strict);
			if (typeof schema !== "object" || schema === null) return schema;
			const copy = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, strict(value)]));
			if (copy.format === "int-or-string") return { type: ["string", "integer"] };
			if (
				"properties" in copy &&
				!("additionalProperties" in copy) &&
				!("x-kubernetes-preserve-unknown-fields" in copy)
			) {
				copy.additionalProperties = false;
			}
			return copy;
		};
		const { mkdir } = await import("node:fs/promises");
		await mkdir(to, { recursive: true });
		for (const [name, definition] of Object.entries(definitions)) {
			const kinds = definition["x-kubernetes-group-version-kind"] as
				| { group: string; version: string; kind: string }[]
				| undefined;
			if (kinds?.length !== 1 || kinds[0] === undefined) continue;
			const { group, version, kind } = kinds[0];
			const needed = new Map<string, unknown>();
			const collect = (name: string) => {
				if (needed.has(name)) return;
				needed.set(name, strict(definitions[name]));
				for (const [, other] of JSON.stringify(definitions[name]).matchAll(/"#\/definitions\/([^"]+)"/g))
					collect(other as string);
			};
			collect(name);
			const suffix = [group.split(".")[0], version].filter((part) => part !== "").join("-");
			await writeFile(
				join(to, `${kind.toLowerCase()}-${suffix}.json`),
				JSON.stringify({ $ref: `#/definitions/${name}`, definitions: Object.fromEntries(needed) }),
			);
		}
	})();
	return written;
}

const kubeconfigOf = ({ server, tls, token }: KubeConfig): string =>
	stringify({
		apiVersion: "v1",
		kind: "Config",
		"current-context": "test",
		clusters: [
			{
				name: "test",
				cluster: { server, "certificate-authority-data": Buffer.from(String(tls?.ca)).toString("base64") },
			},
		],
		users: [{ name: "test", user: { token: token?.() } }],
		contexts: [{ name: "test", context: { cluster: "test", user: "test" } }],
	});
