import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { constants, createReadStream, createWriteStream, existsSync, openSync } from "node:fs";
import { mkdir, readdir, readFile, rm, rmdir, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { finished } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { GroundplaneError } from "../../protocol/errors.ts";
import { needPackages } from "../builder/packages.ts";
import { type ExecResult, type RunOptions, run } from "../lib/exec.ts";
import { cgroupsOf, removeCgroups } from "./cgroups.ts";
import { leaderOf, powerOff, readMachine } from "./machine.ts";
import {
	applyFirewall,
	ensureSegments,
	hostsLines,
	PROXY_PORT,
	processesInside,
	removeNetwork,
	takenNetworks,
	writeOuterHosts,
} from "./network.ts";
import { commandLine, isAlive, killAll, type ProcessId } from "./processes.ts";
import {
	type Bind,
	type HostRecord,
	LabNames,
	type LabRecord,
	octets,
	pickNetworks,
	readRecord,
	type Segment,
	withBlock,
	withLock,
	writeRecord,
} from "./record.ts";
import { ensureRootfs } from "./rootfs.ts";
import { type Snapshot, snapshotOf } from "./snapshot.ts";

export { differences, type Snapshot } from "./snapshot.ts";

export interface UpOptions {
	/** How many hosts the site has. What is there already stays: 3 by default, and a smaller number takes nothing away. */
	readonly hosts?: number | undefined;
	/** Names that, each with `tunnel.` before it too, mean mgmt: in every host and on the machine that runs the lab. */
	readonly domains?: readonly string[] | undefined;
	/** Directories to see read-only in a host. A change for a host that runs reboots it. */
	readonly binds?: Readonly<Record<string, readonly Bind[]>> | undefined;
	readonly log?: (line: string) => void;
}

export interface HostInfo {
	readonly name: string;
	readonly segment: Segment;
	readonly address: string;
	readonly state: "running" | "degraded" | "booting" | "stopped";
	/** True while its way out of the site is cut. */
	readonly cut: boolean;
	/** The host's PID 1, as the outer machine numbers it. */
	readonly pid: number | undefined;
}

const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const BOOT_DEADLINE_MS = 60_000;

/** Puts itself into the cgroups named before `--` and becomes the command after it. */
const JOIN_CGROUPS = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 97; shift; done; shift; exec "$@"';

/**
 * A provider's segment with the host `mgmt` and a customer's site with `host-1` and onwards behind a firewall that lets
 * nothing in. Every host is a Debian with systemd. Everything is named by the lab, so labs stand side by side.
 * Needs root. Errors: `PrerequisiteNotMet` (lists everything that is missing), `NotFound`, `CommandFailed`, `DeadlineExceeded`.
 */
export class Lab {
	readonly #names: LabNames;

	constructor(name: string = process.env.GROUNDPLANE_LAB ?? "demo") {
		this.#names = new LabNames(name);
	}

	get name(): string {
		return this.#names.lab;
	}

	/** Where the lab keeps its state; `state/` in it is for whoever uses the lab, and goes when the lab goes. */
	get directory(): string {
		return this.#names.directory;
	}

	/** Makes the lab, or repairs it: what is missing is added, what is off is started, what is right stays as it is. */
	async up(options: UpOptions = {}): Promise<HostInfo[]> {
		const log = options.log ?? (() => {});
		await checkMachine();
		await this.#change(async () => {
			const record = (await readRecord(this.#names)) ?? (await this.#newRecord(log));
			if (!existsSync(record.rootfs)) record.rootfs = await ensureRootfs(log);
			const rebind = addHosts(record, options);
			await writeRecord(this.#names, record);
			await loadModules();
			await ensureSegments(this.#names, record);
			await writeOuterHosts(this.#names, hostsLines(record));
			for (const host of rebind) await powerOff(this.#names, host);
			const stopped = [];
			for (const host of record.hosts) {
				if ((await leaderOf(this.#names, host.name)) === undefined) stopped.push(host);
				else await this.#writeHosts(record, host);
			}
			if (stopped.length > 0) log(`Booting ${stopped.map(({ name }) => name).join(", ")}`);
			await Promise.all(stopped.map((host) => this.#boot(record, host)));
		});
		return this.list();
	}

	/** Removes every trace of the lab, also of one whose making or removing was killed half-way. */
	async down(): Promise<void> {
		requireRoot();
		await this.#change(async () => {
			await powerOff(this.#names);
			await removeNetwork(this.#names);
			await removeCgroups(this.#names.machine(""));
			await writeOuterHosts(this.#names, []);
			await rm(this.directory, { recursive: true, force: true, maxRetries: 5 });
		});
		await rmdir(path.dirname(this.directory)).catch(() => {});
	}

	async list(): Promise<HostInfo[]> {
		const record = await readRecord(this.#names);
		return Promise.all((record?.hosts ?? []).map((host) => this.#info(record as LabRecord, host)));
	}

	async address(host: string): Promise<string> {
		return (await this.#host(host)).host.address;
	}

	/** Runs a command as root in a host. An exit code other than 0 is part of the answer, not an error. */
	async exec(
		host: string,
		argv: readonly string[],
		options: Omit<RunOptions, "check" | "env" | "cwd"> = {},
	): Promise<ExecResult> {
		const [file = "", ...args] = await this.commandIn(host, argv);
		return run(file, args, { ...options, check: false });
	}

	/** Like {@link exec}, but throws `CommandFailed` unless the command ends with 0. Returns what it printed. */
	async run(
		host: string,
		argv: readonly string[],
		options: Omit<RunOptions, "check" | "env" | "cwd"> = {},
	): Promise<string> {
		const [file = "", ...args] = await this.commandIn(host, argv);
		const { code, stdout, stderr } = await run(file, args, { ...options, check: false });
		if (code === 0) return stdout;
		throw new GroundplaneError(
			"CommandFailed",
			`${host}: ${argv.join(" ")} ended with ${code}: ${(stderr || stdout).trim()}`,
			{
				next: `Look at the host: hack/lab --lab ${this.name} exec ${host} -- journalctl -e --no-pager`,
				details: { code },
			},
		);
	}

	/** The command of the outer machine that runs `argv` in a host, for callers that spawn it themselves. */
	async commandIn(host: string, argv: readonly string[]): Promise<string[]> {
		await this.#host(host);
		const leader = await leaderOf(this.#names, host);
		if (leader === undefined) {
			throw new GroundplaneError("PrerequisiteNotMet", `${host} is off`, {
				next: `Start it: hack/lab --lab ${this.name} start ${host}`,
			});
		}
		return [
			...["sh", "-c", JOIN_CGROUPS, "join", ...cgroupsOf(leader.pid), "--"],
			...["nsenter", "-t", String(leader.pid), "-m", "-p", "-n", "-u", "-i", "-C", "-r", "-w", "--"],
			...["env", "-i", `PATH=${PATH}`, "HOME=/root", "USER=root", "LANG=C.UTF-8", `TERM=${process.env.TERM ?? "dumb"}`],
			...argv,
		];
	}

	/** Powers a host on and waits until it has booted. */
	async start(host: string): Promise<void> {
		await this.#change(async () => {
			const { record, host: found } = await this.#host(host);
			if ((await leaderOf(this.#names, host)) === undefined) await this.#boot(record, found);
		});
	}

	/** Cuts a host's power: everything in it is killed at once, the disk stays as it was at that moment. */
	async stop(host: string): Promise<void> {
		await this.#change(async () => {
			await this.#host(host);
			await powerOff(this.#names, host);
		});
	}

	/** Reboots a host in order, and waits until it has booted. */
	async reboot(host: string): Promise<void> {
		const { host: found } = await this.#host(host);
		const before = await leaderOf(this.#names, host);
		if (before === undefined) return this.start(host);
		await this.exec(host, ["systemctl", "reboot"]);
		const deadline = Date.now() + 120_000;
		while (isAlive(before)) {
			if (Date.now() > deadline) throw this.#late(host, "to shut down");
			await sleep(20);
		}
		await this.#booted(found.name);
	}

	/** Lets nothing through between the provider and the site, or one host of it. Packets vanish; nobody is told. */
	async cut(host?: string): Promise<void> {
		await this.#rewire(host, (record) => {
			record.cut = [...new Set([...record.cut, host ?? "*"])];
		});
	}

	/** Undoes {@link cut}: of one host, or of the site and all its hosts. */
	async heal(host?: string): Promise<void> {
		await this.#rewire(host, (record) => {
			record.cut = host === undefined ? [] : record.cut.filter((name) => name !== host);
		});
	}

	/**
	 * Starts an HTTP CONNECT proxy in the site that lets through to the provider's 443 only, and returns its URL.
	 * `only` names the hosts for which it is the only way out.
	 */
	async proxy(only: readonly string[] = []): Promise<string> {
		for (const host of only) await this.#host(host, "site");
		let url = "";
		await this.#rewire(undefined, async (record) => {
			record.proxied = [...only];
			url = `http://${record.networks.site}.${octets.gateway}:${PROXY_PORT}`;
			if ((await this.#proxies()).length > 0) return;
			const log = openSync(path.join(this.directory, "proxy.log"), "a");
			const script = fileURLToPath(new URL("proxy.ts", import.meta.url));
			const mgmt = `${record.networks.provider}.${octets.mgmt}`;
			spawn(
				"nsenter",
				[
					...[`--net=/run/netns/${this.#names.namespace("site")}`, "--", process.execPath, script],
					...[`${record.networks.site}.${octets.gateway}`, String(PROXY_PORT), mgmt, this.#names.recordFile],
				],
				{ detached: true, stdio: ["ignore", log, log] },
			).unref();
		});
		return url;
	}

	/** Takes the proxy away; every host gets out by itself again. */
	async proxyOff(): Promise<void> {
		await this.#rewire(undefined, async (record) => {
			record.proxied = undefined;
			await killAll(await this.#proxies());
		});
	}

	/** Copies a file or a directory's content into a host. An existing directory as destination takes a file under its own name. */
	async copyTo(host: string, source: string, destination: string): Promise<void> {
		const { mode } = await stat(source);
		if ((mode & constants.S_IFMT) === constants.S_IFDIR) {
			const tar = spawn("tar", ["-C", source, "-cf", "-", "."], { stdio: ["ignore", "pipe", "inherit"] });
			await this.run(host, ["sh", "-c", 'mkdir -p "$1" && tar -C "$1" -xf - --no-same-owner', "copy", destination], {
				input: tar.stdout,
			});
			return;
		}
		const script =
			'to=$1; if [ -d "$to" ]; then to=$to/$2; fi; mkdir -p "$(dirname "$to")" && cat >"$to.part" && chmod "$3" "$to.part" && mv "$to.part" "$to"';
		await this.run(
			host,
			["sh", "-c", script, "copy", destination, path.basename(source), (mode & 0o7777).toString(8)],
			{
				input: createReadStream(source),
			},
		);
	}

	/** Copies a file out of a host. */
	async copyFrom(host: string, source: string, destination: string): Promise<void> {
		const [file = "", ...args] = await this.commandIn(host, ["cat", "--", source]);
		const child = spawn(file, args, { stdio: ["ignore", "pipe", "pipe"] });
		let problem = "";
		child.stderr.on("data", (chunk) => {
			problem += chunk;
		});
		const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
		await finished(child.stdout.pipe(createWriteStream(destination)));
		if ((await ended) !== 0) {
			await rm(destination, { force: true });
			throw new GroundplaneError("CommandFailed", `${source} could not be read from ${host}: ${problem.trim()}`, {
				next: "Check that the file exists there.",
			});
		}
	}

	/** What makes a host's state, for comparing before and after. `exclude`: more paths that may change, each with all below it. */
	async snapshot(host: string, options: { readonly exclude?: readonly string[] } = {}): Promise<Snapshot> {
		return snapshotOf((argv, runOptions) => this.run(host, argv, runOptions), options.exclude ?? []);
	}

	async #change<T>(work: () => Promise<T>): Promise<T> {
		requireRoot();
		return withLock(this.#names, work);
	}

	async #newRecord(log: (line: string) => void): Promise<LabRecord> {
		const taken = await takenNetworks();
		const labs = await readdir(path.dirname(this.directory)).catch(() => []);
		for (const lab of labs.filter((name) => !name.startsWith("."))) {
			const other = await readRecord(new LabNames(lab)).catch(() => undefined);
			for (const network of Object.values(other?.networks ?? {})) taken.add(network);
		}
		return {
			name: this.name,
			networks: pickNetworks(this.name, taken),
			rootfs: await ensureRootfs(log),
			hosts: [],
			domains: [],
			cut: [],
			proxied: undefined,
		};
	}

	async #host(name: string, segment?: Segment): Promise<{ record: LabRecord; host: HostRecord }> {
		const record = await readRecord(this.#names);
		const host = record?.hosts.find((candidate) => candidate.name === name);
		if (record === undefined || host === undefined || (segment !== undefined && host.segment !== segment)) {
			const where = segment === "site" ? " in the customer's site" : "";
			const known = (record?.hosts ?? []).filter((candidate) => segment === undefined || candidate.segment === segment);
			throw new GroundplaneError("NotFound", `Lab ${this.name} has no host ${name}${where}`, {
				next:
					record === undefined
						? `Make the lab: hack/lab --lab ${this.name} up`
						: `Name one of: ${known.map((candidate) => candidate.name).join(", ")}.`,
			});
		}
		return { record, host };
	}

	async #info(record: LabRecord, host: HostRecord): Promise<HostInfo> {
		const leader = await leaderOf(this.#names, host.name);
		const cut = host.segment === "site" && (record.cut.includes("*") || record.cut.includes(host.name));
		const { name, segment, address } = host;
		return { name, segment, address, state: await this.#state(name, leader), cut, pid: leader?.pid };
	}

	async #state(host: string, leader: ProcessId | undefined): Promise<HostInfo["state"]> {
		if (leader === undefined) {
			return isAlive((await readMachine(this.#names, host))?.supervisor) ? "booting" : "stopped";
		}
		const said = await this.exec(host, ["systemctl", "is-system-running"], { timeoutMs: 10_000 }).catch(
			() => undefined,
		);
		const state = said?.stdout.trim();
		return state === "running" || state === "degraded" ? state : "booting";
	}

	async #rewire(host: string | undefined, change: (record: LabRecord) => void | Promise<void>): Promise<void> {
		await this.#change(async () => {
			if (host !== undefined) await this.#host(host, "site");
			const record = await readRecord(this.#names);
			if (record === undefined) {
				throw new GroundplaneError("NotFound", `There is no lab ${this.name}`, {
					next: `Make it: hack/lab --lab ${this.name} up`,
				});
			}
			await change(record);
			await writeRecord(this.#names, record);
			await applyFirewall(this.#names, record);
		});
	}

	async #proxies(): Promise<ProcessId[]> {
		const inside = await processesInside(this.#names, "site");
		return inside.filter(({ pid }) => commandLine(pid).some((word) => word.endsWith("/laboratory/proxy.ts")));
	}

	/** Powers a host on; its files of identity are written while nothing has the disk mounted. */
	async #boot(record: LabRecord, host: HostRecord): Promise<void> {
		await powerOff(this.#names, host.name);
		const directory = this.#names.hostDirectory(host.name);
		const etc = path.join(directory, "upper/etc");
		await mkdir(etc, { recursive: true });
		const machineId = path.join(etc, "machine-id");
		if (!existsSync(machineId)) await writeFile(machineId, `${randomBytes(16).toString("hex")}\n`, { mode: 0o444 });
		await writeFile(path.join(etc, "hostname"), `${host.name}\n`);
		const refuser = host.segment === "provider" ? octets.refuser : octets.gateway;
		const resolver = `nameserver ${record.networks[host.segment]}.${refuser}\n`;
		if (!existsSync(path.join(etc, "resolv.conf"))) await writeFile(path.join(etc, "resolv.conf"), resolver);
		const hostsFile = path.join(etc, "hosts");
		const before = await readFile(hostsFile, "utf8").catch(() => BARE_HOSTS);
		await writeFile(hostsFile, withBlock(before, HOSTS_MARKER, hostsLines(record, host)));

		await rm(path.join(directory, "machine.json"), { force: true });
		const log = openSync(path.join(directory, "supervisor.log"), "a");
		const script = fileURLToPath(new URL("supervisor.ts", import.meta.url));
		spawn(process.execPath, [script, this.name, host.name], {
			detached: true,
			stdio: ["ignore", log, log],
			cwd: "/",
		}).unref();
		await this.#booted(host.name);
	}

	async #booted(host: string): Promise<void> {
		const deadline = Date.now() + BOOT_DEADLINE_MS;
		for (;;) {
			if ((await leaderOf(this.#names, host)) !== undefined) {
				const { stdout } = await this.exec(host, ["systemctl", "is-system-running", "--wait"], {
					timeoutMs: BOOT_DEADLINE_MS,
				}).catch(() => ({ stdout: "" }));
				if (["running", "degraded"].includes(stdout.trim())) return;
			} else {
				const machine = await readMachine(this.#names, host);
				if (machine?.exit !== undefined && !isAlive(machine.supervisor)) {
					throw new GroundplaneError("CommandFailed", `${host} did not boot: nspawn ended with ${machine.exit}`, {
						next: `Its last words: ${await this.#lastWords(host)}`,
					});
				}
			}
			if (Date.now() > deadline) throw this.#late(host, `to boot. Its last words: ${await this.#lastWords(host)}`);
			await sleep(30);
		}
	}

	#late(host: string, what: string): GroundplaneError {
		return new GroundplaneError("DeadlineExceeded", `${host} takes too long ${what}`, {
			next: `Read ${path.join(this.#names.hostDirectory(host), "console.log")}, or cut its power: hack/lab --lab ${this.name} stop ${host}`,
		});
	}

	async #lastWords(host: string): Promise<string> {
		const texts = await Promise.all(
			["supervisor.log", "console.log"].map((file) =>
				readFile(path.join(this.#names.hostDirectory(host), file), "utf8").catch(() => ""),
			),
		);
		return texts.join("").trim().slice(-800) || "(none)";
	}

	async #writeHosts(record: LabRecord, host: HostRecord): Promise<void> {
		const before = await this.run(host.name, ["cat", "/etc/hosts"]);
		const after = withBlock(before, HOSTS_MARKER, hostsLines(record, host));
		if (after !== before) await this.run(host.name, ["sh", "-c", "cat >/etc/hosts"], { input: after });
	}
}

const HOSTS_MARKER = "groundplane lab";
const BARE_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/** Brings a record to what `up` was asked for. Returns the hosts whose binds changed. */
function addHosts(record: LabRecord, { hosts, domains, binds }: UpOptions): string[] {
	const there = record.hosts.filter(({ segment }) => segment === "site").length;
	const wanted = hosts ?? (there > 0 ? there : 3);
	if (!Number.isInteger(wanted) || wanted < 0 || wanted > 200) {
		throw new GroundplaneError("InvalidInput", `A lab can't have ${wanted} hosts`, { next: "Ask for 0 to 200." });
	}
	const add = (name: string, segment: Segment, octet: number) => {
		if (record.hosts.some((host) => host.name === name)) return;
		record.hosts.push({ name, segment, address: `${record.networks[segment]}.${octet}`, binds: [] });
	};
	add("mgmt", "provider", octets.mgmt);
	for (let i = 0; i < wanted; i++) add(`host-${i + 1}`, "site", octets.firstHost + i);
	record.domains = [...new Set([...record.domains, ...(domains ?? [])])];

	const changed: string[] = [];
	record.hosts = record.hosts.map((host) => {
		const wantedBinds = binds?.[host.name];
		if (wantedBinds === undefined || JSON.stringify(wantedBinds) === JSON.stringify(host.binds)) return host;
		changed.push(host.name);
		return { ...host, binds: wantedBinds };
	});
	return changed;
}

function requireRoot(): void {
	if (process.getuid?.() === 0) return;
	throw new GroundplaneError(
		"PrerequisiteNotMet",
		"The lab needs root: it makes network namespaces and boots systems",
		{
			next: "Run it as root (sudo).",
		},
	);
}

/** Refuses a machine that can't run the lab, naming what is wrong; installs the Debian packages that are missing. */
async function checkMachine(): Promise<void> {
	const problems: string[] = [];
	if (process.platform !== "linux") problems.push("it is not Linux");
	if (process.getuid?.() !== 0) problems.push("this is not root");
	if (problems.length > 0) {
		throw new GroundplaneError("PrerequisiteNotMet", `This machine can't run the lab: ${problems.join("; ")}`, {
			next: "Use a Debian or Ubuntu machine as root.",
		});
	}
	await needPackages("mmdebstrap", "systemd-nspawn", "ip", "nft", "nsenter", "unshare", "sysctl", "tar");
}

/** Hosts can't load kernel modules themselves: what Kubernetes needs is loaded here. On a kernel with all built in nothing happens. */
async function loadModules(): Promise<void> {
	const modules = [
		"overlay",
		"bridge",
		"br_netfilter",
		"veth",
		"vxlan",
		"nf_tables",
		"nf_conntrack",
		"nft_chain_nat",
		"tun",
		"fuse",
	];
	// A name that this kernel doesn't know is no fault: whatever is really missing shows in the command that needs it.
	await run("modprobe", ["-a", "-q", ...modules], { check: false }).catch(() => undefined);
}
