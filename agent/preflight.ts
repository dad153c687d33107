import { accessSync, constants, existsSync, readFileSync, statfsSync } from "node:fs";
import { availableParallelism, release, totalmem } from "node:os";
import { delimiter, join } from "node:path";
import type { HostCheck } from "../protocol/facts.ts";
import { systemdRuns } from "./facts.ts";
import { findKubernetes } from "./kubernetes.ts";

const GIB = 1024 ** 3;
const MIN_MEMORY = 1.5 * GIB;
const MIN_DISK = 5 * GIB;
const GOOD_DISK = 20 * GIB;
/** What kube-proxy needs for nftables (KEP-3866); flannel and the load balancer use nftables as well. */
const MIN_KERNEL = [5, 13] as const;
const CLOCK_ERROR_S = 300;
const CLOCK_WARNING_S = 30;
/** What the roles run, and the Debian package that has it. */
const commands = {
	nft: "nftables",
	ip: "iproute2",
	modprobe: "kmod",
	mount: "mount",
	systemctl: "systemd",
	iptables: "iptables",
	conntrack: "conntrack",
	ethtool: "ethtool",
	socat: "socat",
} as const;
/** Kernel features by module name, and how to see that one is there without it. */
const features = {
	overlay: () => /\boverlay$/m.test(text("/proc/filesystems")),
	br_netfilter: () => existsSync("/proc/sys/net/bridge"),
	nf_tables: () => existsSync("/sys/module/nf_tables"),
	vxlan: () => existsSync("/sys/module/vxlan"),
} as const;
/** TCP ports of a Kubernetes node (kubernetes.io, Ports and Protocols): what the role's own preflight asks of a control plane. */
export const NODE_PORTS: readonly number[] = [2379, 2380, 6443, 10250, 10256, 10257, 10259];

/** What was seen on a host; `evaluate` says what to think of it. */
export interface Probe {
	root: boolean;
	systemd: boolean;
	memoryBytes: number;
	cores: number;
	diskBytes: number;
	/** Swap devices and files in use. */
	swaps: string[];
	cgroup: "v1" | "v2";
	kernel: string;
	/** Features the kernel surely lacks. */
	missingFeatures: string[];
	missingCommands: string[];
	/** Ports of ours that something listens on. */
	portsTaken: number[];
	/** Name of the node that others made here with kubeadm. */
	foreignNode?: string;
	/** A role is installed, so ports may be taken by our own work. */
	installed: boolean;
	/** The host's clock minus the region's, seconds; undefined when the region could not be asked. */
	clockSkewSeconds: number | undefined;
}

/** Looks at this host, without changing it and without running programs. */
export function probe({ installed = false, clockSkewSeconds = undefined as number | undefined } = {}): Probe {
	const foreignNode = findKubernetes()?.nodeName;
	return {
		root: process.getuid?.() === 0,
		systemd: systemdRuns(),
		memoryBytes: totalmem(),
		cores: availableParallelism(),
		diskBytes: availableBytes("/var/lib"),
		swaps: text("/proc/swaps")
			.split("\n")
			.slice(1)
			.flatMap((line) => line.split(/\s/)[0] || []),
		cgroup: existsSync("/sys/fs/cgroup/cgroup.controllers") ? "v2" : "v1",
		kernel: release(),
		missingFeatures: Object.entries(features).flatMap(([name, seen]) => (seen() || mayLoad(name) ? [] : [name])),
		missingCommands: Object.keys(commands).filter((name) => !inPath(name)),
		portsTaken: listeningPorts(text("/proc/net/tcp") + text("/proc/net/tcp6")).filter((port) =>
			NODE_PORTS.includes(port),
		),
		installed,
		...(foreignNode !== undefined && { foreignNode }),
		clockSkewSeconds,
	};
}

/** Judges a probe. Pure. An error keeps roles from being installed; every check is there, good or bad. */
export function evaluate(seen: Probe): HostCheck[] {
	const gib = (bytes: number) => `${(bytes / GIB).toFixed(1)} GiB`;
	const check = (
		name: string,
		ok: boolean,
		message: string,
		next: string,
		severity: HostCheck["severity"] = "error",
	): HostCheck => ({ name, ok, severity, message, ...(ok ? {} : { next }) });
	const [major = 0, minor = 0] = seen.kernel.split(".").map(Number);
	const skew = seen.clockSkewSeconds;
	const lacking = seen.missingCommands.map((name) => commands[name as keyof typeof commands] ?? name);
	return [
		check(
			"root",
			seen.root,
			seen.root ? "the agent runs as root" : "the agent does not run as root",
			"Run it by its unit: systemctl start gp-agent.",
		),
		check(
			"systemd",
			seen.systemd,
			seen.systemd ? "systemd manages this host" : "systemd does not manage this host",
			"Use a distribution with systemd as process 1.",
		),
		check(
			"memory",
			seen.memoryBytes >= MIN_MEMORY,
			`${gib(seen.memoryBytes)} of memory`,
			`Give the host at least ${gib(MIN_MEMORY)}.`,
		),
		check(
			"cpu",
			seen.cores >= 2,
			`${seen.cores} CPU${seen.cores === 1 ? "" : "s"}`,
			"A control plane needs two CPUs; with one the host can be a worker only.",
			"warning",
		),
		check(
			"disk",
			seen.diskBytes >= GOOD_DISK,
			`${Math.floor(seen.diskBytes / GIB)} GiB free in /var/lib`,
			`Free some space: images, logs and etcd want ${gib(GOOD_DISK)}; below ${gib(MIN_DISK)} nothing is installed.`,
			seen.diskBytes >= MIN_DISK ? "warning" : "error",
		),
		check(
			"swap",
			seen.swaps.length === 0,
			seen.swaps.length === 0 ? "swap is off" : `swap is on: ${seen.swaps.join(", ")}`,
			"Switch it off (swapoff -a) and take it out of /etc/fstab.",
		),
		check(
			"cgroup",
			seen.cgroup === "v2",
			`control groups ${seen.cgroup}`,
			"Boot with systemd.unified_cgroup_hierarchy=1: Kubernetes is about to drop control groups v1.",
			"warning",
		),
		check(
			"kernel",
			major > MIN_KERNEL[0] || (major === MIN_KERNEL[0] && minor >= MIN_KERNEL[1]),
			`Linux ${seen.kernel}`,
			`Use Linux ${MIN_KERNEL.join(".")} or later.`,
		),
		check(
			"kernel-features",
			seen.missingFeatures.length === 0,
			seen.missingFeatures.length === 0
				? "the kernel has what Kubernetes needs"
				: `the kernel lacks ${seen.missingFeatures.join(", ")}`,
			"Use the distribution's standard kernel, or install its extra modules.",
		),
		check(
			"commands",
			lacking.length === 0,
			lacking.length === 0 ? "all programs are there" : `programs are missing: ${seen.missingCommands.join(", ")}`,
			`Install them: apt-get install ${lacking.join(" ")}`,
		),
		check("ports", seen.installed || (seen.portsTaken.length === 0 && !seen.foreignNode), ...portsFound(seen)),
		check(
			"clock",
			skew === undefined || Math.abs(skew) <= CLOCK_WARNING_S,
			skew === undefined
				? "the clock was not compared with the region's"
				: `the clock is ${Math.abs(Math.round(skew))} s ${skew < 0 ? "behind" : "ahead of"} the region's`,
			"Switch time synchronisation on: timedatectl set-ntp true.",
			skew !== undefined && Math.abs(skew) > CLOCK_ERROR_S ? "error" : "warning",
		),
	];
}

/** What the ports say: the message, and what to do. A cluster that is to be adopted is excused from this check alone. */
function portsFound({ installed, portsTaken, foreignNode }: Probe): [string, string] {
	if (installed) return ["ports are in use by what the region installed", ""];
	if (foreignNode)
		return [
			`a node of Kubernetes that others made is here (${foreignNode})`,
			"Adopt its cluster (spec.adopt of a Cluster that names its hosts), or remove it: kubeadm reset.",
		];
	if (portsTaken.length === 0) return ["the ports of Kubernetes are free", ""];
	return [
		`something listens on ${portsTaken.join(", ")}`,
		"Find it with ss -ltnp and stop it; a Kubernetes from elsewhere is removed with kubeadm reset.",
	];
}

/** Local ports in state LISTEN (0A) of /proc/net/tcp and tcp6 (proc_net(5)). */
export function listeningPorts(table: string): number[] {
	const found = [...table.matchAll(/^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A /gm)];
	return [...new Set(found.map(([, port]) => Number.parseInt(port as string, 16)))].sort((a, b) => a - b);
}

/** Whether a module is loaded, built in or can be loaded. True as well when that can't be told. */
function mayLoad(name: string): boolean {
	if (new RegExp(`^${name} `, "m").test(text("/proc/modules"))) return true;
	const directory = `/lib/modules/${release()}`;
	const lists = ["modules.dep", "modules.builtin"].map((file) => text(join(directory, file))).join("\n");
	return lists.trim() === "" || lists.includes(`/${name}.ko`);
}

function inPath(name: string): boolean {
	const path = process.env.PATH || "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	return path.split(delimiter).some((directory) => {
		try {
			accessSync(join(directory, name), constants.X_OK);
			return true;
		} catch {
			return false;
		}
	});
}

function availableBytes(path: string): number {
	try {
		const { bsize, bavail } = statfsSync(path);
		return bsize * bavail;
	} catch {
		return 0;
	}
}

function text(path: string): string {
	try {
		return readFileSync(path, "utf8");
	} catch {
		return "";
	}
}
