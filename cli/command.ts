import { Command, Option } from "commander";
import { ConfigStore } from "./config.ts";
import { type Format, formats } from "./output.ts";
import { Session } from "./session.ts";

export interface CommonOptions {
	readonly region?: string;
	readonly output: Format;
}

/** A subcommand with the options that all of them have. */
export function command(name: string, description: string, { output = true } = {}): Command {
	const made = new Command(name).description(description);
	made.addOption(
		new Option("-r, --region <name>", "region to work with, by its name or domain").env("GROUNDPLANE_REGION"),
	);
	if (output) made.addOption(new Option("-o, --output <format>", "how to print").choices(formats).default("table"));
	return made;
}

export const configStore = (): ConfigStore => new ConfigStore(process.env);

/** Runs work with a session of the region that the options name. */
export async function withSession<T>(
	{ region: wanted }: { region?: string | undefined },
	work: (session: Session) => Promise<T>,
): Promise<T> {
	const store = configStore();
	const { domain, region } = await store.region(wanted);
	const session = new Session(store, domain, region);
	try {
		return await work(session);
	} finally {
		session.close();
	}
}
