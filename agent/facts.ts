import { createHmac } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statfsSync, statSync } from "node:fs";
import { availableParallelism, hostname, networkInterfaces, release, totalmem } from "node:os";
import type { HostFacts, HostMeasurements } from "../protocol/facts.ts";
import { primaryAddress } from "./engine/facts.ts";
import { findKubernetes } from "./kubernetes.ts";

const GIB = 1024 ** 3;
/** machine-id(5): an application hashes the id with one of its own before it leaves the machine. */
const APPLICATION_ID = "groundplane.io/host";
/** Interfaces that come and go with what runs on the host. */
const VOLATILE_INTERFACE = /^(lo|veth|cni|flannel|kube-|docker|br-|cali|tap|tun|vnet|nerdctl)/;
const VOLATILE_DISK = /^(loop|ram|zram|sr|fd|dm-|md|nbd)/;
const FILESYSTEMS = ["/", "/var", "/var/lib", "/var/lib/containerd", "/var/lib/kubelet"];

/** What this host is, from /proc, /sys and /etc alone, with what was measured on it. */
export function readFacts(measured: HostMeasurements = {}): HostFacts {
	const addresses = networkInterfaces();
	const kubernetes = findKubernetes();
	return {
		hostname: hostname(),
		machineId: createHmac("sha256", text("/etc/machine-id").trim()).update(APPLICATION_ID).digest("hex"),
		architecture: process.arch === "x64" ? "amd64" : process.arch,
		os: parseOsRelease(text("/etc/os-release")),
		kernel: release(),
		cgroup: existsSync("/sys/fs/cgroup/cgroup.controllers") ? "v2" : "v1",
		cpu: { cores: availableParallelism(), model: /^model name\s*:\s*(.+)$/m.exec(text("/proc/cpuinfo"))?.[1] ?? "" },
		memoryBytes: totalmem(),
		disks: readDisks(),
		filesystems: readFilesystems(),
		interfaces: Object.entries(addresses)
			.filter(([name]) => !VOLATILE_INTERFACE.test(name))
			.map(([name, list = []]) => ({
				name,
				mac: list[0]?.mac ?? "",
				// Link-local ones say nothing, and temporary IPv6 ones change by themselves.
				addresses: list.flatMap(({ cidr, family, address }) =>
					cidr && (family === "IPv4" || !address.startsWith("fe80:")) ? [cidr] : [],
				),
			}))
			.sort((a, b) => a.name.localeCompare(b.name)),
		primaryAddress: primaryAddress(text("/proc/net/route"), addresses),
		bootId: text("/proc/sys/kernel/random/boot_id").trim(),
		...(kubernetes && { kubernetes }),
		...(Object.keys(measured).length > 0 && { measured }),
	};
}

/** os-release(5). */
export function parseOsRelease(content: string): HostFacts["os"] {
	const field = (name: string) => new RegExp(`^${name}=["']?([^"'\\n]*)["']?$`, "m").exec(content)?.[1] ?? "";
	return { id: field("ID"), versionId: field("VERSION_ID"), prettyName: field("PRETTY_NAME") };
}

function readDisks(): HostFacts["disks"] {
	return names("/sys/block")
		.filter((name) => !VOLATILE_DISK.test(name))
		.map((name) => ({
			name,
			sizeBytes: Number(text(`/sys/block/${name}/size`)) * 512,
			rotational: text(`/sys/block/${name}/queue/rotational`).trim() === "1",
		}))
		.filter(({ sizeBytes }) => sizeBytes > 0);
}

/** File systems that matter to a host, each once. */
function readFilesystems(): HostFacts["filesystems"] {
	const seen = new Set<number>();
	return FILESYSTEMS.flatMap((path) => {
		try {
			const { dev } = statSync(path);
			if (seen.has(dev)) return [];
			seen.add(dev);
			const { bsize, blocks, bavail } = statfsSync(path);
			return [{ path, sizeBytes: toGib(blocks * bsize), availableBytes: toGib(bavail * bsize) }];
		} catch {
			return [];
		}
	});
}

const toGib = (bytes: number) => Math.round(bytes / GIB) * GIB;

function names(directory: string): string[] {
	try {
		return readdirSync(directory).sort();
	} catch {
		return [];
	}
}

/** Content of a file, nothing when it isn't there. */
function text(path: string): string {
	try {
		return readFileSync(path, "utf8");
	} catch {
		return "";
	}
}

/** Whether systemd is process 1 (sd_booted(3)). */
export const systemdRuns = (): boolean => existsSync("/run/systemd/system");

/** Name of the interface that holds the default route; empty when there is none. */
export function primaryInterface(): string {
	const routes = text("/proc/net/route").split("\n").slice(1);
	return routes.map((line) => line.split("\t")).find((fields) => fields[1] === "00000000")?.[0] ?? "";
}
