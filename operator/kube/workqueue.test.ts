import fc from "fast-check";
import { register } from "prom-client";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Priority, priorities, TokenBucket, WorkQueue, type WorkQueueOptions } from "./workqueue.ts";

const { intent, status, resync } = priorities;

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

const queue = (options: Partial<WorkQueueOptions> = {}) =>
	new WorkQueue({ name: "test", baseDelay: 100, maxDelay: 1000, random: () => 0.5, ...options });
const pass = (milliseconds: number) => vi.advanceTimersByTimeAsync(milliseconds);
/** Takes and gives back all that waits, in order. */
async function take(q: WorkQueue, count = q.length): Promise<string[]> {
	const keys: string[] = [];
	for (let i = 0; i < count; i++) {
		const key = (await q.get()) as string;
		keys.push(key);
		q.done(key);
	}
	return keys;
}
/** What a promise has come to: `pending` while it has not. */
async function settled<T>(promise: Promise<T>): Promise<T | "pending"> {
	const result = Promise.race([promise, new Promise<"pending">((resolve) => setTimeout(resolve, 0, "pending"))]);
	await pass(0);
	return result;
}
const metric = async (name: string, labels: Record<string, string | number> = {}): Promise<number | undefined> => {
	const values = (await register.getSingleMetric(name)?.get())?.values ?? [];
	const wanted = Object.entries({ name: "metrics", ...labels });
	return values.find(
		(value) =>
			wanted.every(([k, v]) => (value.labels as Record<string, unknown>)[k] === v) &&
			// Of a histogram: how often it was observed.
			(!("metricName" in value) || value.metricName === `${name}_count`),
	)?.value;
};

// The cases of client-go's util/workqueue (v0.37), by their names there.
describe("client-go queue_test.go", () => {
	it("TestBasic: many producers and consumers, every key is worked on, never by two at once", async () => {
		const q = queue();
		const active = new Set<string>();
		const seen = new Map<string, number>();
		const consumer = async () => {
			for (let key = await q.get(); key !== undefined; key = await q.get()) {
				expect(active.has(key)).toBe(false);
				active.add(key);
				await new Promise((resolve) => setTimeout(resolve, 3));
				active.delete(key);
				seen.set(key, (seen.get(key) ?? 0) + 1);
				q.done(key);
			}
		};
		const consumers = Array.from({ length: 10 }, consumer);
		for (let producer = 0; producer < 50; producer++) {
			for (let i = 0; i < 50; i++) q.add(`${i}`);
			await pass(1);
		}
		await pass(1000);
		q.shutDown();
		await Promise.all(consumers);
		expect(seen.size).toBe(50);
		// 50 times each was added, and one that waits is not added again.
		for (const count of seen.values()) expect(count).toBeLessThan(50);
	});

	it("TestAddWhileProcessing: a key added while it is worked on comes again", async () => {
		const q = queue();
		q.add("a");
		expect(await q.get()).toBe("a");
		q.add("a");
		expect(q.length).toBe(0);
		expect(await settled(q.get())).toBe("pending");
		q.done("a");
		await pass(0);
		// The waiting taker got it.
		expect([q.length, q.active]).toEqual([0, 1]);
	});

	it("TestLen", () => {
		const q = queue();
		q.add("foo");
		expect(q.length).toBe(1);
		q.add("bar");
		expect(q.length).toBe(2);
		q.add("foo");
		expect(q.length).toBe(2);
	});

	it("TestReinsert", async () => {
		const q = queue();
		q.add("foo");
		const first = await q.get();
		q.add(first as string);
		q.done(first as string);
		expect(await q.get()).toBe("foo");
		q.done("foo");
		expect(q.length).toBe(0);
	});

	it("TestCollapse: what is added twice is worked on once", async () => {
		const q = queue();
		q.add("bar");
		q.add("bar");
		expect(await take(q)).toEqual(["bar"]);
		expect(q.length).toBe(0);
	});

	it("TestCollapseWhileProcessing: what is added twice while it is worked on comes once more", async () => {
		const q = queue();
		q.add("bar");
		await q.get();
		q.add("bar");
		q.add("bar");
		q.done("bar");
		expect(q.length).toBe(1);
		expect(await take(q)).toEqual(["bar"]);
		expect(q.length).toBe(0);
	});

	it("TestNoQueueDrainageUsingShutDown, TestForceQueueShutdownUsingShutDown: all takers go, what is worked on may end", async () => {
		const q = queue();
		q.add("foo");
		q.add("bar");
		expect(await q.get()).toBe("foo");
		q.shutDown();
		expect(await q.get()).toBeUndefined();
		q.done("foo");
		q.add("new");
		q.addAfter("later", 10);
		await pass(100);
		expect([q.length, q.active]).toEqual([0, 0]);
	});

	it("TestQueueDrainageUsingShutDownWithDrainWithDirtyItem: a dirty key does not come back after the end", async () => {
		const q = queue();
		q.add("foo");
		await q.get();
		q.add("foo");
		q.shutDown();
		q.done("foo");
		expect(q.length).toBe(0);
		expect(await q.get()).toBeUndefined();
	});

	it("TestGarbageCollection: nothing is kept of a key that is done, nor of one that is dropped", async () => {
		const q = queue();
		q.add("a");
		await take(q);
		q.addRateLimited("gone");
		q.addAfter("gone", 5000);
		q.add("gone");
		q.drop("gone");
		await pass(10_000);
		expect([q.length, q.active, q.retries("gone")]).toEqual([0, 0, 0]);
		expect(vi.getTimerCount()).toBe(0);
	});

	it("wakes one waiting worker for each key, and lets all go at the end", async () => {
		const q = queue();
		const workers = [q.get(), q.get()];
		q.add("a");
		expect(await settled(workers[0] as Promise<string>)).toBe("a");
		expect(await settled(workers[1] as Promise<string>)).toBe("pending");
		q.shutDown();
		q.add("b");
		expect(await workers[1]).toBeUndefined();
	});
});

describe("client-go delaying_queue_test.go", () => {
	it("TestSimpleQueue", async () => {
		const q = queue();
		q.addAfter("foo", 50);
		expect(q.length).toBe(0);
		await pass(60);
		expect(await take(q)).toEqual(["foo"]);
		await pass(10_000);
		expect(q.length).toBe(0);
	});

	it("TestDeduping: of several delays the earliest counts, whichever came first", async () => {
		const q = queue();
		q.addAfter("foo", 50);
		await pass(1);
		q.addAfter("foo", 70);
		await pass(51);
		expect(await take(q)).toEqual(["foo"]);
		await pass(20);
		expect(q.length).toBe(0);
		q.addAfter("foo", 50);
		q.addAfter("foo", 30);
		await pass(29);
		expect(q.length).toBe(0);
		await pass(1);
		expect(await take(q)).toEqual(["foo"]);
		await pass(40);
		expect(q.length).toBe(0);
	});

	it("TestAddTwoFireEarly", async () => {
		const q = queue();
		q.addAfter("foo", 1000);
		q.addAfter("bar", 50);
		await pass(60);
		expect(await take(q)).toEqual(["bar"]);
		q.addAfter("foo", 2000);
		await pass(940);
		expect(await take(q)).toEqual(["foo"]);
	});

	it("TestCopyShifting: delays end in the order of their times", async () => {
		const q = queue();
		q.addAfter("foo", 1000);
		q.addAfter("bar", 500);
		q.addAfter("baz", 300);
		await pass(2000);
		expect(await take(q)).toEqual(["baz", "bar", "foo"]);
	});

	it("keeps to its delays when the machine's clock is set", async () => {
		const q = queue();
		q.addAfter("a", 60_000);
		vi.setSystemTime(Date.now() + 3_600_000);
		q.addAfter("a", 500);
		await pass(500);
		expect(await take(q)).toEqual(["a"]);
		vi.setSystemTime(Date.now() - 7_200_000);
		q.addAfter("a", 500);
		await pass(499);
		expect(await take(q)).toEqual([]);
		await pass(1);
		expect(await take(q)).toEqual(["a"]);
	});

	it("adds at once what has no delay, and keeps a deadline through other work on the key", async () => {
		const q = queue();
		q.addAfter("a", 500);
		q.addAfter("a", 0);
		expect(await take(q)).toEqual(["a"]);
		await pass(500);
		expect(await take(q)).toEqual(["a"]);
	});
});

describe("client-go default_rate_limiters_test.go, rate_limiting_queue_test.go", () => {
	it("TestItemExponentialFailureRateLimiter: doubles for each key on its own, until it is forgotten", () => {
		const q = queue();
		expect(Array.from({ length: 4 }, () => q.addRateLimited("one"))).toEqual([100, 200, 400, 800]);
		expect(q.retries("one")).toBe(4);
		expect([q.addRateLimited("two"), q.addRateLimited("two")]).toEqual([100, 200]);
		q.forget("one");
		expect(q.retries("one")).toBe(0);
		expect(q.addRateLimited("one")).toBe(100);
	});

	it("TestItemExponentialFailureRateLimiterOverFlow: the delay is bounded after any number of failures", () => {
		const q = queue({ retryBurst: 5000 });
		for (let i = 0; i < 1000; i++) q.addRateLimited("overflow");
		expect(q.addRateLimited("overflow")).toBe(1000);
	});

	it("TestMaxOfRateLimiter: the bucket of all keys, a key's own back-off and what the server asked for: the longest counts", () => {
		const q = queue({ retryRate: 2, retryBurst: 3 });
		const delays = ["a", "b", "c", "d", "e"].map((key) => q.addRateLimited(key));
		expect(delays).toEqual([100, 100, 100, 500, 1000]);
		expect(q.addRateLimited("a", 7000)).toBe(7000);
	});

	it("TestRateLimitingQueue: a key that failed comes after its delay", async () => {
		const q = queue();
		q.addRateLimited("one");
		await pass(99);
		expect(q.length).toBe(0);
		await pass(1);
		expect(await take(q)).toEqual(["one"]);
	});

	it("spreads what fails at the same time", () => {
		const delays = [0, 0.5, 1].map((random) => queue({ random: () => random }).addRateLimited("a"));
		expect(delays).toEqual([75, 100, 125]);
	});

	it("BucketRateLimiter: a burst, then one after the other, and as much again after a rest", () => {
		let now = 0;
		const bucket = new TokenBucket(10, 2, () => now);
		expect([bucket.reserve(), bucket.reserve(), bucket.reserve(), bucket.reserve()]).toEqual([0, 0, 100, 200]);
		now = 200;
		expect(bucket.reserve()).toBe(100);
		now = 10_000;
		expect([bucket.reserve(), bucket.reserve(), bucket.reserve()]).toEqual([0, 0, 100]);
	});
});

describe("client-go metrics_test.go", () => {
	it("TestMetrics, TestMetricShutdown", async () => {
		register.resetMetrics();
		const q = queue({ name: "metrics" });
		q.add("foo");
		expect([await metric("workqueue_adds_total"), await metric("workqueue_depth", { priority: status })]).toEqual([
			1, 1,
		]);
		await pass(50);
		await q.get();
		expect(await metric("workqueue_depth", { priority: status })).toBe(0);
		expect(await metric("workqueue_queue_duration_seconds")).toBe(1);
		await pass(25);
		expect(await metric("workqueue_unfinished_work_seconds")).toBeCloseTo(0.025);
		expect(await metric("workqueue_longest_running_processor_seconds")).toBeCloseTo(0.025);
		// Added while it is worked on: counts and waits from then on, once, and is not counted again when it comes back.
		q.add("foo");
		q.add("foo");
		const depth = () => metric("workqueue_depth", { priority: status });
		expect([await metric("workqueue_adds_total"), await depth()]).toEqual([2, 1]);
		q.add("foo", intent);
		expect([await depth(), await metric("workqueue_depth", { priority: intent })]).toEqual([0, 1]);
		await pass(25);
		q.done("foo");
		expect(await metric("workqueue_work_duration_seconds")).toBe(1);
		expect([await metric("workqueue_adds_total"), await depth()]).toEqual([2, 0]);
		await q.get();
		const durations = (await register.getSingleMetric("workqueue_queue_duration_seconds")?.get())?.values ?? [];
		const sum = durations.find((value) => (value as { metricName?: string }).metricName?.endsWith("_sum"));
		expect(sum?.value).toBeCloseTo(0.075);
		// All that is added with a delay counts as a retry there.
		q.addRateLimited("bar");
		q.addAfter("later", 10);
		q.addAfter("now", 0);
		expect(await metric("workqueue_retries_total")).toBe(2);
		q.shutDown();
		expect(await metric("workqueue_depth", { priority: status })).toBeUndefined();
		expect(await metric("workqueue_unfinished_work_seconds")).toBeUndefined();
	});
});

// The cases of controller-runtime's priority queue (v0.25), by their names there.
describe("controller-runtime priorityqueue_test.go", () => {
	it("returns items in order: the most urgent first, among equals the first come", async () => {
		const q = queue();
		q.add("a", resync);
		q.add("b", status);
		q.add("c", intent);
		q.add("d", intent);
		expect(await take(q)).toEqual(["c", "d", "b", "a"]);
	});
	it("doesn't return an item that is currently locked, returns an item as soon as it is unlocked", async () => {
		const q = queue();
		q.add("a");
		await q.get();
		q.add("a", intent);
		q.add("b", resync);
		expect(await q.get()).toBe("b");
		q.done("a");
		expect(await q.get()).toBe("a");
	});
	it("retains the highest priority, will not decrease the priority, also of a locked item", async () => {
		const q = queue();
		q.add("x", status);
		q.add("a", intent);
		q.add("a", resync);
		expect(await q.get()).toBe("a");
		q.add("a", intent);
		q.add("a", resync);
		q.done("a");
		expect(await take(q)).toEqual(["a", "x"]);
	});
	it("should retain the priority when there was an error", async () => {
		const q = queue();
		q.add("wanted", intent);
		q.add("looked at", resync);
		for (let i = 0; i < 2; i++) {
			const key = (await q.get()) as string;
			q.addRateLimited(key);
			q.done(key);
		}
		q.add("reported", status);
		await pass(100);
		expect(await take(q)).toEqual(["wanted", "reported", "looked at"]);
	});
	it("gets pushed to the front if the priority increases", async () => {
		const q = queue();
		for (const key of ["a", "b", "c"]) q.add(key, resync);
		q.add("c", status);
		expect(await take(q)).toEqual(["c", "a", "b"]);
	});
	it("follows FIFO order in the new priority queue when item priority changes", async () => {
		const q = queue();
		q.add("foo", resync);
		q.add("bar", status);
		q.add("foo", status);
		expect(await take(q)).toEqual(["bar", "foo"]);
	});
	it("retains the lowest after duration, with the highest priority", async () => {
		const q = queue();
		q.add("x", status);
		q.addAfter("a", 100, resync);
		q.addAfter("a", 200, intent);
		await pass(100);
		expect(await take(q)).toEqual(["a", "x"]);
	});
	it("doesn't include non-ready items in Len()", async () => {
		const q = queue();
		q.addAfter("a", 60_000);
		q.add("b");
		expect(q.length).toBe(1);
	});
	it("updates metrics correctly for an item that gets initially added with after and then without", async () => {
		register.resetMetrics();
		const q = queue({ name: "metrics" });
		q.addAfter("foo", 3_600_000);
		expect(await metric("workqueue_adds_total")).toBe(0);
		q.add("foo");
		expect(await metric("workqueue_adds_total")).toBe(1);
		expect(await metric("workqueue_depth", { priority: status })).toBe(1);
		q.add("foo", intent);
		expect(await metric("workqueue_depth", { priority: status })).toBe(0);
		expect(await metric("workqueue_depth", { priority: intent })).toBe(1);
		q.shutDown();
	});
	it("updates metrics correctly when an item with after is re-added with higher priority and no after", async () => {
		register.resetMetrics();
		const q = queue({ name: "metrics" });
		const depths = async () => [
			await metric("workqueue_depth", { priority: resync }),
			await metric("workqueue_depth", { priority: intent }),
		];
		q.addAfter("foo", 3_600_000, resync);
		expect(await depths()).toEqual([0, 0]);
		q.add("foo", intent);
		expect(await depths()).toEqual([0, 1]);
		expect(await take(q)).toEqual(["foo"]);
		expect(await depths()).toEqual([0, 0]);
		q.shutDown();
	});
});

describe("fairness", () => {
	it("lets namespaces take turns, however much one of them has", async () => {
		const q = queue();
		for (let i = 0; i < 5; i++) q.add(`loud/${i}`);
		q.add("quiet/0");
		q.add("calm/0");
		q.add("quiet/1");
		expect(await take(q)).toEqual(["loud/0", "quiet/0", "calm/0", "loud/1", "quiet/1", "loud/2", "loud/3", "loud/4"]);
	});
	it("keeps workers free for the others when one namespace is slow", async () => {
		const q = queue({ groupLimit: 2 });
		for (let i = 0; i < 5; i++) q.add(`slow/${i}`, intent);
		expect([await q.get(), await q.get()]).toEqual(["slow/0", "slow/1"]);
		const third = q.get();
		expect(await settled(third)).toBe("pending");
		q.add("other/0", resync);
		expect(await third).toBe("other/0");
		const fourth = q.get();
		q.done("slow/0");
		expect(await fourth).toBe("slow/2");
	});
});

describe("against a model", () => {
	it("loses nothing, works on nothing twice at once, and keeps to priority and limit", async () => {
		const keys = fc.constantFrom("a/1", "a/2", "a/3", "b/1", "b/2", "c");
		const step = fc.oneof(
			fc.record({ do: fc.constant("add" as const), key: keys, priority: fc.constantFrom<Priority>(0, 1, 2) }),
			fc.record({ do: fc.constant("get" as const) }),
			fc.record({ do: fc.constant("done" as const), which: fc.nat(5) }),
			fc.record({ do: fc.constant("drop" as const), key: keys }),
			fc.record({
				do: fc.constant("later" as const),
				key: keys,
				delay: fc.integer({ min: 1, max: 50 }),
				priority: fc.constantFrom<Priority>(0, 1, 2),
			}),
			fc.record({ do: fc.constant("pass" as const), time: fc.integer({ min: 1, max: 60 }) }),
		);
		await fc.assert(
			fc.asyncProperty(fc.array(step, { maxLength: 60 }), fc.constantFrom(1, 2, 99), async (steps, groupLimit) => {
				const q = queue({ groupLimit });
				const group = (key: string) => key.split("/")[0];
				const waiting = new Map<string, Priority>();
				const dirty = new Map<string, Priority>();
				const later = new Map<string, { at: number; priority: Priority }>();
				let now = 0;
				const working: string[] = [];
				const add = (key: string, priority: Priority) => raise(working.includes(key) ? dirty : waiting, key, priority);
				const raise = (map: Map<string, Priority>, key: string, priority: Priority) =>
					map.set(key, Math.max(map.get(key) ?? 0, priority) as Priority);
				const mayBegin = (key: string) => working.filter((other) => group(other) === group(key)).length < groupLimit;
				for (const action of steps) {
					if (action.do === "add") {
						q.add(action.key, action.priority);
						add(action.key, action.priority);
					} else if (action.do === "later") {
						q.addAfter(action.key, action.delay, action.priority);
						const pending = later.get(action.key);
						later.set(action.key, {
							at: Math.min(pending?.at ?? Number.POSITIVE_INFINITY, now + action.delay),
							priority: Math.max(pending?.priority ?? 0, action.priority) as Priority,
						});
					} else if (action.do === "pass") {
						await pass(action.time);
						now += action.time;
						for (const [key, { at, priority }] of later) {
							if (at > now) continue;
							later.delete(key);
							add(key, priority);
						}
					} else if (action.do === "drop") {
						q.drop(action.key);
						waiting.delete(action.key);
						dirty.delete(action.key);
						later.delete(action.key);
					} else if (action.do === "done") {
						const [key] = working.splice(action.which, 1);
						if (key === undefined) continue;
						q.done(key);
						const again = dirty.get(key);
						if (again !== undefined) waiting.set(key, again);
						dirty.delete(key);
					} else {
						const possible = [...waiting].filter(([key]) => mayBegin(key));
						if (possible.length === 0) continue;
						const key = (await q.get()) as string;
						expect(possible.map(([candidate]) => candidate)).toContain(key);
						expect(waiting.get(key)).toBe(Math.max(...possible.map(([, priority]) => priority)));
						waiting.delete(key);
						working.push(key);
					}
					expect([q.length, q.active]).toEqual([waiting.size, working.length]);
				}
				q.shutDown();
				expect(vi.getTimerCount()).toBe(0);
			}),
			{ numRuns: 500 },
		);
	});
});
