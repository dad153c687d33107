import type { Condition } from "../../crds/common.ts";

/** A condition as a controller states it; the time is added here. */
export type NewCondition = Omit<Condition, "lastTransitionTime">;

/**
 * The list with `next` in it. `lastTransitionTime` moves only when `status` flips (Kubernetes API conventions), and the very
 * same list comes back when nothing changed, so that callers can compare by identity. `Ready` stands first.
 */
export function setCondition(list: readonly Condition[], next: NewCondition, now: () => number): readonly Condition[] {
	const old = list.find((c) => c.type === next.type);
	if (
		old !== undefined &&
		old.status === next.status &&
		old.reason === next.reason &&
		old.message === next.message &&
		old.observedGeneration === next.observedGeneration
	) {
		return list;
	}
	const lastTransitionTime =
		old?.status === next.status ? old.lastTransitionTime : new Date(now()).toISOString().replace(/\.\d+Z$/, "Z");
	const condition: Condition = { ...next, lastTransitionTime };
	if (old !== undefined) return list.map((c) => (c === old ? condition : c));
	return next.type === "Ready" ? [condition, ...list] : [...list, condition];
}

/** Sets several conditions, one after the other. */
export const setConditions = (
	list: readonly Condition[],
	next: readonly NewCondition[],
	now: () => number,
): readonly Condition[] => next.reduce((all, condition) => setCondition(all, condition, now), list);

export const getCondition = (list: readonly Condition[] | undefined, type: string): Condition | undefined =>
	list?.find((c) => c.type === type);

/** Whether the condition is there and `True`. */
export const isTrue = (list: readonly Condition[] | undefined, type: string): boolean =>
	getCondition(list, type)?.status === "True";
