import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";
import { run } from "../lib/exec.ts";
import type { Report } from "./demo.ts";

/** The management cluster on something else than the lab's own server. Hosts are then the user's own machines. */
const root = process.env.GP_ROOT ?? process.cwd();
const release = join(root, "dist", "release");

/**
 * Installs the core on a cluster that exists already. Its nodes must be able to pull the images that `hack/build` made.
 * `more` are further arguments of `gp server init`.
 */
export async function onExistingCluster(
	kubeconfig: string,
	report: Report,
	more: readonly string[] = [],
): Promise<void> {
	const args = ["server", "init", "--release", release, "--kubeconfig", kubeconfig, ...more];
	report(`Installing the core with gp ${args.join(" ")}`);
	await run(join(root, "hack", "gp"), args, { onLine: report });
	report("Done. Make a region next: docs/operators.md, section Regions.");
}

/** Makes a kind cluster (docker), loads the images into it, and installs the core there. */
export async function onKind(lab: string, report: Report): Promise<void> {
	const name = `groundplane-${lab}`;
	const clusters = await run("kind", ["get", "clusters"], { check: false }).catch((cause) => {
		throw new GroundplaneError("PrerequisiteNotMet", "kind can't be run", {
			next: "Install docker and kind (kind.sigs.k8s.io), or leave out --provider kind.",
			cause,
		});
	});
	const directory = join(root, "dist", "kind");
	const kubeconfig = join(directory, `${name}.kubeconfig`);
	await mkdir(directory, { recursive: true });
	if (!clusters.stdout.split("\n").includes(name)) {
		report(`Making the kind cluster ${name}`);
		const config = join(directory, `${name}.json`);
		await writeFile(config, JSON.stringify(kindConfig));
		await run("kind", ["create", "cluster", "--name", name, "--config", config, "--wait", "3m"], { onLine: report });
	}
	await run("kind", ["export", "kubeconfig", "--name", name, "--kubeconfig", kubeconfig]);
	for (const image of await readdir(join(release, "images"))) {
		report(`Loading ${image}`);
		await run("kind", ["load", "image-archive", join(release, "images", image), "--name", name]);
	}
	const settings = join(directory, `${name}.server.json`);
	await writeFile(settings, JSON.stringify(kindSettings));
	await onExistingCluster(kubeconfig, report, ["--config", settings]);
}

/** The edge listens on the node's 443, and the machine's 443 leads there. */
const EDGE_PORT = 443;
const kindConfig = {
	kind: "Cluster",
	apiVersion: "kind.x-k8s.io/v1alpha4",
	nodes: [{ role: "control-plane", extraPortMappings: [{ containerPort: EDGE_PORT, hostPort: 443 }] }],
};
/** For `gp server init --config`. kind has no load balancer, so that a Service would lead nowhere. */
const kindSettings = { values: { edge: { hostPort: EDGE_PORT } } };
