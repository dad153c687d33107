/** The agent as a process of its own below a directory of a test's: what a version's `bin/gp-agent` starts. */

import { loadConfig, Paths } from "../../agent/config.ts";
import { createLog } from "../../agent/log.ts";
import { run } from "../../agent/run.ts";
import { VERSION } from "../../protocol/version.ts";

if (process.argv[2] === "--version") process.stdout.write(`${VERSION}\n`);
else {
	const paths = new Paths(process.env.GP_TEST_ROOT ?? "/nowhere");
	const stop = new AbortController();
	process.once("SIGTERM", () => stop.abort());
	const config = loadConfig(paths, {});
	await run({
		// The fault of a version that finds no way to its region: nobody listens there.
		config: process.env.GP_TEST_FAULT === "no-way" ? { ...config, address: "127.0.0.1:9" } : config,
		paths,
		log: createLog({ journal: false }),
		signal: stop.signal,
		updates: process.env.GROUNDPLANE_LAUNCHER === undefined ? undefined : { steadyMs: 1_000 },
	});
	process.exit();
}
