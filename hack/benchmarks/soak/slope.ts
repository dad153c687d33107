/** A measurement at a time, both in units of the caller's. */
export type Point = readonly [at: number, value: number];

/**
 * How much something grows over the second half of its measurements: the median of the slopes between any two of them (Theil 1950,
 * Sen 1968), times how long that half lasts. A few measurements that are far off, as garbage collectors make them, don't count.
 */
export function growth(points: readonly Point[]): number {
	const half = points.slice(points.length >> 1);
	const slopes = half
		.flatMap(([at, value], index) => half.slice(index + 1).map(([later, next]) => (next - value) / (later - at)))
		.sort((a, b) => a - b);
	const middle = slopes.length >> 1;
	const median = slopes.length % 2 === 1 ? slopes[middle] : ((slopes[middle - 1] ?? 0) + (slopes[middle] ?? 0)) / 2;
	return (median ?? 0) * ((half.at(-1)?.[0] ?? 0) - (half[0]?.[0] ?? 0));
}
