import { describe, expect, it } from "vitest";
import type { Host } from "../api/types.ts";
import { host } from "../testing/objects.ts";
import { byName } from "../ui/words.ts";
import { countPhases, filterHosts, sortBy } from "./list.ts";

const hosts = [
	host("web-2", { cluster: "shop" }),
	host("web-10", { phase: "Failed" }),
	host("db-1", { phase: "Failed", facts: { primaryAddress: "10.0.0.7", os: { prettyName: "Debian" } } as never }),
];
const names = (list: readonly Host[]) => list.map(({ metadata }) => metadata.name);

describe("the list of hosts", () => {
	it.each([
		[{ text: "WEB", phase: undefined }, ["web-2", "web-10"]],
		[{ text: "shop", phase: undefined }, ["web-2"]],
		[{ text: "10.0.0", phase: undefined }, ["db-1"]],
		[{ text: " ", phase: "Failed" as const }, ["web-10", "db-1"]],
		[{ text: "web", phase: "Failed" as const }, ["web-10"]],
		[{ text: "nothing", phase: undefined }, []],
	])("%j leaves %j", (filter, left) => expect(names(filterHosts(hosts, filter))).toEqual(left));

	it("sorts by a column both ways, and not at all by one that is unknown", () => {
		const columns = [{ key: "name", compare: (a: Host, b: Host) => byName(a.metadata.name, b.metadata.name) }];
		expect(names(sortBy(hosts, columns, { key: "name", direction: "asc" }))).toEqual(["db-1", "web-2", "web-10"]);
		expect(names(sortBy(hosts, columns, { key: "name", direction: "desc" }))).toEqual(["web-10", "web-2", "db-1"]);
		expect(names(sortBy(hosts, columns, { key: "no", direction: "asc" }))).toEqual(names(hosts));
	});

	it("counts phases, and a host that is being deleted as that", () => {
		const leaving = host("x", {}, { deletionTimestamp: "2026-01-01T00:00:00Z" });
		expect([...countPhases([...hosts, leaving])]).toEqual([
			["Ready", 1],
			["Failed", 2],
			["Deleting", 1],
		]);
	});
});
