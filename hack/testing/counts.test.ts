import { describe, expect, it } from "vitest";
import { countsOf, summaryLine } from "./counts.ts";

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
