import { execFile, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http, { type IncomingHttpHeaders } from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { json } from "node:stream/consumers";
import type { TLSSocket } from "node:tls";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse, parseAllDocuments, stringify } from "yaml";
import { tool } from "../../hack/builder/tools.ts";
import { clusters, hosts, type Resource } from "../../operator/kube/resources.ts";
import { Channel, encodeShell, readShell, SHELL_PROTOCOL } from "../../protocol/shell.ts";
import { startApiServer, type TestApiServer } from "../../test/support/apiserver.ts";
import { type RegionCertificates, regionCertificates } from "../../test/support/certificates.ts";
import { startIssuer, type TestIssuer } from "../../test/support/issuer.ts";
import { createLog } from "../kit/log.ts";
import { type RunningService, startService } from "../kit/service.ts";
import { clustersService } from "./service.ts";

const run = promisify(execFile);
const directory = mkdtempSync(join(tmpdir(), "gp-clusters-"));
const namespace = "region-demo";
const domain = "demo.example.com";
const servers: (http.Server | https.Server)[] = [];
const lines: string[] = [];
const stop = new AbortController();
/** What the cluster's API server was sent last. */
let received: { url: string; headers: IncomingHttpHeaders } | undefined;
let asked: string[] = [];
let kube: TestApiServer;
let certificates: RegionCertificates;
let service: RunningService;
let kubectl: string;

const listen = async (server: http.Server | https.Server) => {
	servers.push(server);
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
	return (server.address() as AddressInfo).port;
};

let issuer: TestIssuer;
const token: TestIssuer["token"] = (...given) => issuer.token(...given);

beforeAll(async () => {
	[kube, kubectl, certificates] = await Promise.all([
		startApiServer(),
		tool("kubectl"),
		regionCertificates(directory, "demo"),
	]);
	const { client } = kube;
	const rbac = (plural: string, kind: string, namespaced: boolean): Resource => ({
		group: "rbac.authorization.k8s.io",
		version: "v1",
		plural,
		kind,
		namespaced,
	});
	const kinds: Record<string, Resource> = {
		ClusterRole: rbac("clusterroles", "ClusterRole", false),
		ClusterRoleBinding: rbac("clusterrolebindings", "ClusterRoleBinding", false),
		Role: rbac("roles", "Role", true),
		RoleBinding: rbac("rolebindings", "RoleBinding", true),
	};
	const namespaces: Resource = { group: "", version: "v1", plural: "namespaces", kind: "Namespace", namespaced: false };
	await client.create(namespaces, { metadata: { name: namespace } });

	// The management cluster's side: the service's account with the rights that the chart gives it.
	const account = await kube.serviceAccount(namespace, "clusters");
	const subject = (name: string) => [{ kind: "ServiceAccount", name, namespace }];
	await client.create(
		kinds.Role as Resource,
		{
			metadata: { name: "clusters", namespace },
			rules: [
				{
					apiGroups: ["groundplane.io"],
					resources: ["clusters", "hosts"],
					verbs: ["get", "list", "watch", "create", "update", "patch", "delete"],
				},
			],
		} as never,
	);
	await client.create(
		kinds.RoleBinding as Resource,
		{
			metadata: { name: "clusters", namespace },
			roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name: "clusters" },
			subjects: subject("clusters"),
		} as never,
	);

	// The customer's side: the access rules of the role pack, with a token where the agent has its certificate.
	const plane = await kube.serviceAccount(namespace, "plane");
	for (const document of parseAllDocuments(
		readFileSync(new URL("../../roles/kubernetes/manifests/access.yaml", import.meta.url), "utf8"),
	)) {
		const object = document.toJS();
		if (object?.kind in kinds && object.metadata.namespace === undefined) {
			await client.apply(kinds[object.kind] as Resource, object, { manager: "test" });
		}
	}
	// No controller aggregates `view` and `edit` here: bind what they are made of.
	for (const [group, role] of [
		["viewer", "view"],
		["developer", "view"],
		["developer", "edit"],
	]) {
		await client.create(
			kinds.ClusterRoleBinding as Resource,
			{
				metadata: { name: `test-${group}-${role}` },
				roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: `system:aggregate-to-${role}` },
				subjects: [{ apiGroup: "rbac.authorization.k8s.io", kind: "Group", name: `groundplane:${group}` }],
			} as never,
		);
	}
	await client.create(
		kinds.ClusterRoleBinding as Resource,
		{
			metadata: { name: "test-plane" },
			roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "groundplane:plane" },
			subjects: subject("plane"),
		} as never,
	);
	const tunnelPort = await startGateway(plane.token?.() ?? "");

	for (const [name, state] of [
		["cp-1", "Connected"],
		["cp-dead", "Connected"],
		["cp-odd", "Connected"],
		["worker-1", "Disconnected"],
	] as const) {
		await client.create(hosts, {
			metadata: { name, namespace },
			spec: { approved: true, maintenance: false, roles: [] },
		} as never);
		await client.patch(hosts, { name, namespace }, { status: { connection: { state } } }, { subresource: "status" });
	}
	const cluster = async (name: string, controlPlanes: string[]) => {
		await client.create(clusters, {
			metadata: { name, namespace },
			spec: { version: "v1.36.3", controlPlane: { hosts: ["cp-1"] } },
		} as never);
		const members = controlPlanes.map((host) => ({ host, role: "control-plane", phase: "Ready" }));
		await client.patch(clusters, { name, namespace }, { status: { members } }, { subresource: "status" });
	};
	await cluster("prod", ["cp-1"]);
	await cluster("half", ["cp-dead", "cp-1"]);
	await cluster("odd", ["cp-odd"]);
	await cluster("down", ["cp-dead"]);
	await cluster("young", []);

	issuer = await startIssuer(domain, certificates);
	const kubeconfigFile = join(directory, "kubeconfig");
	writeFileSync(
		kubeconfigFile,
		stringify({
			"current-context": "x",
			contexts: [{ name: "x", context: { cluster: "x", user: "x" } }],
			clusters: [
				{
					name: "x",
					cluster: {
						server: kube.server,
						"certificate-authority-data": Buffer.from(kube.config.tls?.ca ?? "").toString("base64"),
					},
				},
			],
			users: [{ name: "x", user: { token: account.token?.() } }],
		}),
	);
	service = await startService(clustersService, {
		env: {
			REGION: "demo",
			DOMAIN: domain,
			PORT: "0",
			HEALTH_PORT: "0",
			TLS_DIR: await certificates.service("clusters"),
			JWKS_URL: issuer.url,
			TUNNEL_URL: `https://localhost:${tunnelPort}`,
			KUBECONFIG: kubeconfigFile,
		},
		signal: stop.signal,
		log: createLog("clusters", "info", { write: (line: string) => void lines.push(line) }),
		lameDuckMs: 0,
	});
});
afterAll(async () => {
	stop.abort();
	await service?.stopped;
	issuer?.close();
	for (const server of servers) {
		server.closeAllConnections();
		server.close();
	}
	await kube?.stop();
	rmSync(directory, { recursive: true, force: true });
});

const linkOfCp1 = {
	host: "cp-1",
	state: "Connected",
	gateway: "tunnel-0",
	since: "2026-01-01T00:00:00Z",
	address: "192.0.2.1",
	tunnel: {
		agent: "0.1.0",
		connectionId: "c",
		epoch: 1,
		rttMs: 1.5,
		streams: { open: 1, opened: 2, refused: 0, stalled: 0 },
		services: { control: 1 },
		queuedBytes: 0,
		bytesFromHost: { control: 1, interactive: 2, bulk: 3 },
		bytesToHost: { control: 1, interactive: 2, bulk: 3 },
		reconnects: 0,
		ends: [],
	},
};

/** The gateway as the service sees it: CONNECT with a client certificate, then plain HTTP to the host's API server. */
async function startGateway(bearer: string): Promise<number> {
	const tls = await certificates.issueService("tunnel");
	const agent = new https.Agent({ keepAlive: true, ca: kube.config.tls?.ca ?? "" });
	const real = http.createServer((request, response) => {
		received = { url: request.url ?? "", headers: request.headers };
		const { host, ...headers } = request.headersDistinct;
		const { hostname, port } = new URL(kube.server);
		const upstream = https.request(
			{
				agent,
				hostname,
				port,
				method: request.method,
				path: request.url,
				headers: { ...headers, authorization: `Bearer ${bearer}` } as never,
			},
			(answer) => {
				response.writeHead(answer.statusCode ?? 0, answer.headers);
				response.flushHeaders();
				answer.pipe(response);
			},
		);
		upstream.on("error", () => response.destroy());
		response.once("close", () => upstream.destroy());
		request.pipe(upstream);
	});
	const odd = http.createServer((request, response) => {
		received = { url: request.url ?? "", headers: request.headers };
		if (request.url === "/cut")
			response.writeHead(200, { "content-length": 100 }).write("half", () => response.destroy());
		else if (request.url === "/page")
			response.writeHead(200, { "set-cookie": "x=y", "content-type": "text/html" }).end("<script>");
		else if (request.url === "/echo") request.pipe(response);
		else response.writeHead(200).flushHeaders();
	});
	odd.on("upgrade", (request, socket: Duplex, head: Buffer) => {
		received = { url: request.url ?? "", headers: request.headers };
		if (request.url?.startsWith("/no")) {
			socket.end("HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}");
			return;
		}
		socket.write(
			`HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: ${request.headers.upgrade}\r\n\r\nhello `,
		);
		if (head.length > 0) socket.write(head);
		socket.pipe(socket);
	});
	servers.push(real, odd);
	const gateway = https.createServer({ ...tls, requestCert: true, rejectUnauthorized: true });
	gateway.on("connect", (request, socket: Duplex) => {
		const authority = request.url ?? "";
		asked.push(authority);
		const caller = (socket as TLSSocket).getPeerCertificate().subject.CN;
		if (authority === "shell.cp-1:80") {
			socket.write("HTTP/1.1 200 OK\r\n\r\n");
			socket.pipe(socket);
			return;
		}
		if (authority === "shell.cp-odd:80") {
			const body = JSON.stringify({ code: "ServiceNotAllowed", detail: "not here", next: "x" });
			socket.end(`HTTP/1.1 403 Forbidden\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
			return;
		}
		const backend = { "kube-apiserver.cp-1:80": real, "kube-apiserver.cp-odd:80": odd }[authority];
		if (caller !== "clusters" || !backend) {
			const body = JSON.stringify({ code: "HostNotConnected", detail: "no gateway holds it", next: "x" });
			socket.end(`HTTP/1.1 503 Service Unavailable\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
			return;
		}
		socket.write("HTTP/1.1 200 OK\r\n\r\n");
		backend.emit("connection", socket);
	});
	gateway.on("request", (request, response) => {
		const host = request.url?.replace("/internal/v1/links/", "");
		if (host === "cp-1") response.end(JSON.stringify(linkOfCp1));
		else response.writeHead(503).end(JSON.stringify({ code: host === "cp-odd" ? "Overloaded" : "HostNotConnected" }));
	});
	return listen(gateway);
}

interface Answer {
	status: number;
	headers: IncomingHttpHeaders;
	text: string;
	// biome-ignore lint/suspicious/noExplicitAny: answers of many shapes, checked by the tests
	json: any;
}
const open = (path: string, options: { method?: string; token?: string; headers?: object; body?: unknown } = {}) =>
	https.request({
		host: "localhost",
		port: service.port,
		ca: certificates.caPem,
		agent: false,
		path,
		method: options.method ?? "GET",
		headers: {
			...(options.token && { authorization: `Bearer ${options.token}` }),
			...(options.body !== undefined && { "content-type": "application/json" }),
			...options.headers,
		},
	});
const call = (path: string, options: Parameters<typeof open>[1] = {}) =>
	new Promise<Answer>((resolve, reject) => {
		const request = open(path, options);
		request.on("error", reject);
		request.on("response", async (response) => {
			let text = "";
			try {
				for await (const chunk of response) text += chunk;
			} catch (error) {
				reject(error);
				return;
			}
			const isJson = response.headers["content-type"]?.includes("json");
			resolve({
				status: response.statusCode ?? 0,
				headers: response.headers,
				text,
				json: isJson ? JSON.parse(text) : undefined,
			});
		});
		request.end(options.body === undefined ? undefined : JSON.stringify(options.body));
	});

/** Reads a stream until what came so far satisfies `enough`. */
const readUntil = async (response: http.IncomingMessage, enough: (text: string) => boolean) => {
	let text = "";
	for await (const chunk of response.iterator({ destroyOnReturn: false })) {
		text += chunk;
		if (enough(text)) return text;
	}
	throw new Error(`the stream ended after ${text}`);
};
const respond = (request: http.ClientRequest) =>
	new Promise<http.IncomingMessage>((resolve, reject) => {
		request.on("response", resolve);
		request.on("error", reject);
		request.end();
	});

describe("the API over hosts and clusters", () => {
	const spec = { version: "v1.36.3", controlPlane: { hosts: ["a"] } };

	test("roles: everybody reads, operators change, outsiders get nothing", async () => {
		const viewer = await token("vera", ["viewer"]);
		expect((await call("/api/v1/hosts")).status).toBe(401);
		expect(
			(await call("/api/v1/hosts", { token: await token("x", ["viewer"], { lifetime: -60 }) })).json.detail,
		).toContain("expired");
		expect(
			(await call("/api/v1/hosts", { token: await token("x", ["viewer"], { audience: "https://other/api" }) })).status,
		).toBe(401);
		expect((await call("/api/v1/hosts", { token: await token("nobody", []) })).json.code).toBe("Forbidden");
		const { json } = await call("/api/v1/hosts", { token: viewer });
		expect(json.items.map((item: { metadata: { name: string } }) => item.metadata.name)).toEqual([
			"cp-1",
			"cp-dead",
			"cp-odd",
			"worker-1",
		]);
		expect(json.items[0].metadata).not.toHaveProperty("managedFields");
		for (const roles of [["viewer"], ["developer"]]) {
			const refused = await call("/api/v1/hosts/cp-1", {
				method: "PATCH",
				token: await token("v", roles),
				body: { maintenance: true },
			});
			expect(refused.json.code).toBe("Forbidden");
		}
		const region = await call("/api/v1/region", { token: viewer });
		expect(region.json).toMatchObject({ name: "demo", domain, hosts: { total: 4, ready: 0 }, clusters: { total: 5 } });
	});

	test("hosts are approved, put into maintenance and labelled", async () => {
		const operator = await token("olga", ["operator"]);
		const body = { maintenance: true, labels: { rack: "a1" } };
		const { json } = await call("/api/v1/hosts/worker-1", { method: "PATCH", token: operator, body });
		expect(json).toMatchObject({ metadata: { labels: { rack: "a1" } }, spec: { approved: true, maintenance: true } });
		const missing = await call("/api/v1/hosts/nope", { method: "PATCH", token: operator, body });
		expect(missing.json).toMatchObject({ status: 404, code: "NotFound", detail: "There is no host nope." });
		const unknown = await call("/api/v1/hosts/worker-1", { method: "PATCH", token: operator, body: { approve: true } });
		expect(unknown.json.code).toBe("InvalidInput");
	});

	test("clusters are made, replaced and deleted, and the rules of the custom resource speak", async () => {
		const operator = await token("olga", ["operator"]);
		const post = (body: unknown, query = "") =>
			call(`/api/v1/clusters${query}`, { method: "POST", token: operator, body });
		expect((await post({ metadata: { name: "new" }, spec }, "?dryRun=true")).status).toBe(201);
		expect((await call("/api/v1/clusters/new", { token: operator })).status).toBe(404);
		const created = await post({ metadata: { name: "new" }, spec });
		expect([created.status, created.json.spec.network.cni]).toEqual([201, "flannel"]);
		expect((await post({ metadata: { name: "new" }, spec })).json.code).toBe("AlreadyExists");
		const even = await post({ metadata: { name: "even" }, spec: { ...spec, controlPlane: { hosts: ["a", "b"] } } });
		expect(even.json).toMatchObject({ code: "InvalidInput", detail: expect.stringContaining("1, 3 or 5 hosts") });

		const { metadata } = created.json;
		const put = (resourceVersion: string) =>
			call("/api/v1/clusters/new", {
				method: "PUT",
				token: operator,
				body: {
					metadata: { resourceVersion, labels: { tier: "test" } },
					spec: { ...spec, controlPlaneSchedulable: true },
				},
			});
		const replaced = await put(metadata.resourceVersion);
		expect(replaced.json).toMatchObject({
			metadata: { labels: { tier: "test" } },
			spec: { controlPlaneSchedulable: true },
		});
		expect((await put(metadata.resourceVersion)).json.code).toBe("Conflict");
		expect((await call("/api/v1/clusters/new", { method: "DELETE", token: operator })).status).toBe(202);
		expect((await put(metadata.resourceVersion)).json.code).toBe("NotFound");
		const made = await call("/api/v1/clusters/put", { method: "PUT", token: operator, body: { spec } });
		expect([made.status, made.json.metadata.name]).toEqual([201, "put"]);
		expect((await call("/api/v1/clusters/put", { method: "DELETE", token: operator })).status).toBe(202);
		expect((await call("/api/v1/clusters/new", { token: operator })).status).toBe(404);
		expect(
			lines
				.map((line) => JSON.parse(line))
				.filter(({ audit }) => audit)
				.map(({ event, by }) => `${by} ${event}`),
		).toEqual(
			expect.arrayContaining([
				"olga host-changed",
				"olga cluster-created",
				"olga cluster-changed",
				"olga cluster-deleted",
			]),
		);
	});

	test("the stream of changes starts with everything, follows, and resumes where it was", async () => {
		const viewer = await token("vera", ["viewer"]);
		const first = await respond(open("/api/v1/watch", { token: viewer }));
		const snapshot = await readUntil(first, (text) => text.includes("event: snapshot") && text.endsWith("\n\n"));
		expect(JSON.parse(/data: (\{"hosts".*)/.exec(snapshot)?.[1] ?? "").hosts).toHaveLength(4);
		const annotate = (value: string) =>
			kube.client.patch(hosts, { name: "worker-1", namespace }, { metadata: { annotations: { value } } });
		await annotate("one");
		const change = await readUntil(first, (text) => text.includes('"value":"one"') && text.endsWith("\n\n"));
		expect(change).toMatch(/event: host\ndata: {"type":"updated"/);
		first.destroy();

		const id = /id: (\S+)/.exec(change)?.[1] ?? "";
		await annotate("two");
		const again = await respond(open("/api/v1/watch", { token: viewer, headers: { "last-event-id": id } }));
		const missed = await readUntil(again, (text) => text.includes('"value":"two"'));
		expect(missed).not.toContain("snapshot");
		again.destroy();
		const stranger = await respond(
			open("/api/v1/watch", { token: viewer, headers: { "last-event-id": "0badf00d-7" } }),
		);
		await readUntil(stranger, (text) => text.includes("event: snapshot"));
		stranger.destroy();

		// It ends with the token, so that nobody watches on after being disabled.
		const brief = await respond(open("/api/v1/watch", { token: await token("brief", ["viewer"], { lifetime: 2 }) }));
		let ended = false;
		brief.on("end", () => {
			ended = true;
		});
		brief.resume();
		await expect.poll(() => ended, { timeout: 5_000 }).toBe(true);
	});

	test("a host's link: live from the gateway, remembered when it is away, and an error when nobody can say", async () => {
		const link = async (host: string) => call(`/api/v1/hosts/${host}/link`, { token: await token("vera", ["viewer"]) });
		expect(await link("cp-1")).toMatchObject({ status: 200, json: linkOfCp1 });
		const { status, json } = await link("cp-dead");
		expect([status, json]).toMatchObject([200, { host: "cp-dead", state: "Disconnected" }]);
		expect(await link("cp-odd")).toMatchObject({ status: 503, json: { code: "Overloaded" } });
		expect(await link("nobody")).toMatchObject({ status: 404 });
	});

	test("OpenAPI describes every route, and the kubeconfig leads through the region without a secret", async () => {
		const { json } = await call("/openapi.json");
		expect(Object.keys(json.paths)).toEqual(
			expect.arrayContaining(["/api/v1/clusters/{name}", "/api/v1/hosts/{name}", "/api/v1/watch"]),
		);
		expect(
			json.paths["/api/v1/clusters"].post.requestBody.content["application/json"].schema.properties.spec.properties,
		).toHaveProperty("controlPlane");
		const file = await call("/api/v1/clusters/prod/kubeconfig", { token: await token("dora", ["developer"]) });
		const config = parse(file.text);
		expect(config.clusters[0].cluster).toEqual({
			server: `https://${domain}/k8s/clusters/prod`,
			"certificate-authority-data": Buffer.from(certificates.caPem).toString("base64"),
		});
		expect(config.users[0].user).toEqual({ exec: expect.objectContaining({ command: "gp" }) });
	});
});

describe("the way into a cluster", () => {
	const at = (cluster: string, path: string) => `/k8s/clusters/${cluster}${path}`;

	test("each role may what its group may, and nobody may be somebody else", async () => {
		const namespaceBody = { apiVersion: "v1", kind: "Namespace", metadata: { name: "made-by-admin" } };
		const list = (cluster: string, bearer: string, headers = {}) =>
			call(at(cluster, "/api/v1/namespaces?limit=500"), { token: bearer, headers });
		const viewer = await token("vera", ["viewer"]);
		expect((await list("prod", viewer)).json).toMatchObject({ kind: "NamespaceList" });
		const post = async (bearer: string, headers = {}) =>
			call(at("prod", "/api/v1/namespaces"), { method: "POST", token: bearer, body: namespaceBody, headers });
		const refused = await post(viewer);
		expect([refused.status, refused.json.message]).toEqual([403, expect.stringContaining('User "vera" cannot create')]);

		// Every spelling of impersonation and of front-proxy identity.
		for (const headers of [
			{ "Impersonate-User": "admin", "Impersonate-Group": "system:masters" },
			{ "iMPERSONATE-gROUP": ["system:masters", "groundplane:admin"] },
			{ "Impersonate-Uid": "1", "Impersonate-Extra-Scopes": "all" },
			{ "X-Remote-User": "admin", "X-Remote-Group": "system:masters" },
			{ Connection: "impersonate-user, impersonate-group, authorization", "Impersonate-User": "admin" },
			{ Cookie: "session=secret" },
		]) {
			expect((await post(viewer, headers)).status).toBe(403);
			expect(received?.headers).toMatchObject({
				"impersonate-user": "vera",
				"impersonate-group": "groundplane:viewer",
				"impersonate-extra-groundplane.io%2fuser-id": "id-of-vera",
			});
			const names = Object.keys(received?.headers ?? {}).filter((name) =>
				/^(impersonate-|x-remote-|cookie|authorization)/.test(name),
			);
			expect(names).toHaveLength(3);
		}
		const admin = await token("alice", ["admin"]);
		expect((await post(admin)).status).toBe(201);
		expect(
			(await call(at("prod", "/api/v1/namespaces/made-by-admin"), { method: "DELETE", token: admin })).status,
		).toBe(200);
		const developer = await token("dora", ["developer"]);
		const configMap = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "x" }, data: { a: "b" } };
		const made = await call(at("prod", "/api/v1/namespaces/default/configmaps"), {
			method: "POST",
			token: developer,
			body: configMap,
		});
		expect(made.status).toBe(201);
		expect((await post(developer)).status).toBe(403);
		const who = await call(at("prod", "/apis/authentication.k8s.io/v1/selfsubjectreviews"), {
			method: "POST",
			token: developer,
			body: { apiVersion: "authentication.k8s.io/v1", kind: "SelfSubjectReview" },
		});
		expect(who.json.status.userInfo).toMatchObject({
			username: "dora",
			groups: ["groundplane:developer", "system:authenticated"],
			extra: { "groundplane.io/user-id": ["id-of-dora"] },
		});
	});

	test("what changes something is in the audit log, what reads is not", () => {
		const audit = lines.map((line) => JSON.parse(line)).filter(({ event }) => event === "kube");
		expect(audit).toContainEqual(
			expect.objectContaining({ by: "alice", verb: "POST", cluster: "prod", path: "/api/v1/namespaces", code: 201 }),
		);
		expect(audit.filter(({ verb }) => verb === "GET")).toEqual([]);
	});

	test("a watch passes each event at once, and its end on one side is its end on the other", async () => {
		const admin = await token("alice", ["admin"]);
		const request = open(at("prod", "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=300"), {
			token: admin,
		});
		const response = await respond(request);
		expect(response.statusCode).toBe(200);
		const configMaps: Resource = {
			group: "",
			version: "v1",
			plural: "configmaps",
			kind: "ConfigMap",
			namespaced: true,
		};
		await kube.client.create(configMaps, { metadata: { name: "seen", namespace: "default" } });
		await readUntil(response, (text) => text.includes('"seen"'));
		const gauge = async () =>
			/groundplane_kube_proxy_open\{kind="watch"[^}]*\} (\d+)/.exec(
				await (await fetch(`http://127.0.0.1:${service.healthPort}/metrics`)).text(),
			)?.[1];
		expect(await gauge()).toBe("1");
		request.destroy();
		await expect.poll(gauge).toBe("0");
		// An answer that broke off must not look whole.
		await expect(call(at("odd", "/cut"), { token: admin })).rejects.toMatchObject({ code: "ECONNRESET" });
	});

	test("bodies stream both ways", async () => {
		const request = open(at("odd", "/echo"), { method: "POST", token: await token("alice", ["admin"]) });
		const response = new Promise<http.IncomingMessage>((resolve) => request.once("response", resolve));
		request.write("first");
		expect(await readUntil(await response, (text) => text === "first")).toBe("first");
		request.write("second");
		expect(await readUntil(await response, (text) => text === "second")).toBe("second");
		request.end();
	});

	test("exec and port-forward: an upgrade becomes a raw stream under the person's own name", async () => {
		const bearer = await token("dora", ["developer"]);
		const upgrade = (path: string, headers: object) =>
			new Promise<{ status: number; socket?: Duplex; head?: Buffer }>((resolve, reject) => {
				const request = open(at("odd", path), {
					token: bearer,
					headers: { connection: "Upgrade", "impersonate-user": "admin", ...headers },
				});
				request.on("upgrade", (answer, socket, head) => resolve({ status: answer.statusCode ?? 0, socket, head }));
				request.on("response", (answer) => resolve({ status: answer.statusCode ?? 0 }));
				request.on("error", reject);
				request.end();
			});
		const { socket, head } = await upgrade("/exec?command=ls", {
			upgrade: "websocket",
			"sec-websocket-protocol": "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0",
		});
		expect(received?.headers).toMatchObject({
			"impersonate-user": "dora",
			upgrade: "websocket",
			"sec-websocket-protocol": "v5.channel.k8s.io",
		});
		expect(received?.headers.authorization).toBeUndefined();
		let text = String(head);
		socket?.on("data", (chunk) => {
			text += chunk;
		});
		socket?.write("ping");
		await expect.poll(() => text).toBe("hello ping");
		socket?.end();
		const closed = new Promise((resolve) => socket?.once("close", resolve));
		await closed;
		expect((await upgrade("/no", { upgrade: "SPDY/3.1" })).status).toBe(403);
		expect(
			lines.some(
				(line) => line.includes('"verb":"CONNECT"') && line.includes('"path":"/exec"') && !line.includes("command"),
			),
		).toBe(true);
	});

	test("a support shell is for administrators; the host hears from the region who it is, and the log who, when, where", async () => {
		const upgrade = (host: string, bearer: string | undefined, protocol = SHELL_PROTOCOL) =>
			new Promise<{ status: number; code?: string; next?: string; stream?: Duplex }>((resolve, reject) => {
				const request = open(`/api/v1/hosts/${host}/shell`, {
					...(bearer && { token: bearer }),
					headers: { connection: "Upgrade", upgrade: protocol },
				});
				request.on("upgrade", (answer, stream, head) => {
					if (head.length > 0) stream.unshift(head);
					resolve({ status: answer.statusCode ?? 0, stream });
				});
				request.on("response", async (answer) => {
					const { code, next } = (await json(answer)) as { code: string; next: string };
					resolve({ status: answer.statusCode ?? 0, code, next });
				});
				request.on("error", reject);
				request.end();
			});
		const admin = await token("alice", ["admin"]);
		const refused = async (...given: Parameters<typeof upgrade>) => {
			const { status, code } = await upgrade(...given);
			return [status, code];
		};
		expect(await refused("cp-1", undefined)).toEqual([401, "Unauthenticated"]);
		expect(await refused("cp-1", await token("olga", ["operator"]))).toEqual([403, "Forbidden"]);
		expect(await refused("cp-9", admin)).toEqual([404, "NotFound"]);
		expect(await refused("cp-1", admin, "websocket")).toEqual([400, "InvalidInput"]);
		expect(asked.filter((authority) => authority.startsWith("shell."))).toEqual([]);
		expect((await upgrade("cp-odd", admin)).next).toContain("supportShell");
		expect((await call("/api/v1/hosts/cp-1/shell", { token: admin })).status).toBe(400);

		const { status, stream } = await upgrade("cp-1", admin);
		expect(status).toBe(101);
		// The gateway of this test sends back what the host would hear.
		stream?.write(encodeShell(Channel.caller, { user: "somebody else", requestId: "r" }));
		const heard: string[] = [];
		for await (const { channel, payload } of readShell(stream as Duplex)) {
			expect(channel).toBe(Channel.caller);
			if (heard.push(JSON.parse(payload.toString()).user) === 2) break;
		}
		expect(heard).toEqual(["alice", "somebody else"]);
		const audit = () => lines.map((line) => JSON.parse(line)).filter(({ event }) => event?.startsWith("shell-"));
		await expect
			.poll(() => audit().map(({ event, by, host, code }) => [event, by, host, code]))
			.toEqual([
				["shell-refused", "olga", "cp-1", "Forbidden"],
				["shell-refused", "alice", "cp-9", "NotFound"],
				["shell-refused", "alice", "cp-1", "InvalidInput"],
				["shell-refused", "alice", "cp-odd", "ServiceNotAllowed"],
				["shell-opened", "alice", "cp-1", undefined],
				["shell-closed", "alice", "cp-1", undefined],
			]);
	});

	test("a control plane that can't be reached is passed over; with none left the error says so", async () => {
		const admin = await token("alice", ["admin"]);
		for (let turn = 0; turn < 4; turn++) {
			const body = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: `turn-${turn}` } };
			const made = await call(at("half", "/api/v1/namespaces/default/configmaps"), {
				method: "POST",
				token: admin,
				body,
			});
			expect(made.status).toBe(201);
		}
		asked = [];
		const down = await call(at("down", "/version"), { token: admin });
		expect(asked).toEqual(["kube-apiserver.cp-dead:80"]);
		expect([down.status, down.json]).toEqual([
			503,
			expect.objectContaining({ kind: "Status", reason: "ServiceUnavailable" }),
		]);
		expect((await call(at("young", "/version"), { token: admin })).json.message).toContain("no control plane yet");
		expect((await call(at("nope", "/version"), { token: admin })).json).toMatchObject({
			kind: "Status",
			reason: "NotFound",
			code: 404,
		});
		expect((await call(at("prod", "/version"))).json).toMatchObject({
			kind: "Status",
			reason: "Unauthorized",
			code: 401,
		});
		expect((await call(at("prod", "/version"), { token: await token("nobody", []) })).json).toMatchObject({
			reason: "Forbidden",
		});
	});

	test("a page that a workload serves can't act as the console", async () => {
		const { headers } = await call(at("odd", "/page"), { token: await token("alice", ["admin"]) });
		expect(headers["content-security-policy"]).toBe("sandbox");
		expect(headers["set-cookie"]).toBeUndefined();
	});

	test("kubectl works, watches, and prints our errors", async () => {
		const kubeconfig = async (cluster: string, bearer: string) => {
			const file = join(directory, `${cluster}.kubeconfig`);
			const name = "c";
			const user = { token: bearer };
			const server = `https://localhost:${service.port}/k8s/clusters/${cluster}`;
			const ca = Buffer.from(certificates.caPem).toString("base64");
			const clusterEntry = { server, "certificate-authority-data": ca };
			writeFileSync(
				file,
				stringify({
					"current-context": name,
					contexts: [{ name, context: { cluster: name, user: name } }],
					clusters: [{ name, cluster: clusterEntry }],
					users: [{ name, user }],
				}),
			);
			return [`--kubeconfig=${file}`, `--cache-dir=${join(directory, "cache")}`];
		};
		const prod = await kubeconfig("prod", await token("alice", ["admin"]));
		const { stdout } = await run(kubectl, [...prod, "get", "namespaces", "-o", "name"]);
		expect(stdout).toContain("namespace/default");
		await run(kubectl, [...prod, "create", "configmap", "by-kubectl", "--from-literal=a=b"]);
		const watching = spawn(kubectl, [...prod, "get", "configmaps", "--watch-only", "-o", "name"], {
			stdio: ["ignore", "pipe", "ignore"],
		});
		let seen = "";
		watching.stdout.on("data", (chunk) => {
			seen += chunk;
		});
		await expect
			.poll(
				async () => {
					await run(kubectl, [...prod, "annotate", "configmap", "by-kubectl", "--overwrite", `at=${Date.now()}`]);
					return seen;
				},
				{ timeout: 10_000 },
			)
			.toContain("configmap/by-kubectl");
		watching.kill();
		const viewer = await kubeconfig("prod", await token("vera", ["viewer"]));
		await expect(run(kubectl, [...viewer, "delete", "configmap", "by-kubectl"])).rejects.toMatchObject({
			stderr: expect.stringContaining('User "vera" cannot delete'),
		});
		const admin = await token("alice", ["admin"]);
		for (const [name, expected] of [
			["down", "no gateway holds it"],
			["nope", "There is no cluster nope"],
		] as const) {
			const failed = run(kubectl, [...(await kubeconfig(name, admin)), "get", "pods"]);
			await expect(failed).rejects.toMatchObject({ stderr: expect.stringContaining(expected) });
		}
	});
});
