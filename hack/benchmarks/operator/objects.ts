import { randomUUID } from "node:crypto";
import { EPOCH, type Host } from "../../../crds/host.ts";
import { summarize } from "../../../operator/host/summary.ts";

const GIB = 2 ** 30;
const AT = "2026-11-01T00:00:00Z";
/** Objects a transaction of etcd, which takes 128 and 1.5 MiB at most. */
const BATCH = 100;

/** Makes hosts `from` to `to`, each as it is after a while: enrolled, connected, with facts and checks, every third with a role. */
export async function makeHosts(etcd: string, namespace: string, from: number, to: number): Promise<void> {
	await store(etcd, "hosts", from, to, (i) => {
		const host = hostObject(namespace, i);
		const { phase, ready } = summarize(host);
		const conditions = [{ ...ready, lastTransitionTime: AT }];
		return { ...host, status: { ...host.status, phase, observedGeneration: 1, conditions } };
	});
}

/** Makes clusters `from` to `to` that wait for their hosts. */
export async function makeClusters(etcd: string, namespace: string, from: number, to: number): Promise<void> {
	await store(etcd, "clusters", from, to, (i) => ({
		apiVersion: "groundplane.io/v1alpha1",
		kind: "Cluster",
		metadata: { name: `cluster-${i}`, namespace, uid: randomUUID(), generation: 1, creationTimestamp: AT },
		spec: {
			version: "v1.36.3",
			controlPlane: { hosts: [`of-${i}-0`] },
			workers: [{ name: "pool", hosts: [`of-${i}-1`, `of-${i}-2`] }],
		},
	}));
}

/**
 * Writes custom resources where the API server keeps them, as it does: JSON under /registry. By the API server they would take
 * twenty times as long.
 */
async function store(
	etcd: string,
	plural: string,
	from: number,
	to: number,
	make: (i: number) => { metadata: { name: string; namespace?: string | undefined } },
): Promise<void> {
	const base64 = (text: string) => Buffer.from(text).toString("base64");
	for (let next = from; next < to; next += BATCH) {
		const success = Array.from({ length: Math.min(BATCH, to - next) }, (_, i) => {
			const object = make(next + i);
			const key = `/registry/groundplane.io/${plural}/${object.metadata.namespace}/${object.metadata.name}`;
			return { requestPut: { key: base64(key), value: base64(JSON.stringify(object)) } };
		});
		const answer = await fetch(`${etcd}/v3/kv/txn`, { method: "POST", body: JSON.stringify({ success }) });
		if (!answer.ok) throw new Error(`etcd would not store ${plural}: ${await answer.text()}`);
	}
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
			uid: randomUUID(),
			generation: 1,
			creationTimestamp: AT,
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
