import { Command, InvalidArgumentError, Option } from "commander";
import { durationMs } from "../../protocol/duration.ts";
import { Demo } from "../demo/demo.ts";
import { runProgram } from "../lib/program.ts";
import { type Figure, table } from "./figures.ts";
import { fleet, type Phase, phases } from "./fleet.ts";
import { fleetSoak } from "./fleet-soak.ts";
import { footprint } from "./footprint.ts";
import { gateway } from "./gateway.ts";
import { lifecycle } from "./lifecycle.ts";
import { lifecycleChanges } from "./lifecycle-changes.ts";
import { operator } from "./operator.ts";
import { soak } from "./soak.ts";
import { tunnel } from "./tunnel.ts";

interface Options {
	json?: boolean;
	lab?: string;
	hosts?: string;
	clusters?: string;
	dark?: string;
	phases?: readonly Phase[];
	for: string;
}

const report = (line: string) => console.error(line);
const demo = (lab: string) => new Demo({ lab, report });

const benches: Readonly<Record<string, (options: Options) => Promise<Figure[]>>> = {
	footprint: ({ lab = "demo" }) => footprint(demo(lab)),
	lifecycle: ({ lab = "bench" }) => lifecycle(demo(lab)),
	changes: ({ lab = "bench" }) => lifecycleChanges(demo(lab)),
	tunnel: () => tunnel({ report }),
	gateway: ({ hosts }) => gateway({ ...(hosts && { hosts: Number(hosts) }), report }),
	soak: ({ for: duration }) => soak({ forMs: durationMs(duration), report }),
	operator: ({ hosts }) => operator({ ...(hosts && { hosts: Number(hosts) }), report }),
	fleet: ({ hosts, clusters, dark, phases }) =>
		fleet({
			...(hosts && { hosts: Number(hosts) }),
			...(clusters && { clusters: Number(clusters) }),
			...(dark && { dark: Number(dark) }),
			...(phases && { phases }),
			report,
		}),
	"fleet-soak": ({ hosts, for: duration }) =>
		fleetSoak({ forMs: durationMs(duration), ...(hosts && { hosts: Number(hosts) }), report }),
};

function phasesOf(list: string): Phase[] {
	return list.split(",").map((name) => {
		const phase = phases.find((known) => known === name);
		if (phase === undefined) throw new InvalidArgumentError(`There is no ${name}: choose of ${phases.join(", ")}.`);
		return phase;
	});
}

const command = new Command("hack/bench")
	.description(
		"Measures against the targets of the project.\n\n  footprint   what a running, idle demo takes (needs hack/up)\n  lifecycle   how long things take (makes a lab of its own, and removes it)\n  changes     how long a cluster of 3+2 takes to grow, change version, fail and end (a lab of its own; 30 min)\n  tunnel      how fast the tunnel is, beside a TLS connection of Node's (needs nothing)\n  gateway     a gateway with many idle hosts, and a fleet that comes back after it was killed (needs nothing)\n  soak        real tunnels over lines that are cut, stalled and garbled: does anything grow, does every stream end (needs nothing; 1 h)\n  fleet       the plane under simulated hosts: joins, idle, a blackout, clusters (needs nothing)\n  fleet-soak  the plane under one storm after the other: does anything grow (needs nothing; 1 h)\n  operator    the operator with 10,000 hosts, and its host controller beside controller-runtime (needs Go; 5 to 15 min)",
	)
	.argument("<bench>", `one of ${Object.keys(benches).join(", ")}`)
	.option("--json", "print an array of {name, value, unit, target, ok}")
	.option("--lab <name>", "name of the lab", process.env.GROUNDPLANE_LAB)
	.option(
		"--hosts <number>",
		"fleet, operator, gateway, fleet-soak: hosts in the end (1000, 10000, 10000, 100; figures at smaller sizes on the way)",
	)
	.option("--for <duration>", "soak, fleet-soak: how long", "1h")
	.option("--clusters <number>", "fleet: clusters of three hosts (20)")
	.option("--dark <seconds>", "fleet: for how long the site's line is gone (20)")
	.addOption(
		new Option("--phases <list>", `fleet: what to do once all have joined, of ${phases.join(", ")} (all)`).argParser(
			phasesOf,
		),
	)
	.action(async (name: string, options: Options) => {
		const bench = benches[name];
		if (bench === undefined)
			return command.error(`There is no bench named ${name}. Benches: ${Object.keys(benches).join(", ")}.`);
		const figures = await bench(options);
		console.log(options.json === true ? JSON.stringify(figures, undefined, 2) : table(figures));
	});

await runProgram(command);
