import { Command } from "commander";
import { GroundplaneError } from "../../protocol/errors.ts";
import { agentPackages } from "./javascript.ts";
import { kubernetesBundle } from "./kubernetes.ts";
import { minors } from "./programs.ts";
import { buildRelease, partNames } from "./release.ts";
import { say } from "./run.ts";
import { type ToolName, tool, toolNames } from "./tools.ts";

const program = new Command("hack/build").description(
	"Builds everything that Groundplane installs into dist/release. What did not change comes from the cache.",
);

program
	.option("--only <parts>", `build only these, comma-separated: ${partNames.join(", ")}`)
	.option(
		"--newest",
		"leave out what a cold build needs most time for and a demo can do without: older minors of Kubernetes, and Prometheus for clusters, where they are not there yet",
	)
	.action(async ({ only, newest = false }: { only?: string; newest?: boolean }) =>
		buildRelease(only?.split(",") ?? [], newest),
	);

program
	.command("tools")
	.description("build the programs that tests and the launchers in hack/ run, and print their paths")
	.argument("[names...]", `which ones (${toolNames.join(", ")}); all by default`)
	.action(async (names: string[]) => {
		for (const name of names)
			if (!toolNames.includes(name as ToolName))
				throw new GroundplaneError("InvalidInput", `There is no tool "${name}"`, {
					next: `Name one of ${toolNames.join(", ")}.`,
				});
		for (const name of names.length > 0 ? (names as ToolName[]) : toolNames)
			process.stdout.write(`${await tool(name)}\n`);
	});

program
	.command("bundle")
	.description("build the Kubernetes release bundles, and print their directories")
	.argument("[versions...]", `which ones (${minors.map((minor) => minor.kubernetes).join(", ")}); all by default`)
	.action(async (versions: string[]) => {
		for (const minor of minors)
			if (versions.length === 0 || versions.includes(minor.kubernetes))
				process.stdout.write(`${(await kubernetesBundle(minor)).directory}\n`);
	});

program
	.command("agent")
	.description("build the agent's package and manifest, in this version or another, and print their directory")
	.argument("<version>", "what the agent says of itself, such as 0.1.1")
	.action(async (version: string) => void process.stdout.write(`${await agentPackages(version)}\n`));

try {
	await program.parseAsync();
} catch (error) {
	if (!(error instanceof GroundplaneError)) throw error;
	say(`${error.code}: ${error.message}\nNext: ${error.next}`);
	// At once: what else is being built would go on for minutes.
	process.exit(1);
}
