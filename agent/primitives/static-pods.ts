import { mkdir, readFile, rename, rm } from "node:fs/promises";
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
