import { describe, expect, it } from "vitest";
import { countsOf, failuresOf, summaryLine } from "./counts.ts";

describe("the closing line of a test run", () => {
	it.each([
		[
			"all passed",
			{ numPassedTests: 3, numFailedTests: 0, numPendingTests: 0, numFailedTestSuites: 0 },
			"3 passed, 0 failed",
		],
		[
			"some skipped",
			{ numPassedTests: 3, numFailedTests: 1, numPendingTests: 2, numFailedTestSuites: 1 },
			"3 passed, 1 failed, 2 skipped",
		],
		[
			"a file that can't be loaded",
			{ numPassedTests: 3, numFailedTests: 0, numPendingTests: 0, numFailedTestSuites: 2 },
			"3 passed, 2 failed",
		],
	])("%s", (_name, report, line) => {
		expect(summaryLine(countsOf(JSON.stringify(report)))).toBe(line);
	});

	it.each([undefined, "", "{", "{}"])("a run that reports nothing has failed (%j)", (report) => {
		expect(summaryLine(countsOf(report))).toBe("0 passed, 1 failed");
	});
});

describe("what failed, told again at the end", () => {
	const test = (fullName: string, status: string, failureMessages: string[] = []) => ({
		fullName,
		status,
		failureMessages,
	});
	it.each([
		[
			"a test",
			[
				{
					name: "/p/a.test.ts",
					assertionResults: [test("ok", "passed"), test("adds", "failed", ["1\n is not 2\n    at x"])],
				},
			],
			["a.test.ts > adds: 1 is not 2"],
		],
		[
			"a file that can't be loaded",
			[{ name: "/p/b.test.ts", message: "no such module", assertionResults: [] }],
			["b.test.ts: no such module"],
		],
		["nothing", [{ name: "/p/a.test.ts", message: "", assertionResults: [test("ok", "passed")] }], []],
	])("%s", (_name, testResults, lines) => {
		expect(failuresOf(JSON.stringify({ testResults }), "/p")).toEqual(lines);
	});

	it("says so when the report is missing", () => {
		expect(failuresOf(undefined, "/p")).toEqual(["there is no report that could be read"]);
	});
});
