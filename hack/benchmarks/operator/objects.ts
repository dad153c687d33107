import type { Cluster } from "../../../crds/cluster.ts";
import type { Host, HostStatus } from "../../../crds/host.ts";
import { EPOCH } from "../../../operator/deps.ts";
import { summarize } from "../../../operator/host/summary.ts";
import type { KubeClient } from "../../../operator/kube/client.ts";
import { clusters, hosts } from "../../../operator/kube/resources.ts";

const GIB = 2 ** 30;
const WRITERS = 16;

/** Makes hosts `from` to `to`, each as it is after a while: enrolled, connected, with facts and checks, every third with a role. */
export async function makeHosts(client: KubeClient, namespace: string, from: number, to: number): Promise<void> {
	await each(from, to, async (i) => {
		const host = hostObject(namespace, i);
		const { metadata } = await client.create(hosts, host, { manager: "bench" });
		const { phase, ready } = summarize({ ...host, metadata, status: host.status } as Host);
		const condition = { ...ready, lastTransitionTime: "2026-01-01T00:00:00Z" };
		const status: HostStatus = { ...host.status, phase, observedGeneration: 1, conditions: [condition] };
		const ref = { name: metadata.name, namespace };
		await client.apply(
			hosts,
			{ metadata: ref, status },
			{ manager: "groundplane-host", force: true, subresource: "status" },
		);
	});
}

/** Makes clusters `from` to `to` that wait for their hosts. */
export async function makeClusters(client: KubeClient, namespace: string, from: number, to: number): Promise<void> {
	await each(from, to, async (i) => {
		const cluster = {
			metadata: { name: `cluster-${i}`, namespace },
			spec: {
				version: "v1.36.3",
				controlPlane: { hosts: [`of-${i}-0`] },
				workers: [{ name: "pool", hosts: [`of-${i}-1`, `of-${i}-2`] }],
			},
		};
		await client.create(clusters, cluster as unknown as Cluster, { manager: "bench" });
	});
}

async function each(from: number, to: number, work: (i: number) => Promise<void>): Promise<void> {
	let next = from;
	await Promise.all(
		Array.from({ length: WRITERS }, async () => {
			while (next < to) await work(next++);
		}),
	);
}

function hostObject(namespace: string, i: number): Host {
	const name = `host-${i}`;
	const address = `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`;
	const mac = `02:00:00:${[i >> 16, (i >> 8) & 255, i & 255].map((byte) => byte.toString(16).padStart(2, "0")).join(":")}`;
	const hasRole = i % 3 === 0;
	const parameters = Object.fromEntries(
		Array.from({ length: 12 }, (_, p) => [`parameter${p}`, `value ${p} of ${name}`]),
	);
	return {
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Host",
		metadata: {
			name,
			namespace,
			labels: { "groundplane.io/host": name, rack: `r${i % 40}` },
			annotations: { [EPOCH]: "1" },
			finalizers: ["groundplane.io/host"],
		},
		spec: {
			approved: true,
			maintenance: false,
			roles: hasRole ? [{ name: "storage", version: "v1.0.0", parameters }] : [],
		},
		status: {
			facts: {
				hostname: name,
				machineId: mac.replaceAll(":", "").repeat(5),
				architecture: "amd64",
				os: { id: "debian", versionId: "13", prettyName: "Debian GNU/Linux 13 (trixie)" },
				kernel: "6.12.48+deb13-amd64",
				cgroup: "v2",
				cpu: { cores: 64, model: "AMD EPYC 9354P 32-Core Processor" },
				memoryBytes: 256 * GIB,
				disks: Array.from({ length: 6 }, (_, d) => ({ name: `nvme${d}n1`, sizeBytes: 1920 * GIB, rotational: false })),
				filesystems: ["/", "/boot", "/var/lib/containerd"].map((path) => ({
					path,
					sizeBytes: 400 * GIB,
					availableBytes: 300 * GIB,
				})),
				interfaces: ["eno1", "eno2", "ens1f0", "ens1f1"].map((nic) => ({
					name: nic,
					mac,
					addresses: [`${address}/16`],
				})),
				primaryAddress: address,
				bootId: `${mac.replaceAll(":", "")}-0000-4000-8000-000000000000`,
			},
			checks: ["swap", "memory", "clock", "disk", "cgroup", "kernel", "ports", "dns", "proxy", "sysctl"].map(
				(check) => ({
					name: check,
					ok: true,
					severity: "error" as const,
					message: `${check} is as it should be.`,
				}),
			),
			agent: { version: "0.1.0", certificateNotAfter: "2026-12-01T00:00:00Z" },
			connection: { state: "Connected", gateway: `tunnel-${i % 4}`, address, since: "2026-11-01T00:00:00Z" },
			desiredState: {
				generation: 1,
				acknowledgedGeneration: 1,
				reportedGeneration: 1,
				validUntil: "2026-12-01T00:00:00Z",
			},
			...(hasRole
				? {
						roles: [
							{
								name: "storage",
								version: "v1.0.0",
								phase: "Applied" as const,
								progress: "19/19",
								outputs: { volume: `volume of ${name}` },
							},
						],
					}
				: {}),
		},
	} as unknown as Host;
}
