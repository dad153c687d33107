import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Demo } from "../../../hack/demo/demo.ts";
import { differences, type Snapshot } from "../../../hack/laboratory/lab.ts";

const fileOf = (demo: Demo, host: string) => join(demo.state, "snapshots", `${host}.json`);

/** Keeps what hosts look like before something is made of them. */
export async function saveSnapshots(demo: Demo, hosts: readonly string[]): Promise<void> {
	await mkdir(join(demo.state, "snapshots"), { recursive: true });
	for (const host of hosts)
		await writeFile(fileOf(demo, host), JSON.stringify(await demo.lab.snapshot(host, { exclude })));
}

/**
 * The names that the lab gives. And what the agent was told last, signed: it changes with every word of the region, role or no role. And what it measured, which
 * it does again when it hears of other hosts, and the file that it measures the disk with.
 */
const exclude = [
	"/etc/hosts",
	...["desired-state.jws", "measured.json", ".groundplane-fsync"].map((name) => `/var/lib/groundplane/agent/${name}`),
];

/** What is different on a host from when its snapshot was kept. */
export async function differencesSince(demo: Demo, host: string): Promise<string[]> {
	const before = JSON.parse(await readFile(fileOf(demo, host), "utf8")) as Snapshot;
	return differences(before, await demo.lab.snapshot(host, { exclude }));
}
