import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { request as httpsRequest } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { stringify } from "yaml";
import { publicJwks, repository } from "../../charts/testing.ts";
import { EPOCH, type Host } from "../../crds/host.ts";
import { tool } from "../../hack/builder/tools.ts";
import { KubeClient, type KubeError } from "../../operator/kube/client.ts";
import type { KubeConfig } from "../../operator/kube/config.ts";
import { clusters, hosts, leases, namespaces, roleBindings } from "../../operator/kube/resources.ts";
import { contentOf } from "../../services/hosts/desired-state.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";
import { operatorAccount, writeKubeconfig } from "../support/operator.ts";
import { dyingWithParent } from "../support/postgres.ts";

const NAMESPACE = "region-fencing";
const VERSION = "v1.36.3";

let api: TestApiServer;
let account: KubeConfig;
let slow: SlowLine;
const operators: ChildProcess[] = [];
beforeAll(async () => {
	api = await startApiServer();
	account = await operatorAccount(api);
	slow = await slowLine(account);
	await api.client.create(namespaces, { metadata: { name: NAMESPACE } });
	// As the region controller does it.
	const manager = { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "groundplane-region-manager" };
	const operator = { kind: "ServiceAccount", name: "groundplane-operator", namespace: "groundplane-system" };
	await api.client.create(roleBindings, {
		metadata: { name: "groundplane-operator", namespace: NAMESPACE },
		roleRef: manager,
		subjects: [operator],
	} as never);
});
afterAll(async () => {
	for (const operator of operators) operator.kill("SIGKILL");
	slow?.server.closeAllConnections();
	slow?.server.close();
	await api?.stop();
});

const until = (check: () => void | Promise<void>, timeout = 60_000) => vi.waitFor(check, { timeout, interval: 100 });
const host = (name: string) => api.client.get(hosts, name, NAMESPACE);
const lease = async () => (await api.client.get(leases, "groundplane-operator", "groundplane-system")).spec;
const roleOf = ({ spec }: Host) => spec.roles.find(({ name }) => name === "kubernetes");

/** A host that a cluster can have. */
async function makeHost(name: string): Promise<void> {
	const metadata = { name, namespace: NAMESPACE };
	await api.client.create(hosts, { metadata, spec: { approved: true } } as never);
	const facts = {
		hostname: name,
		machineId: name,
		architecture: "amd64",
		os: { id: "debian", versionId: "13", prettyName: "Debian GNU/Linux 13" },
		kernel: "6.12.0",
		cgroup: "v2",
		cpu: { cores: 8, model: "test" },
		memoryBytes: 16 * 2 ** 30,
		disks: [],
		filesystems: [{ path: "/", sizeBytes: 2 ** 38, availableBytes: 2 ** 37 }],
		interfaces: [],
		primaryAddress: "192.0.2.1",
		bootId: "1",
	};
	const connection = { state: "Connected", gateway: "tunnel-0", since: "2026-01-01T00:00:00Z" };
	const desiredState = { generation: 1, acknowledgedGeneration: 1, reportedGeneration: 1 };
	await api.client.apply(hosts, { metadata, status: { facts, connection, desiredState } } as never, {
		manager: "groundplane-hosts",
		subresource: "status",
	});
}

/** The real program, as the chart runs it. */
async function startOperator(name: string, kubeconfig: string): Promise<{ child: ChildProcess; log: () => string }> {
	const [command, args] = dyingWithParent(process.execPath, [join(repository, "operator", "main.ts")]);
	const child = spawn(command, args, {
		env: {
			...process.env,
			KUBECONFIG: kubeconfig,
			POD_NAME: name,
			VERSION: "0.1.0",
			RELEASE_JWKS: publicJwks,
			BUNDLES: JSON.stringify([{ name: "kubernetes", version: VERSION }]),
			REGION_CHART: join(repository, "charts", "region"),
			HELM: await tool("helm"),
			LISTEN_ADDRESS: "127.0.0.1",
			METRICS_PORT: "0",
		},
	});
	const output: string[] = [];
	for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk) => output.push(String(chunk)));
	operators.push(child);
	return { child, log: () => output.join("") };
}

interface SlowLine {
	readonly server: Server;
	readonly kubeconfig: string;
	/** Whether a write of what a host should be is on its way, and held. */
	isHolding(): boolean;
	/** Lets it go on. Answers what the API server said to it. */
	release(): Promise<{ status: number; body: string }>;
}

/** A line to the API server on which the first write of a host's roles takes as long as the test wants. */
async function slowLine(config: KubeConfig): Promise<SlowLine> {
	const base = new URL(config.server);
	let held: (() => void) | undefined;
	const answer = Promise.withResolvers<{ status: number; body: string }>();
	const server = createServer((request, response) => {
		const isIntent = /^\/apis\/groundplane\.io\/v1alpha1\/.*\/hosts\/[^/]+\?.*groundplane-cluster/.test(
			request.url ?? "",
		);
		const forward = (tell?: (status: number, body: string) => void) => {
			const upstream = httpsRequest(
				{
					host: base.hostname,
					port: base.port,
					ca: config.tls?.ca,
					method: request.method,
					path: request.url,
					headers: { ...request.headers, host: base.host },
				},
				(reply) => {
					const chunks: Buffer[] = [];
					reply.on("data", (chunk) => chunks.push(chunk));
					reply.on("end", () => tell?.(reply.statusCode ?? 0, Buffer.concat(chunks).toString()));
					response.writeHead(reply.statusCode ?? 502, reply.headers);
					reply.pipe(response);
				},
			);
			upstream.on("error", () => response.destroy());
			response.on("close", () => tell ?? upstream.destroy());
			request.pipe(upstream);
		};
		if (isIntent && request.method === "PATCH" && held === undefined) {
			held = () => forward((status, body) => answer.resolve({ status, body }));
		} else forward();
	});
	await once(server.listen(0, "127.0.0.1"), "listening");
	const kubeconfig = join(api.directory, "slow");
	const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
	await writeFile(
		kubeconfig,
		stringify({
			apiVersion: "v1",
			kind: "Config",
			"current-context": "test",
			clusters: [{ name: "test", cluster: { server: url } }],
			users: [{ name: "test", user: { token: config.token?.() } }],
			contexts: [{ name: "test", context: { cluster: "test", user: "test" } }],
		}),
		{ mode: 0o600 },
	);
	return {
		server,
		kubeconfig,
		isHolding: () => held !== undefined,
		release() {
			held?.();
			return answer.promise;
		},
	};
}

it("an operator that was stopped for longer than its lease can change nothing any more", async () => {
	for (const name of ["one", "two"]) await makeHost(name);
	const first = await startOperator("first", slow.kubeconfig);
	// In which order it comes to the two is its own affair.
	const epochOf = async (name: string) => (await host(name)).metadata.annotations?.[EPOCH];
	for (const name of ["one", "two"]) await until(async () => expect(await epochOf(name)).toBeDefined());
	const epoch = (await lease())?.leaseTransitions ?? 0;
	for (const name of ["one", "two"]) expect(await epochOf(name)).toBe(String(epoch));
	const second = await startOperator("second", await writeKubeconfig(account, join(api.directory, "second")));

	// It decides, and is stopped while its decision is on the way.
	await api.client.create(clusters, {
		metadata: { name: "c", namespace: NAMESPACE },
		spec: { version: VERSION, controlPlane: { hosts: ["one"] } },
	} as never);
	await until(() => expect(slow.isHolding(), first.log()).toBe(true));
	first.child.kill("SIGSTOP");
	await until(async () => expect((await lease())?.holderIdentity).toMatch(/^second-/));
	expect((await lease())?.leaseTransitions).toBe(epoch + 1);

	// Its successor has decided by itself, with a higher epoch.
	await until(async () => expect(roleOf(await host("one"))).toBeDefined());
	const decided = await host("one");
	expect(contentOf(decided, new Map([["cluster-c-join", {}]])).epoch).toBe(epoch + 1);

	// What was on the way comes now, and is refused.
	const { status, body } = await slow.release();
	expect([status, body]).toEqual([422, expect.stringContaining("groundplane-fencing")]);
	expect((await host("one")).spec).toEqual(decided.spec);

	// So it is with a host that its successor has not touched.
	const late = new KubeClient(account);
	const intent = (number: number) =>
		late.apply(
			hosts,
			{
				metadata: { name: "two", namespace: NAMESPACE, annotations: { [EPOCH]: String(number) } },
				spec: { roles: [{ name: "kubernetes", version: VERSION }] },
			},
			{ manager: "groundplane-cluster", force: true },
		);
	const refused: KubeError = await intent(epoch).then(
		() => expect.unreachable(),
		(error) => error,
	);
	expect(refused.message).toContain("another operator holds the Lease by now");
	expect(roleOf(await host("two"))).toBeUndefined();
	expect(roleOf(await intent(epoch + 1))).toBeDefined();
	late.close();

	// Resumed, it finds that it has lost the lease, and ends.
	const ended = once(first.child, "exit");
	first.child.kill("SIGCONT");
	expect(await ended).toEqual([1, null]);
	expect(first.log()).toContain("the lease groundplane-operator was lost");
	expect((await lease())?.holderIdentity).toMatch(/^second-/);
	expect(second.child.exitCode).toBeNull();
}, 180_000);

it("a host that does not dial in is said to be waited for, after a while", async () => {
	await api.client.create(hosts, {
		metadata: { name: "late", namespace: NAMESPACE },
		spec: { approved: true },
	} as never);
	await until(async () => expect((await host("late")).status?.phase).toBe("Pending"));
	const { metadata, status } = await host("late");
	const waited =
		Date.parse(status?.conditions?.[0]?.lastTransitionTime ?? "") - Date.parse(metadata.creationTimestamp ?? "");
	// Times of objects are whole seconds.
	expect(waited).toBeGreaterThanOrEqual(2_000);
	expect(metadata.finalizers).toEqual(["groundplane.io/host"]);
	expect(Number(metadata.annotations?.[EPOCH])).toBe((await lease())?.leaseTransitions);
}, 90_000);

it("nobody can make an epoch fall, and hosts and clusters live in regions only", async () => {
	const annotate = (value: string | null) =>
		api.client.patch(hosts, { name: "two", namespace: NAMESPACE }, { metadata: { annotations: { [EPOCH]: value } } });
	await expect(annotate("1")).rejects.toThrow("never falls");
	await expect(annotate(null)).rejects.toThrow("never falls");
	const metadata = { name: "x", namespace: "default" };
	await expect(api.client.create(hosts, { metadata, spec: {} } as never)).rejects.toThrow("region-NAME");
});
