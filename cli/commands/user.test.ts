import { describe, expect, it } from "vitest";
import { readPasswords } from "./user.ts";

/** Answers in turn, and what was asked for. */
function person(...answers: string[]) {
	const asked: string[] = [];
	const read = async (what: string) => {
		asked.push(what);
		return answers.shift() ?? "";
	};
	return { asked, read };
}

describe("gp password", () => {
	it("asks at a terminal for the current one, and twice for the new one", async () => {
		const { asked, read } = person("old", "new", "new");
		expect(await readPasswords(true, read)).toEqual({ current: "old", new: "new" });
		expect(asked).toEqual(["Current password", "New password", "New password again"]);
	});

	it("changes nothing when the two differ", () =>
		expect(readPasswords(true, person("old", "new", "mew").read)).rejects.toMatchObject({ code: "InvalidInput" }));

	it.each(["old\nnew", "old\r\nnew"])("takes two lines of standard input: %j", async (text) =>
		expect(await readPasswords(false, person(text).read)).toEqual({ current: "old", new: "new" }),
	);

	it.each(["old", "old\n\nnew", "\nnew", "old\nnew\nnew"])("refuses other standard input: %j", (text) =>
		expect(readPasswords(false, person(text).read)).rejects.toMatchObject({
			code: "InvalidInput",
			message: expect.stringContaining("two lines"),
		}),
	);
});
