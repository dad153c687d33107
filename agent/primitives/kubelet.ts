import { createHash } from "node:crypto";
import { readFile, rename, rm, symlink } from "node:fs/promises";
import { dirname } from "node:path";
import { makeDirectories, syncDirectory, writeDurable } from "./durable.ts";
import type { StepContext } from "./primitive.ts";

const UNIT = "kubelet.service";

/** Where a kubelet's things lie. */
export interface KubeletPlaces {
	/** What its unit starts: a link to the kubelet of the version that counts. */
	readonly link: string;
	/** What it reads when it starts, and belongs to a version. */
	readonly files: readonly string[];
	/** Which start of the unit was of which program and files. */
	readonly started: string;
}

export const KUBELET_PLACES: KubeletPlaces = {
	link: "/usr/local/bin/kubelet",
	files: ["/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env"],
	started: "/var/lib/groundplane/kubernetes/kubelet-started",
};

/** Points the link at this kubelet, by a rename. */
export async function pointKubelet(kubelet: string, { link } = KUBELET_PLACES): Promise<void> {
	const temporary = `${link}.groundplane`;
	await rm(temporary, { force: true });
	await symlink(kubelet, temporary);
	await rename(temporary, link);
	await syncDirectory(dirname(link));
}

/**
 * Makes the kubelet that runs the one that is linked, with the configuration that lies there. It is not restarted for nothing:
 * one that starts while etcd is down and the API server hangs for it takes minutes until it starts etcd.
 *
 * Which kubelet runs is known only of a start that was made here (systemd's InvocationID): the host may have booted between the
 * link and the start, and runs another one then than was noted.
 */
export async function startKubelet(
	kubelet: string,
	{ exec, signal }: Pick<StepContext, "exec" | "signal">,
	places = KUBELET_PLACES,
): Promise<void> {
	await pointKubelet(kubelet, places);
	const wanted = await digestOf(kubelet, places);
	const invocation = async () => {
		const { stdout } = await exec("systemctl", ["show", "--property=InvocationID", "--value", UNIT], { signal });
		return stdout.trim();
	};
	const noted = await readFile(places.started, "utf8").catch(() => "");
	const { code } = await exec("systemctl", ["is-active", "--quiet", UNIT], { signal, codes: true });
	if (code === 0 && noted === `${wanted} ${await invocation()}`) return;
	await exec("systemctl", ["reset-failed", UNIT], { signal, codes: true });
	await exec("systemctl", ["restart", UNIT], { signal });
	await makeDirectories(dirname(places.started), 0o700);
	await writeDurable(places.started, `${wanted} ${await invocation()}`);
}

async function digestOf(kubelet: string, { files }: KubeletPlaces): Promise<string> {
	const hash = createHash("sha256").update(kubelet);
	for (const path of files) hash.update((await readFile(path, "utf8").catch(() => "")).concat("\0"));
	return hash.digest("hex");
}
