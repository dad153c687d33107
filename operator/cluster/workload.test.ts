import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type KubeClient, KubeError } from "../kube/client.ts";
import { askApiServers, drain, metricsOf } from "./workload.ts";

const { signal } = new AbortController();
type Client = Pick<KubeClient, "requestText">;
/** An API server that says something after a while; without words never. */
const says = (ms: number, words?: string | Error): Client => ({
	requestText: (_method, _path, options) =>
		new Promise((resolve, reject) => {
			options?.signal?.addEventListener("abort", () => reject(options.signal?.reason));
			if (words === undefined) return;
			setTimeout(() => (typeof words === "string" ? resolve(words) : reject(words)), ms);
		}),
});

describe("asking control planes how they are", () => {
	beforeEach(() => {
		vi.useFakeTimers();
	});
	afterEach(() => {
		vi.useRealTimers();
	});

	/** How long it took, and who was ready. */
	async function ask(clients: readonly Client[]): Promise<[number, boolean[]]> {
		const began = Date.now();
		const asked = askApiServers(
			clients.map((client, index) => ({ host: `h${index}`, client })),
			signal,
		).then((found): [number, boolean[]] => [Date.now() - began, found.map(({ ready }) => ready)]);
		await vi.runAllTimersAsync();
		return asked;
	}

	it.each<[string, Client[], [number, boolean[]]]>([
		["all at once", [says(10, "ok"), says(20, "ok")], [20, [true, true]]],
		[
			"one without power: the others are enough",
			[says(10, "ok"), says(0), says(30, "ok")],
			[2010, [true, false, true]],
		],
		["a slow one", [says(10, "ok"), says(1900, "ok")], [1900, [true, true]]],
		["the only one, slow", [says(4900, "ok")], [4900, [true]]],
		["none", [says(0), says(0)], [5000, [false, false]]],
		["one that refuses", [says(10, new Error("etcd failed")), says(3000, "ok")], [3000, [false, true]]],
	])("%s", async (_name, clients, expected) => {
		expect(await ask(clients)).toEqual(expected);
	});
});

it("reads the counters of all API servers that answer, and fails when none does", async () => {
	const broken = says(0, new Error("gone"));
	expect(await metricsOf([says(0, "a"), broken, says(0, "b")], signal)).toEqual(["a", "b"]);
	await expect(metricsOf([broken, broken], signal)).rejects.toThrow("gone");
});

it("asks for the eviction of all pods although one can't be evicted, and says so in the end", async () => {
	const asked: string[] = [];
	const pod = (name: string) => ({ metadata: { name, namespace: "shop" } });
	const client = {
		find: async () => ({ metadata: { name: "h1", annotations: {} }, spec: {} }),
		patch: async () => ({}),
		list: async () => ({ items: [pod("a"), pod("two-budgets"), pod("z")] }),
		request: async (_method: string, path: string) => {
			const name = path.split("/").at(-2) ?? "";
			asked.push(name);
			const failure = { httpStatus: 500, reason: "InternalError", next: "" };
			if (name === "two-budgets") throw new KubeError("Internal", "more than one PodDisruptionBudget", failure);
		},
	} as unknown as KubeClient;
	await expect(drain(client, "h1", { force: false, now: 0, signal })).rejects.toThrow("more than one");
	expect(asked).toEqual(["a", "two-budgets", "z"]);
});
