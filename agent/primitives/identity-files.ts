import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { namesIn, statOf, writeDurable } from "./durable.ts";

/**
 * Certificates, keys and kubeconfigs of a control plane. kubeadm renews them one file after the other, and syncs none: when the
 * power is cut amid that, a key does not fit its certificate, or a file is empty, and an API server that is alone does not
 * start any more.
 */
export async function keepIdentity(kept: string, kubernetes = "/etc/kubernetes"): Promise<void> {
	for (const name of await identityIn(kubernetes)) await copy(join(kubernetes, name), join(kept, name));
}

/** Puts back those that are not what was kept. */
export async function putBackIdentity(kept: string, kubernetes = "/etc/kubernetes"): Promise<void> {
	for (const name of await identityIn(kept)) {
		const [there, before] = await Promise.all([contentOf(join(kubernetes, name)), contentOf(join(kept, name))]);
		if (there === undefined || before === undefined || !there.equals(before))
			await copy(join(kept, name), join(kubernetes, name));
	}
}

async function identityIn(directory: string): Promise<string[]> {
	const names: string[] = [];
	for (const [folder, kind] of [
		[".", /\.conf$/],
		["pki", /\.(crt|key|pub)$/],
		["pki/etcd", /\.(crt|key)$/],
	] as const)
		for (const name of await namesIn(join(directory, folder))) if (kind.test(name)) names.push(join(folder, name));
	return names;
}

const contentOf = async (path: string) => ((await statOf(path)) === undefined ? undefined : readFile(path));

async function copy(from: string, to: string): Promise<void> {
	await mkdir(dirname(to), { recursive: true, mode: 0o700 });
	await writeDurable(to, await readFile(from), ((await statOf(from))?.mode ?? 0o600) & 0o777);
}
