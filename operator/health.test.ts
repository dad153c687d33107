import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, it } from "vitest";
import { healthServer, unfit } from "./health.ts";

const copy = (kind: string, age: number, hasSynced = true) => ({
	resource: { kind },
	hasSynced,
	age,
	isFresh: hasSynced && age < 180_000,
});
const fresh = copy("Host", 1000);

it.each([
	["a standby, which goes by none", false, [copy("Host", 1e9)], []],
	["a leader that knows all", true, [fresh, copy("Cluster", 0)], []],
	[
		"a leader that has not heard of a kind for long",
		true,
		[fresh, copy("Cluster", 200_000)],
		["Cluster: nothing heard for 200 s"],
	],
	["a leader that has just begun", true, [copy("Host", 5, false)], ["Host: not complete yet"]],
])("%s", (_name, isLeader, copies, problems) => {
	expect(unfit(isLeader, copies)).toEqual(problems);
});

let problems: readonly string[] = [];
const server = healthServer(() => problems);
beforeAll(() => new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve)));
afterAll(() => void server.close());
const ask = async (path: string) => {
	const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`);
	return { status: answer.status, text: await answer.text() };
};

it("is alive also when it is not ready, and says what it lacks", async () => {
	expect(await ask("/readyz")).toEqual({ status: 200, text: "ok" });
	problems = ["Cluster: nothing heard for 200 s", "Host: not complete yet"];
	expect(await ask("/readyz")).toEqual({ status: 503, text: `${problems.join("\n")}\n` });
	expect(await ask("/healthz")).toEqual({ status: 200, text: "ok" });
	expect((await ask("/metrics")).status).toBe(200);
	expect((await ask("/else")).status).toBe(404);
});
