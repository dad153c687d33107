import { readdir, readFile, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { isMissing, statOf } from "./durable.ts";
import type { Primitive, StepContext } from "./primitive.ts";

const residueWant = z.object({
	/** Network interfaces. */
	links: z.array(z.string()).default([]),
	/** nftables tables, as `family name`. */
	tables: z.array(z.string()).default([]),
	/** Control groups below every hierarchy's root; what still runs in them when they go is killed. */
	cgroups: z.array(z.string()).default([]),
});
const residueMemory = residueWant.required();

/** How long processes that were killed may take to be gone. One in uninterruptible sleep may never be. */
const KILLED_WITHIN = 10_000;

/**
 * What the role's programs make in the kernel and leave behind: interfaces, tables, control groups and the processes in
 * them. Nothing is made here; undo removes what was not there before.
 */
export const residue: Primitive<z.output<typeof residueWant>, z.output<typeof residueMemory>> = {
	schema: residueWant,
	key: () => "residue",
	observe: async (_want, _context, applied) => ({ ok: applied.last !== undefined }),
	async remember({ links, tables, cgroups }, context) {
		const present = await nftTables(context);
		const absentLinks: string[] = [];
		for (const link of links) if (!(await statOf(`/sys/class/net/${link}`))) absentLinks.push(link);
		const absentCgroups: string[] = [];
		for (const cgroup of cgroups) if ((await placesOf(cgroup)).length === 0) absentCgroups.push(cgroup);
		return { links: absentLinks, tables: tables.filter((table) => !present.includes(table)), cgroups: absentCgroups };
	},
	apply: async () => {},
	async undo({ links, tables, cgroups }, context) {
		const { exec, signal } = context;
		for (const cgroup of cgroups) for (const place of await placesOf(cgroup)) await endCgroup(place, context);
		for (const link of links) await exec("ip", ["link", "delete", link], { signal, codes: true });
		const present = await nftTables(context);
		for (const table of tables)
			if (present.includes(table)) await exec("nft", ["delete", "table", ...table.split(" ")], { signal });
	},
};

async function nftTables({ exec, signal }: StepContext): Promise<string[]> {
	const { stdout } = await exec("nft", ["list", "tables"], { signal, codes: true });
	return stdout.split("\n").map((line) => line.replace(/^table /, "").trim());
}

/** Where a control group is: in the one hierarchy of version 2, or in each of version 1's that has it. */
async function placesOf(cgroup: string): Promise<string[]> {
	const root = "/sys/fs/cgroup";
	const unified = (await statOf(join(root, "cgroup.controllers"))) !== undefined;
	const hierarchies = unified ? [root] : (await readdir(root)).map((name) => join(root, name));
	const places: string[] = [];
	for (const hierarchy of hierarchies) if (await statOf(join(hierarchy, cgroup))) places.push(join(hierarchy, cgroup));
	return places;
}

/** Kills what runs in a control group and those below, and removes them. */
async function endCgroup(place: string, { now, signal, log }: StepContext): Promise<void> {
	const deadline = now() + KILLED_WITHIN;
	for (let first = true; !(await removedCgroup(place)); first = false) {
		const processes = await processesIn(place);
		if (first && processes.length > 0) log(`killing what is left in ${place}: ${processes.join(", ")}`);
		for (const pid of processes) kill(pid);
		if (now() > deadline)
			throw new GroundplaneError("StepFailed", `processes in ${place} can't be killed: ${processes.join(", ")}`, {
				next: "Look at what they wait for (`ps -eo pid,stat,wchan,args`); a restart of the host ends them.",
			});
		await sleep(50, undefined, { signal });
	}
}

/** Processes in a control group and those below. */
export async function processesIn(place: string): Promise<number[]> {
	try {
		const own = (await readFile(join(place, "cgroup.procs"), "utf8")).split("\n").map(Number);
		const below = await Promise.all((await directoriesIn(place)).map(processesIn));
		// A process of another PID namespace is 0, which would be ourselves and all that we started.
		return [...own, ...below.flat()].filter((pid) => pid > 0);
	} catch (error) {
		if (isGone(error)) return [];
		throw error;
	}
}

function kill(pid: number): void {
	try {
		process.kill(pid, "SIGKILL");
	} catch (error) {
		if (codeOf(error) !== "ESRCH") throw error;
	}
}

/** Whether a control group went meanwhile: ENODEV is what reading a file of it says that was opened before. */
const isGone = (error: unknown): boolean => isMissing(error) || codeOf(error) === "ENODEV";

/** Removes a control group and those below, unless a process is still in one of them. */
async function removedCgroup(place: string): Promise<boolean> {
	try {
		for (const below of await directoriesIn(place)) if (!(await removedCgroup(below))) return false;
		await rmdir(place);
		return true;
	} catch (error) {
		if (isGone(error)) return true;
		if (codeOf(error) === "EBUSY") return false;
		throw error;
	}
}

async function directoriesIn(place: string): Promise<string[]> {
	const entries = await readdir(place, { withFileTypes: true });
	return entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(place, name));
}

const codeOf = (error: unknown): string | undefined => (error as NodeJS.ErrnoException).code;
