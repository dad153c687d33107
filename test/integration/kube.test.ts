import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer, request as httpsRequest } from "node:https";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { register } from "prom-client";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { addFinalizer, applyStatus, removeFinalizer } from "../../operator/kube/apply.ts";
import { isAlreadyExists, isConflict, KubeClient, type KubeError } from "../../operator/kube/client.ts";
import { Controller, type ControllerOptions } from "../../operator/kube/controller.ts";
import { EventRecorder } from "../../operator/kube/events.ts";
import { runWithLease } from "../../operator/kube/lease.ts";
import { ConnectAgent } from "../../operator/kube/proxy.ts";
import { type Change, Reflector } from "../../operator/kube/reflector.ts";
import { type ConfigMap, configMaps, events, hosts, leases, namespaces } from "../../operator/kube/resources.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { seeded } from "../fleet/host.ts";
import { startApiServer, type TestApiServer } from "../support/apiserver.ts";
import { regionCertificates } from "../support/certificates.ts";
import { testLog as log } from "../support/operator.ts";
import { patience } from "../support/patience.ts";

let api: TestApiServer;
beforeAll(async () => {
	api = await startApiServer();
});
afterAll(() => api?.stop());

const until = (check: () => void | Promise<void>, timeout = patience.timeout) => vi.waitFor(check, timeout);
const namespaceOf = async (name: string): Promise<string> =>
	(await api.client.create(namespaces, { metadata: { name } })).metadata.name;
const put = (namespace: string, name: string, data: Record<string, string> = {}): Promise<ConfigMap> =>
	api.client.create(configMaps, { metadata: { name, namespace }, data });

/** Runs something until the test ends it. */
function start(part: { run(signal: AbortSignal): Promise<void> }) {
	const stop = new AbortController();
	const ended = part.run(stop.signal);
	return async () => {
		stop.abort();
		await ended;
	};
}

const count = async (metric: string, labels: Record<string, string>): Promise<number> => {
	const found = await register.getSingleMetric(metric)?.get();
	return (found?.values ?? [])
		.filter((value) => Object.entries(labels).every(([k, v]) => (value.labels as Record<string, unknown>)[k] === v))
		.reduce((sum, { value }) => sum + value, 0);
};

describe("a reflector", () => {
	it("lists in pages, then follows every change", async () => {
		const namespace = await namespaceOf("pages");
		for (let i = 0; i < 7; i++) await put(namespace, `c${i}`);
		const changes: Change<ConfigMap>[] = [];
		const reflector = new Reflector({ client: api.client, resource: configMaps, namespace, pageSize: 3, log });
		reflector.onChange((change) => changes.push(change));
		const stop = start(reflector);
		await reflector.waitForSync();
		expect(reflector.list()).toHaveLength(7);
		expect(reflector.get(`${namespace}/c3`)?.metadata).not.toHaveProperty("managedFields");
		await api.client.patch(configMaps, { name: "c3", namespace }, { data: { a: "b" } });
		await api.client.delete(configMaps, { name: "c4", namespace });
		await until(() => {
			expect(changes.slice(7).map(({ type, key }) => [type, key])).toEqual([
				["updated", `${namespace}/c3`],
				["deleted", `${namespace}/c4`],
			]);
		});
		expect(changes[7]).toMatchObject({ object: { data: { a: "b" } }, previous: { metadata: { name: "c3" } } });
		await stop();
	});

	it("goes on after the API server was gone", async () => {
		const namespace = await namespaceOf("gone");
		await put(namespace, "before");
		const reflector = new Reflector({ client: api.client, resource: configMaps, namespace, log, random: () => 0 });
		const stop = start(reflector);
		await reflector.waitForSync();
		await api.kill();
		await delay(1000);
		await api.start();
		await put(namespace, "after");
		await until(() => expect(reflector.get(`${namespace}/after`)).toBeDefined(), 60_000);
		await stop();
	});

	it("lists again when its version is gone, and tells what disappeared meanwhile", async () => {
		const namespace = await namespaceOf("compacted");
		await put(namespace, "stays");
		await put(namespace, "goes");
		const reflector = new Reflector({ client: api.client, resource: configMaps, namespace, log, random: () => 0 });
		const first = start(reflector);
		await reflector.waitForSync();
		await first();
		const changes: string[] = [];
		reflector.onChange(({ type, key }) => changes.push(`${type} ${key}`));
		await api.client.delete(configMaps, { name: "goes", namespace });
		await put(namespace, "comes");
		await api.compact();
		// Its cache would still know the old version.
		await api.kill();
		await api.start();
		const lists = await count("reflector_lists_total", { kind: "ConfigMap" });
		const second = start(reflector);
		await until(() => expect(changes.sort()).toEqual([`added ${namespace}/comes`, `deleted ${namespace}/goes`]));
		expect(await count("reflector_lists_total", { kind: "ConfigMap" })).toBe(lists + 1);
		await second();
	});

	it("is found true by audits while everything changes", async () => {
		const namespace = await namespaceOf("audit");
		const reflector = new Reflector({
			client: api.client,
			resource: configMaps,
			namespace,
			auditInterval: 20,
			pageSize: 5,
			log,
			indexers: { color: ({ data }) => (data?.color === undefined ? [] : [data.color]) },
		});
		const audits = await count("reflector_audits_total", { kind: "ConfigMap" });
		const missed = await count("reflector_audit_missed_total", { kind: "ConfigMap" });
		const stop = start(reflector);
		await reflector.waitForSync();
		for (let round = 0; round < 4; round++) {
			for (let i = 0; i < 15; i++) await put(namespace, `c${i}`, { color: i % 2 === 0 ? "red" : "blue" });
			await api.client.patch(configMaps, { name: "c1", namespace }, { data: { color: "red" } });
			await until(() => expect(reflector.byIndex("color", "red")).toHaveLength(9));
			for (let i = 0; i < 15; i++) await api.client.delete(configMaps, { name: `c${i}`, namespace });
		}
		await until(async () =>
			expect(await count("reflector_audits_total", { kind: "ConfigMap" })).toBeGreaterThan(audits + 3),
		);
		await until(() => expect(reflector.size).toBe(0));
		expect(await count("reflector_audit_missed_total", { kind: "ConfigMap" })).toBe(missed);
		await stop();
	});

	it("gives up a connection on which nothing comes any more", async () => {
		let watches = 0;
		const silent = createServer((request, response) => {
			response.writeHead(200, { "content-type": "application/json" });
			if (!request.url?.includes("watch=true")) {
				response.end(JSON.stringify({ metadata: { resourceVersion: "5" }, items: [] }));
				return;
			}
			watches++;
			response.flushHeaders();
		});
		const client = new KubeClient({ server: `http://127.0.0.1:${await listen(silent)}` });
		const reflector = new Reflector({ client, resource: configMaps, inactivityTimeout: 100, random: () => 0, log });
		const stop = start(reflector);
		await until(() => expect(watches).toBeGreaterThan(1));
		await stop();
		client.close();
		silent.closeAllConnections();
		silent.close();
	});
});

describe("a controller", () => {
	it("works on what there is and what comes, one at a time for a key, and again after a failure", async () => {
		const namespace = await namespaceOf("controller");
		await put(namespace, "a");
		const primary = new Reflector({ client: api.client, resource: configMaps, namespace, log });
		const seen: string[] = [];
		let busy = 0;
		let most = 0;
		const controller = new Controller({
			name: "test",
			primary,
			log,
			concurrency: 3,
			baseDelay: 20,
			async reconcile(key) {
				busy++;
				most = Math.max(most, busy);
				await delay(20);
				busy--;
				seen.push(key);
				if (seen.filter((k) => k === key).length < 3) throw new Error("not yet");
			},
		});
		const stops = [start(primary), start(controller)];
		await until(() => expect(seen).toEqual(Array(3).fill(`${namespace}/a`)));
		expect(most).toBe(1);
		expect(controller.isIdle).toBe(true);
		await put(namespace, "b");
		await until(() => expect(seen.filter((key) => key === `${namespace}/b`)).toHaveLength(3));
		expect(await count("controller_runtime_reconcile_total", { controller: "test", result: "error" })).toBe(4);
		for (const stop of stops) await stop();
	});
});

describe("a controller that is busy", () => {
	/** Works with one worker, which waits until it is let go on; answers the order in which keys came. */
	async function oneAtATime(namespace: string, options: Partial<ControllerOptions<ConfigMap>> = {}) {
		const primary = new Reflector({ client: api.client, resource: configMaps, namespace, log });
		const seen: string[] = [];
		const gate = Promise.withResolvers<void>();
		const controller = new Controller({
			name: namespace,
			primary,
			log,
			async reconcile(key) {
				seen.push(key.slice(namespace.length + 1));
				await gate.promise;
			},
			...options,
		});
		const stops = [start(primary), start(controller)];
		await primary.waitForSync();
		return { seen, primary, open: gate.resolve, stop: () => Promise.all(stops.map((end) => end())) };
	}

	it("takes what was changed before what it only looks at again", async () => {
		const namespace = await namespaceOf("priorities");
		for (const name of ["a", "b", "c", "d"]) await put(namespace, name);
		const { seen, primary, open, stop } = await oneAtATime(namespace);
		await until(() => expect(seen).toEqual(["a"]));
		await api.client.patch(configMaps, { name: "d", namespace }, { data: { x: "1" } });
		await put(namespace, "e");
		await until(() => expect(primary.get(`${namespace}/e`)).toBeDefined());
		open();
		await until(() => expect(seen).toEqual(["a", "e", "d", "b", "c"]));
		await stop();
	});

	it("takes first what people changed or deleted while it was away", async () => {
		const namespace = await namespaceOf("away");
		const known = async (name: string, observedGeneration: number) => {
			const metadata = { name, namespace, ...(name === "d" && { finalizers: ["test/one"] }) };
			await api.client.create(hosts, { metadata, spec: {} } as never);
			await api.client.apply(hosts, { metadata: { name, namespace }, status: { observedGeneration } } as never, {
				manager: "test",
				subresource: "status",
			});
		};
		for (const name of ["a", "b", "c", "d", "e"]) await known(name, 1);
		await api.client.patch(hosts, { name: "c", namespace }, { spec: { maintenance: true } });
		await api.client.delete(hosts, { name: "d", namespace });
		await api.client.create(hosts, { metadata: { name: "f", namespace }, spec: {} } as never);
		const primary = new Reflector({ client: api.client, resource: hosts, namespace, log });
		const seen: string[] = [];
		const reconcile = async (key: string) => void seen.push(key.slice(namespace.length + 1));
		const controller = new Controller({ name: namespace, primary, log, reconcile });
		const stops = [start(primary), start(controller)];
		await until(() => expect(seen).toEqual(["c", "d", "f", "a", "b", "e"]));
		for (const stop of stops) await stop();
	});

	it("gives every reconciliation a deadline of its own", async () => {
		const namespace = await namespaceOf("deadline");
		for (const name of ["a", "b"]) await put(namespace, name);
		const reasons: string[] = [];
		const { seen, stop } = await oneAtATime(namespace, {
			timeout: 50,
			baseDelay: 600_000,
			reconcile: (key, signal) =>
				new Promise((_, reject) =>
					signal.addEventListener("abort", () => {
						reasons.push(`${key.at(-1)} ${signal.reason.name}`);
						reject(signal.reason);
					}),
				),
		});
		await until(() => expect(reasons).toEqual(["a TimeoutError", "b TimeoutError"]));
		expect(seen).toEqual([]);
		expect(await count("controller_runtime_reconcile_timeouts_total", { controller: namespace })).toBe(2);
		await stop();
	});
});

describe("a controller whose API server is in trouble", () => {
	/** A line to the API server that turns away, conflicts, swallows answers and repeats or breaks off watches, by chance. */
	async function badLine(random: () => number) {
		const { server, config } = api;
		const base = new URL(server);
		const line = { bad: true, turnedAway: 0, conflicts: 0, swallowed: 0, port: 0, close: () => {} };
		const status = (code: number, reason: string) =>
			JSON.stringify({ kind: "Status", code, reason, message: "a test's" });
		const proxy = createServer((request, response) => {
			const isWatch = request.url?.includes("watch=true") === true;
			const isWrite = request.method !== "GET";
			const fate = line.bad ? random() : 1;
			if (fate < 0.3) {
				line.turnedAway++;
				response.writeHead(429, { "retry-after": fate < 0.01 ? "1" : "0" }).end(status(429, "TooManyRequests"));
				return;
			}
			if (isWrite && fate < 0.5) {
				line.conflicts++;
				response.writeHead(409).end(status(409, "Conflict"));
				return;
			}
			const upstream = httpsRequest(
				new URL(request.url ?? "/", base),
				{ ...config.tls, method: request.method, headers: { ...request.headers, host: base.host } },
				(answer) => {
					if (isWrite && fate < 0.6) {
						line.swallowed++;
						answer.resume();
						response.destroy();
						return;
					}
					response.writeHead(answer.statusCode ?? 502, answer.headers);
					answer.on("data", (chunk) => {
						response.write(chunk);
						// Whole lines come in one piece mostly; a piece that is none ends the watch, as a broken line does.
						if (isWatch && line.bad && random() < 0.2) response.write(chunk);
						if (isWatch && line.bad && random() < 0.05) response.destroy();
					});
					answer.on("end", () => response.end());
					answer.on("error", () => response.destroy());
				},
			);
			upstream.on("error", () => response.destroy());
			response.on("close", () => upstream.destroy());
			request.pipe(upstream);
		});
		line.port = await listen(proxy);
		line.close = () => {
			proxy.closeAllConnections();
			proxy.close();
		};
		return line;
	}

	it("comes to what is wanted through 429s, conflicts, lost answers and repeated events, and does nothing twice", async () => {
		const namespace = await namespaceOf("trouble");
		const names = Array.from({ length: 12 }, (_, i) => `c${i}`);
		const line = await badLine(seeded(7));
		const token = api.config.token;
		const client = new KubeClient({ server: `http://127.0.0.1:${line.port}`, ...(token && { token }) });
		const primary = new Reflector({
			client,
			resource: configMaps,
			namespace,
			labelSelector: "kind=wanted",
			auditInterval: 200,
			maxDelay: 300,
			log,
		});
		const done: string[] = [];
		const controller = new Controller({
			name: "trouble",
			primary,
			log,
			concurrency: 4,
			baseDelay: 10,
			maxDelay: 300,
			async reconcile(key, signal) {
				const object = primary.get(key);
				if (object === undefined || object.data?.done === object.data?.wanted) return;
				const { name, resourceVersion = "" } = (await addFinalizer(client, configMaps, object, "test/one", signal))
					.metadata;
				const effect = { metadata: { name: `${name}-${object.data?.wanted}`, namespace } };
				await client.create(configMaps, effect, { signal }).then(
					() => done.push(effect.metadata.name),
					(error) => {
						if (!isAlreadyExists(error)) throw error;
					},
				);
				const metadata = { name, namespace, resourceVersion };
				await client.apply(configMaps, { metadata, data: { done: object.data?.wanted } } as never, {
					manager: "trouble",
					force: true,
					signal,
				});
			},
		});
		const missed = await count("reflector_audit_missed_total", { kind: "ConfigMap" });
		const stops = [start(primary), start(controller)];
		for (const wanted of ["1", "2", "3"]) {
			for (const name of names) {
				await api.client.apply(
					configMaps,
					{ metadata: { name, namespace, labels: { kind: "wanted" } }, data: { wanted } } as never,
					{ manager: "person", force: true },
				);
			}
			await until(async () => {
				const { items } = await api.client.list(configMaps, { namespace, labelSelector: "kind=wanted" });
				expect(items.map(({ data }) => data?.done)).toEqual(names.map(() => wanted));
			}, 60_000);
		}
		expect([line.turnedAway, line.conflicts, line.swallowed].every((times) => times > 5)).toBe(true);
		const { items } = await api.client.list(configMaps, { namespace, labelSelector: "kind=wanted" });
		expect(items.map(({ metadata }) => metadata.finalizers)).toEqual(names.map(() => ["test/one"]));
		expect(new Set(done).size).toBe(done.length);
		expect((await api.client.list(configMaps, { namespace })).items).toHaveLength(4 * names.length);

		// When the trouble is over the copy is what the server has, and nothing was missed on the way.
		line.bad = false;
		const audits = await count("reflector_audits_total", { kind: "ConfigMap" });
		await until(async () =>
			expect(await count("reflector_audits_total", { kind: "ConfigMap" })).toBeGreaterThan(audits + 1),
		);
		expect(await count("reflector_audit_missed_total", { kind: "ConfigMap" })).toBe(missed);
		await until(() =>
			expect(primary.list().map(({ data }) => data)).toEqual(names.map(() => ({ wanted: "3", done: "3" }))),
		);
		for (const stop of stops) await stop();
		client.close();
		line.close();
	}, 240_000);
});

describe("server-side apply", () => {
	const apply = (namespace: string, data: Record<string, string>, manager: string, force = false) =>
		api.client.apply(configMaps, { metadata: { name: "shared", namespace }, data }, { manager, force });

	it("refuses another manager's field, takes it by force, and removes what is no longer applied", async () => {
		const namespace = await namespaceOf("apply");
		await apply(namespace, { a: "1", b: "1" }, "one");
		await apply(namespace, { c: "1" }, "two");
		const refused = await apply(namespace, { a: "2" }, "two").catch((error: unknown) => error);
		expect(isConflict(refused)).toBe(true);
		expect((refused as KubeError).message).toContain('conflict with "one"');
		expect((await apply(namespace, { a: "2" }, "two", true)).data).toEqual({ a: "2", b: "1" });
	});

	it("writes a status once, and never onto another object of the same name", async () => {
		const namespace = await namespaceOf("status");
		const create = () => api.client.create(hosts, { metadata: { name: "h", namespace }, spec: {} } as never);
		const host = await create();
		expect(await applyStatus(api.client, hosts, host, { phase: "Pending" }, "test")).toBe(true);
		const written = await api.client.get(hosts, "h", namespace);
		expect(await applyStatus(api.client, hosts, written, { phase: "Pending" }, "test")).toBe(false);
		await api.client.delete(hosts, { name: "h", namespace });
		await create();
		await expect(applyStatus(api.client, hosts, host, { phase: "Ready" }, "test")).rejects.toSatisfy(isConflict);
	});

	it("writes finalizers only over what it has read", async () => {
		const namespace = await namespaceOf("finalizers");
		const old = await put(namespace, "f");
		const held = await addFinalizer(api.client, configMaps, old, "test/one");
		expect(held.metadata.finalizers).toEqual(["test/one"]);
		await expect(addFinalizer(api.client, configMaps, old, "test/two")).rejects.toSatisfy(isConflict);
		expect(await api.client.delete(configMaps, { name: "f", namespace })).toBe(true);
		const leaving = await api.client.get(configMaps, "f", namespace);
		await removeFinalizer(api.client, configMaps, leaving, "test/one");
		expect(await api.client.find(configMaps, "f", namespace)).toBeUndefined();
		await removeFinalizer(api.client, configMaps, leaving, "test/one");
		expect(await api.client.delete(configMaps, { name: "f", namespace })).toBe(false);
	});
});

describe("a lease", () => {
	const quick = { leaseDuration: 2000, renewDeadline: 1200, retryPeriod: 200 };
	const contender = (client: KubeClient, namespace: string, identity: string) => {
		const stop = new AbortController();
		const state = { leading: false, epoch: 0, stopped: false };
		const ended = runWithLease(
			{ client, namespace, name: "test", identity, log, ...quick },
			stop.signal,
			async (signal, { epoch }) => {
				Object.assign(state, { leading: true, epoch });
				await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
				Object.assign(state, { leading: false, stopped: true });
			},
		);
		return { state, ended, stop: () => stop.abort() };
	};

	it("has one holder, who hands it over at once when it stops", async () => {
		const namespace = await namespaceOf("lease");
		const one = contender(api.client, namespace, "one");
		await until(() => expect(one.state.leading).toBe(true));
		const two = contender(api.client, namespace, "two");
		await delay(1500);
		expect(two.state.leading).toBe(false);
		one.stop();
		await one.ended;
		expect(one.state.stopped).toBe(true);
		await until(() => expect(two.state.leading).toBe(true), 1500);
		expect(two.state.epoch).toBe(one.state.epoch + 1);
		two.stop();
		await two.ended;
		expect((await api.client.get(leases, "test", namespace)).spec?.holderIdentity).toBe("");
	});

	it("is given back also when it was written since its holder last read it", async () => {
		const namespace = await namespaceOf("written");
		const one = contender(api.client, namespace, "one");
		await until(() => expect(one.state.leading).toBe(true));
		// As a renewal that was broken off on its way back.
		await api.client.patch(leases, { name: "test", namespace }, { metadata: { labels: { written: "yes" } } });
		one.stop();
		await one.ended;
		expect((await api.client.get(leases, "test", namespace)).spec?.holderIdentity).toBe("");
	});

	it("ends its holder when another one has taken it, and when it can't be renewed", async () => {
		const namespace = await namespaceOf("stolen");
		const one = contender(api.client, namespace, "one");
		const lost = expect(one.ended).rejects.toThrow("lease test was lost");
		await until(() => expect(one.state.leading).toBe(true));
		const spec = { holderIdentity: "thief", renewTime: new Date().toISOString().replace("Z", "000Z") };
		await api.client.patch(leases, { name: "test", namespace }, { spec });
		await lost;
		expect(one.state.leading).toBe(false);

		const client = new KubeClient(api.config);
		const two = contender(client, namespace, "two");
		await until(() => expect(two.state.leading).toBe(true), 10_000);
		const cut = expect(two.ended).rejects.toThrow("lease test was lost");
		await api.kill();
		await cut;
		expect(two.state.leading).toBe(false);
		await api.start();
		client.close();
	});
});

describe("events", () => {
	it("are written once, and counted when they repeat", async () => {
		const namespace = await namespaceOf("events");
		const object = await put(namespace, "x");
		let now = Date.now();
		const recorder = new EventRecorder({ client: api.client, component: "test", instance: "1", log, now: () => now });
		for (let i = 0; i < 5; i++) recorder.event(configMaps, object, "Warning", "Broken", "It is broken.");
		const list = async () => (await api.client.list(events, { namespace })).items;
		await until(async () => expect(await list()).toHaveLength(1));
		now += 40_000;
		recorder.event(configMaps, object, "Warning", "Broken", "It is broken.");
		recorder.event(configMaps, object, "Normal", "Mended", "It is whole again.");
		await until(async () => {
			const all = await list();
			expect(all).toHaveLength(2);
			expect(all.find(({ reason }) => reason === "Broken")?.series?.count).toBe(6);
		});
	});
});

describe("a client through a gateway", () => {
	it("speaks over CONNECT with its certificate, and says when the host is not there", async () => {
		const directory = await mkdtemp(join(tmpdir(), "gp-connect-"));
		const certificates = await regionCertificates(directory);
		const [serving, mine] = [await certificates.service("tunnel"), await certificates.service("operator")];
		const read = (dir: string, file: string) => readFileSync(join(dir, file), "utf8");
		const pair = (dir: string) => ({ cert: read(dir, "tls.crt"), key: read(dir, "tls.key"), ca: read(dir, "ca.crt") });
		const behind = createServer((request, response) => {
			response.writeHead(200).end(JSON.stringify({ metadata: { name: request.url } }));
		});
		const port = await listen(behind);
		const asked: string[] = [];
		const gateway = createTlsServer({ ...pair(serving), requestCert: true, rejectUnauthorized: true });
		gateway.on("connect", (request, socket) => {
			asked.push(request.url ?? "");
			if (!request.url?.includes("host-1")) {
				const problem = new GroundplaneError("HostNotConnected", "host-2 is away", { next: "Wait." });
				socket.end(`HTTP/1.1 503 Service Unavailable\r\n\r\n${JSON.stringify(problem)}`);
				return;
			}
			const upstream = connect(port, "127.0.0.1", () => {
				socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
				socket.pipe(upstream).pipe(socket);
			});
		});
		const proxyPort = await listen(gateway as unknown as Server);
		const through = (host: string) =>
			new KubeClient(
				{ server: `http://kube-apiserver.${host}` },
				{
					agent: new ConnectAgent({
						proxyHost: "127.0.0.1",
						proxyPort,
						authority: `kube-apiserver.${host}:80`,
						tls: () => ({ ...pair(mine), servername: "tunnel" }),
					}),
				},
			);
		const there = through("host-1");
		for (let i = 0; i < 3; i++) {
			expect(await there.get(namespaces, "default")).toMatchObject({
				metadata: { name: "/api/v1/namespaces/default" },
			});
		}
		// One connection serves them all.
		expect(asked).toEqual(["kube-apiserver.host-1:80"]);
		await expect(through("host-2").get(namespaces, "default")).rejects.toMatchObject({
			code: "HostNotConnected",
			message: expect.stringContaining("host-2 is away"),
		});
		there.close();
		gateway.closeAllConnections();
		gateway.close();
		behind.close();
		await rm(directory, { recursive: true });
	});
});

const listen = (server: Server): Promise<number> =>
	new Promise((resolve) => {
		server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
	});
