import { readFile, statfs } from "node:fs/promises";
import { availableParallelism, totalmem } from "node:os";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { HostCheck } from "../../protocol/facts.ts";
import { statOf } from "./durable.ts";
import type { Primitive } from "./primitive.ts";

const preflightWant = z.object({
	cores: z.int().default(1),
	memoryMiB: z.int().default(0),
	/** TCP ports that nothing may listen on yet. */
	ports: z.array(z.int()).default([]),
	/** Free space at a path, or at the nearest directory above it that exists. */
	disks: z.array(z.object({ path: z.string(), freeGiB: z.number() })).default([]),
	/** Programs that must be there, and the Debian package that brings them. */
	programs: z.record(z.string(), z.string()).default({}),
	/** Paths that must not be there: another installation's. */
	absent: z.array(z.string()).default([]),
});
export type PreflightWant = z.input<typeof preflightWant>;

/** Refuses a host that can't carry the role, with everything that is wrong in one message. Asked once, before the first change. */
export const preflight: Primitive<z.output<typeof preflightWant>, Record<string, never>> = {
	schema: preflightWant,
	key: () => "preflight",
	observe: async (_want, _context, applied) => ({ ok: applied.last !== undefined, why: "not checked yet" }),
	remember: async () => ({}),
	async apply(want) {
		const wrong = (await checkHost(want)).filter((check) => !check.ok && check.severity === "error");
		if (wrong.length === 0) return;
		throw new GroundplaneError("PrerequisiteNotMet", wrong.map(({ message }) => message).join("; "), {
			next: wrong.map(({ next }) => next).join(" "),
		});
	},
	undo: async () => {},
};

/** Every prerequisite with its result. Changes nothing. */
export async function checkHost(input: PreflightWant): Promise<HostCheck[]> {
	const want = preflightWant.parse(input);
	const checks: HostCheck[] = [];
	const check = (name: string, ok: boolean, message: string, next: string, severity: HostCheck["severity"] = "error") =>
		checks.push(ok ? { name, ok, severity, message } : { name, ok, severity, message, next });

	const root = process.getuid?.() === 0;
	check("root", root, root ? "running as root" : "not running as root", "Run it as root (sudo).");

	const systemd = await statOf("/run/systemd/system");
	check(
		"systemd",
		systemd !== undefined,
		systemd ? "systemd runs this host" : "systemd does not run this host",
		"Use a distribution whose PID 1 is systemd.",
	);

	const cores = availableParallelism();
	check(
		"cores",
		cores >= want.cores,
		`${cores} CPU cores, ${want.cores} needed`,
		`Give this machine ${want.cores} CPU cores.`,
	);

	const memory = Math.round(totalmem() / 2 ** 20);
	check(
		"memory",
		memory >= want.memoryMiB,
		`${memory} MiB of memory, ${want.memoryMiB} MiB needed`,
		`Give this machine ${want.memoryMiB} MiB of memory.`,
	);

	const swaps = (await readFile("/proc/swaps", "utf8")).trim().split("\n").slice(1);
	check(
		"swap",
		swaps.length === 0,
		swaps.length === 0 ? "no swap in use" : `swap is in use: ${swaps.map((line) => line.split(/\s+/)[0]).join(", ")}`,
		"Run `swapoff -a` and remove the swap line of /etc/fstab.",
	);

	const missing = await missingControllers();
	check(
		"cgroup",
		missing.length === 0,
		missing.length === 0
			? "control groups are complete"
			: `control group controllers are missing: ${missing.join(", ")}`,
		"Boot with `cgroup_enable=memory`, or with cgroup v2 (systemd.unified_cgroup_hierarchy=1).",
	);

	const taken = want.ports.length > 0 ? await listeningPorts() : new Set();
	for (const port of want.ports) {
		const free = !taken.has(port);
		check(
			`port-${port}`,
			free,
			free ? `port ${port} is free` : `port ${port} is taken`,
			`Stop what listens there: ss -ltnp 'sport = :${port}'.`,
		);
	}

	for (const { path, freeGiB } of want.disks) {
		const free = (await freeBytes(path)) / 2 ** 30;
		check(
			`disk-${path}`,
			free >= freeGiB,
			`${free.toFixed(1)} GiB free at ${path}, ${freeGiB} GiB needed`,
			`Free space at ${path}, or mount a larger disk there.`,
		);
	}

	for (const [program, debianPackage] of Object.entries(want.programs)) {
		const found = await findProgram(program);
		check(
			`program-${program}`,
			found,
			found ? `${program} is there` : `the program ${program} is missing`,
			`Run: apt-get install ${debianPackage}.`,
		);
	}

	for (const path of want.absent) {
		const there = (await statOf(path)) !== undefined;
		check(
			`absent-${path}`,
			!there,
			there ? `${path} is there: something else was installed here` : `${path} is not in the way`,
			`Remove the other installation (for Kubernetes: kubeadm reset) and ${path}.`,
		);
	}
	return checks;
}

/** Controllers that Kubernetes can't do without (KEP-2254 for v2). */
async function missingControllers(): Promise<string[]> {
	const unified = await readFile("/sys/fs/cgroup/cgroup.controllers", "utf8").catch(() => undefined);
	if (unified !== undefined) {
		const there = unified.trim().split(" ");
		return ["cpu", "cpuset", "memory", "pids"].filter((name) => !there.includes(name));
	}
	const missing: string[] = [];
	for (const name of ["cpu", "cpuacct", "cpuset", "memory", "pids"])
		if (!(await statOf(`/sys/fs/cgroup/${name}`))) missing.push(name);
	return missing;
}

/** Ports of IPv4 and IPv6 that something listens on. Anybody may read them; binding to one below 1024 takes a right. */
async function listeningPorts(): Promise<Set<number>> {
	const tables = await Promise.all(
		["tcp", "tcp6"].map((name) => readFile(`/proc/net/${name}`, "utf8").catch(() => "")),
	);
	return new Set(tables.flatMap(portsIn));
}

/** The ports of a table's sockets in state LISTEN, 0A (proc(5), /proc/net/tcp). */
export const portsIn = (table: string): number[] =>
	[...table.matchAll(/^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A /gm)].map(([, port = ""]) =>
		Number.parseInt(port, 16),
	);

async function freeBytes(path: string): Promise<number> {
	let at = path;
	while (!(await statOf(at))) at = at.slice(0, at.lastIndexOf("/")) || "/";
	const { bavail, bsize } = await statfs(at);
	return bavail * bsize;
}

async function findProgram(name: string): Promise<boolean> {
	for (const directory of ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
		if (await statOf(`${directory}/${name}`)) return true;
	return false;
}
