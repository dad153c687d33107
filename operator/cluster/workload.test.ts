import { expect, it } from "vitest";
import type { KubeClient } from "../kube/client.ts";
import { metricsOf } from "./workload.ts";

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

it("reads the counters of all API servers that answer, and fails when none does", async () => {
	const broken = says(0, new Error("gone"));
	expect(await metricsOf([says(0, "a"), broken, says(0, "b")], signal)).toEqual(["a", "b"]);
	await expect(metricsOf([broken, broken], signal)).rejects.toThrow("gone");
});
