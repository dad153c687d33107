import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Command } from "commander";
import { Lab } from "../laboratory/lab.ts";
import { cacheDirectory } from "../lib/cache.ts";
import { run } from "../lib/exec.ts";
import { runProgram } from "../lib/program.ts";

const root = process.env.GP_ROOT ?? process.cwd();

const command = new Command("hack/down")
	.description("Removes every trace of the demo that hack/up made.")
	.option("--lab <name>", "name of the lab", process.env.GROUNDPLANE_LAB ?? "demo")
	.option("--caches", "remove what hack/build made and cached, too")
	.action(async ({ lab, caches }: { lab: string; caches?: boolean }) => {
		await new Lab(lab).down();
		await removeKind(lab);
		if (caches === true) {
			await rm(join(root, "dist"), { recursive: true, force: true });
			await rm(cacheDirectory(), { recursive: true, force: true });
		}
		console.log(`The lab ${lab} is gone.`);
	});

/** The kind cluster of `hack/up --provider kind`, where kind is installed. */
async function removeKind(lab: string): Promise<void> {
	const found = await run("kind", ["get", "clusters"], { check: false }).catch(() => undefined);
	const name = `groundplane-${lab}`;
	if (found?.stdout.split("\n").includes(name)) await run("kind", ["delete", "cluster", "--name", name]);
}

await runProgram(command);
