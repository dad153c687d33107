/** One measured figure, as every bench of the project prints it. */
export interface Figure {
	readonly name: string;
	readonly value: number;
	readonly unit: string;
	/** The most that it may be, or with `least` the least, in the same unit. */
	readonly target: number;
	readonly ok: boolean;
	readonly least?: true;
	/** What it was measured beside: the baseline's own figure. */
	readonly beside?: string;
}

/** A figure that should not exceed its target. */
export const atMost = (name: string, value: number, unit: string, target: number, beside?: string): Figure => ({
	name,
	value: Math.round(value * 100) / 100,
	unit,
	target,
	ok: value <= target,
	...(beside !== undefined && { beside }),
});

/** A figure that should reach its target. */
export const atLeast = (name: string, value: number, unit: string, target: number, beside?: string): Figure => ({
	...atMost(name, value, unit, target, beside),
	ok: value >= target,
	least: true,
});

/** The figures as a table for people. */
export function table(figures: readonly Figure[]): string {
	const rows = [
		["what", "value", "target", "", ""],
		...figures.map(({ name, value, unit, target, ok, least, beside }) => [
			name,
			`${value} ${unit}`,
			`${least ? "≥" : "≤"} ${target} ${unit}`,
			ok ? "ok" : "MISSED",
			beside ?? "",
		]),
	];
	const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
	return rows
		.map((row) =>
			row
				.map((cell, column) => cell.padEnd(widths[column] ?? 0))
				.join("  ")
				.trimEnd(),
		)
		.join("\n");
}
