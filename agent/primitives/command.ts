import { z } from "zod";
import type { Primitive } from "./primitive.ts";

const argv = z.tuple([z.string()], z.string());
const commandWant = z.object({
	run: argv,
	env: z.record(z.string(), z.string()).default({}),
	/** Succeeds while there is nothing to do. Without it the command runs once, and again when it changes. */
	check: argv.optional(),
	undo: argv.optional(),
	/** Anything whose change runs it again. */
	triggers: z.array(z.string()).default([]),
	/** Runs only when something changed, not the first time. */
	onlyOnChange: z.boolean().default(false),
});
const commandMemory = z.object({ undo: argv.optional() });

/** A program with arguments; never a shell, never a secret among the arguments. */
export const command: Primitive<z.output<typeof commandWant>, z.output<typeof commandMemory>> = {
	schema: commandWant,
	key: () => "command",
	async observe({ check, env }, { exec, signal }, applied) {
		if (applied.last !== applied.now) return { ok: false, why: "it has not run yet" };
		if (!check) return { ok: true };
		const { code } = await exec(check[0], check.slice(1), { signal, env, codes: true });
		return code === 0 ? { ok: true } : { ok: false, why: `${check.join(" ")} says no` };
	},
	remember: async ({ undo }) => (undo ? { undo } : {}),
	async apply({ run, env, onlyOnChange }, { exec, signal }, applied) {
		if (onlyOnChange && applied.last === undefined) return;
		await exec(run[0], run.slice(1), { signal, env });
	},
	async undo({ undo }, { exec, signal }) {
		if (undo) await exec(undo[0], undo.slice(1), { signal, codes: true });
	},
};
