import { Command, CommanderError } from "commander";
import { asGroundplaneError } from "../protocol/errors.ts";
import { VERSION } from "../protocol/version.ts";
import { errorText, exitCode, terminal } from "./output.ts";

/** Command groups by name. Each is loaded when it is asked for: kubectl starts gp often. */
const groups: Readonly<Record<string, { description: string; load: () => Promise<Command> }>> = {
	login: {
		description: "sign in to a region",
		load: async () => (await import("./commands/login.ts")).loginCommand(),
	},
	logout: {
		description: "sign out of a region",
		load: async () => (await import("./commands/login.ts")).logoutCommand(),
	},
	whoami: {
		description: "say who is signed in",
		load: async () => (await import("./commands/login.ts")).whoamiCommand(),
	},
	password: {
		description: "change your own password",
		load: async () => (await import("./commands/user.ts")).passwordCommand(),
	},
	region: {
		description: "regions that you are signed in to",
		load: async () => (await import("./commands/login.ts")).regionCommand(),
	},
	host: {
		description: "machines at the customer's site",
		load: async () => (await import("./commands/host.ts")).hostCommand(),
	},
	cluster: {
		description: "Kubernetes clusters on the region's hosts",
		load: async () => (await import("./commands/cluster.ts")).clusterCommand(),
	},
	user: {
		description: "people who may use the region",
		load: async () => (await import("./commands/user.ts")).userCommand(),
	},
	token: {
		description: "API tokens for programs, and the join tokens of hosts",
		load: async () => (await import("./commands/user.ts")).tokenCommand(),
	},
	server: {
		description: "the management server: init, status, reset",
		load: async () => (await import("./server/command.ts")).serverCommand(),
	},
};

const HELP = `
First steps: gp login https://DOMAIN, gp host join-command, gp cluster apply -f FILE, gp cluster kubeconfig NAME.
The management server itself: gp server init. Each command has --help.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 not signed in or not allowed, 4 not found,
            5 the region can't be reached (trying again makes sense), 6 a deadline passed.
Configuration: $GROUNDPLANE_CONFIG, else ~/.config/groundplane/config.json.`;

/** Runs gp with these arguments and gives its exit code. */
export async function main(args: readonly string[]): Promise<number> {
	const program = new Command("gp")
		.description("Groundplane from the command line: private clouds on machines at the customer's site")
		.version(VERSION)
		.addHelpText("after", HELP);
	const wanted = args.find((arg) => !arg.startsWith("-"));
	for (const [name, { description, load }] of Object.entries(groups)) {
		program.addCommand(name === wanted ? await load() : new Command(name).description(description));
	}
	for (const command of everyCommand(program)) command.exitOverride().configureOutput({ outputError: () => {} });
	try {
		await program.parseAsync([...args], { from: "user" });
		// A command that ran another program gives that one's.
		return Number(process.exitCode ?? 0);
	} catch (error) {
		if (error instanceof CommanderError) {
			if (error.exitCode === 0 || error.code === "commander.help") return error.exitCode === 0 ? 0 : 2;
			terminal.err(`gp: ${error.message.replace(/^error: /, "")} (InvalidInput)\n    → See gp ${wanted ?? ""} --help`);
			return 2;
		}
		const shown = asGroundplaneError(error);
		terminal.err(errorText(shown));
		return exitCode(shown);
	}
}

function* everyCommand(command: Command): Generator<Command> {
	yield command;
	for (const child of command.commands) yield* everyCommand(child);
}

// A reader that closes the pipe (head) is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
	if (error.code === "EPIPE") process.exit(0);
	throw error;
});

// No top-level await: the single executable is a CommonJS bundle.
void main(process.argv.slice(2)).then((code) => {
	process.exitCode = code;
});
