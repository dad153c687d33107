import type { Command } from "commander";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { allowsNone, type Budget, notesOf, preflight, removedApis } from "../../operator/cluster/preflight.ts";
import { order } from "../../operator/cluster/upgrade.ts";
import { USUAL_SECONDS } from "../../operator/cluster/usual.ts";
import { durationMs } from "../../protocol/duration.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { type CommonOptions, command, withSession } from "../command.ts";
import { printOne, table, terminal } from "../output.ts";
import type { Session } from "../session.ts";
import { waitReady } from "../wait-cluster.ts";

interface UpgradeOptions extends CommonOptions {
	readonly dryRun?: boolean;
	readonly wait?: boolean;
	readonly force?: boolean;
	readonly timeout: string;
}

/** What a change of version will do, step by step. */
export interface UpgradePlan {
	readonly cluster: string;
	readonly from: string;
	readonly to: string;
	readonly steps: readonly {
		readonly hosts: readonly string[];
		readonly role: string;
		readonly what: string;
		readonly seconds: number;
	}[];
	/** What keeps it from beginning. */
	readonly findings: readonly string[];
	/** What should be known and keeps it from nothing. */
	readonly notes: readonly string[];
	readonly seconds: number;
}

export const upgradeCommand = (): Command =>
	command("upgrade", "bring a cluster to another Kubernetes version, host by host; or back, or try again what stopped")
		.argument("<name>")
		.argument("<version>")
		.option("--dry-run", "print the plan, its expected durations and what stands in its way; change nothing")
		.option("--force", "go on although clients still use APIs that the version removes")
		.option("--wait", "wait until it is done, and show what is being done")
		.option("--timeout <duration>", "how long to wait", "60m")
		.addHelpText("after", HELP)
		.action(async (name: string, version: string, options: UpgradeOptions) =>
			withSession(options, async (session) => {
				const path = `/api/v1/clusters/${encodeURIComponent(name)}`;
				const body = { version, accept: options.force ?? false };
				if (options.dryRun) {
					const { metadata } = await session.call<Cluster>("POST", `${path}/upgrade?dryRun=true`, body);
					const current = await session.call<Cluster>("GET", path);
					// What would be accepted by --force is in the annotations of the answer.
					const plan = await planOf(session, { ...current, metadata }, version);
					await printOne(plan, { format: options.output, name: `cluster/${name}`, words: () => describe(plan) });
					return;
				}
				const cluster = await session.call<Cluster>("POST", `${path}/upgrade`, body);
				if (options.wait) {
					terminal.err(`${name} goes to ${version}; waiting until it is done.`);
					await waitReady(session, name, durationMs(options.timeout));
				}
				const words = () => (options.wait ? `${name} is at ${version}.` : `${name} goes to ${version}.`);
				await printOne(cluster, { format: options.output, name: `cluster/${name}`, words });
			}),
		);

const HELP = `
Control planes go first, one by one, then workers within upgradePolicy.maxUnavailableWorkers. Each is drained before and checked
after. One that fails is put back to the version that worked, and the change stops there. To go back at any moment, give the old version.

Examples:
  gp cluster upgrade shop v1.36.3 --dry-run
  gp cluster upgrade shop v1.36.3 --wait`;

/** What the region would do, and what stands in its way, as far as the person who asks may look. */
export async function planOf(session: Pick<Session, "call">, cluster: Cluster, version: string): Promise<UpgradePlan> {
	const { name } = cluster.metadata;
	const from = cluster.status?.version ?? cluster.spec.version;
	const { releases, notes: unknown } = await askRegion(session);
	const etcdOf = (of: string) => releases.find((release) => release.version === of)?.components?.etcd;
	const etcd = { from: etcdOf(from), to: etcdOf(version) };
	const { items: hosts } = await session.call<{ items: Host[] }>("GET", "/api/v1/hosts");
	const members = cluster.status?.members ?? [];
	const controlPlanes = members.filter(({ role }) => role === "control-plane").length;
	const inside = await askCluster(session, { name, controlPlanes }, version);
	const candidates = members.map(({ host, version: runs, phase }) => ({
		host,
		versions: runs === undefined ? [] : [runs],
		healthy: phase === "Ready" || phase === "Updating",
		filesystems: hosts.find(({ metadata }) => metadata.name === host)?.status?.facts?.filesystems ?? [],
	}));
	const steps = stepsOf(cluster, version);
	return {
		cluster: name,
		from,
		to: version,
		steps,
		findings: cluster.spec.adopt
			? ["The region does not change the version of an adopted cluster: run kubeadm upgrade on its hosts."]
			: preflight(
					cluster,
					{ target: version, versions: releases.map((one) => one.version), removedApis: inside.removedApis },
					candidates,
				),
		notes: [
			...notesOf(cluster, {
				from,
				to: version,
				blocking: inside.blockedBudgets,
				...(etcd.from && etcd.to ? { etcd: { from: etcd.from, to: etcd.to } } : {}),
			}),
			...inside.notes,
			...unknown,
		],
		seconds: steps.reduce((sum, { seconds }) => sum + seconds, 0),
	};
}

/** Hosts in the order that the region will take them; workers together as far as the budget allows. */
export function stepsOf({ spec, status }: Cluster, version: string): UpgradePlan["steps"] {
	const members = (status?.members ?? []).map((member) => ({ member, asked: member.version }));
	const steps: { hosts: string[]; role: string; what: string; seconds: number }[] = [];
	for (const { member, asked } of order(members, version)) {
		const what =
			member.role === "control-plane"
				? `etcd snapshot, drain, ${asked ?? "?"} → ${version}, node, API server and etcd checked`
				: `drain, ${asked ?? "?"} → ${version}, node checked`;
		const last = steps.at(-1);
		const fits = member.role === "worker" && last?.what === what;
		if (fits && last.hosts.length < spec.upgradePolicy.maxUnavailableWorkers) last.hosts.push(member.host);
		else
			steps.push({ hosts: [member.host], role: member.role, what, seconds: USUAL_SECONDS[`upgrade-${member.role}`] });
	}
	return steps;
}

interface Release {
	readonly name: string;
	readonly version: string;
	readonly components?: Readonly<Record<string, string>>;
}

/** Releases of Kubernetes that the region offers. */
async function askRegion(session: Pick<Session, "call">): Promise<{ releases: Release[]; notes: string[] }> {
	try {
		const { items } = await session.call<{ items: Release[] }>("GET", "/artifacts/v1/bundles");
		return { releases: items.filter(({ name }) => name === "kubernetes"), notes: [] };
	} catch (error) {
		if (!(error instanceof GroundplaneError)) throw error;
		const why = asGroundplaneError(error).message;
		const note = `Which versions are offered could not be looked at (${why}). The region looks before it begins.`;
		return { releases: [], notes: [note] };
	}
}

/** What the cluster's own API tells, through the region, with the rights of the person who asks. */
async function askCluster(
	session: Pick<Session, "call">,
	{ name, controlPlanes }: { name: string; controlPlanes: number },
	version: string,
): Promise<{ removedApis: string[]; blockedBudgets: string[]; notes: string[] }> {
	const base = `/k8s/clusters/${encodeURIComponent(name)}`;
	try {
		const metrics = await session.call<string>("GET", `${base}/metrics`);
		const { items } = await session.call<{ items: Budget[] }>("GET", `${base}/apis/policy/v1/poddisruptionbudgets`);
		const blocked = items.filter(allowsNone).map(({ metadata }) => `${metadata.namespace}/${metadata.name}`);
		const note = `Each API server counts for itself which APIs are used, and one of ${controlPlanes} was asked. The region asks all before it begins.`;
		return {
			removedApis: removedApis([metrics], version),
			blockedBudgets: blocked,
			notes: controlPlanes > 1 ? [note] : [],
		};
	} catch (error) {
		if (!(error instanceof GroundplaneError)) throw error;
		const why = asGroundplaneError(error).message;
		const note = `Budgets and APIs in use could not be looked at (${why}). The region looks before it begins.`;
		return { removedApis: [], blockedBudgets: [], notes: [note] };
	}
}

function describe({ cluster, from, to, steps, findings, notes, seconds }: UpgradePlan): string {
	const rows = steps.map((step, index) => ({ ...step, number: index + 1 }));
	return [
		steps.length === 0
			? `${cluster} is at ${to}: there is nothing to do.`
			: `${cluster}: ${from} → ${to}, about ${Math.max(1, Math.round(seconds / 60))} min`,
		steps.length === 0
			? ""
			: table(rows, [
					["step", ({ number }) => number],
					["hosts", ({ hosts }) => hosts.join(", ")],
					["role", ({ role }) => role],
					["usually", ({ seconds: each }) => `${each}s`],
					["what", ({ what }) => what],
				]),
		...findings.map((finding) => `stands in the way: ${finding}`),
		...notes.map((note) => `note: ${note}`),
		steps.length > 0 && findings.length === 0 ? "Nothing stands in the way." : "",
	]
		.filter(Boolean)
		.join("\n");
}
