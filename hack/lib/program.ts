import type { Command } from "commander";
import { asGroundplaneError } from "../../protocol/errors.ts";

/** Runs a launcher's command line. A failure is told as code, what happened and what to do next, and the process ends with 1. */
export async function runProgram(program: Command): Promise<void> {
	try {
		await program.parseAsync();
	} catch (error) {
		const { code, message, next } = asGroundplaneError(error);
		process.stderr.write(`${code}: ${message}\n${next}\n`);
		process.exitCode = 1;
	}
}
