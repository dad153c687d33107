import type { Observation } from "../primitives/primitive.ts";
import type { Entry, Journal } from "./journal.ts";
import type { RenderedRole, Step } from "./pack.ts";

export type Action =
	/** Look whether the step is as wanted. */
	| { readonly do: "check"; readonly step: Step }
	/** Make it so. */
	| { readonly do: "apply"; readonly step: Step }
	/** Put back what was there before. */
	| { readonly do: "undo"; readonly entry: Entry }
	/** Nothing of the role is left on the host. */
	| { readonly do: "forget" };

/**
 * What is to be done for one role, in order. Pure: the engine does the first action, looks again, and asks again.
 *
 * @param wanted The role as rendered, or undefined when the host should not play it (any more).
 * @param journal What was done for it so far.
 * @param observed What is known of the host by step name; a step that is absent has yet to be checked.
 */
export function plan(
	wanted: RenderedRole | undefined,
	journal: Journal | undefined,
	observed: ReadonlyMap<string, Observation>,
): Action[] {
	const entries = journal?.entries ?? [];
	if (!wanted || (journal && journal.identity !== wanted.identity)) {
		const undo = entries.toReversed().map((entry): Action => ({ do: "undo", entry }));
		return journal ? [...undo, { do: "forget" }] : undo;
	}
	// Gone from the pack, or about another thing on the host: undone before anything is done anew, last one first.
	const stale = entries.filter((entry) => {
		const step = wanted.steps.find(({ name }) => name === entry.name);
		return step?.key !== entry.key || step.use !== entry.use;
	});
	const actions: Action[] = stale.toReversed().map((entry) => ({ do: "undo", entry }));
	for (const step of wanted.steps) {
		const observation = observed.get(step.name);
		const entry = entries.find(({ name }) => name === step.name);
		if (!observation) actions.push({ do: "check", step });
		else if (!observation.ok || entry?.state !== "applied" || entry.digest !== step.digest)
			actions.push({ do: "apply", step });
	}
	return actions;
}

/** The entries with one added or replaced, kept in the order of the role's steps, so that undo goes the right way back. */
export function record(entries: readonly Entry[], added: Entry, steps: readonly Step[]): Entry[] {
	if (entries.some(({ name }) => name === added.name))
		return entries.map((entry) => (entry.name === added.name ? added : entry));
	const position = (name: string) => steps.findIndex((step) => step.name === name);
	const before = entries.findLastIndex(({ name }) => position(name) < position(added.name));
	return entries.toSpliced(before + 1, 0, added);
}
