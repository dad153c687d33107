import { readdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { isMissing, statOf } from "./durable.ts";
import type { Primitive, StepContext } from "./primitive.ts";

const residueWant = z.object({
	/** Network interfaces. */
	links: z.array(z.string()).default([]),
	/** nftables tables, as `family name`. */
	tables: z.array(z.string()).default([]),
	/** Control groups below every hierarchy's root. */
	cgroups: z.array(z.string()).default([]),
});
const residueMemory = residueWant.required();

/** What the role's programs make in the kernel and leave behind. Nothing is made here; undo removes what was not there before. */
export const residue: Primitive<z.output<typeof residueWant>, z.output<typeof residueMemory>> = {
	schema: residueWant,
	key: () => "residue",
	observe: async (_want, _context, applied) => ({ ok: applied.last !== undefined }),
	async remember({ links, tables, cgroups }, context) {
		const present = await nftTables(context);
		const absentLinks: string[] = [];
		for (const link of links) if (!(await statOf(`/sys/class/net/${link}`))) absentLinks.push(link);
		return { links: absentLinks, tables: tables.filter((table) => !present.includes(table)), cgroups };
	},
	apply: async () => {},
	async undo({ links, tables, cgroups }, context) {
		const { exec, signal } = context;
		for (const link of links) await exec("ip", ["link", "delete", link], { signal, codes: true });
		const present = await nftTables(context);
		for (const table of tables)
			if (present.includes(table)) await exec("nft", ["delete", "table", ...table.split(" ")], { signal });
		for (const root of await hierarchies())
			for (const cgroup of cgroups) await removeCgroup(join(root, cgroup)).catch(() => {}); // busy: someone else's
	},
};

async function nftTables({ exec, signal }: StepContext): Promise<string[]> {
	const { stdout } = await exec("nft", ["list", "tables"], { signal, codes: true });
	return stdout.split("\n").map((line) => line.replace(/^table /, "").trim());
}

async function hierarchies(): Promise<string[]> {
	const root = "/sys/fs/cgroup";
	if (await statOf(join(root, "cgroup.controllers"))) return [root];
	return (await readdir(root)).map((name) => join(root, name));
}

async function removeCgroup(path: string): Promise<void> {
	try {
		for (const entry of await readdir(path, { withFileTypes: true }))
			if (entry.isDirectory()) await removeCgroup(join(path, entry.name));
		await rmdir(path);
	} catch (error) {
		if (!isMissing(error)) throw error;
	}
}
