import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { processesInside } from "./network.ts";
import { allPids, commandLine, gone, isAlive, kill, killAll, type ProcessId, processId } from "./processes.ts";
import type { HostRecord, LabNames } from "./record.ts";
import { INIT_PATH } from "./rootfs.ts";

/** What the supervisor tells about the host that it runs. */
export interface MachineRecord {
	/** Counts the boots of one supervisor. */
	readonly boot: number;
	readonly supervisor: ProcessId;
	readonly nspawn: ProcessId;
	/** The host's PID 1, as the outer machine numbers it. */
	readonly leader: ProcessId | undefined;
	/** How nspawn ended. */
	readonly exit: number | undefined;
}

export function machineFile(names: LabNames, host: string): string {
	return path.join(names.hostDirectory(host), "machine.json");
}

export async function readMachine(names: LabNames, host: string): Promise<MachineRecord | undefined> {
	try {
		return JSON.parse(await readFile(machineFile(names, host), "utf8")) as MachineRecord;
	} catch {
		return undefined;
	}
}

/** The process to enter a host by, while it is on. */
export async function leaderOf(names: LabNames, host: string): Promise<ProcessId | undefined> {
	const leader = (await readMachine(names, host))?.leader;
	return isAlive(leader) ? leader : undefined;
}

export function nspawnArguments(names: LabNames, host: HostRecord, root: string, directory: string): string[] {
	const devices = ["/dev/kmsg", "/dev/fuse", "/dev/net/tun"].filter((device) => existsSync(device));
	return [
		"--quiet",
		"--kill-signal=SIGRTMIN+3",
		`--directory=${root}`,
		`--machine=${names.machine(host.name)}`,
		`--hostname=${host.name}`,
		"--register=no",
		"--keep-unit",
		`--network-namespace-path=/run/netns/${names.namespace(host.name)}`,
		"--capability=all",
		// runc joins session keyrings, kubelet and CNI load BPF and mount.
		"--system-call-filter=@keyring bpf @mount @module",
		"--console=pipe",
		"--link-journal=no",
		"--resolv-conf=off",
		"--timezone=off",
		...devices.map((device) => `--bind=${device}`),
		// Overlay on overlay does not work: what containers stand on comes from the disk below.
		`--bind=${path.join(directory, "containerd")}:/var/lib/containerd`,
		`--bind=${path.join(directory, "kubelet")}:/var/lib/kubelet`,
		...host.binds.map(({ source, target }) => `--bind-ro=${source}:${target}`),
		INIT_PATH,
	];
}

/** Cuts a host's power, or that of all hosts: everything in it is killed at once, found by record and by name. */
export async function powerOff(names: LabNames, host?: string): Promise<void> {
	// In order when its supervisor lives: that one kills the host's PID 1, and parents reap their children.
	const powered = supervisors(names, host);
	for (const supervisor of powered) kill(supervisor, "SIGTERM");
	await gone(powered, 3000);
	// Whatever a killed run has left.
	await killAll(supervisors(names, host));
	await killAll([...named(names, host), ...(await processesInside(names, host))]);
}

function supervisors(names: LabNames, host?: string): ProcessId[] {
	return allPids()
		.filter((pid) => {
			const [, script = "", lab, name] = commandLine(pid);
			return script.endsWith("/laboratory/supervisor.ts") && lab === names.lab && (host === undefined || host === name);
		})
		.map(processId);
}

function named(names: LabNames, host?: string): ProcessId[] {
	const option = `--machine=${names.machine(host ?? "")}`;
	return allPids()
		.filter((pid) => commandLine(pid).some((word) => (host === undefined ? word.startsWith(option) : word === option)))
		.map(processId);
}
