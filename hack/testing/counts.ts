import { relative } from "node:path";
import { stripVTControlCharacters } from "node:util";

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

interface FileResult {
	readonly name: string;
	readonly message?: string;
	readonly assertionResults: readonly {
		readonly fullName: string;
		readonly status: string;
		readonly failureMessages?: readonly string[];
	}[];
}

/**
 * Which tests of Vitest's JSON report failed, each a line with its file and why: at the end of a run that is thousands of lines
 * long, or of which only the end was kept, they are what a reader looks for.
 */
export function failuresOf(report: string | undefined, root: string): string[] {
	let files: readonly FileResult[];
	try {
		files = JSON.parse(report ?? "").testResults ?? [];
	} catch {
		return ["there is no report that could be read"];
	}
	return files.flatMap(({ name, message, assertionResults }) => {
		const file = relative(root, name);
		const failed = assertionResults.filter(({ status }) => status === "failed");
		// A file that could not be loaded, or whose preparations failed, has a message of its own.
		if (failed.length === 0) return message ? [`${file}: ${beginning(message)}`] : [];
		return failed.map(
			({ fullName, failureMessages = [] }) => `${file} > ${fullName}: ${beginning(failureMessages.join(" "))}`,
		);
	});
}

/** Terminal colours are left out, and where in the code it was. */
const beginning = (text: string): string =>
	(stripVTControlCharacters(text).split(/\n\s+at /)[0] ?? "").replaceAll(/\s+/g, " ").trim().slice(0, 600);
