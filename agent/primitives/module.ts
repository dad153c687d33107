import { z } from "zod";
import { statOf } from "./durable.ts";
import type { Primitive } from "./primitive.ts";

const moduleWant = z.object({
	names: z.array(z.string().regex(/^[a-z0-9_]+$/)),
});
const moduleMemory = z.object({ loaded: z.array(z.string()) });

/**
 * Kernel modules, best effort: a kernel that has them built in shows no trace of some of them, and what really needs one
 * says so itself. Those that we loaded are unloaded again if nothing uses them.
 */
export const kernelModule: Primitive<z.output<typeof moduleWant>, z.output<typeof moduleMemory>> = {
	schema: moduleWant,
	key: () => "modules",
	async observe({ names }, _context, applied) {
		if (applied.last === applied.now) return { ok: true };
		for (const name of names) if (!(await isLoaded(name))) return { ok: false, why: `${name} is not loaded` };
		return { ok: true };
	},
	async remember({ names }) {
		const loaded: string[] = [];
		for (const name of names) if (!(await isLoaded(name))) loaded.push(name);
		return { loaded };
	},
	async apply({ names }, { exec, signal, log }) {
		for (const name of names) {
			if (await isLoaded(name)) continue;
			const { code, stderr } = await exec("modprobe", [name], { signal, codes: true });
			if (code !== 0) log(`kernel module ${name} was not loaded (it may be built in): ${stderr.trim()}`);
		}
	},
	async undo({ loaded }, { exec, signal }) {
		for (const name of [...loaded].reverse())
			if (await isLoaded(name)) await exec("modprobe", ["--remove", name], { signal, codes: true });
	},
};

const isLoaded = async (name: string) => (await statOf(`/sys/module/${name}`)) !== undefined;
