import { setTimeout as delay } from "node:timers/promises";
import type { Cluster } from "../../crds/cluster.ts";
import { GROUP_VERSION } from "../../crds/common.ts";
import type { Demo } from "../demo/demo.ts";
import { atMost, type Figure } from "./figures.ts";

const CONTROL_PLANES = ["host-1", "host-2", "host-3"];
const WORKERS = ["host-4", "host-5"];
const NAME = "changes";
const OLD = "v1.35.4";
const NEW = "v1.36.3";
const WRITE_EVERY_MS = 250;
/** For how long a host stays without power: until the region and every balancer have noticed. */
const DARK_MS = 60_000;
/** On every host, the way to the cluster's API servers. */
const BALANCER = "https://169.254.99.1:6443";
/** Makes kubelets of the new version fail to start. */
const TRAP_DIRECTORY = "/etc/systemd/system/kubelet.service.d";
const TRAP = `[Service]\nExecStartPre=/bin/sh -c '! /usr/local/bin/kubelet --version | grep -qF ${NEW}'\n`;

/** How long a cluster of three control planes and two workers takes to be made, changed and ended, in a lab of its own. */
export async function lifecycleChanges(demo: Demo): Promise<Figure[]> {
	const hosts = [...CONTROL_PLANES, ...WORKERS];
	await demo.lab.down();
	try {
		await demo.machines(hosts.length);
		await demo.managementServer();
		await demo.makeRegion();
		await demo.signIn();
		await demo.enroll(hosts);
		return await measure(demo);
	} finally {
		await demo.lab.down();
	}
}

async function measure(demo: Demo): Promise<Figure[]> {
	const made = await timed(() => become(demo, OLD, WORKERS));
	await demo.clusterKubeconfig(NAME);
	const removed = await timed(() => become(demo, OLD, WORKERS.slice(0, 1)));
	await demo.waitReady("host", "host-5", demo.namespace, 300_000);
	const added = await timed(() => become(demo, OLD, WORKERS));

	const back = await failedUpgrade(demo);
	const stop = await startProbe(demo, "host-5");
	const upgraded = await timed(() => become(demo, NEW, WORKERS));
	const gaps = await stop();
	const cut = await powerCut(demo);

	await demo.lab.stop("host-5");
	const deleted = await timed(() => demo.kubectl(["delete", "cluster", NAME, "-n", demo.namespace, "--timeout=600s"]));
	return [
		atMost("3 control planes + 2 workers, applied → Ready", made / 60, "min", 3.5),
		atMost("worker added", added, "s", 25),
		atMost("worker removed", removed, "s", 30),
		atMost("one node's failed upgrade → back and Ready", back, "s", 60),
		atMost("upgrade 3+2 by one minor", upgraded / 60, "min", 6),
		atMost("API gap during it at 10 requests/s, in all", gaps.total, "s", 3),
		atMost("API gap during it, the longest", gaps.longest, "s", 1.5),
		atMost("control-plane host power-cut: writes accepted again", cut.writes, "s", 3),
		atMost("the longest gap that a client on another host feels", cut.gap, "s", 5),
		atMost("the host back and its member healthy", cut.whole, "s", 45),
		atMost("delete with one dead host", deleted, "s", 60),
	];
}

/** Applies the cluster and waits until it is so. */
async function become(demo: Demo, version: string, workers: readonly string[]): Promise<void> {
	await applyCluster(demo, version, workers);
	await demo.waitReady<Cluster>("cluster", NAME, demo.namespace, 20 * 60_000);
}

const applyCluster = (demo: Demo, version: string, workers: readonly string[]): Promise<void> =>
	demo.apply({
		apiVersion: GROUP_VERSION,
		kind: "Cluster",
		metadata: { name: NAME, namespace: demo.namespace },
		spec: {
			version,
			controlPlane: { hosts: CONTROL_PLANES },
			workers: [{ name: "workers", hosts: workers }],
		},
	});

/** Seconds from when the first control plane has failed to be upgraded until all nodes are ready again on the old version. */
async function failedUpgrade(demo: Demo): Promise<number> {
	const [host = ""] = CONTROL_PLANES;
	await demo.lab.run(host, ["mkdir", "-p", TRAP_DIRECTORY]);
	await demo.lab.exec(host, ["tee", `${TRAP_DIRECTORY}/99-trap.conf`], { input: TRAP });
	await demo.lab.run(host, ["systemctl", "daemon-reload"]);
	await applyCluster(demo, NEW, WORKERS);
	const isFailing = (cluster: Cluster | undefined) =>
		cluster?.status?.upgrade?.stopped !== undefined ||
		(cluster?.status?.upgrade?.hosts.some(({ failing }) => failing !== undefined) ?? false);
	await until(demo, isFailing);
	const back = await timed(() =>
		until(demo, (cluster) => cluster?.status?.upgrade?.stopped !== undefined && cluster.status.ready === "5/5"),
	);
	await demo.lab.run(host, ["rm", "-r", TRAP_DIRECTORY]);
	await demo.lab.run(host, ["systemctl", "daemon-reload"]);
	await become(demo, OLD, WORKERS);
	return back;
}

/** When a client asked, in seconds, and whether it was answered in time. */
export interface Asked {
	readonly at: number;
	readonly answered: boolean;
}

/**
 * Reads the host's own Node ten times a second, through the host's balancer, as its kubelet would: each time by a connection of
 * its own, whatever became of those before, and an answer that takes longer than a gap may last is none. Answers the gaps in seconds.
 */
async function startProbe(demo: Demo, host: string): Promise<() => Promise<{ total: number; longest: number }>> {
	const script = `rm -f /tmp/probe.log; while [ ! -e /tmp/probe.stop ]; do
		{ at=$(date +%s.%N); curl -sf -m 1.5 -o /dev/null --cacert /etc/kubernetes/pki/ca.crt --cert /var/lib/kubelet/pki/kubelet-client-current.pem \\
			${BALANCER}/api/v1/nodes/${host}; echo "$at $?" >>/tmp/probe.log; } & sleep 0.1; done; wait`;
	await demo.lab.run(host, ["rm", "-f", "/tmp/probe.stop"]);
	await demo.lab.run(host, ["systemd-run", "--unit=gp-probe", "--collect", "sh", "-c", script]);
	return async () => {
		await demo.lab.run(host, ["touch", "/tmp/probe.stop"]);
		await delay(3_000);
		const lines = (await demo.lab.run(host, ["cat", "/tmp/probe.log"])).trim().split("\n");
		// Nobody who asked, no gap: that would look like the best of all figures.
		if (lines.length < 100) throw new Error(`the probe on ${host} asked only ${lines.length} times`);
		return gapsOf(
			lines.map((line) => {
				const [at, code] = line.split(" ");
				return { at: Number(at), answered: code === "0" };
			}),
		);
	};
}

/** From the first question that was not answered to the next one that was, in seconds. */
export function gapsOf(asked: readonly Asked[]): { total: number; longest: number } {
	let since: number | undefined;
	const gaps: number[] = [];
	const inOrder = asked.toSorted((a, b) => a.at - b.at);
	for (const { at, answered } of inOrder) {
		if (!answered) since ??= at;
		else if (since !== undefined) {
			gaps.push(at - since);
			since = undefined;
		}
	}
	if (since !== undefined) gaps.push((inOrder.at(-1)?.at ?? since) - since);
	return { total: gaps.reduce((sum, gap) => sum + gap, 0), longest: Math.max(0, ...gaps) };
}

interface PowerCut {
	/** Seconds until a write succeeds again. */
	readonly writes: number;
	/** The longest time without an answer, in seconds, for a client whose host stays: through its balancer, until all is well again. */
	readonly gap: number;
	/** Seconds from the host's boot until its own member of etcd answers, with the others' consent. */
	readonly whole: number;
}

/** The host of etcd's leader loses power, and has it back after everybody has noticed. */
async function powerCut(demo: Demo): Promise<PowerCut> {
	const host = await etcdLeader(demo);
	const write = (value: number) =>
		demo.clusterKubectl(
			NAME,
			["annotate", "namespace", "default", `bench=${value}`, "--overwrite", "--request-timeout=10s"],
			{ check: false },
		);
	const stop = await startProbe(demo, "host-5");
	await demo.lab.stop(host);
	const writes = await timed(async () => {
		const written = Promise.withResolvers<void>();
		// One that hangs must not keep the next from being tried.
		for (let tried = 0, over = false; !over && tried < 240; tried++) {
			void write(tried).then(({ code }) => {
				if (code === 0) written.resolve();
			});
			over = await Promise.race([written.promise.then(() => true), delay(WRITE_EVERY_MS, false)]);
		}
		await Promise.race([written.promise, delay(10_000)]);
	});
	await delay(DARK_MS);
	const whole = await timed(async () => {
		await demo.lab.start(host);
		// The member itself, not the cluster's status: that may not have noticed yet that it was gone.
		for (const deadline = Date.now() + 300_000; !(await isHealthy(demo, host)); await delay(250))
			if (Date.now() > deadline) throw new Error(`the member of etcd on ${host} is not healthy`);
	});
	const { longest: gap } = await stop();
	await demo.waitReady<Cluster>("cluster", NAME, demo.namespace, 300_000);
	return { writes, gap, whole };
}

const ETCD = "/etc/kubernetes/pki/etcd";
const etcdctl = (...command: string[]): string[] => [
	"etcdctl",
	`--cacert=${ETCD}/ca.crt`,
	`--cert=${ETCD}/healthcheck-client.crt`,
	`--key=${ETCD}/healthcheck-client.key`,
	...command,
];

/** Whether a host's own member of etcd takes part: it answers only what most members agree to. */
const isHealthy = async (demo: Demo, host: string): Promise<boolean> =>
	(await demo.lab.exec(host, etcdctl("endpoint", "health"))).code === 0;

async function etcdLeader(demo: Demo): Promise<string> {
	for (const host of CONTROL_PLANES) {
		const answer = await demo.lab.run(host, etcdctl("endpoint", "status", "-w", "json"));
		const [own] = JSON.parse(answer) as { Status: { header: { member_id: number }; leader: number } }[];
		if (own !== undefined && own.Status.leader === own.Status.header.member_id) return host;
	}
	throw new Error(`none of ${CONTROL_PLANES} leads etcd`);
}

async function until(demo: Demo, check: (cluster: Cluster | undefined) => boolean): Promise<void> {
	for (let i = 0; i < 1200; i++) {
		if (check(await demo.get<Cluster>("cluster", NAME, demo.namespace))) return;
		await delay(500);
	}
	throw new Error(`cluster ${NAME} did not get there in 10 minutes`);
}

async function timed(work: () => Promise<unknown>): Promise<number> {
	const start = performance.now();
	await work();
	return (performance.now() - start) / 1000;
}
