import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Command } from "commander";
import { durationMs } from "../../protocol/duration.ts";
import { runProgram } from "../lib/program.ts";
import { fuzz } from "./fuzzer.ts";
import { tunnelTarget } from "./tunnel.ts";

const command = new Command("hack/fuzz")
	.description("Looks for input that breaks the tunnel's promises. What it finds is put into dist/fuzz.")
	.option("--for <duration>", "how long", "60s")
	.option("--seed <number>", "the same seed tries the same inputs", Number)
	.action(async ({ for: duration, seed = Date.now() >>> 0 }: { for: string; seed?: number }) => {
		const until = performance.now() + durationMs(duration);
		const { executions, corpus, covered, failure } = await fuzz(tunnelTarget, {
			seed,
			done: () => performance.now() > until,
		});
		console.log(
			`seed ${seed}: ${executions} inputs, ${corpus.length} of them new paths, ${covered} characters of the code ran`,
		);
		if (failure === undefined) return;
		const directory = join(import.meta.dirname, "..", "..", "dist", "fuzz");
		await mkdir(directory, { recursive: true });
		const file = join(directory, `tunnel-${seed}.bin`);
		await writeFile(file, failure.input);
		console.error(`A promise is broken by ${file}:`, failure.error);
		process.exitCode = 1;
	});

await runProgram(command);
