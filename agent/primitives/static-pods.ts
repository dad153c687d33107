import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { namesIn, syncDirectory, writeDurable } from "./durable.ts";

/** Where the kubelet looks for static pods (staticPodPath of its configuration). */
export const MANIFESTS = "/etc/kubernetes/manifests";
/** kubeadm's static pods, in the order in which they stop: an API server that has lost its etcd lets everybody hang. */
export const STATIC_PODS = [["kube-apiserver", "kube-controller-manager", "kube-scheduler"], ["etcd"]] as const;

/** kubeadm's own manifests of a directory, by file name. */
export async function manifestsIn(directory: string): Promise<Map<string, string>> {
	const manifests = new Map<string, string>();
	for (const name of STATIC_PODS.flat().map((pod) => `${pod}.yaml`)) {
		const content = await readFile(join(directory, name), "utf8").catch(() => "");
		if (content !== "") manifests.set(name, content);
	}
	return manifests;
}

/** Where the kubelet keeps what containers say: `NAMESPACE_POD_UID/CONTAINER/N.log`, N being how often it was started anew. */
const LOGS = "/var/log/pods";

/** A static pod's container as its logs tell of it, which needs no API server. */
export interface StaticPodRun {
	readonly name: (typeof STATIC_PODS)[number][number];
	/** How often it was started anew; a pod that was changed counts from nought. */
	readonly restarts: number;
	/** Its last log. */
	readonly log: string;
}

/** How a node's static pods have run, by the directory of each: one that was changed has another. */
export async function staticPodRuns(nodeName: string, logs = LOGS): Promise<ReadonlyMap<string, StaticPodRun>> {
	const runs = new Map<string, StaticPodRun>();
	const pods = await namesIn(logs);
	for (const name of STATIC_PODS.flat())
		for (const pod of pods.filter((one) => one.startsWith(`kube-system_${name}-${nodeName}_`))) {
			const directory = join(logs, pod, name);
			const counts = (await namesIn(directory)).map((file) => Number(/^(\d+)\.log$/.exec(file)?.[1] ?? -1));
			const restarts = Math.max(-1, ...counts);
			if (restarts >= 0) runs.set(directory, { name, restarts, log: join(directory, `${restarts}.log`) });
		}
	return runs;
}

/** The static pod that ended most often since it was looked at before, and how often that was; undefined when none did. */
export function endedMost(
	before: ReadonlyMap<string, StaticPodRun>,
	now: ReadonlyMap<string, StaticPodRun>,
): (StaticPodRun & { readonly times: number }) | undefined {
	return [...now]
		.map(([directory, run]) => ({ ...run, times: run.restarts - (before.get(directory)?.restarts ?? 0) }))
		.filter(({ times }) => times > 0)
		.toSorted((a, b) => b.times - a.times)[0];
}

/** The end of a container's log (CRI's format: time, stream, tag, text), of which programs say last why they end. */
export async function endOfLog(path: string): Promise<string> {
	const file = await open(path).catch(() => undefined);
	if (!file) return "";
	try {
		const { size } = await file.stat();
		const length = Math.min(size, 16_384);
		const { buffer } = await file.read(Buffer.alloc(length), 0, length, size - length);
		return buffer.toString().replace(/^\S+ (?:stdout|stderr) [FP] /gm, "");
	} finally {
		await file.close();
	}
}

/** Keeps a copy of the manifests that a control plane runs, whole or not at all. */
export async function keepManifests(kept: string, manifests = MANIFESTS): Promise<void> {
	const fresh = `${kept}.new`;
	await rm(fresh, { recursive: true, force: true });
	await mkdir(fresh, { recursive: true, mode: 0o700 });
	for (const [name, content] of await manifestsIn(manifests)) await writeDurable(join(fresh, name), content, 0o600);
	await rm(kept, { recursive: true, force: true });
	await rename(fresh, kept);
	await syncDirectory(join(kept, ".."));
}

/** Manifests that were kept and are gone from where the kubelet looks. One that was changed is its owner's affair. */
export async function missingManifests(kept: string, manifests = MANIFESTS): Promise<string[]> {
	const there = await namesIn(manifests);
	return [...(await manifestsIn(kept)).keys()].filter((name) => !there.includes(name));
}

/** Puts those back that are gone; the kubelet starts their pods by itself. */
export async function putBackManifests(kept: string, manifests = MANIFESTS): Promise<void> {
	const missing = await missingManifests(kept, manifests);
	if (missing.length > 0) await mkdir(manifests, { recursive: true, mode: 0o700 });
	for (const name of missing) await writeDurable(join(manifests, name), await readFile(join(kept, name)), 0o600);
}
