import { setTimeout as delay } from "node:timers/promises";
import { expect } from "vitest";
import type { Cluster } from "../../../crds/cluster.ts";
import { GROUP_VERSION } from "../../../crds/common.ts";
import type { Host } from "../../../crds/host.ts";
import { demo, eventually } from "./demo.ts";
import { filesOf } from "./kubeadm.ts";
import { differencesSince, saveSnapshots } from "./snapshots.ts";

export const ALL = ["host-1", "host-2", "host-3", "host-4", "host-5"] as const;
export const CONTROL_PLANES = ["host-1", "host-2", "host-3"] as const;
export const WORKERS = ["host-4", "host-5"] as const;
export const OLD = "v1.35.4";
export const NEW = "v1.36.3";
export const NAME = "changes";

const ADMIN = "/etc/kubernetes/admin.conf";
const ETCD = "/etc/kubernetes/pki/etcd";
export const STATE = "/var/lib/groundplane/kubernetes";
/** Not the one that kubeadm has the certificates expire with: nobody joins with it. */
const JOIN_TOKENS =
	"get secrets -n kube-system --field-selector=type=bootstrap.kubernetes.io/token -o jsonpath='{.items[*].data.auth-extra-groups}'";
const CORE_DNS =
	"get deployment coredns -n kube-system --ignore-not-found -o jsonpath='{.spec.template.spec.containers[0].image}'";
const WRITER = "/tmp/gp-writer";

/** What the cluster is to be; what is left out is as in most scenarios. */
export interface Wanted {
	readonly version?: string;
	readonly controlPlanes?: readonly string[];
	readonly workers?: readonly string[];
	readonly labels?: Readonly<Record<string, string>>;
	readonly taints?: readonly { readonly key: string; readonly value: string; readonly effect: string }[];
	readonly addons?: { readonly coredns?: boolean; readonly [name: string]: unknown };
	readonly drainTimeout?: string;
}

/** A lab of five hosts in a region. What an earlier run has made is found and kept. */
export async function withFiveHosts(): Promise<void> {
	await demo.machines(ALL.length);
	await demo.managementServer();
	await demo.makeRegion();
	await demo.signIn();
	const known = await Promise.all(ALL.map((name) => demo.get<Host>("host", name, demo.namespace)));
	await demo.enroll(ALL);
	await saveSnapshots(
		demo,
		ALL.filter((_name, index) => known[index] === undefined),
	);
}

export const manifest = (
	{
		version = OLD,
		controlPlanes = CONTROL_PLANES,
		workers = WORKERS,
		labels = {},
		taints = [],
		addons = {},
		drainTimeout = "2m",
	}: Wanted = {},
	name = NAME,
) => ({
	apiVersion: GROUP_VERSION,
	kind: "Cluster",
	metadata: { name, namespace: demo.namespace },
	spec: {
		version,
		controlPlane: { hosts: controlPlanes },
		workers: workers.length === 0 ? [] : [{ name: "workers", hosts: workers, labels, taints }],
		addons,
		upgradePolicy: { drainTimeout },
	},
});

export const want = (wanted: Wanted = {}): Promise<void> => demo.apply(manifest(wanted));

/** Asks for a cluster and waits until it is so, with nothing left over of how it got there. */
export async function become(wanted: Wanted = {}, timeoutMs = 15 * 60_000): Promise<number> {
	return timed(async () => {
		await want(wanted);
		await expectWhole(wanted, timeoutMs);
	});
}

export const cluster = () => demo.get<Cluster>("cluster", NAME, demo.namespace);
export const host = (name: string) => demo.get<Host>("host", name, demo.namespace);
export const readyOf = (found: Cluster | undefined) => found?.status?.conditions?.find(({ type }) => type === "Ready");
/** Where a host is in the change of version that goes on or was the last. */
export const entryOf = (name: string, found: Cluster | undefined) =>
	found?.status?.upgrade?.hosts.find((entry) => entry.host === name);

/** Waits until the cluster is ready as it was wanted, and looks for what should not be there any more. */
export async function expectWhole(wanted: Wanted = {}, timeoutMs = 15 * 60_000): Promise<void> {
	const { version = OLD, controlPlanes = CONTROL_PLANES, workers = WORKERS, addons = {} } = wanted;
	const members = [...controlPlanes, ...workers];
	await demo.waitReady<Cluster>("cluster", NAME, demo.namespace, timeoutMs);
	const status = (await cluster())?.status;
	expect(status).toMatchObject({ phase: "Ready", ready: `${members.length}/${members.length}`, version });
	expect(status?.upgrade?.stopped).toBeUndefined();
	const [first = ""] = controlPlanes;
	const nodes = await nodesOn(first);
	expect(nodes).toEqual(Object.fromEntries(members.map((name) => [name, `${version} ready`])));
	expect(await etcdMembers(first)).toEqual([...controlPlanes].sort().map((name) => `${name} started`));
	expect(await on(first, kubectl(JOIN_TOKENS))).toBe("");
	// Nodes are not waited for until an add-on is gone.
	const dns = addons.coredns === false ? "" : await imageOf(version, "coredns");
	await eventually(async () => expect(await on(first, kubectl(CORE_DNS))).toBe(dns));
	await Promise.all(
		members.map(async (name) => {
			const left = `ls ${STATE}/change.json ${STATE}/next ${STATE}/etcd/*.part /etc/kubernetes/tmp/kubeadm-* 2>/dev/null; nft list tables | grep stand-in; true`;
			expect(`${name}: ${(await on(name, left)).trim()}`).toBe(`${name}: `);
		}),
	);
	await expectClean(ALL.filter((name) => !members.includes(name)));
}

/** Waits until hosts are free, in nobody's ledger, and as they were found. */
export async function expectClean(names: readonly string[] = ALL, timeoutMs = 240_000): Promise<void> {
	for (const name of names) {
		await eventually(async () => {
			const { spec, status } = (await host(name)) ?? {};
			expect({ name, phase: status?.phase, roles: spec?.roles, left: status?.leftBehind ?? [] }).toEqual({
				name,
				phase: "Ready",
				roles: [],
				left: [],
			});
			expect(status?.roles ?? []).toEqual([]);
		}, timeoutMs);
		expect({ name, differences: await differencesSince(demo, name) }).toEqual({ name, differences: [] });
	}
}

/** Runs a line of shell on a host. */
export const on = (name: string, line: string): Promise<string> =>
	demo.lab.run(name, ["sh", "-c", line], { timeoutMs: 120_000 });

/** kubectl of a control plane itself, not by way of the region. */
export const kubectl = (command: string): string =>
	`kubectl --kubeconfig ${ADMIN} --cache-dir=/tmp/gp-kubectl --request-timeout=20s ${command}`;

/** Versions of the nodes, and whether each takes pods. */
async function nodesOn(controlPlane: string): Promise<Record<string, string>> {
	const { items } = JSON.parse(await on(controlPlane, kubectl("get nodes -o json"))) as {
		items: {
			metadata: { name: string; annotations?: Record<string, string> };
			spec: { unschedulable?: boolean };
			status: { nodeInfo: { kubeletVersion: string }; conditions: { type: string; status: string }[] };
		}[];
	};
	return Object.fromEntries(
		items.map(({ metadata, spec, status }) => {
			const isReady = status.conditions.some(({ type, status: value }) => type === "Ready" && value === "True");
			const isDraining = metadata.annotations?.["groundplane.io/drain-started"] !== undefined;
			const state = !isReady ? "not ready" : spec.unschedulable || isDraining ? "cordoned" : "ready";
			return [metadata.name, `${status.nodeInfo.kubeletVersion} ${state}`];
		}),
	);
}

/** The reference of an image in the release's bundle of a version. */
export async function imageOf(version: string, name: string): Promise<string> {
	return (await filesOf(version)).find(({ path }) => path === `images/${name}.tar`)?.reference ?? "";
}

const etcdctl = (command: string): string =>
	`etcdctl --cacert=${ETCD}/ca.crt --cert=${ETCD}/healthcheck-client.crt --key=${ETCD}/healthcheck-client.key ${command}`;

async function etcdMembers(controlPlane: string): Promise<string[]> {
	const { members } = JSON.parse(await on(controlPlane, etcdctl("member list -w json"))) as {
		members: { name?: string; peerURLs: string[]; isLearner?: boolean }[];
	};
	return members
		.map(({ name, peerURLs, isLearner }) =>
			name === undefined ? `${peerURLs} never started` : `${name} ${isLearner ? "learner" : "started"}`,
		)
		.sort();
}

/** Waits until a host is a learner in etcd: it has what others wrote, and no say yet. */
export async function untilLearner(name: string, seenFrom: string): Promise<void> {
	const learner = `${await demo.lab.address(name)}:2380, .*true$`;
	await untilOn(seenFrom, `${etcdctl("member list")} | grep -q '${learner}'`, 5 * 60_000);
}

/** On which host etcd's leader is. */
export async function leader(among: readonly string[]): Promise<string> {
	for (const name of among) {
		const [own] = JSON.parse(await on(name, etcdctl("endpoint status -w json"))) as {
			Status: { header: { member_id: number }; leader: number };
		}[];
		if (own !== undefined && own.Status.leader === own.Status.header.member_id) return name;
	}
	throw new Error(`none of ${among} leads etcd`);
}

/** Waits until a line of shell succeeds on a host: looked at there, ten times a second, so that short moments are met. */
export async function untilOn(name: string, line: string, timeoutMs = 10 * 60_000): Promise<void> {
	const script = `until ${line}; do sleep 0.1; done`;
	const { code } = await demo.lab.exec(name, ["timeout", String(timeoutMs / 1000), "sh", "-c", script]);
	if (code !== 0) throw new Error(`${name}: the moment was not met: ${line}`);
}

/** Cuts a host's power at a moment, and gives it back at once. */
export async function cutPowerAt(name: string, line: string): Promise<void> {
	await untilOn(name, line, 20 * 60_000);
	demo.report(`${name}: power cut at: ${line}`);
	await demo.lab.stop(name);
	await demo.lab.start(name);
}

/** Makes objects in the cluster. */
export const applyInside = (items: readonly object[]): Promise<string> => {
	const list = JSON.stringify({ apiVersion: "v1", kind: "List", items });
	return on("host-1", `cat <<'END' | ${kubectl("apply -f -")}\n${list}\nEND`);
};

/** A container that does nothing, of an image that the host has. */
export async function idleContainer(name: string) {
	const image = (await on(name, "ctr -n k8s.io images ls -q | grep -m1 /pause:")).trim();
	return { name: "pause", image, imagePullPolicy: "Never" };
}

/** Writes into the cluster every half second, from a host of it. Answers, when it is ended, what was accepted and lost. */
export async function startWriting(from: string): Promise<() => Promise<{ accepted: number; lost: string[] }>> {
	const script = `n=0; while [ ! -e ${WRITER}/stop ]; do n=$((n+1));
		kubectl --kubeconfig ${WRITER}/admin.conf --cache-dir=${WRITER}/cache --request-timeout=5s create configmap write-$n && echo configmap/write-$n >>${WRITER}/accepted
		sleep 0.5; done`;
	await on(from, `rm -rf ${WRITER}; mkdir -m 700 ${WRITER}; touch ${WRITER}/accepted`);
	const admin = await on(CONTROL_PLANES[0], `cat ${ADMIN}`);
	await demo.lab.exec(from, ["tee", `${WRITER}/admin.conf`], { input: admin });
	await demo.lab.run(from, ["systemd-run", "--unit=gp-writer", "--collect", "sh", "-c", script]);
	return async () => {
		await on(from, `touch ${WRITER}/stop; sleep 6; systemctl stop gp-writer 2>/dev/null; true`);
		const accepted = (await on(from, `cat ${WRITER}/accepted`)).trim().split("\n");
		const found = new Set((await on(CONTROL_PLANES[0], kubectl("get configmaps -o name"))).trim().split("\n"));
		await on(
			CONTROL_PLANES[0],
			kubectl(`delete configmap -l '!kubernetes.io/none' --field-selector=metadata.name!=kube-root-ca.crt`),
		);
		await on(from, `rm -r ${WRITER}`);
		return { accepted: accepted.length, lost: accepted.filter((name) => !found.has(name)) };
	};
}

/** Waits until one more write of {@link startWriting} is accepted. */
export async function untilWritten(from: string, timeoutMs: number): Promise<void> {
	const count = `wc -l <${WRITER}/accepted`;
	const before = (await on(from, count)).trim();
	await untilOn(from, `test $(${count}) -gt ${before}`, timeoutMs);
}

/** Does something again and again until it is told to stop. What fails meanwhile is what is tested. */
export function keep(doing: () => Promise<unknown>, everyMs: number): () => Promise<void> {
	const stop = new AbortController();
	const done = (async () => {
		while (!stop.signal.aborted) {
			await doing().catch(() => undefined);
			await delay(everyMs, undefined, { signal: stop.signal }).catch(() => undefined);
		}
	})();
	return async () => {
		stop.abort();
		await done;
	};
}

/** Seconds that something took; they go into the log of the run. */
export async function timed(work: () => Promise<unknown>, what?: string): Promise<number> {
	const start = performance.now();
	await work();
	const seconds = (performance.now() - start) / 1000;
	if (what !== undefined) demo.report(`TOOK ${seconds.toFixed(1)} s: ${what}`);
	return seconds;
}
