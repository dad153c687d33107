/** One measured figure, as every bench of the project prints it. */
export interface Figure {
	readonly name: string;
	readonly value: number;
	readonly unit: string;
	/** The most that it may be, in the same unit. */
	readonly target: number;
	readonly ok: boolean;
}

/** A figure that should not exceed its target. */
export const atMost = (name: string, value: number, unit: string, target: number): Figure => ({
	name,
	value: Math.round(value * 100) / 100,
	unit,
	target,
	ok: value <= target,
});

/** The figures as a table for people. */
export function table(figures: readonly Figure[]): string {
	const rows = [
		["what", "value", "target", ""],
		...figures.map(({ name, value, unit, target, ok }) => [
			name,
			`${value} ${unit}`,
			`≤ ${target} ${unit}`,
			ok ? "ok" : "MISSED",
		]),
	];
	const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
	return rows
		.map((row) =>
			row
				.map((cell, column) => cell.padEnd(widths[column] ?? 0))
				.join("  ")
				.trimEnd(),
		)
		.join("\n");
}
