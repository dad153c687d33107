import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { expect, test } from "vitest";
import { fuzz } from "./fuzzer.ts";
import { tunnelTarget } from "./tunnel.ts";

test("it finds a bug behind conditions that chance alone would not meet", async () => {
	const directory = mkdtempSync(join(tmpdir(), "gp-fuzz-"));
	try {
		const file = join(directory, "planted.mjs");
		writeFileSync(
			file,
			`export function planted(input) {
				if (input[0] !== 103) return;
				if (input[1] !== 112) return;
				if (input[2] !== 33) return;
				throw new Error("found");
			}`,
		);
		const { planted } = (await import(/* @vite-ignore */ pathToFileURL(file).href)) as {
			planted: (input: Buffer) => void;
		};
		const result = await fuzz(
			{
				run: async (input) => planted(input),
				dictionary: [..."gp!x"].map((letter) => Buffer.from(letter)),
				seeds: [Buffer.from("aaaa")],
				covers: directory,
			},
			{ seed: 1, done: (executions) => executions >= 3_000 },
		);
		expect(result.failure?.input.subarray(0, 3).toString()).toBe("gp!");
	} finally {
		rmSync(directory, { recursive: true, force: true });
	}
}, 120_000);

test("no input of some hundred breaks a promise of the tunnel", async () => {
	const result = await fuzz(tunnelTarget, { seed: 7, done: (executions) => executions >= 400 });
	expect(result.failure).toBeUndefined();
	expect(result.corpus.length).toBeGreaterThan(tunnelTarget.seeds.length);
}, 120_000);
