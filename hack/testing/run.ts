import { spawn } from "node:child_process";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { needPackages } from "../builder/packages.ts";
import { add, type Counts, countsOf, failuresOf, summaryLine } from "./counts.ts";

/**
 * Runs the test suites in order, fast ones first, and ends with the line `N passed, N failed[, N skipped]`.
 * A check (types, lint, arrows, drift) counts as one test. Logs and machine-readable results stay in dist/test.
 */
const suites = ["check", "unit", "integration", "e2e"] as const;
type Suite = (typeof suites)[number];

const root = process.env.GP_ROOT ?? process.cwd();
const results = join(root, "dist", "test");

async function main(): Promise<number> {
	const asked = process.argv.slice(2);
	if (asked.includes("--help") || asked.includes("-h")) {
		console.log(
			`usage: hack/test [${suites.join("|")}] ...\n\nWithout arguments: all of them; e2e (the lab) only as root.`,
		);
		return 0;
	}
	const unknown = asked.filter((name) => !(suites as readonly string[]).includes(name));
	if (unknown.length > 0) {
		console.error(`There is no suite named ${unknown.join(", ")}. Suites: ${suites.join(", ")}.`);
		return 2;
	}
	const wanted = asked.length > 0 ? suites.filter((suite) => asked.includes(suite)) : suites;
	await mkdir(results, { recursive: true });

	const failures: string[] = [];
	let total: Counts = { passed: 0, failed: 0, skipped: 0 };
	for (const suite of wanted) {
		if (suite === "e2e" && process.getuid?.() !== 0) {
			console.log(
				"\n== e2e: left out. The lab makes network namespaces and boots hosts: run hack/test as root for it.",
			);
			total = add(total, { passed: 0, failed: 0, skipped: 1 });
			continue;
		}
		const started = Date.now();
		console.log(`\n== ${suite}`);
		const counts = suite === "check" ? await check(failures) : await vitest(suite, failures);
		console.log(`== ${suite}: ${summaryLine(counts)} in ${Math.round((Date.now() - started) / 1000)} s`);
		total = add(total, counts);
		// A later suite costs minutes and would only say the same again.
		if (counts.failed > 0 && suite !== "e2e")
			console.log(`== ${suite} failed; going on, so that everything is seen at once`);
	}
	if (failures.length > 0) console.log(`\nWhat failed:\n${failures.map((each) => `  ${each}`).join("\n")}`);
	console.log(`\n${summaryLine(total)}`);
	return total.failed === 0 && total.passed > 0 ? 0 : 1;
}

/** `failures` takes what failed, for the end of the run. */
async function check(failures: string[]): Promise<Counts> {
	const scripts = ["check:types", "check:lint", "check:arrows", "check:crds", "check:unused"];
	let counts: Counts = { passed: 0, failed: 0, skipped: 0 };
	for (const script of scripts) {
		const code = await run("npm", ["run", "--silent", script]);
		if (code !== 0) failures.push(`check > npm run ${script}`);
		console.log(`  ${code === 0 ? "ok  " : "FAIL"} ${script}`);
		counts = add(counts, { passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, skipped: 0 });
	}
	return counts;
}

async function vitest(suite: Exclude<Suite, "check">, failures: string[]): Promise<Counts> {
	const output = join(results, `${suite}.json`);
	await rm(output, { force: true });
	if (suite === "integration")
		await needPackages("/usr/lib/postgresql", "haproxy", "promtool", "curl", "openssl", "dpkg-deb");
	if (suite !== "unit") {
		const code = await run(join(root, "hack", "build"), suite === "integration" ? ["tools"] : []);
		if (code !== 0) {
			failures.push(`${suite} > hack/build, with exit code ${code}`);
			return { passed: 0, failed: 1, skipped: 0 };
		}
	}
	const code = await run("vitest", [
		"run",
		"--project",
		suite,
		"--reporter=default",
		"--reporter=json",
		`--outputFile.json=${output}`,
	]);
	const report = await readFile(output, "utf8").catch(() => undefined);
	const counts = countsOf(report);
	if (code === 0) return counts;
	const failed = failuresOf(report, root);
	failures.push(
		...(failed.length > 0 ? failed : ["the runner failed beside its tests"]).map((each) => `${suite} > ${each}`),
	);
	// A runner that failed beside its tests (a broken import, an unhandled rejection) is a failure too.
	return counts.failed === 0 ? add(counts, { passed: 0, failed: 1, skipped: 0 }) : counts;
}

function run(command: string, args: readonly string[]): Promise<number> {
	return new Promise((resolve, reject) => {
		const child = spawn(command, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
		child.on("error", reject);
		child.on("close", (code) => resolve(code ?? 1));
	});
}

process.exitCode = await main();
