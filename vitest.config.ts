import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";
import { patience } from "./test/support/patience.ts";

class ByName extends BaseSequencer {
	override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
		return files.toSorted((a, b) => a.moduleId.localeCompare(b.moduleId));
	}
}

/** The long ones are no part of every run: each has a switch, and a lab of its own. */
function e2eFiles() {
	if (process.env.GROUNDPLANE_ADOPTION !== undefined) return { include: ["test/e2e/08-adoption.test.ts"] };
	if (process.env.GROUNDPLANE_CHANGES !== undefined) return { include: ["test/e2e/09-*.test.ts"] };
	if (process.env.GROUNDPLANE_CONFORMANCE !== undefined) return { include: ["test/e2e/10-conformance.test.ts"] };
	return {
		include: ["test/e2e/**/*.test.ts"],
		exclude: ["**/08-adoption.test.ts", "**/09-*.test.ts", "**/10-*.test.ts"],
	};
}

// Three projects, fast ones first: unit (pure, seconds), integration (real local processes, no root),
// e2e (the lab, root; one file at a time because they share one lab).
export default defineConfig({
	test: {
		// In the order of their names: each end-to-end file stands on what the one before has made.
		sequence: { sequencer: ByName },
		projects: [
			{
				test: {
					name: "unit",
					include: ["{crds,protocol,operator,services,agent,roles,cli,charts,hack}/**/*.test.ts"],
					exclude: ["**/node_modules/**", "**/*.integration.test.ts"],
					testTimeout: 30_000,
					expect: { poll: patience },
				},
			},
			{
				test: {
					name: "integration",
					include: ["**/*.integration.test.ts", "test/integration/**/*.test.ts"],
					exclude: ["**/node_modules/**"],
					testTimeout: 60_000,
					expect: { poll: patience },
					hookTimeout: 120_000,
					maxWorkers: 2,
				},
			},
			{
				test: {
					name: "e2e",
					...e2eFiles(),
					globalSetup: ["test/e2e/support/setup.ts"],
					testTimeout: 600_000,
					expect: { poll: patience },
					hookTimeout: 900_000,
					fileParallelism: false,
					maxWorkers: 1,
				},
			},
		],
	},
});
