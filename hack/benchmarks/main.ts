import { Command } from "commander";
import { Demo } from "../demo/demo.ts";
import { runProgram } from "../lib/program.ts";
import { type Figure, table } from "./figures.ts";
import { footprint } from "./footprint.ts";
import { lifecycle } from "./lifecycle.ts";

const benches: Readonly<Record<string, (demo: Demo) => Promise<Figure[]>>> = { footprint, lifecycle };

const command = new Command("hack/bench")
	.description(
		"Measures against the targets of the project.\n\n  footprint   what a running, idle demo takes (needs hack/up)\n  lifecycle   how long things take (makes a lab of its own, and removes it)",
	)
	.argument("<bench>", `one of ${Object.keys(benches).join(", ")}`)
	.option("--json", "print an array of {name, value, unit, target, ok}")
	.option("--lab <name>", "name of the lab", process.env.GROUNDPLANE_LAB)
	.action(async (name: string, { json, lab }: { json?: boolean; lab?: string }) => {
		const bench = benches[name];
		if (bench === undefined)
			return command.error(`There is no bench named ${name}. Benches: ${Object.keys(benches).join(", ")}.`);
		const demo = new Demo({
			lab: lab ?? (name === "lifecycle" ? "bench" : "demo"),
			report: (line) => console.error(line),
		});
		const figures = await bench(demo);
		console.log(json === true ? JSON.stringify(figures, undefined, 2) : table(figures));
	});

await runProgram(command);
