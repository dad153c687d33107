import { X509Certificate } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { packageCharts } from "../../charts/package.ts";
import type { Region } from "../../crds/region.ts";
import type { ControllerDeps } from "../../operator/deps.ts";
import { getCondition } from "../../operator/kube/conditions.ts";
import {
	clusters,
	configMaps,
	deployments,
	hosts,
	type KubeObject,
	limitRanges,
	namespaces,
	regions,
	resourceQuotas,
	type Secret,
	secrets,
	services,
	statefulSets,
} from "../../operator/kube/resources.ts";
import { createRegionController } from "../../operator/region/controller.ts";
import { components } from "../../operator/region/wanted.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";
import { operatorAccount, operatorDeps, writeKubeconfig } from "../support/operator.ts";

const core = "groundplane-system";
let api: TestApiServer;
let directory: string;
let env: Record<string, string>;
let account: Awaited<ReturnType<typeof operatorAccount>>;
let running: { stop(): Promise<void>; deps: ControllerDeps } | undefined;

beforeAll(async () => {
	directory = await mkdtemp(join(tmpdir(), "gp-region-"));
	api = await startApiServer();
	account = await operatorAccount(api);
	const { region } = await packageCharts({ out: join(directory, "charts"), version: "0.1.0" });
	env = { REGION_CHART: region, WORK_DIR: directory, HELM_TIMEOUT: "8s" };
	// helm acts with the operator's rights and no others.
	vi.stubEnv("KUBECONFIG", await writeKubeconfig(account, join(directory, "kubeconfig")));
});
afterEach(async () => {
	await running?.stop();
	// What one test made is no work for the operators of the next ones.
	for (const { metadata } of (await api.client.list(regions)).items) {
		await api.client.patch(regions, metadata, { spec: { paused: true } });
	}
});
afterAll(async () => {
	await api?.stop();
	await rm(directory, { recursive: true, force: true });
	vi.unstubAllEnvs();
});

/** Runs the region controller as the operator does. */
async function operate(overrides: Partial<ControllerDeps> = {}, more: Record<string, string> = {}) {
	await running?.stop();
	const deps = await operatorDeps(account, { ...env, ...more }, overrides);
	const controller = await createRegionController(deps);
	const stop = new AbortController();
	const ends = [...Object.values(deps.informers), controller].map((part) => part.run(stop.signal));
	running = {
		deps,
		async stop() {
			running = undefined;
			stop.abort();
			await Promise.all(ends);
			deps.client.close();
		},
	};
	return running;
}

const make = (name: string, spec: Record<string, unknown> = {}): Promise<Region> =>
	api.client.create(regions, {
		metadata: { name },
		spec: { customer: "Example", domain: `${name}.example.com`, ...spec },
	} as unknown as Region);

const until = <T>(check: () => Promise<T>, timeout = 45_000): Promise<T> =>
	vi.waitFor(check, { timeout, interval: 100 });

const untilReady = (name: string, reason: string, status = "False", timeout = 45_000): Promise<Region> =>
	until(async () => {
		const region = await api.client.get(regions, name);
		const ready = getCondition(region.status?.conditions, "Ready");
		expect(ready).toMatchObject({ reason, status, observedGeneration: region.metadata.generation });
		return region;
	}, timeout);

/** There is no scheduler here: says of every workload that it runs. */
async function run(namespace: string, { except = [] as string[] } = {}): Promise<void> {
	for (const resource of [deployments, statefulSets]) {
		for (const { metadata, spec } of (await api.client.list(resource, { namespace })).items) {
			if (except.includes(metadata.name)) continue;
			const replicas = spec?.replicas ?? 1;
			const counts = { replicas, readyReplicas: replicas, availableReplicas: replicas, updatedReplicas: replicas };
			const status = {
				observedGeneration: metadata.generation,
				...counts,
				...(resource === deployments
					? { conditions: [{ type: "Available", status: "True", reason: "MinimumReplicasAvailable" }] }
					: { currentReplicas: replicas, currentRevision: "1", updateRevision: "1" }),
			};
			await api.client.patch(resource, metadata, { status }, { subresource: "status" });
		}
	}
}

const contents = async (namespace: string): Promise<Map<string, Secret>> =>
	new Map(
		(await api.client.list(secrets, { namespace })).items
			.filter(({ type }) => type !== "helm.sh/release.v1")
			.map((secret) => [`${namespace}/${secret.metadata.name}`, secret]),
	);
const text = (secret: Secret | undefined, key: string): string =>
	Buffer.from(secret?.data?.[key] ?? "", "base64").toString("utf8");

/** Without a namespace controller nobody empties a namespace: does what that controller would. */
async function emptyNamespace(name: string): Promise<void> {
	const namespace = await until(async () => {
		const found = await api.client.get(namespaces, name);
		expect(found.metadata.deletionTimestamp).toBeDefined();
		return found;
	});
	for (const resource of [secrets, services, configMaps, deployments, statefulSets, resourceQuotas, limitRanges]) {
		for (const { metadata } of (await api.client.list<KubeObject>(resource, { namespace: name })).items) {
			await api.client.delete(resource, { name: metadata.name, namespace: name });
		}
	}
	await api.client.request("PUT", `/api/v1/namespaces/${name}/finalize`, {
		body: { ...namespace, apiVersion: "v1", kind: "Namespace", spec: { finalizers: [] } },
	});
}

/** Has the parts of a region, each a StatefulSet that a test can call ready. */
const brittle = `
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ if eq .Values.customer "Broken" }}Not_A_Name{{ else }}brittle{{ end }}
data:
  customer: {{ .Values.customer }}
{{- range ${JSON.stringify(components).replaceAll(",", " ").replace("[", "list ").replace("]", "")} }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ . }}
  labels: { app.kubernetes.io/name: {{ . }}, groundplane.io/region: {{ $.Values.region }} }
spec:
  serviceName: {{ . }}
  selector: { matchLabels: { app: {{ . }} } }
  template:
    metadata: { labels: { app: {{ . }} } }
    spec: { containers: [{ name: main, image: "example/{{ . }}:1.0" }] }
{{- end }}
`;

describe("a region", () => {
	it("comes up from its resource alone, and goes without a trace", async () => {
		await operate();
		await make("demo", { tunnel: { replicas: 2 } });
		await untilReady("demo", "ComponentsNotReady");
		const namespace = "region-demo";
		const before = new Map([...(await contents(namespace)), ...(await contents(core))]);
		expect([...before.keys()].filter((key) => key.startsWith(core)).sort()).toEqual([
			`${core}/region-demo-ca`,
			`${core}/region-demo-operator-tls`,
		]);

		await run(namespace, { except: ["nats"] });
		await until(async () => {
			const { status } = await api.client.get(regions, "demo");
			expect(status?.components?.filter(({ ready }) => !ready).map(({ name }) => name)).toEqual(["nats"]);
			expect(status?.components).toContainEqual({ name: "tunnel", ready: true, replicas: "2/2", version: "0.1.0" });
		});
		await run(namespace);
		const { status } = await untilReady("demo", "Ready", "True");
		expect(status).toMatchObject({
			phase: "Ready",
			release: "0.1.0",
			namespace,
			endpoints: { console: "https://demo.example.com/", issuer: "https://demo.example.com/auth" },
			hosts: { total: 0, ready: 0 },
		});

		// The chain of trust: root, then services and the hosts' intermediate; the root's key stays in the core.
		const root = new X509Certificate(text(before.get(`${core}/region-demo-ca`), "tls.crt"));
		expect(root.fingerprint256.replaceAll(":", "").toLowerCase()).toBe(status?.caDigest);
		const tunnel = new X509Certificate(text(before.get(`${namespace}/tls-tunnel`), "tls.crt"));
		expect(tunnel.verify(root.publicKey)).toBe(true);
		expect(tunnel.subject).toBe("CN=tunnel");
		expect(tunnel.checkHost("tunnel.demo.example.com")).toBeDefined();
		expect(tunnel.checkHost(`tunnel.${namespace}.svc.cluster.local`)).toBeDefined();
		expect(tunnel.checkHost("demo.example.com")).toBeUndefined();
		const hostsCa = new X509Certificate(text(before.get(`${namespace}/hosts-ca`), "tls.crt"));
		expect(hostsCa.ca && hostsCa.verify(root.publicKey)).toBe(true);
		const rootKey = text(before.get(`${core}/region-demo-ca`), "tls.key");
		for (const [key, secret] of before) {
			if (!key.startsWith(namespace)) continue;
			for (const name of Object.keys(secret.data ?? {}))
				expect(text(secret, name)).not.toContain(rootKey.slice(40, 100));
		}

		// The edge's routes, the quota, the defaults.
		const routes = (await api.client.list(services, { namespace: core })).items.map((service) => [
			service.metadata.annotations?.["groundplane.io/server-name"],
			service.spec?.externalName,
		]);
		expect(routes).toEqual(
			expect.arrayContaining([
				["demo.example.com", `front.${namespace}.svc.cluster.local`],
				["tunnel.demo.example.com", `tunnel.${namespace}.svc.cluster.local`],
			]),
		);
		expect(await api.client.get(resourceQuotas, "region", namespace)).toMatchObject({
			spec: { hard: { "requests.cpu": "8", "limits.memory": "8Gi" } },
		});

		// A second operator takes over and makes nothing twice.
		const revisions = async () =>
			(await api.client.list(secrets, { namespace, labelSelector: "owner=helm" })).items.length;
		expect(await revisions()).toBe(1);
		await operate();
		await until(async () => {
			const client = await api.client.get(regions, "demo");
			expect(client.metadata.finalizers).toEqual(["groundplane.io/region"]);
		});
		await new Promise((resolve) => setTimeout(resolve, 3000));
		expect(await revisions()).toBe(1);
		const after = new Map([...(await contents(namespace)), ...(await contents(core))]);
		for (const [key, secret] of before) expect(after.get(key)?.data, key).toEqual(secret.data);
		await untilReady("demo", "Ready", "True");

		// Taken down: clusters first, then hosts, then everything else.
		const spec = { version: "v1.36.3", controlPlane: { hosts: ["host-1"] } };
		const finalizers = ["test/hold"];
		await api.client.create(clusters, { metadata: { name: "c", namespace, finalizers }, spec } as never);
		await api.client.create(hosts, { metadata: { name: "host-1", namespace, finalizers }, spec: {} } as never);
		await until(async () => {
			const { status } = await api.client.get(regions, "demo");
			expect(status).toMatchObject({ hosts: { total: 1 }, clusters: { total: 1 } });
		});
		await api.client.delete(regions, { name: "demo" });
		await until(async () => {
			const { status } = await api.client.get(regions, "demo");
			expect(getCondition(status?.conditions, "Ready")).toMatchObject({
				reason: "Deleting",
				message: expect.stringContaining("cluster c"),
			});
		});
		expect((await api.client.get(hosts, "host-1", namespace)).metadata.deletionTimestamp).toBeUndefined();
		await api.client.patch(clusters, { name: "c", namespace }, { metadata: { finalizers: [] } });
		await until(async () => {
			const { status } = await api.client.get(regions, "demo");
			expect(getCondition(status?.conditions, "Ready")?.message).toContain("host host-1");
		});
		expect(await revisions()).toBe(1);
		await api.client.patch(hosts, { name: "host-1", namespace }, { metadata: { finalizers: [] } });
		await emptyNamespace(namespace);
		await until(async () => expect(await api.client.find(regions, "demo")).toBeUndefined());
		expect(await api.client.find(namespaces, namespace)).toBeUndefined();
		expect([...(await contents(core)).keys()]).toEqual([]);
		expect((await api.client.list(services, { namespace: core })).items).toEqual([]);
	}, 120_000);

	it("that fails to upgrade is rolled back, says so, and goes on when it is corrected", async () => {
		// A chart of nothing but names, which can be broken by a value: the API server refuses the object.
		const chart = join(directory, "brittle");
		await mkdir(join(chart, "templates"), { recursive: true });
		await writeFile(join(chart, "Chart.yaml"), "apiVersion: v2\nname: region\nversion: 0.1.0\n");
		await writeFile(join(chart, "templates", "all.yaml"), brittle);
		await operate({}, { REGION_CHART: chart });
		await make("brittle");
		await untilReady("brittle", "ComponentsNotReady");
		await run("region-brittle");
		await untilReady("brittle", "Ready", "True");

		await api.client.patch(regions, { name: "brittle" }, { spec: { customer: "Broken" } });
		const failed = await untilReady("brittle", "HelmFailed", "False", 40_000);
		expect(failed.status?.phase).toBe("Failed");
		expect(getCondition(failed.status?.conditions, "Ready")?.message).toContain("Not_A_Name");
		expect(getCondition(failed.status?.conditions, "Installed")?.reason).toBe("HelmFailed");
		// What ran before runs still.
		const { data } = await api.client.get(configMaps, "brittle", "region-brittle");
		expect(data).toEqual({ customer: "Example" });

		await api.client.patch(regions, { name: "brittle" }, { spec: { customer: "Mended" } });
		await until(async () => {
			await run("region-brittle");
			await untilReady("brittle", "Ready", "True", 500);
		}, 40_000);
	}, 120_000);

	it("goes on where an operator was killed in the middle of helm", async () => {
		await make("killed", { paused: true });
		await operate();
		const paused = await untilReady("killed", "Paused");
		expect(paused.status?.phase).toBe("Paused");
		expect(await api.client.find(namespaces, "region-killed")).toBeUndefined();
		await api.client.patch(regions, { name: "killed" }, { spec: { paused: false } });
		await untilReady("killed", "ComponentsNotReady");
		await running?.stop();
		// As helm leaves it when it is killed after it noted that it begins.
		const namespace = "region-killed";
		const [release] = (await api.client.list(secrets, { namespace, labelSelector: "owner=helm" })).items;
		await api.client.patch(
			secrets,
			{ name: release?.metadata.name ?? "", namespace },
			{
				metadata: { labels: { status: "pending-install" } },
			},
		);
		await operate();
		await until(async () => {
			const [again] = (await api.client.list(secrets, { namespace, labelSelector: "owner=helm" })).items;
			expect(again?.metadata).toMatchObject({ labels: { status: "deployed" } });
			expect(again?.metadata.uid).not.toBe(release?.metadata.uid);
		});
		await run(namespace);
		await untilReady("killed", "Ready", "True");
	}, 120_000);

	it("gets new certificates in time, and keeps the front's key", async () => {
		await make("renew");
		await operate();
		await untilReady("renew", "ComponentsNotReady");
		const old = await contents("region-renew");
		const later = Date.now() + 250 * 86_400_000;
		await operate({ now: () => later });
		await until(async () => {
			const renewed = await contents("region-renew");
			for (const name of ["tls-front", "tls-tunnel"]) {
				const key = `region-renew/${name}`;
				expect(text(renewed.get(key), "tls.crt")).not.toBe(text(old.get(key), "tls.crt"));
			}
			const same = (name: string, key: string) =>
				text(renewed.get(`region-renew/${name}`), key) === text(old.get(`region-renew/${name}`), key);
			expect(same("tls-front", "tls.key")).toBe(true);
			expect(same("tls-tunnel", "tls.key")).toBe(false);
			expect(same("hosts-ca", "tls.crt")).toBe(true);
			expect(same("postgresql", "password")).toBe(true);
		});
	}, 90_000);

	it("is refused when an older one has its domain, until that one is gone", async () => {
		await operate();
		await make("first", { domain: "taken.example.com", paused: true });
		await untilReady("first", "Paused");
		await new Promise((resolve) => setTimeout(resolve, 1100));
		await make("second", { domain: "taken.example.com" });
		const second = await untilReady("second", "DomainTaken");
		expect(getCondition(second.status?.conditions, "Ready")?.message).toContain("first");
		expect(await api.client.find(namespaces, "region-second")).toBeUndefined();
		await api.client.delete(regions, { name: "first" });
		await untilReady("second", "ComponentsNotReady");
	}, 90_000);

	it("leaves a namespace alone that belongs to something else, and says when a key was lost", async () => {
		await operate();
		await api.client.create(namespaces, { metadata: { name: "region-foreign" } });
		await make("foreign");
		await untilReady("foreign", "NamespaceTaken");
		await api.client.delete(regions, { name: "foreign" });
		await until(async () => expect(await api.client.find(regions, "foreign")).toBeUndefined());
		expect((await api.client.get(namespaces, "region-foreign")).metadata.deletionTimestamp).toBeUndefined();

		await make("lost");
		await untilReady("lost", "ComponentsNotReady");
		const root = await api.client.get(secrets, "region-lost-ca", core);
		await running?.stop();
		await api.client.delete(secrets, { name: "hosts-ca", namespace: "region-lost" });
		await operate();
		const lost = await untilReady("lost", "SecretLost");
		expect(getCondition(lost.status?.conditions, "Ready")?.message).toContain("hosts-ca");
		await running?.stop();
		await api.client.delete(secrets, { name: "region-lost-ca", namespace: core });
		await operate();
		await until(async () => {
			const { status } = await api.client.get(regions, "lost");
			expect(getCondition(status?.conditions, "Ready")?.message).toContain("root CA");
		});
		expect(root.data).toBeDefined();
	}, 90_000);

	it("may be touched by the operator in its own namespace only", async () => {
		const { deps } = await operate();
		for (const namespace of ["default", "kube-system"]) {
			await expect(deps.client.list(secrets, { namespace })).rejects.toThrow("forbidden");
		}
		await expect(deps.client.list(secrets)).rejects.toThrow("forbidden");
		expect(await readFile(join(directory, "kubeconfig"), "utf8")).not.toContain("admin");
	});
});
