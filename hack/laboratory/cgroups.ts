import { existsSync, readFileSync } from "node:fs";
import { mkdir, readdir, readFile, rmdir, writeFile } from "node:fs/promises";
import path from "node:path";

interface Mount {
	readonly directory: string;
	readonly type: "cgroup" | "cgroup2";
	readonly options: readonly string[];
}

function cgroupMounts(): Mount[] {
	return readFileSync("/proc/self/mounts", "utf8")
		.split("\n")
		.map((line) => line.split(" "))
		.filter(([, , type]) => type === "cgroup" || type === "cgroup2")
		.map(([, directory = "", type, options = ""]) => ({
			directory,
			type: type as Mount["type"],
			options: options.split(","),
		}));
}

/** The cgroup directories of a process, one for each hierarchy that is mounted here. */
export function cgroupsOf(pid: number | "self"): string[] {
	const mounts = cgroupMounts();
	return readFileSync(`/proc/${pid}/cgroup`, "utf8")
		.split("\n")
		.filter(Boolean)
		.flatMap((line) => {
			// hierarchy-ID:controllers:path (cgroups(7)); 0 and no controllers for cgroup v2
			const [, id, controllers = "", directory = ""] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? [];
			const mount = mounts.find(({ type, options }) =>
				id === "0" ? type === "cgroup2" : type === "cgroup" && controllers.split(",").every((c) => options.includes(c)),
			);
			return mount === undefined ? [] : [path.join(mount.directory, directory)];
		});
}

/**
 * Makes cgroup directories of its own for a machine and returns them.
 *
 * cgroup v1: under the directory that this process is in, in every hierarchy, since some parents must not be left.
 * cgroup v2: under the root, since a directory with processes can't hand controllers down (cgroups(7), "no internal processes").
 */
export async function makeCgroups(machine: string): Promise<string[]> {
	const unified = existsSync("/sys/fs/cgroup/cgroup.controllers");
	if (unified) {
		const home = "/sys/fs/cgroup/gplab";
		await mkdir(home, { recursive: true });
		for (const parent of ["/sys/fs/cgroup", home]) {
			const controllers = (await readFile(path.join(parent, "cgroup.controllers"), "utf8"))
				.trim()
				.split(" ")
				.filter(Boolean);
			for (const controller of controllers) {
				// A controller that can't be handed down (a realtime group, an old kernel) is one that hosts do without.
				await writeFile(path.join(parent, "cgroup.subtree_control"), `+${controller}`).catch(() => {});
			}
		}
	}
	const parents = unified ? ["/sys/fs/cgroup/gplab"] : cgroupsOf("self");
	const made: string[] = [];
	for (const parent of parents) {
		const directory = path.join(parent, machine);
		await mkdir(directory, { recursive: true });
		if (!unified && existsSync(path.join(directory, "cpuset.cpus"))) {
			for (const file of ["cpuset.cpus", "cpuset.mems"]) {
				await writeFile(path.join(directory, file), await readFile(path.join(parent, file)));
			}
		}
		made.push(directory);
	}
	return made;
}

/** Removes the cgroup directories of all machines whose name begins with `prefix`, wherever they were made. */
export async function removeCgroups(prefix: string): Promise<void> {
	for (const { directory } of cgroupMounts()) {
		for (const found of await find(directory, prefix, 3)) await removeTree(found);
		await rmdir(path.join(directory, "gplab")).catch(() => {});
	}
}

async function find(directory: string, prefix: string, depth: number): Promise<string[]> {
	const found: string[] = [];
	for (const entry of await directories(directory)) {
		const child = path.join(directory, entry);
		if (entry.startsWith(prefix)) found.push(child);
		else if (depth > 1) found.push(...(await find(child, prefix, depth - 1)));
	}
	return found;
}

/** A cgroup directory goes by rmdir, children first; the kernel may take a moment to let the last process go. */
async function removeTree(directory: string): Promise<void> {
	for (const entry of await directories(directory)) await removeTree(path.join(directory, entry));
	for (let attempt = 0; attempt < 100; attempt++) {
		try {
			return await rmdir(directory);
		} catch (error) {
			const { code } = error as NodeJS.ErrnoException;
			if (code === "ENOENT") return;
			if (code !== "EBUSY") throw error;
			await new Promise((resolve) => setTimeout(resolve, 20));
		}
	}
}

async function directories(directory: string): Promise<string[]> {
	const entries = await readdir(directory, { withFileTypes: true }).catch(() => []);
	return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}
