import { setTimeout as delay } from "node:timers/promises";
import type { RunOptions } from "../lib/exec.ts";

/** What makes a host's state: each part maps a name to what is the case. */
export interface Snapshot {
	/** Path to type, mode, owner and content (SHA-256 or link target). */
	readonly files: Readonly<Record<string, string>>;
	/** Unit to whether it is enabled, and whether it is active. */
	readonly units: Readonly<Record<string, string>>;
	readonly mounts: Readonly<Record<string, string>>;
	/** Interface to kind and addresses; routes and rules. */
	readonly network: Readonly<Record<string, string>>;
	/** Line of `nft list ruleset` to how often it is there. */
	readonly nftables: Readonly<Record<string, string>>;
	/** Kernel settings that container platforms change. */
	readonly settings: Readonly<Record<string, string>>;
	/** Name of a process to how many there are. */
	readonly processes: Readonly<Record<string, string>>;
}

/** Places that change by themselves on an idle host. */
const VOLATILE = [
	"/dev",
	"/proc",
	"/run",
	"/sys",
	"/tmp",
	"/var/log",
	"/var/tmp",
	"/var/lib/systemd",
	"/var/lib/private/systemd",
	"/var/cache/ldconfig",
	"/etc/.pwd.lock",
];

/** nspawn keeps these file systems outside the root's. */
const ROOTS = ["/", "/var/lib/containerd", "/var/lib/kubelet"];

type Run = (argv: readonly string[], options?: Pick<RunOptions, "input">) => Promise<string>;

/** Reads a host's state through `run`. */
export async function snapshotOf(run: Run, exclude: readonly string[]): Promise<Snapshot> {
	const pruned = [...VOLATILE, ...exclude].flatMap((path) => ["-path", path, "-o"]).slice(0, -1);
	const find = ["find", ...ROOTS, "-xdev", "(", ...pruned, ")", "-prune", "-o"];
	await addressesSettled(run);
	// By itself, or it would see the commands below.
	const processes = lines(await run(["ps", "-e", "-o", "comm="])).filter((name) => name !== "ps");
	const [listed, hashed, enabled, active, mounted, links, routes, rules, ruleset, settings] = await Promise.all([
		run([...find, "-printf", "%p\t%y %m %U:%G %l\n"]),
		run(["sh", "-c", '"$@" -type f -print0 | xargs -0r sha256sum', "hash", ...find]),
		run(["systemctl", "list-unit-files", "--plain", "--no-legend"]),
		run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service,socket,timer,path,target"]),
		run(["cat", "/proc/1/mounts"]),
		run(["ip", "-j", "-d", "address"]),
		run(["ip", "route", "show", "table", "all"]),
		run(["ip", "rule"]),
		run(["nft", "-s", "list", "ruleset"]),
		run(["sysctl", "-e", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.bridge", "vm.overcommit_memory"]),
	]);

	const hashes = new Map(lines(hashed).map((line) => [line.slice(66), line.slice(0, 64)]));
	return {
		files: record(
			lines(listed).map((line) => {
				const [path = "", facts = ""] = line.split("\t");
				return [path, `${facts} ${hashes.get(path) ?? ""}`.trim()];
			}),
		),
		units: record([
			...lines(enabled).map((line) => {
				const [unit = "", state = ""] = line.split(/\s+/);
				return [`${unit} (file)`, state] as const;
			}),
			...lines(active).map((line) => {
				const [unit = "", load = "", state = ""] = line.split(/\s+/);
				return [unit, `${load} ${state}`] as const;
			}),
		]),
		mounts: record(
			lines(mounted).map((line) => {
				const [source = "", target = "", type = ""] = line.split(" ");
				return [target, `${type} ${source}`];
			}),
		),
		network: record([
			...(JSON.parse(links) as Link[]).map((link) => {
				const addresses = link.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`);
				return [link.ifname, [link.linkinfo?.info_kind ?? link.link_type, link.mtu, ...addresses].join(" ")] as const;
			}),
			...lines(routes).map((line) => [`route ${line.trim()}`, ""] as const),
			...lines(rules).map((line) => [`rule ${line.trim()}`, ""] as const),
		]),
		nftables: counted(lines(ruleset)),
		settings: record(lines(settings).map((line) => line.split(" = ") as [string, string])),
		processes: counted(processes),
	};
}

/** A host that has just booted makes sure for a second or two that nobody has its IPv6 addresses (RFC 4862 §5.4); routes to them come then. */
async function addressesSettled(run: Run): Promise<void> {
	for (let look = 0; look < 40; look++) {
		if ((await run(["ip", "-6", "-oneline", "address", "show", "tentative"])).trim() === "") return;
		await delay(250);
	}
}

interface Link {
	readonly ifname: string;
	readonly link_type: string;
	readonly mtu: number;
	readonly linkinfo?: { readonly info_kind?: string };
	readonly addr_info: readonly { readonly local: string; readonly prefixlen: number }[];
}

/** What differs between two snapshots, one line each: `files + /path …` (came), `- …` (went), `~ before → after`. */
export function differences(before: Snapshot, after: Snapshot): string[] {
	return (Object.keys(before) as (keyof Snapshot)[]).flatMap((part) => {
		const [was, is] = [before[part], after[part]];
		const names = [...new Set([...Object.keys(was), ...Object.keys(is)])].sort();
		return names.flatMap((name) => {
			if (was[name] === is[name]) return [];
			if (was[name] === undefined) return [`${part} + ${name} ${is[name]}`];
			if (is[name] === undefined) return [`${part} - ${name} ${was[name]}`];
			return [`${part} ~ ${name} ${was[name]} → ${is[name]}`];
		});
	});
}

function lines(text: string): string[] {
	return text.split("\n").filter((line) => line.trim() !== "");
}

function record(entries: readonly (readonly [string, string])[]): Record<string, string> {
	return Object.fromEntries(entries);
}

function counted(names: readonly string[]): Record<string, string> {
	const counts: Record<string, string> = {};
	for (const name of names) counts[name] = String(Number(counts[name] ?? 0) + 1);
	return counts;
}
