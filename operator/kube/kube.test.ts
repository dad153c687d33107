import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { setCondition } from "./conditions.ts";
import { parseKubeConfig } from "./config.ts";
import { WorkQueue } from "./workqueue.ts";

describe("setCondition", () => {
	const at = (seconds: number) => () => seconds * 1000;
	const ready = { type: "Ready", status: "True", reason: "Ready", message: "" } as const;

	it("moves the time only when the status flips", () => {
		const first = setCondition([], ready, at(1));
		expect(first[0]?.lastTransitionTime).toBe("1970-01-01T00:00:01Z");
		const reworded = setCondition(first, { ...ready, message: "better" }, at(2));
		expect(reworded[0]).toMatchObject({ message: "better", lastTransitionTime: "1970-01-01T00:00:01Z" });
		const flipped = setCondition(reworded, { ...ready, status: "False", reason: "Broken" }, at(3));
		expect(flipped[0]).toMatchObject({ status: "False", lastTransitionTime: "1970-01-01T00:00:03Z" });
	});
	it("gives the same list back when nothing changed, and puts Ready first", () => {
		const list = setCondition(setCondition([], { ...ready, type: "Installed" }, at(1)), ready, at(1));
		expect(list.map(({ type }) => type)).toEqual(["Ready", "Installed"]);
		expect(setCondition(list, ready, at(9))).toBe(list);
	});
});

describe("WorkQueue", () => {
	beforeEach(() => vi.useFakeTimers());
	afterEach(() => vi.useRealTimers());
	const queue = () => new WorkQueue({ name: "test", baseDelay: 100, maxDelay: 1000, random: () => 0.5 });

	it("holds a key once, and keeps the order", async () => {
		const q = queue();
		for (const key of ["a", "b", "a"]) q.add(key);
		expect([await q.get(), await q.get(), q.length]).toEqual(["a", "b", 0]);
	});
	it("never gives out a key that is worked on, and gives it again when it was added meanwhile", async () => {
		const q = queue();
		q.add("a");
		expect(await q.get()).toBe("a");
		q.add("a");
		q.add("a");
		expect(q.length).toBe(0);
		q.done("a");
		expect(await q.get()).toBe("a");
		q.done("a");
		expect(q.length).toBe(0);
	});
	it("doubles the delay of a key that fails, up to the bound, until it is forgotten", () => {
		const q = queue();
		expect(Array.from({ length: 6 }, () => q.addRateLimited("a"))).toEqual([100, 200, 400, 800, 1000, 1000]);
		expect(q.addRateLimited("b")).toBe(100);
		q.forget("a");
		expect(q.addRateLimited("a")).toBe(100);
	});
	it("takes the earliest of several delays", async () => {
		const q = queue();
		q.addAfter("a", 500);
		q.addAfter("a", 100);
		q.addAfter("a", 300);
		await vi.advanceTimersByTimeAsync(99);
		expect(q.length).toBe(0);
		await vi.advanceTimersByTimeAsync(1);
		expect(await q.get()).toBe("a");
		q.done("a");
		await vi.advanceTimersByTimeAsync(1000);
		expect(q.length).toBe(0);
	});
	it("wakes a waiting worker, and lets all go at the end", async () => {
		const q = queue();
		const workers = [q.get(), q.get()];
		q.add("a");
		expect(await Promise.race([...workers, delay(0)])).toBe("a");
		q.shutDown();
		q.add("b");
		expect(await Promise.all(workers)).toEqual(["a", undefined]);
	});
});

describe("parseKubeConfig", () => {
	const config = (user: string, cluster = "") => `
current-context: a
contexts: [{ name: a, context: { cluster: c, user: u, namespace: n } }]
clusters: [{ name: c, cluster: { server: "https://192.0.2.1:6443/", certificate-authority-data: ${btoa("CA")} ${cluster} } }]
users: [{ name: u, user: { ${user} } }]`;
	const parse = (text: string) => parseKubeConfig(text, { directory: "/" });

	it("takes client certificates and tokens", async () => {
		const pair = `client-certificate-data: ${btoa("CERT")}, client-key-data: ${btoa("KEY")}`;
		expect(await parse(config(pair))).toEqual({
			server: "https://192.0.2.1:6443",
			namespace: "n",
			tls: { ca: "CA", cert: "CERT", key: "KEY" },
		});
		expect((await parse(config("token: secret"))).token?.()).toBe("secret");
	});
	it("refuses what it can't do, and what is not safe, with a way out", async () => {
		await expect(parse(config("exec: { command: x }"))).rejects.toMatchObject({ code: "InvalidConfiguration" });
		await expect(parse(config("token: t", ", insecure-skip-tls-verify: true"))).rejects.toThrow("verification");
		await expect(parse("current-context: none")).rejects.toThrow('no usable context "none"');
	});
});
