import { createHash } from "node:crypto";
import { mkdir, open, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { GroundplaneError } from "../../protocol/errors.ts";
import { isAlive, type ProcessId, processId } from "./processes.ts";

/** A directory of the machine that runs the lab, seen read-only in a host. */
export interface Bind {
	readonly source: string;
	readonly target: string;
}

export type Segment = "provider" | "site";

export interface HostRecord {
	readonly name: string;
	readonly segment: Segment;
	readonly address: string;
	readonly binds: readonly Bind[];
}

/** What a lab is, kept in `lab.json`: everything else (bridges, firewall, processes) is made from it and repaired by it. */
export interface LabRecord {
	readonly name: string;
	/** /24 networks, as their first three octets: `10.200.4`. */
	readonly networks: Readonly<Record<Segment, string>>;
	rootfs: string;
	hosts: HostRecord[];
	domains: string[];
	/** Hosts whose uplink is cut; `*` is the whole site. */
	cut: string[];
	/** Hosts that get out through the site's proxy only. `undefined`: there is no proxy. */
	proxied: string[] | undefined;
}

/**
 * Last octets: the machine that runs the lab (or the site's router inside), the router's outer side, the address on the
 * provider's segment where every DNS query is refused, mgmt, and host-1 onwards.
 */
export const octets = { gateway: 1, router: 2, refuser: 3, mgmt: 10, firstHost: 11 } as const;

const ROOT = "/var/lib/groundplane-lab";

/** Every name that a lab gives to something of the machine, so that what it left behind is recognised by name. */
export class LabNames {
	readonly lab: string;
	readonly directory: string;
	readonly recordFile: string;
	/** The one interface in the machine's own network namespace. At most 15 characters. */
	readonly uplink: string;

	constructor(lab: string) {
		if (!/^[a-z][a-z0-9-]{0,30}$/.test(lab)) {
			throw new GroundplaneError("InvalidInput", `"${lab}" can't be the name of a lab`, {
				next: "Use up to 31 lower-case letters, digits and dashes, beginning with a letter.",
			});
		}
		this.lab = lab;
		this.directory = path.join(ROOT, lab);
		this.recordFile = path.join(this.directory, "lab.json");
		this.uplink = `gplab-${createHash("sha256").update(lab).digest("hex").slice(0, 8)}`;
	}

	/** The network namespace of a segment (which holds its bridge) or a host. `=` keeps `a` + `b-c` and `a-b` + `c` apart. */
	namespace(part: string): string {
		return `gplab=${this.lab}=${part}`;
	}

	/** The name of a host's machine for nspawn and of its cgroup directories. */
	machine(host: string): string {
		return `gplab.${this.lab}.${host}`;
	}

	hostDirectory(host: string): string {
		return path.join(this.directory, "hosts", host);
	}
}

export async function readRecord(names: LabNames): Promise<LabRecord | undefined> {
	try {
		return JSON.parse(await readFile(names.recordFile, "utf8")) as LabRecord;
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
		throw new GroundplaneError("InvalidConfiguration", `${names.recordFile} can't be read`, {
			next: `Remove the lab with \`hack/lab --lab ${names.lab} down\` and make it again.`,
			cause: error,
		});
	}
}

export async function writeRecord(names: LabNames, record: LabRecord): Promise<void> {
	await writeJson(names.recordFile, record);
}

/** Replaces a JSON file in one step: a reader sees the old or the new one. */
export async function writeJson(file: string, value: unknown): Promise<void> {
	await mkdir(path.dirname(file), { recursive: true });
	const part = `${file}.${process.pid}`;
	await writeFile(part, `${JSON.stringify(value, undefined, "\t")}\n`);
	await rename(part, file);
}

/** Lets one process at a time change a lab. A lock whose holder is gone is taken over. */
export async function withLock<T>(names: LabNames, work: () => Promise<T>): Promise<T> {
	await mkdir(ROOT, { recursive: true });
	const file = path.join(ROOT, `.${names.lab}.lock`);
	const deadline = Date.now() + 600_000;
	for (;;) {
		try {
			const handle = await open(file, "wx");
			await handle.writeFile(JSON.stringify(processId(process.pid)));
			await handle.close();
			break;
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
		}
		const text = await readFile(file, "utf8").catch(() => "");
		if (text !== "" && !isAlive(JSON.parse(text) as ProcessId)) await rm(file, { force: true });
		else if (Date.now() > deadline) {
			throw new GroundplaneError("Conflict", `Another process has been working on lab ${names.lab} for ten minutes`, {
				next: `Wait for process ${text} to end, or end it.`,
			});
		} else await sleep(100);
	}
	try {
		return await work();
	} finally {
		await rm(file, { force: true });
	}
}

/**
 * Picks two neighbouring /24 networks for a lab by its name, out of 10.200.0.0 to 10.231.255.0, skipping what is `taken`
 * (first three octets). The range stays clear of Kubernetes' usual pod and service networks.
 */
export function pickNetworks(lab: string, taken: ReadonlySet<string>): Record<Segment, string> {
	const slots = 32 * 128;
	const start = createHash("sha256").update(lab).digest().readUInt32BE(0);
	for (let i = 0; i < slots; i++) {
		const slot = (start + i) % slots;
		const second = 200 + Math.floor(slot / 128);
		const third = (slot % 128) * 2;
		const networks = { provider: `10.${second}.${third}`, site: `10.${second}.${third + 1}` };
		if (!taken.has(networks.provider) && !taken.has(networks.site)) return networks;
	}
	throw new GroundplaneError("Conflict", "No network is free for the lab between 10.200.0.0 and 10.231.255.0", {
		next: "Take down labs that aren't needed (`ls /var/lib/groundplane-lab`), or free a part of that range.",
	});
}

/** Puts lines between a lab's markers in the text of a hosts file; no lines take the block out. */
export function withBlock(text: string, marker: string, lines: readonly string[]): string {
	const begin = `# begin ${marker}`;
	const end = `# end ${marker}`;
	const kept: string[] = [];
	let inside = false;
	for (const line of text.split("\n")) {
		if (line === begin) inside = true;
		else if (line === end) inside = false;
		else if (!inside) kept.push(line);
	}
	while (kept.at(-1) === "") kept.pop();
	const block = lines.length === 0 ? [] : [begin, ...lines, end];
	return [...kept, ...block, ""].join("\n");
}
