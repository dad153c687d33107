import { expect, it } from "vitest";
import { gapsOf } from "./lifecycle-changes.ts";

/** `+` answered, `-` not, one each second. */
const asked = (answers: string) => [...answers].map((answer, at) => ({ at, answered: answer === "+" }));

it.each([
	["none while answers come", asked("++++"), { total: 0, longest: 0 }],
	[
		"from the first that is missing to the next that comes, in all and at the longest",
		asked("+-++--+"),
		{ total: 3, longest: 2 },
	],
	["answers that came in another order", asked("+--+").reverse(), { total: 2, longest: 2 }],
	["a gap that has not ended", asked("+---"), { total: 2, longest: 2 }],
	["nothing asked", [], { total: 0, longest: 0 }],
])("gaps: %s", (_name, asked, expected) => {
	expect(gapsOf(asked)).toEqual(expected);
});
