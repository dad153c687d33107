/** Orders versions such as v1.35.4 by their numbers. */
export function compareVersions(a: string, b: string): number {
	const [left, right] = [a, b].map((text) => (text.match(/\d+/g) ?? []).slice(0, 3).map(Number));
	for (const index of [0, 1, 2]) {
		const difference = (left?.[index] ?? 0) - (right?.[index] ?? 0);
		if (difference !== 0) return difference;
	}
	return 0;
}

export const minorOf = (version: string): number => Number(version.split(".")[1]);
