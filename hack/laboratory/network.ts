import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { run } from "../lib/exec.ts";
import { allPids, networkNamespace, type ProcessId, processId } from "./processes.ts";
import { type HostRecord, type LabNames, type LabRecord, octets, withBlock } from "./record.ts";

const NAMESPACES = "/run/netns";
export const PROXY_PORT = 3128;

/** Runs a command in a network namespace. `ip netns exec` would also hide the cgroups under a fresh /sys. */
function inside(namespace: string, file: string, args: readonly string[], input?: string) {
	return run(
		"nsenter",
		[`--net=${NAMESPACES}/${namespace}`, "--", file, ...args],
		input === undefined ? {} : { input },
	);
}

/** First three octets of every IPv4 network of /16 and smaller that the machine has a route to. */
export async function takenNetworks(): Promise<Set<string>> {
	const { stdout } = await run("ip", ["-j", "-4", "route", "show", "table", "all"]);
	const taken = new Set<string>();
	for (const { dst } of JSON.parse(stdout || "[]") as { dst: string }[]) {
		const match = /^(\d+)\.(\d+)\.(\d+)\.\d+(?:\/(\d+))?$/.exec(dst);
		if (!match) continue;
		const [, a, b, c, bits = "32"] = match;
		const length = Number(bits);
		if (length >= 24) taken.add(`${a}.${b}.${c}`);
		else if (length >= 16) {
			const first = Number(c);
			for (let i = first; i < first + 2 ** (24 - length); i++) taken.add(`${a}.${b}.${i}`);
		}
	}
	return taken;
}

/**
 * Makes or repairs both segments. Each bridge sits in a network namespace of its own, so that neither the machine's firewall
 * nor its forwarding has a say in the lab. The provider's has the machine itself on it; the site's is the customer's router.
 */
export async function ensureSegments(names: LabNames, record: LabRecord): Promise<void> {
	const provider = names.namespace("provider");
	const site = names.namespace("site");
	for (const namespace of [provider, site]) {
		if (existsSync(`${NAMESPACES}/${namespace}`)) continue;
		await run("ip", ["netns", "add", namespace]);
		await inside(namespace, "sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
		// Bridged frames are the segment's cable: the router's rules are for what it routes. (Only where br_netfilter is.)
		if (existsSync("/proc/sys/net/bridge/bridge-nf-call-iptables")) {
			await inside(namespace, "sysctl", ["-qw", "net.bridge.bridge-nf-call-iptables=0"]);
		}
		// Each DNS query is refused, not only one a second: a resolver that isn't told waits for ten seconds.
		await inside(namespace, "sysctl", ["-qw", "net.ipv4.icmp_ratelimit=0"]);
		await run("ip", ["-n", namespace, "link", "set", "lo", "up"]);
		// An address of its own: a bridge without one changes it with its ports, and then each host that boots cuts the others off
		// from their router until their neighbour tables expire.
		const own = hardwareAddress(names.lab, namespace);
		await run("ip", ["-n", namespace, "link", "add", "bridge", "address", own, "type", "bridge", "stp_state", "0"]);
		await run("ip", ["-n", namespace, "link", "set", "bridge", "up"]);
	}
	await inside(site, "sysctl", ["-qw", "net.ipv4.ip_forward=1"]);

	if (!(await linkExists(undefined, names.uplink))) {
		await run("ip", ["link", "add", names.uplink, "type", "veth", "peer", "name", "machine", "netns", provider]);
		await run("ip", ["link", "set", names.uplink, "alias", `groundplane lab ${names.lab}`]);
	}
	await address(undefined, names.uplink, `${record.networks.provider}.${octets.gateway}/24`);
	await plug(provider, "machine");
	await address(provider, "bridge", `${record.networks.provider}.${octets.refuser}/24`);

	if (!(await linkExists(site, "uplink"))) {
		await run("ip", ["-n", site, "link", "add", "uplink", "type", "veth", "peer", "name", "router", "netns", provider]);
	}
	await plug(provider, "router");
	await address(site, "uplink", `${record.networks.provider}.${octets.router}/24`);
	await address(site, "bridge", `${record.networks.site}.${octets.gateway}/24`);
	await applyFirewall(names, record);
}

/** Gives a host a network namespace as a machine has it at power-on: one interface with its address, nothing else. */
export async function connectHost(names: LabNames, record: LabRecord, host: HostRecord): Promise<void> {
	await disconnectHost(names, host);
	const own = names.namespace(host.name);
	const segment = names.namespace(host.segment);
	const network = record.networks[host.segment];
	await run("ip", ["netns", "add", own]);
	await run("ip", [
		...["link", "add", "eth0", "netns", own, "address", hardwareAddress(names.lab, host.name)],
		...["type", "veth", "peer", "name", host.name, "netns", segment],
	]);
	await plug(segment, host.name);
	await run("ip", ["-n", own, "link", "set", "lo", "up"]);
	await address(own, "eth0", `${host.address}/24`);
	await run("ip", ["-n", own, "route", "replace", "default", "via", `${network}.${octets.gateway}`]);
}

export async function disconnectHost(names: LabNames, { name, segment }: Pick<HostRecord, "name" | "segment">) {
	await run("ip", ["-n", names.namespace(segment), "link", "delete", name], { check: false });
	await run("ip", ["netns", "delete", names.namespace(name)], { check: false });
}

/** Removes all that a lab has in the machine's network, with or without its record. */
export async function removeNetwork(names: LabNames): Promise<void> {
	await run("ip", ["link", "delete", names.uplink], { check: false });
	for (const namespace of await namespaces(names)) {
		// Links first: a namespace that something still pins would keep them alive.
		const { stdout } = await run("ip", ["-n", namespace, "-j", "link"], { check: false });
		for (const { ifname } of parseLinks(stdout)) {
			if (ifname !== "lo") await run("ip", ["-n", namespace, "link", "delete", ifname], { check: false });
		}
		await run("ip", ["netns", "delete", namespace], { check: false });
	}
}

async function namespaces(names: LabNames): Promise<string[]> {
	const all = await readdir(NAMESPACES).catch(() => [] as string[]);
	return all.filter((name) => name.startsWith(names.namespace("")));
}

/** Every process whose network is one of the lab's: its hosts' processes, whoever started them. */
export async function processesInside(names: LabNames, host?: string): Promise<ProcessId[]> {
	const wanted = host === undefined ? await namespaces(names) : [names.namespace(host)];
	const inodes = new Set<string>();
	for (const name of wanted) {
		try {
			inodes.add(String(statSync(`${NAMESPACES}/${name}`).ino));
		} catch {
			// Not there: nothing runs in it that could be found this way.
		}
	}
	if (inodes.size === 0) return [];
	return allPids()
		.filter((pid) => inodes.has(networkNamespace(pid) ?? ""))
		.map(processId);
}

/**
 * The site's firewall, written whole each time. Nothing comes in. Hosts get out to the provider's 443 and to nothing else;
 * DNS is refused rather than dropped, so that resolvers don't wait. A cut is an uplink that swallows every packet.
 */
export function firewall(record: LabRecord): string {
	const mgmt = `${record.networks.provider}.${octets.mgmt}`;
	const addressesOf = (hosts: readonly string[]) =>
		record.hosts.filter((host) => host.segment === "site" && hosts.includes(host.name)).map((host) => host.address);
	const cutAll = record.cut.includes("*");
	const cut = addressesOf(record.cut);
	const proxied = addressesOf(record.proxied ?? []);
	const when = (condition: boolean, ...lines: string[]) => (condition ? lines : []);
	return [
		"table inet lab {}",
		"delete table inet lab",
		"table inet lab {",
		"chain cut_in { type filter hook prerouting priority -310; policy accept;",
		...when(cutAll, 'iifname "uplink" drop'),
		...when(cut.length > 0, `iifname "bridge" ip saddr { ${cut.join(", ")} } drop`),
		"}",
		"chain cut_out { type filter hook postrouting priority 310; policy accept;",
		...when(cutAll, 'oifname "uplink" drop'),
		...when(cut.length > 0, `oifname "bridge" ip daddr { ${cut.join(", ")} } drop`),
		"}",
		"chain input { type filter hook input priority 0; policy drop;",
		'iifname "lo" accept',
		"ct state established,related accept",
		'iifname "bridge" icmp type echo-request accept',
		'iifname "bridge" meta l4proto { tcp, udp } th dport 53 reject',
		...when(record.proxied !== undefined, `iifname "bridge" tcp dport ${PROXY_PORT} accept`),
		"}",
		"chain forward { type filter hook forward priority 0; policy drop;",
		...when(proxied.length > 0, `iifname "bridge" ip saddr { ${proxied.join(", ")} } drop`),
		"ct state established,related accept",
		`iifname "bridge" oifname "uplink" ip daddr ${mgmt} tcp dport 443 accept`,
		"}",
		"chain nat { type nat hook postrouting priority 100; policy accept;",
		'oifname "uplink" masquerade',
		"}",
		"}",
		"",
	].join("\n");
}

export async function applyFirewall(names: LabNames, record: LabRecord): Promise<void> {
	await inside(names.namespace("site"), "nft", ["-f", "-"], firewall(record));
}

/** The names that a host (or, without one, the machine that runs the lab) knows without any DNS. */
export function hostsLines(record: LabRecord, host?: HostRecord): string[] {
	const lines: string[] = [];
	if (host !== undefined) {
		const mates = record.hosts.filter(({ segment, name }) => segment === host.segment && name !== host.name);
		lines.push(...[host, ...mates].map(({ address, name }) => `${address} ${name}`));
	}
	const mgmt = `${record.networks.provider}.${octets.mgmt}`;
	lines.push(...record.domains.map((domain) => `${mgmt} ${domain} tunnel.${domain}`));
	return lines;
}

/** Writes the lab's domains into the machine's own /etc/hosts, in place since it may be a bind mount. */
export async function writeOuterHosts(names: LabNames, lines: readonly string[]): Promise<void> {
	const before = await readFile("/etc/hosts", "utf8");
	const after = withBlock(before, `groundplane lab ${names.lab}`, lines);
	if (after !== before && (lines.length > 0 || before.includes(`groundplane lab ${names.lab}\n`))) {
		await writeFile("/etc/hosts", after);
	}
}

async function plug(segment: string, link: string): Promise<void> {
	await run("ip", ["-n", segment, "link", "set", link, "master", "bridge", "up"]);
}

async function address(namespace: string | undefined, link: string, cidr: string): Promise<void> {
	const where = namespace === undefined ? [] : ["-n", namespace];
	await run("ip", [...where, "address", "replace", cidr, "dev", link]);
	await run("ip", [...where, "link", "set", link, "up"]);
}

async function linkExists(namespace: string | undefined, link: string): Promise<boolean> {
	const where = namespace === undefined ? [] : ["-n", namespace];
	return (await run("ip", [...where, "link", "show", link], { check: false })).code === 0;
}

function parseLinks(json: string): { ifname: string }[] {
	try {
		return JSON.parse(json) as { ifname: string }[];
	} catch {
		return [];
	}
}

/** A locally administered address that stays the same for a host. */
function hardwareAddress(lab: string, host: string): string {
	const digest = createHash("sha256").update(`${lab}/${host}`).digest("hex");
	return ["02", ...[0, 2, 4, 6, 8].map((i) => digest.slice(i, i + 2))].join(":");
}
