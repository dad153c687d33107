import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import pino from "pino";
import { register } from "prom-client";
import { afterEach, describe, expect, it, vi } from "vitest";
import { patience } from "../../test/support/patience.ts";
import { KubeClient } from "./client.ts";
import { type Change, isOlder, Reflector, type ReflectorOptions } from "./reflector.ts";
import { type ConfigMap, configMaps } from "./resources.ts";
import { Store } from "./store.ts";

const log = pino({ level: "silent" });
const until = (check: () => void | Promise<void>) => vi.waitFor(check, { ...patience, interval: 5 });

/** A body, or a status with headers; none at all when it says nothing. */
type Answer = (url: URL) => { status?: number; headers?: Record<string, string>; body: unknown } | undefined;

/** An API server that answers as a test's script says: a real one can't be made to err in these ways. */
class Scripted {
	/** What each list answers. The last one stays. */
	lists: Answer[] = [];
	/** What happens on each watch. The last one stays. */
	watches: ((send: (...events: unknown[]) => void, response: ServerResponse) => void)[] = [() => {}];
	readonly asked: URL[] = [];
	readonly accepted: (string | undefined)[] = [];
	readonly #server: Server;

	constructor() {
		this.#server = createServer((request, response) => {
			const url = new URL(request.url ?? "/", "http://test");
			this.asked.push(url);
			this.accepted.push(request.headers.accept);
			if (url.searchParams.get("watch") === "true") {
				const next = this.watches.length > 1 ? this.watches.shift() : this.watches[0];
				response.writeHead(200).flushHeaders();
				next?.((...events) => {
					for (const event of events) response.write(`${JSON.stringify(event)}\n`);
				}, response);
				return;
			}
			const next = this.lists.length > 1 ? this.lists.shift() : this.lists[0];
			const answer = next === undefined ? { body: list("1") } : next(url);
			if (answer === undefined) return;
			response.writeHead(answer.status ?? 200, answer.headers ?? {}).end(JSON.stringify(answer.body));
		});
	}

	get listed(): URL[] {
		return this.asked.filter((url) => !url.searchParams.has("watch"));
	}
	get watched(): URL[] {
		return this.asked.filter((url) => url.searchParams.has("watch"));
	}

	/** Runs a reflector against it until the test is over. */
	async reflect(options: Partial<ReflectorOptions<ConfigMap>> = {}) {
		await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
		const client = new KubeClient({ server: `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}` });
		const reflector = new Reflector({ client, resource: configMaps, log, random: () => 0, ...options });
		const changes: Change<ConfigMap>[] = [];
		reflector.onChange((change) => changes.push(change));
		const stop = new AbortController();
		const ended = reflector.run(stop.signal);
		const end = async () => {
			stop.abort();
			await ended;
		};
		cleanup.push(async () => {
			await end();
			client.close();
			this.#server.closeAllConnections();
			this.#server.close();
		});
		return { reflector, changes, stop: end, told: () => changes.map(({ type, key }) => `${type} ${key}`) };
	}
}
const cleanup: (() => Promise<void>)[] = [];
afterEach(async () => {
	for (const end of cleanup.splice(0)) await end();
});

const object = (name: string, resourceVersion: string, data: Record<string, string> = {}) => ({
	metadata: { name, namespace: "n", resourceVersion },
	data,
});
const list = (resourceVersion: string, ...items: unknown[]) => ({ metadata: { resourceVersion }, items });
const event = (type: string, name: string, resourceVersion: string) => ({
	type,
	object: object(name, resourceVersion),
});
const bookmark = (resourceVersion: string) => ({ type: "BOOKMARK", object: { metadata: { resourceVersion } } });
const gone = { type: "ERROR", object: { kind: "Status", code: 410, reason: "Expired", message: "too old" } };
const total = async (name: string) =>
	((await register.getSingleMetric(name)?.get())?.values ?? []).reduce((sum, { value }) => sum + value, 0);

// By the names of client-go's reflector_test.go (v0.37) where it has the case.
describe("a reflector", () => {
	it("TestReflectorListAndWatch, TestReflectorWatchHandler: adds, changes and deletes, and watches from the list's version", async () => {
		const api = new Scripted();
		api.lists = [() => ({ body: list("10", object("a", "3"), object("b", "4")) })];
		api.watches = [
			(send) => send(event("ADDED", "c", "11"), event("MODIFIED", "a", "12"), event("DELETED", "b", "13")),
		];
		const { reflector, changes, told } = await api.reflect();
		await until(() => expect(told()).toEqual(["added n/a", "added n/b", "added n/c", "updated n/a", "deleted n/b"]));
		expect(changes.map(({ initial }) => initial)).toEqual([true, true, false, false, false]);
		expect(reflector.list().map(({ metadata }) => metadata.name)).toEqual(["a", "c"]);
		expect(api.watched[0]?.searchParams.get("resourceVersion")).toBe("10");
		expect(api.watched[0]?.searchParams.get("allowWatchBookmarks")).toBe("true");
	});

	it("TestReflectorResourceVersionUpdate, TestWatchTimeout: goes on from the last event or bookmark, without a list, when the server ends the watch", async () => {
		const api = new Scripted();
		api.watches = [
			(send, response) => {
				send(event("ADDED", "a", "5"), bookmark("9"));
				// Longer than a second: no reason to hold back.
				setTimeout(() => response.end(), 1100);
			},
			() => {},
		];
		await api.reflect({ random: () => 0.5 });
		await until(() => expect(api.watched).toHaveLength(2));
		expect(api.watched[1]?.searchParams.get("resourceVersion")).toBe("9");
		expect(api.listed).toHaveLength(1);
		const timeout = Number(api.watched[0]?.searchParams.get("timeoutSeconds"));
		expect([timeout >= 300, timeout <= 600]).toEqual([true, true]);
	});

	it("TestReflectorFullListIfExpired: reads everything at once when a page's token is too old", async () => {
		const api = new Scripted();
		const first = { metadata: { resourceVersion: "10", continue: "next" }, items: [object("a", "1")] };
		api.lists = [
			() => ({ body: first }),
			() => ({ status: 410, body: gone.object }),
			() => ({ body: list("20", object("a", "1"), object("b", "2")) }),
		];
		const { reflector } = await api.reflect({ pageSize: 1 });
		await reflector.waitForSync();
		expect(reflector.list()).toHaveLength(2);
		expect(api.listed.map((url) => [url.searchParams.get("limit"), url.searchParams.get("continue")])).toEqual([
			["1", null],
			["1", "next"],
			[null, null],
		]);
		await until(() => expect(api.watched[0]?.searchParams.get("resourceVersion")).toBe("20"));
	});

	it("TestReflectorFullListIfExpired: keeps nothing of the first pages that is not in the full list", async () => {
		const api = new Scripted();
		const first = {
			metadata: { resourceVersion: "10", continue: "next" },
			items: [object("gone", "1"), object("a", "2")],
		};
		api.lists = [
			() => ({ body: first }),
			() => ({ status: 410, body: gone.object }),
			() => ({ body: list("20", object("a", "2")) }),
		];
		const { reflector, told } = await api.reflect({ pageSize: 2 });
		await reflector.waitForSync();
		expect(told()).toEqual(["added n/gone", "added n/a", "deleted n/gone"]);
	});

	it("TestReflectorListAndWatchInitConnBackoff: waits longer after each list that failed, however long that took", async () => {
		const api = new Scripted();
		let now = 0;
		const at: number[] = [];
		api.lists = [
			() => {
				now += 20_000;
				at.push(performance.now());
				return { status: 500, body: { kind: "Status", code: 500, reason: "InternalError" } };
			},
		];
		await api.reflect({ now: () => now });
		await until(() => expect(at).toHaveLength(4));
		expect((at[3] as number) - (at[0] as number)).toBeGreaterThan(250 + 500 + 1000 - 50);
	});

	// What the server told in a watch, and whether it is to be believed that the copy can be gone on from.
	it.each([
		["TestNoRelistOnTooManyRequests", 429, "TooManyRequests", 1],
		["an API server that comes up", 503, "ServiceUnavailable", 1],
		["a version that is compacted", 410, "Expired", 2],
		["TestReflectorReplacesStoreOnUnsafeDelete", 500, "StorageReadError", 2],
		["a version of another store", 400, "BadRequest", 2],
	])("%s: a watch ends with %i %s, lists: %i", async (_, code, reason, lists) => {
		const api = new Scripted();
		api.lists = [
			() => ({ body: list("3", object("a", "1"), object("corrupt", "2")) }),
			() => ({ body: list("5", object("a", "1")) }),
		];
		const refusal = { type: "ERROR", object: { kind: "Status", code, reason, message: "a test's" } };
		api.watches = [(send) => send(refusal), (send) => send(event("MODIFIED", "a", "6"))];
		const { told } = await api.reflect();
		await until(() => expect(told().at(-1)).toBe("updated n/a"));
		expect(api.listed).toHaveLength(lists);
		expect(told().includes("deleted n/corrupt")).toBe(lists === 2);
	});

	it("lists again after silence: a server that was restored from a backup tells nothing before it is at our version again", async () => {
		const api = new Scripted();
		api.lists = [
			() => ({ body: list("100", object("a", "90"), object("b", "95")) }),
			() => ({ body: list("50", object("a", "40")) }),
		];
		api.watches = [() => {}, (send) => send(event("MODIFIED", "a", "51"))];
		const { told } = await api.reflect({ inactivityTimeout: 50 });
		await until(() => expect(told().slice(2)).toEqual(["updated n/a", "deleted n/b", "updated n/a"]));
		expect(api.watched[1]?.searchParams.get("resourceVersion")).toBe("50");
	});

	it("TestReflectorExpiredExactResourceVersion: lists again on 410, telling only what is different", async () => {
		const api = new Scripted();
		api.lists = [
			() => ({ body: list("10", object("same", "1"), object("changed", "2"), object("gone", "3")) }),
			() => ({ body: list("20", object("same", "1"), object("changed", "12"), object("new", "13")) }),
		];
		api.watches = [(send) => send(gone), () => {}];
		const { changes, told } = await api.reflect();
		await until(() => expect(told().slice(3)).toEqual(["updated n/changed", "added n/new", "deleted n/gone"]));
		expect(changes.slice(3).every(({ initial }) => !initial)).toBe(true);
	});

	it("TestBackoffOnTooManyRequests, TestNoRelistOnTooManyRequests: waits as long as a throttling server asks", async () => {
		const api = new Scripted();
		const throttled = { status: 429, headers: { "retry-after": "1" }, body: { kind: "Status", code: 429 } };
		api.lists = [() => throttled, () => ({ body: list("1", object("a", "1")) })];
		const startedAt = performance.now();
		const { reflector } = await api.reflect();
		await reflector.waitForSync();
		expect(performance.now() - startedAt).toBeGreaterThan(990);
		expect(api.listed).toHaveLength(2);
	});

	it("TestReflectorListAndWatchWithErrors, TestRetryInternalError: tries again after every kind of failure", async () => {
		const api = new Scripted();
		const broken = { status: 500, body: { kind: "Status", code: 500, reason: "InternalError" } };
		api.lists = [() => broken, () => ({ body: list("1", object("a", "1")) })];
		api.watches = [
			(_, response) => response.destroy(),
			(_, response) => response.end("{ no JSON\n"),
			(send) => send(event("MODIFIED", "a", "2")),
		];
		const { told } = await api.reflect();
		await until(() => expect(told()).toEqual(["added n/a", "updated n/a"]));
		expect(api.listed).toHaveLength(2);
		expect(api.watched).toHaveLength(3);
	});

	it("TestReflectorRespectStoreTransformer: keeps what is read, and never managedFields", async () => {
		const api = new Scripted();
		const full = { ...object("a", "1", { keep: "1", drop: "2" }) };
		Object.assign(full.metadata, { managedFields: [{ manager: "x" }] });
		api.lists = [() => ({ body: list("1", full) })];
		const { reflector } = await api.reflect({
			transform: ({ data, ...rest }) => ({ ...rest, data: { keep: data?.keep ?? "" } }),
		});
		await reflector.waitForSync();
		expect(reflector.get("n/a")).toEqual(object("a", "1", { keep: "1" }));
	});

	it.each<[string, Answer]>([
		["in a list", () => undefined],
		["in a back-off", () => ({ status: 500, body: {} })],
		["in a watch", () => ({ body: list("1") })],
	])(
		"TestRunUntil, TestReflectorStopWatch, TestReflectorWatchStoppedAfter: ends at once when it is stopped %s",
		async (when, answer) => {
			const api = new Scripted();
			api.lists = [answer];
			const { reflector, stop } = await api.reflect({ random: () => 1000 });
			await until(() => expect(api.asked).toHaveLength(when === "in a watch" ? 2 : 1));
			await new Promise((resolve) => setTimeout(resolve, 20));
			await stop();
			expect(reflector.hasSynced).toBe(when === "in a watch");
		},
	);

	it("takes no notice of an event that it was told before, and lists again after one out of order", async () => {
		const api = new Scripted();
		api.lists = [
			() => ({ body: list("10", object("a", "9")) }),
			() => ({ body: list("20", object("a", "12"), object("b", "11")) }),
		];
		api.watches = [
			(send) =>
				send(
					event("MODIFIED", "a", "12"),
					event("MODIFIED", "a", "12"),
					event("MODIFIED", "a", "9"),
					event("ADDED", "b", "11"),
				),
			() => {},
		];
		const { told } = await api.reflect();
		await until(() => expect(told()).toEqual(["added n/a", "updated n/a", "added n/b"]));
		expect(api.listed).toHaveLength(2);
	});

	it("does not bring back what was deleted when its creation is told again", async () => {
		const api = new Scripted();
		api.lists = [() => ({ body: list("10") }), () => ({ body: list("20") })];
		api.watches = [
			(send) => send(event("ADDED", "a", "11"), event("DELETED", "a", "12"), event("ADDED", "a", "11")),
			(send) => send(event("ADDED", "b", "21")),
		];
		const { told } = await api.reflect();
		await until(() => expect(told()).toEqual(["added n/a", "deleted n/a", "added n/b"]));
	});

	it("counts in an audit what the watch has missed, and mends it", async () => {
		const api = new Scripted();
		const full = () => list("15", object("a", "9"), object("changed", "14"), object("new", "13"));
		const old = () => list("10", object("a", "9"), object("changed", "8"), object("gone", "7"));
		// An audit may come before the bookmark: then it asks for what there was at 10.
		api.lists = [
			() => ({ body: old() }),
			(url) => ({ body: url.searchParams.get("resourceVersion") === "10" ? old() : full() }),
		];
		api.watches = [(send) => send(bookmark("15")), () => {}];
		const missed = await total("reflector_audit_missed_total");
		const { told } = await api.reflect({ auditInterval: 100 });
		await until(() => expect(told().slice(3)).toEqual(["updated n/changed", "added n/new", "deleted n/gone"]));
		expect((await total("reflector_audit_missed_total")) - missed).toBe(3);
		const audit = api.listed.find((url) => url.searchParams.get("resourceVersion") === "15") as URL;
		expect(audit.searchParams.get("resourceVersionMatch")).toBe("Exact");
		expect(api.accepted[api.asked.indexOf(audit)]).toContain("PartialObjectMetadataList");
		const audits = await total("reflector_audits_total");
		await until(async () => expect(await total("reflector_audits_total")).toBeGreaterThan(audits));
		expect((await total("reflector_audit_missed_total")) - missed).toBe(3);
	});

	it("counts from 0 what audits find, so that the first time is an increase", async () => {
		const api = new Scripted();
		await api.reflect({ resource: { ...configMaps, kind: "Counted" } });
		const missed = (await register.getSingleMetric("reflector_audit_missed_total")?.get())?.values ?? [];
		expect(missed.find(({ labels }) => labels.kind === "Counted")?.value).toBe(0);
	});

	it("is fresh while something is heard, and says how long ago that was", async () => {
		const api = new Scripted();
		let now = 0;
		const { reflector } = await api.reflect({ now: () => now });
		expect(reflector.isFresh).toBe(false);
		await reflector.waitForSync();
		expect(reflector.isFresh).toBe(true);
		now = 200_000;
		expect(reflector.isFresh).toBe(false);
		const ages = await register.getSingleMetric("reflector_last_event_age_seconds")?.get();
		expect(ages?.values).toMatchObject([{ value: 200, labels: { kind: "ConfigMap" } }]);
	});
});

/** A server with a history, whose watches err as scripted: what the reflector ends with must be what the server has. */
class Model {
	readonly objects = new Map<string, ReturnType<typeof object>>();
	readonly history: { type: string; object: ReturnType<typeof object> }[] = [];
	readonly open = new Set<{ send: (...events: unknown[]) => void; response: ServerResponse; from: number }>();
	/** Events before this version are forgotten. */
	compacted = 0;
	version = 1;
	/** What happens between the first and the second page of the next list, after which the first one's token is too old. */
	betweenPages: (() => void) | undefined;

	/** A list in pages of two. */
	list(url: URL): ReturnType<Answer> {
		const next = url.searchParams.get("continue");
		// What was is forgotten at once.
		const exact = url.searchParams.get("resourceVersion");
		if (exact !== null && Number(exact) !== this.version) return { status: 410, body: gone.object };
		if (next !== null && this.betweenPages !== undefined) {
			this.betweenPages();
			this.betweenPages = undefined;
			this.compacted = this.version;
		}
		const items = [...this.objects.values()];
		if (!url.searchParams.has("limit")) return { body: list(String(this.version), ...items) };
		const [version, from] = (next ?? `${this.version} 0`).split(" ").map(Number) as [number, number];
		// A page after the first is of the same version, or none.
		if (version !== this.version) return { status: 410, body: gone.object };
		const more = from + 2 < items.length ? { continue: `${version} ${from + 2}` } : {};
		return {
			body: { metadata: { resourceVersion: String(version), ...more }, items: items.slice(from, from + 2) },
		};
	}

	change(name: string, what: "put" | "delete"): void {
		const before = this.objects.get(name);
		if (what === "delete" && before === undefined) return;
		const next = object(name, String(++this.version));
		if (what === "delete") this.objects.delete(name);
		else this.objects.set(name, next);
		const type = what === "delete" ? "DELETED" : before === undefined ? "ADDED" : "MODIFIED";
		this.history.push({ type, object: next });
	}

	/** Tells every watch what it has not heard, as this fault has it. */
	tell(fault: Fault): void {
		for (const watch of this.open) {
			if (watch.from < this.compacted) {
				this.open.delete(watch);
				watch.send(gone);
				continue;
			}
			const news = this.history.filter((entry) => Number(entry.object.metadata.resourceVersion) > watch.from);
			watch.from = this.version;
			if (fault === "twice") watch.send(...news, ...news);
			else if (fault === "reversed") watch.send(...news.toReversed());
			else if (fault === "lost") watch.send(...news.slice(1));
			else watch.send(...news, bookmark(String(this.version)));
			if (fault !== "broken" && fault !== "ended") continue;
			this.open.delete(watch);
			if (fault === "broken") watch.response.destroy();
			else watch.response.end();
		}
	}
}
const faults = ["none", "twice", "reversed", "lost", "broken", "ended", "compacted", "compacted in pages"] as const;
type Fault = (typeof faults)[number];

describe("against a model", () => {
	it("ends with what the server has, whatever the watches do to it", async () => {
		const change = fc.tuple(fc.constantFrom("a", "b", "c", "d"), fc.constantFrom("put" as const, "put", "delete"));
		const round = fc.record({ fault: fc.constantFrom(...faults), changes: fc.array(change, { maxLength: 5 }) });
		const scripts = fc.sample(fc.array(round, { minLength: 1, maxLength: 5 }), { numRuns: 40, seed: 1 });
		await Promise.all(
			scripts.map(async (rounds, i) => {
				const kind = `Model${i}`;
				const model = new Model();
				for (const name of ["a", "b", "c", "d"]) model.change(name, "put");
				const api = new Scripted();
				api.lists = [(url) => model.list(url)];
				api.watches = [
					(send, response) => {
						const from = Number(api.watched.at(-1)?.searchParams.get("resourceVersion"));
						const watch = { send, response, from };
						model.open.add(watch);
						response.on("close", () => model.open.delete(watch));
						model.tell("none");
					},
				];
				const { reflector } = await api.reflect({
					resource: { ...configMaps, kind },
					auditInterval: 300,
					maxDelay: 200,
					pageSize: 2,
				});
				const told = new Map<string, string | undefined>();
				reflector.onChange(({ type, key, object: { metadata } }) => {
					if (type === "deleted") told.delete(key);
					else told.set(key, metadata.resourceVersion);
				});
				await reflector.waitForSync();
				for (const { fault, changes } of rounds) {
					await until(() => expect(model.open.size).toBeGreaterThan(0));
					const change = () => {
						for (const [name, what] of changes) model.change(name, what);
					};
					if (fault === "compacted in pages") {
						model.betweenPages = change;
						model.version++;
					} else change();
					if (fault.startsWith("compacted")) model.compacted = model.version;
					model.tell(fault);
					if (model.betweenPages === undefined) continue;
					// There may have been one page only.
					await until(() => expect(model.open.size).toBeGreaterThan(0));
					model.betweenPages?.();
					model.betweenPages = undefined;
					model.tell("none");
				}
				// The bookmark by which an audit finds what was lost.
				model.tell("none");
				const truth = [...model.objects.values()].map(({ metadata }) => [
					`n/${metadata.name}`,
					metadata.resourceVersion,
				]);
				await until(() => {
					expect(
						reflector
							.list()
							.map(({ metadata }) => [`n/${metadata.name}`, metadata.resourceVersion])
							.sort(),
					).toEqual(truth.toSorted());
				});
				// What the handlers were told comes to the same: nothing was left out, nothing told that was not so.
				await until(() => expect([...told].sort()).toEqual(truth.toSorted()));
				// An audit has to mend only what the server did not tell as it is.
				const isTold = rounds.every(({ fault }) => fault !== "lost" && fault !== "reversed");
				const missed = (await register.getSingleMetric("reflector_audit_missed_total")?.get())?.values ?? [];
				if (isTold) expect(missed.find(({ labels }) => labels.kind === kind)?.value).toBe(0);
			}),
		);
	}, 60_000);
});

describe("a store", () => {
	it("finds objects by what they say, also after they say something else", () => {
		const store = new Store<ConfigMap>({ word: ({ data }) => Object.values(data ?? {}) });
		store.put("n/a", object("a", "1", { x: "one", y: "two" }));
		store.put("n/b", object("b", "1", { x: "one" }));
		const names = (word: string) => store.byIndex("word", word).map(({ metadata }) => metadata.name);
		expect([names("one"), names("two"), names("three")]).toEqual([["a", "b"], ["a"], []]);
		store.put("n/a", object("a", "2", { x: "three" }));
		expect([names("one"), names("two"), names("three")]).toEqual([["b"], [], ["a"]]);
		store.delete("n/b");
		expect([names("one"), store.size]).toEqual([[], 1]);
		expect(() => store.byIndex("wrod", "one")).toThrow("no index");
	});
});

it.each([
	["9", "10", true],
	["10", "9", false],
	["10", "10", false],
	["123456789012345678901", "123456789012345678902", true],
	[undefined, "1", false],
	["1", undefined, false],
])("version %s is older than %s: %s", (version, than, older) => expect(isOlder(version, than)).toBe(older));
