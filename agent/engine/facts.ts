import { existsSync, readFileSync } from "node:fs";
import { availableParallelism, hostname, networkInterfaces } from "node:os";

/** What a role pack may know about the host (`facts.*` in its templates). */
export interface RoleFacts {
	readonly hostname: string;
	readonly architecture: "amd64" | "arm64";
	readonly cgroup: "v1" | "v2";
	/** Whether we may lower an oom_score_adj below ours (CAP_SYS_RESOURCE). */
	readonly resourceCapability: boolean;
	readonly cores: number;
	/** IPv4 address of the interface that holds the default route. */
	readonly primaryAddress: string;
}

const CAP_SYS_RESOURCE = 24n;

export function readRoleFacts(): RoleFacts {
	const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
	return {
		hostname: hostname(),
		architecture: process.arch === "arm64" ? "arm64" : "amd64",
		cgroup: existsSync("/sys/fs/cgroup/cgroup.controllers") ? "v2" : "v1",
		resourceCapability: ((BigInt(`0x${effective}`) >> CAP_SYS_RESOURCE) & 1n) === 1n,
		cores: availableParallelism(),
		primaryAddress: primaryAddress(readFileSync("/proc/net/route", "utf8")),
	};
}

/** The default route with the lowest metric names the interface (proc_net(5): Destination and Mask are zero). */
export function primaryAddress(routes: string, interfaces = networkInterfaces()): string {
	const [first] = routes
		.split("\n")
		.map((line) => line.split("\t"))
		.filter((fields) => fields[1] === "00000000" && fields[7] === "00000000")
		.sort((a, b) => Number(a[6]) - Number(b[6]));
	const candidates = first?.[0] === undefined ? Object.values(interfaces).flat() : (interfaces[first[0]] ?? []);
	return candidates.find((one) => one?.family === "IPv4" && !one.internal)?.address ?? "";
}
