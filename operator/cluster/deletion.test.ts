import fc from "fast-check";
import { expect, it } from "vitest";
import { FORCE_DELETE } from "../../crds/cluster.ts";
import { clusterOf } from "./assign.ts";
import { belongs, isConnected } from "./members.ts";
import { cases, report, Site } from "./site.fixture.ts";

const hosts = ["h1", "h2", "h3", "h4", "w1", "w2"];
const one = fc.constantFrom(...hosts);
/** What people and power do before the cluster is deleted, and while it goes. */
const deed = fc.oneof(
	fc.record({ kind: fc.constant("version" as const), version: fc.constantFrom("v1.35.4", "v1.36.3") }),
	fc.record({
		kind: fc.constant("hosts" as const),
		names: fc.constantFrom(...([["h1", "h2", "h3"], ["h1"], ["h2", "h3", "h4"], ["w1"]] as string[][])),
	}),
	fc.record({ kind: fc.constantFrom("power off" as const, "power on" as const, "hold" as const), host: one }),
	fc.record({ kind: fc.constant("break" as const), host: one }),
	fc.record({ kind: fc.constant("force" as const) }),
);
const deeds = fc.array(fc.tuple(deed, fc.integer({ min: 0, max: 25 })), { maxLength: 5 });

it("a deletion ends, whatever was under way and whoever is away, and names each host on which something is left", () => {
	fc.assert(
		fc.property(fc.integer({ min: 0, max: 40 }), deeds, deeds, (looks, before, meanwhile) => {
			const spec = { version: "v1.35.4", controlPlane: { hosts: ["h1", "h2", "h3"] } };
			const site = new Site({ ...spec, workers: [{ name: "w", hosts: ["w1", "w2"] }] }, hosts).run(looks);
			const act = (list: typeof before) => {
				for (const [what, count] of list) {
					if (site.finished !== undefined) return;
					if (what.kind === "version") site.edit({ version: what.version });
					if (what.kind === "hosts") {
						const workers = ["w1", "w2"].filter((name) => !what.names.includes(name));
						site.edit({ controlPlane: { hosts: what.names }, workers: [{ name: "w", hosts: workers }] });
					}
					if (what.kind === "power off") site.powerOff(what.host);
					if (what.kind === "power on") site.powerOn(what.host);
					if (what.kind === "hold") site.held.add(what.host);
					if (what.kind === "break") for (const version of site.versions) site.broken.add(`${what.host}@${version}`);
					if (what.kind === "force") site.annotate({ [FORCE_DELETE]: "true" });
					site.run(count);
				}
			};
			act(before);
			// Whoever left it before the deletion, and was away, is not this deletion's.
			const mine = hosts.filter((name) => belongs(site.host(name), site.cluster));
			site.delete();
			act(meanwhile);
			// Drains (15 min) and cleaning (15 min) have a deadline each.
			for (let i = 0; i < 700 && site.finished === undefined; i++) site.step();
			expect(site.finished, site.message).toBeDefined();

			const holds = (name: string) => clusterOf(site.host(name)) !== undefined || report(site.host(name)) !== undefined;
			const isForced = site.cluster.metadata.annotations?.[FORCE_DELETE] === "true";
			const left = mine.filter(holds);
			expect(site.finished).toEqual(expect.arrayContaining(left));
			if (!isForced) expect(left.filter((name) => isConnected(site.host(name)))).toEqual([]);

			// Who comes back later cleans itself, and nothing is left anywhere.
			for (const name of hosts) site.powerOn(name);
			site.settleHosts();
			expect(hosts.filter(holds)).toEqual([]);
		}),
		cases(150),
	);
}, 600_000);
