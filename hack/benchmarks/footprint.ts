import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Demo } from "../demo/demo.ts";
import { atMost, type Figure } from "./figures.ts";

const MB = 1_000_000;
/** How long the idle plane is watched, in milliseconds. */
const WINDOW_MS = 120_000;
const DAY_MS = 86_400_000;

interface PodUsage {
	podRef: { name: string; namespace: string };
	containers: { name: string; cpu?: { usageCoreNanoSeconds?: number; time: string }; memory?: { rssBytes?: number } }[];
}

/** What an idle demo takes: memory and CPU of the region, memory of operator and agent, size of the package, bytes on the wire. */
export async function footprint(demo: Demo): Promise<Figure[]> {
	// A worker: what an idle host costs, without a control plane that the plane asks how its cluster is.
	const host = "host-3";
	await countBytes(demo, host);
	try {
		const before = await usage(demo);
		const bytesBefore = await countedBytes(demo, host);
		demo.report(`Watching the idle demo for ${WINDOW_MS / 1000} s`);
		await delay(WINDOW_MS);
		const after = await usage(demo);
		const bytesAfter = await countedBytes(demo, host);

		const region = after.filter((pod) => pod.podRef.namespace === demo.namespace);
		const operator = after.filter(
			(pod) => pod.podRef.namespace === "groundplane-system" && pod.podRef.name.startsWith("operator"),
		);
		for (const pod of region) demo.report(`  ${pod.podRef.name}: ${Math.round(rss([pod]) / MB)} MB`);
		return [
			atMost("region idle, RSS of all its containers", rss(region) / MB, "MB", 700),
			atMost("region idle, CPU", 100 * cores(before, region), "% of a core", 5),
			atMost("operator RSS", rss(operator) / MB, "MB", 110),
			atMost("agent RSS", (await agentRss(demo, host)) / MB, "MB", 70),
			atMost("agent package", (await packageSize()) / MB, "MB", 45),
			atMost("idle host, bytes on the wire a day", ((bytesAfter - bytesBefore) * (DAY_MS / WINDOW_MS)) / MB, "MB", 5),
		];
	} finally {
		await demo.lab.exec(host, ["nft", "delete", "table", "inet", "groundplane_bench"]);
	}
}

/** The kubelet's own accounting of pods (Summary API). */
async function usage(demo: Demo): Promise<PodUsage[]> {
	const nodes = await demo.kubectl(["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
	const all: PodUsage[] = [];
	for (const node of nodes.stdout.trim().split(" ")) {
		const { stdout } = await demo.kubectl(["get", "--raw", `/api/v1/nodes/${node}/proxy/stats/summary`]);
		all.push(...(JSON.parse(stdout) as { pods: PodUsage[] }).pods);
	}
	return all;
}

const rss = (pods: readonly PodUsage[]): number =>
	pods.flatMap((pod) => pod.containers).reduce((sum, container) => sum + (container.memory?.rssBytes ?? 0), 0);

/** Cores used on average between two looks, over the containers that are in both. */
function cores(before: readonly PodUsage[], after: readonly PodUsage[]): number {
	const key = (pod: PodUsage, container: string) => `${pod.podRef.namespace}/${pod.podRef.name}/${container}`;
	const old = new Map(
		before.flatMap((pod) => pod.containers.map((container) => [key(pod, container.name), container.cpu] as const)),
	);
	let used = 0;
	for (const pod of after) {
		for (const { name, cpu } of pod.containers) {
			const then = old.get(key(pod, name));
			if (then?.usageCoreNanoSeconds === undefined || cpu?.usageCoreNanoSeconds === undefined) continue;
			const elapsed = (Date.parse(cpu.time) - Date.parse(then.time)) * 1e6;
			if (elapsed > 0) used += (cpu.usageCoreNanoSeconds - then.usageCoreNanoSeconds) / elapsed;
		}
	}
	return used;
}

async function agentRss(demo: Demo, host: string): Promise<number> {
	const pid = (await demo.lab.run(host, ["systemctl", "show", "-p", "MainPID", "--value", "gp-agent"])).trim();
	const status = await demo.lab.run(host, ["cat", `/proc/${pid}/status`]);
	return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? Number.NaN) * 1024;
}

async function packageSize(): Promise<number> {
	const directory = join(process.env.GP_ROOT ?? process.cwd(), "dist", "release", "packages");
	const name = (await readdir(directory)).find((file) => file.startsWith("groundplane-agent_"));
	return (await stat(join(directory, name ?? ""))).size;
}

/** Counts every byte between the host and the provider, headers included. */
async function countBytes(demo: Demo, host: string): Promise<void> {
	const rules = `table inet groundplane_bench {
		chain in { type filter hook input priority -300; tcp sport 443 counter; }
		chain out { type filter hook output priority -300; tcp dport 443 counter; }
	}\n`;
	await demo.lab.exec(host, ["nft", "delete", "table", "inet", "groundplane_bench"]);
	await demo.lab.run(host, ["nft", "-f", "-"], { input: rules });
}

async function countedBytes(demo: Demo, host: string): Promise<number> {
	const { nftables } = JSON.parse(
		await demo.lab.run(host, ["nft", "-j", "list", "table", "inet", "groundplane_bench"]),
	) as {
		nftables: { rule?: { expr: { counter?: { bytes: number } }[] } }[];
	};
	return nftables
		.flatMap((entry) => entry.rule?.expr ?? [])
		.reduce((sum, { counter }) => sum + (counter?.bytes ?? 0), 0);
}
