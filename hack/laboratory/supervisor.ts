/**
 * Runs one host for as long as it is on: boots it, and boots it again when it asks for a reboot.
 * Arguments: the lab's name and the host's. Started detached by `Lab.start`; ends when the host powers off or, on SIGTERM, is cut off.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { makeCgroups, removeCgroups } from "./cgroups.ts";
import { type MachineRecord, machineFile, nspawnArguments } from "./machine.ts";
import { connectHost } from "./network.ts";
import { children, isAlive, isNamespaceInit, kill, type ProcessId, processId } from "./processes.ts";
import { LabNames, readRecord, writeJson } from "./record.ts";

/** What nspawn ends with, under --keep-unit, when the system inside asked for a reboot. */
const REBOOT = 133;

/**
 * Enters the cgroups, mounts the root in a mount namespace of its own, and becomes nspawn. The mounts go with the last process,
 * and so do the lock files that nspawn keeps in /run.
 */
const LAUNCH = `
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 97; shift; done; shift
root=$1 options=$2; shift 2
mount -t overlay overlay -o "$options" "$root" || exit 98
mkdir -p /run/systemd/nspawn && mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn || exit 99
exec systemd-nspawn "$@"
`;

const [lab = "", hostName = ""] = process.argv.slice(2);
const names = new LabNames(lab);
const directory = names.hostDirectory(hostName);
const root = path.join(directory, "root");
const console = openSync(path.join(directory, "console.log"), "a");
const file = machineFile(names, hostName);

/** Power off: nothing boots again, and what runs is killed at once. Killing PID 1 kills all that is in its PID namespace. */
let off = false;
let running: { nspawn: ProcessId; leader?: ProcessId } | undefined;
process.on("SIGTERM", () => {
	off = true;
	kill(running?.leader ?? running?.nspawn);
});

for (let boot = 1; !off; boot++) {
	const record = await readRecord(names);
	const host = record?.hosts.find(({ name }) => name === hostName);
	if (record === undefined || host === undefined) break;

	await connectHost(names, record, host);
	await removeCgroups(names.machine(hostName));
	const cgroups = await makeCgroups(names.machine(hostName));
	for (const name of ["root", "upper", "work", "containerd", "kubelet"]) {
		await mkdir(path.join(directory, name), { recursive: true });
	}
	const overlay = `lowerdir=${record.rootfs},upperdir=${path.join(directory, "upper")},workdir=${path.join(directory, "work")}`;
	const child = spawn(
		"unshare",
		[
			...["--mount", "--propagation", "slave", "sh", "-c", LAUNCH, "launch"],
			...[...cgroups, "--", root, overlay, ...nspawnArguments(names, host, root, directory)],
		],
		{
			stdio: ["ignore", console, console],
			env: { ...process.env, SYSTEMD_NSPAWN_API_VFS_WRITABLE: "yes", SYSTEMD_LOG_TARGET: "console" },
		},
	);
	const ended = once(child, "exit") as Promise<[number | null]>;
	const nspawn = processId(child.pid ?? 0);
	running = { nspawn };
	if (off) kill(nspawn);
	const state: MachineRecord = { boot, supervisor: processId(process.pid), nspawn, leader: undefined, exit: undefined };
	await writeJson(file, state);

	let leader: number | undefined;
	while (leader === undefined && isAlive(nspawn)) {
		leader = children(nspawn.pid).find(isNamespaceInit);
		if (leader === undefined) await sleep(5);
	}
	if (leader !== undefined) {
		running = { nspawn, leader: processId(leader) };
		if (off) kill(running.leader);
		await writeJson(file, { ...state, leader: running.leader });
	}

	const [code] = await ended;
	await writeJson(file, { ...state, exit: code ?? 137 });
	await removeCgroups(names.machine(hostName));
	if (code !== REBOOT) break;
}
