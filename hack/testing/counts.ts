/** How many tests passed, failed and were skipped. */
export interface Counts {
	readonly passed: number;
	readonly failed: number;
	readonly skipped: number;
}

export const add = (a: Counts, b: Counts): Counts => ({
	passed: a.passed + b.passed,
	failed: a.failed + b.failed,
	skipped: a.skipped + b.skipped,
});

/** The closing line of a run, in the form that CI reads. */
export const summaryLine = ({ passed, failed, skipped }: Counts): string =>
	`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;

/** Reads Vitest's JSON report. A missing or unreadable report is one failure: a run that reports nothing has not passed. */
export function countsOf(report: string | undefined): Counts {
	const broken: Counts = { passed: 0, failed: 1, skipped: 0 };
	if (report === undefined) return broken;
	try {
		const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, numFailedTestSuites } = JSON.parse(report);
		if (typeof numPassedTests !== "number" || typeof numFailedTests !== "number") return broken;
		// A file that could not even be loaded has failed suites and no failed test.
		const failed = numFailedTests === 0 && numFailedTestSuites > 0 ? numFailedTestSuites : numFailedTests;
		return { passed: numPassedTests, failed, skipped: (numPendingTests ?? 0) + (numTodoTests ?? 0) };
	} catch {
		return broken;
	}
}
