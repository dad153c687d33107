const numbersOf = (version: string) => (version.match(/\d+/g) ?? []).slice(0, 3).map(Number);

/** Orders versions of Kubernetes such as v1.35.4 by their numbers. */
export function compareVersions(a: string, b: string): number {
	const [left, right] = [numbersOf(a), numbersOf(b)];
	for (const index of [0, 1, 2]) {
		const difference = (left[index] ?? 0) - (right[index] ?? 0);
		if (difference !== 0) return difference;
	}
	return 0;
}

/** How many minors lie between two versions; infinitely many when their majors differ. */
export function minorsBetween(one: string, other: string): number {
	const [a, b] = [numbersOf(one), numbersOf(other)];
	return a[0] === b[0] ? Math.abs((a[1] ?? 0) - (b[1] ?? 0)) : Number.POSITIVE_INFINITY;
}
