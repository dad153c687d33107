import { mkdir, readFile, readlink, rename, rm } from "node:fs/promises";
import { get } from "node:http";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parse } from "yaml";
import { z } from "zod";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { compareVersions, minorsBetween } from "../../protocol/versions.ts";
import { isMissing, makeDirectories, namesIn, statOf, syncDirectory, writeDurable } from "./durable.ts";
import { keepIdentity, putBackIdentity } from "./identity-files.ts";
import { KUBELET_PLACES, startKubelet } from "./kubelet.ts";
import type { StepContext } from "./primitive.ts";
import { endStandIn, standIn } from "./stand-in.ts";
import {
	endedMost,
	endOfLog,
	keepManifests,
	MANIFESTS,
	manifestsIn,
	missingManifests,
	putBackManifests,
	STATIC_PODS,
	staticPodRuns,
} from "./static-pods.ts";

/** What a change of version needs to know of a node. */
export interface VersionedNode {
	readonly version: string;
	readonly controlPlane: boolean;
	readonly nodeName: string;
	readonly nodeAddress: string;
	/** Path of this version's kubelet; the ones of other versions lie beside it. */
	readonly kubelet: string;
	/** Directory of kubeadm's patches for this host. */
	readonly patches: string;
	/** Image of CoreDNS that belongs to this version; empty when the release has none. */
	readonly coreDns: string;
}

const KUBERNETES = "/etc/kubernetes";
const ADMIN = `${KUBERNETES}/admin.conf`;
const KUBELET_IDENTITY = `${KUBERNETES}/kubelet.conf`;
const { link: KUBELET, files: KUBELET_FILES } = KUBELET_PLACES;
/** What changes of version write beside their state; all of it goes with the node. */
const WRITTEN = {
	version: "/etc/groundplane/kubernetes/node-version",
	/** kubeadm's UpgradeConfiguration. */
	upgrade: "/etc/groundplane/kubernetes/kubeadm-upgrade.yaml",
	/** kubeadm's InitConfiguration and ClusterConfiguration, of which it makes manifests. */
	init: "/etc/groundplane/kubernetes/kubeadm-manifests.yaml",
} as const;
const CRI_SOCKET = "unix:///run/containerd/containerd.sock";
const STATE = "/var/lib/groundplane/kubernetes";
const CHANGE = `${STATE}/change.json`;
const BEFORE = `${STATE}/before`;
/** Manifests of the version that comes, until all of them are there. */
const NEXT = `${STATE}/next`;
/** A copy of the manifests that this control plane runs. */
const MANIFESTS_KEPT = `${STATE}/manifests`;
const SNAPSHOTS = `${STATE}/etcd`;
const SNAPSHOTS_KEPT = 3;

/** A change that failed is tried again after this long, not with every look: each try takes the node down for a moment. */
const HOLD_MS = 5 * 60_000;
const API_MS = 60_000;
const HEALTHY_MS = 90_000;
const CRASHES = 3;
/** A program that refuses a flag, or its configuration, has ended by then. */
const STEADY_MS = 3_000;
const LOOK_MS = 1000;
/** For how long a part of a control plane may end by itself. An API server that has no limit for watches waits a minute for them. */
const END_MS = 5_000;
/** For how long the parts of a node may be exchanged: an agent that is stopped meanwhile finishes that first. */
const REPLACE_MS = 25_000;

const changeSchema = z.object({
	from: z.string(),
	to: z.string(),
	failure: z.object({ at: z.number(), message: z.string() }).optional(),
});
/** A change that was begun and not finished. */
export type Change = z.output<typeof changeSchema>;

/** What to do about a node's version. `held` means: it failed a moment ago. */
export type Route = "none" | "kubelet" | "forward" | "back" | "held";

/**
 * Where a node at `current`, with a change begun or not, goes to be at `wanted`. Back to where a begun change came from leads
 * over the files kept from then, which needs no API server; everything else over kubeadm, one minor at a time.
 */
export function routeOf(
	current: string,
	change: Change | undefined,
	wanted: string,
	{ linked, now }: { readonly linked: boolean; readonly now: number },
): Route {
	if (!change) return current !== wanted ? "forward" : linked ? "none" : "kubelet";
	if (change.from === wanted) return "back";
	const { failure } = change;
	return failure && change.to === wanted && now - failure.at < HOLD_MS ? "held" : "forward";
}

/** Why the node is not at the version, for people; undefined when it is. */
export async function versionProblem(node: VersionedNode, now: number): Promise<string | undefined> {
	const current = await currentVersion(node.version);
	const change = await begunChange();
	const linked = (await readlink(KUBELET).catch(() => "")) === node.kubelet;
	if (routeOf(current, change, node.version, { linked, now }) === "none") return undefined;
	if (change) return `the change from ${change.from} to ${change.to} was not finished`;
	return current === node.version
		? `${KUBELET} is not that of ${current}`
		: `this node is at ${current}, not ${node.version}`;
}

/** Marks a node as made with this version, or changed to it. */
export async function settleVersion(version: string): Promise<void> {
	await makeDirectories(STATE, 0o700);
	await keepManifests(MANIFESTS_KEPT);
	await makeDirectories(dirname(WRITTEN.version));
	await writeDurable(WRITTEN.version, version);
}

/** What somebody took away from a node that is at its version; undefined when nothing is missing. */
export async function damageOf({ exec, signal }: StepContext): Promise<string | undefined> {
	const missing = await missingManifests(MANIFESTS_KEPT);
	if (missing.length > 0) return `${missing.map((name) => join(MANIFESTS, name)).join(", ")} was removed`;
	const { stdout } = await exec("systemctl", ["is-active", "kubelet.service"], { signal, codes: true });
	// One that crashes is started by systemd again and again (`activating`).
	return ["inactive", "failed"].includes(stdout.trim()) ? "the kubelet is stopped" : undefined;
}

/** Puts back what {@link damageOf} misses, and waits until the node does its work again. */
export async function repairNode(node: VersionedNode, context: StepContext): Promise<void> {
	context.log("repairing the node");
	await putBackManifests(MANIFESTS_KEPT);
	await startKubelet(node.kubelet, context);
	await judge(node, context);
}

/** Removes everything that was kept for changes of version. */
export async function forgetVersions(): Promise<void> {
	for (const path of Object.values(WRITTEN)) await rm(path, { force: true });
	await rm(STATE, { recursive: true, force: true });
	if ((await statOf(KUBELET))?.isSymbolicLink()) await rm(KUBELET, { force: true });
}

/** When the last snapshot of etcd was taken (ISO 8601), if one was. */
export async function lastSnapshot(): Promise<string | undefined> {
	const last = (await namesIn(SNAPSHOTS))
		.filter((name) => name.endsWith(".db"))
		.sort()
		.at(-1);
	return last?.replace(/^(\d{4}-\d\d-\d\dT\d\d)(\d\d)(\d\d)Z.*$/, "$1:$2:$3Z");
}

/**
 * Brings a node to a version, up or down, and can be run again after a crash at any line of it.
 *
 * A change that fails puts the node back to the version that it had, from files, and is reported with what failed and why.
 * Going back all the way also sets the cluster's configuration back, by kubeadm, which goes down by one minor at most.
 * etcd is never taken to an older minor, whose data it could not read: it stays at the newer one, which older API servers use
 * just as well; within a minor its manifest goes back with the others. The snapshot is for a person whose data was damaged.
 */
export async function changeVersion(node: VersionedNode, context: StepContext): Promise<void> {
	const current = await currentVersion(node.version);
	const begun = await begunChange();
	const route = routeOf(current, begun, node.version, { linked: false, now: context.now() });
	context.log(`version ${node.version}: ${route}`);
	if (route === "held") throw failed(begun?.failure?.message ?? "");
	if (route === "kubelet") {
		await startKubelet(node.kubelet, context);
		return judge(node, context);
	}
	if (route === "back") {
		await restore(node, context);
		await judge(node, context);
		// The files are all there is to it, unless the cluster had been configured for the other version already.
		if (node.controlPlane && versionOf(await clusterConfiguration(context)) !== node.version)
			await changeControlPlane(node, context, { down: true });
		return finish(node, begun?.to ?? node.version);
	}
	const change: Change = { from: begun?.from ?? current, to: node.version };
	if (minorsBetween(change.from, change.to) > 1)
		throw new GroundplaneError("PrerequisiteNotMet", `from ${change.from} to ${change.to} is more than one minor`, {
			next: "Go one minor at a time.",
		});
	if (!begun) {
		if (node.controlPlane) await snapshot(current, context);
		await keepFiles(node);
	}
	await writeDurable(CHANGE, JSON.stringify(change), 0o600);
	const down = compareVersions(node.version, current) < 0;
	try {
		await (node.controlPlane ? changeControlPlane(node, context, { down }) : changeWorker(node, context, { down }));
	} catch (error) {
		// Something else is wanted now, or the agent stops: whoever comes next finds what was begun.
		context.signal.throwIfAborted();
		const { message } = asGroundplaneError(error);
		const outcome = await restore(node, context)
			.then(() => judge({ ...node, version: change.from }, context))
			.then(
				() => `this node runs ${change.from} again`,
				(problem: unknown) => `and it did not come back to ${change.from}: ${asGroundplaneError(problem).message}`,
			);
		const text = `the change to ${node.version} failed: ${message}; ${outcome}`;
		await writeDurable(CHANGE, JSON.stringify({ ...change, failure: { at: context.now(), message: text } }), 0o600);
		throw failed(text);
	}
	await finish(node, change.from);
}

const failed = (message: string) =>
	new GroundplaneError("StepFailed", message, {
		next: "Set the version back, or mend the cause: it is tried again every five minutes.",
	});

async function finish({ version, kubelet }: VersionedNode, other: string): Promise<void> {
	await settleVersion(version);
	await clearKubeadmBackups();
	await rm(CHANGE, { force: true });
	await syncDirectory(STATE);
	const versions = dirname(dirname(kubelet));
	for (const name of await namesIn(versions))
		if (/^v\d/.test(name) && name !== version && name !== other)
			await rm(join(versions, name), { recursive: true, force: true });
}

/** The version that the node was made with or last changed to. */
async function currentVersion(otherwise: string): Promise<string> {
	return readFile(WRITTEN.version, "utf8").catch((error: unknown) => {
		if (isMissing(error)) return otherwise;
		throw error;
	});
}

async function begunChange(): Promise<Change | undefined> {
	try {
		return changeSchema.parse(JSON.parse(await readFile(CHANGE, "utf8")));
	} catch (error) {
		if (isMissing(error)) return undefined;
		throw error;
	}
}

/** Keeps what kubeadm is about to change on this host, whole or not at all. */
async function keepFiles({ controlPlane }: VersionedNode): Promise<void> {
	const fresh = `${BEFORE}.new`;
	await rm(fresh, { recursive: true, force: true });
	await mkdir(join(fresh, "manifests"), { recursive: true, mode: 0o700 });
	for (const [name, content] of await manifestsIn(MANIFESTS))
		await writeDurable(join(fresh, "manifests", name), content, 0o600);
	for (const path of KUBELET_FILES)
		if (await statOf(path)) await writeDurable(join(fresh, keptName(path)), await readFile(path), 0o600);
	await writeDurable(join(fresh, "kubelet"), await readlink(KUBELET));
	if (controlPlane) await keepIdentity(join(fresh, "identity"));
	await rm(BEFORE, { recursive: true, force: true });
	await rename(fresh, BEFORE);
	await syncDirectory(STATE);
}

const keptName = (path: string) => path.slice(path.lastIndexOf("/") + 1);

/** Puts back what {@link keepFiles} kept, and starts the kubelet that belongs to it. */
async function restore(node: VersionedNode, context: StepContext): Promise<void> {
	context.log("putting back the files of the version before");
	await makeDirectories(MANIFESTS, 0o700);
	for (const path of KUBELET_FILES) {
		const kept = await readFile(join(BEFORE, keptName(path))).catch(() => undefined);
		if (kept) await writeDurable(path, kept);
	}
	await putBackIdentity(join(BEFORE, "identity"));
	const kept = await manifestsIn(join(BEFORE, "manifests"));
	if (!mayReturnToEtcd(await readManifest("etcd.yaml"), kept.get("etcd.yaml") ?? "")) kept.delete("etcd.yaml");
	await replace(kept, await readFile(join(BEFORE, "kubelet"), "utf8"), node, context);
}

const etcdVersion = (manifest: string) => /image:\s*\S*etcd:v?(\d+\.\d+\.\d+)/.exec(manifest)?.[1] ?? "";

/** Whether etcd may go back from one manifest to another: only within a minor can it read what the other wrote. */
export function mayReturnToEtcd(running: string, kept: string): boolean {
	return running === "" || minorsBetween(etcdVersion(running), etcdVersion(kept)) === 0;
}

/** Whether etcd goes on to another manifest: as in kubeadm, only to a newer version. For less it is not stopped. */
export function mayGoOnToEtcd(running: string, next: string): boolean {
	return etcdVersion(next) !== "" && compareVersions(etcdVersion(next), etcdVersion(running)) > 0;
}

/**
 * Puts manifests and a kubelet in the place of those that run. The kubelet rests meanwhile, and what changes is ended here: left
 * to itself it would first ask the API server, which hangs without its etcd (34 s), wait ten seconds or more before it makes a
 * static pod anew, and a kubelet of another minor, which counts their digests otherwise, makes all of them once more.
 */
async function replace(
	manifests: ReadonlyMap<string, string>,
	kubelet: string,
	{ controlPlane, nodeAddress }: Pick<VersionedNode, "controlPlane" | "nodeAddress">,
	context: StepContext,
): Promise<void> {
	const running = await manifestsIn(MANIFESTS);
	const changed = [...manifests].filter(([name, content]) => running.get(name) !== content);
	const another = minorsBetween(versionOfKubelet(await readlink(KUBELET)), versionOfKubelet(kubelet)) > 0;
	const ended = endedWith(
		changed.map(([name]) => name),
		[...running.keys()],
		another,
	);
	if (controlPlane && ended.length > 0) await standIn(nodeAddress, ADMIN, context);
	context.signal.throwIfAborted();
	// Nothing breaks it off from here on: an agent that is told to stop has 30 s (gp-agent.service), and would leave a node that rests.
	const unbroken: StepContext = { ...context, signal: AbortSignal.timeout(REPLACE_MS) };
	const { exec, signal } = unbroken;
	if (ended.length > 0) {
		await exec("systemctl", ["stop", "kubelet.service"], { signal });
		for (const names of STATIC_PODS)
			await end(
				names.filter((name) => ended.includes(`${name}.yaml`)),
				unbroken,
			);
		for (const [name, content] of changed) await writeDurable(join(MANIFESTS, name), content, 0o600);
	}
	await startKubelet(kubelet, unbroken);
}

/**
 * Which static pods end when the manifests of some change. With etcd all of them do: an API server that runs on without it holds
 * up the kubelet, which asks it before it starts anything, etcd too. Neither would ever come back.
 */
export const endedWith = (changed: readonly string[], running: readonly string[], anotherKubelet: boolean): string[] =>
	anotherKubelet || changed.includes("etcd.yaml") ? [...running] : [...changed];

const versionOfKubelet = (path: string) => path.split("/").at(-2) ?? "";

/** Ends the containers of static pods, and waits until they have. */
async function end(names: readonly string[], { exec, signal, now, log }: StepContext): Promise<void> {
	if (names.length === 0) return;
	const ctr = async (...args: string[]) => (await exec("ctr", ["--namespace=k8s.io", ...args], { signal })).stdout;
	const filters = names.map(
		(name) => `labels."io.kubernetes.pod.namespace"==kube-system,labels."io.kubernetes.container.name"==${name}`,
	);
	const containers = (await ctr("containers", "list", "--quiet", ...filters)).split("\n");
	const running = async () => runningTasks(await ctr("tasks", "list")).filter((id) => containers.includes(id));
	for (const [kind, patience] of [
		["SIGTERM", END_MS],
		["SIGKILL", END_MS],
	] as const) {
		const left = await running();
		if (left.length > 0 && kind === "SIGKILL") log(`${names.join(", ")}: not all have ended by themselves`);
		for (const id of left)
			await exec("ctr", ["--namespace=k8s.io", "tasks", "kill", "--signal", kind, id], { signal, codes: true });
		for (const deadline = now() + patience; (await running()).length > 0 && now() < deadline; )
			await sleep(200, undefined, { signal });
	}
}

/** Ids of the tasks that run, of what `ctr tasks list` prints. */
export const runningTasks = (table: string): string[] =>
	[...table.matchAll(/^(\S+)\s+\d+\s+RUNNING\s*$/gm)].map((match) => match[1] ?? "");

/** Before anything is changed: a snapshot of etcd, of which the newest few are kept. */
async function snapshot(version: string, { exec, signal, now, log }: StepContext): Promise<void> {
	await mkdir(SNAPSHOTS, { recursive: true, mode: 0o700 });
	const old = (await namesIn(SNAPSHOTS)).sort();
	const whole = old.filter((name) => name.endsWith(".db"));
	const done = [...old.filter((name) => !whole.includes(name)), ...whole.slice(0, -(SNAPSHOTS_KEPT - 1))];
	for (const name of done) await rm(join(SNAPSHOTS, name), { force: true });
	const at = new Date(now())
		.toISOString()
		.replace(/\.\d+Z$/, "Z")
		.replaceAll(":", "");
	const path = join(SNAPSHOTS, `${at}-${version}.db`);
	try {
		await exec("etcdctl", [...etcdIdentity, "snapshot", "save", `${path}.part`], { signal });
		await rename(`${path}.part`, path);
		await syncDirectory(SNAPSHOTS);
	} catch (error) {
		for (const name of await namesIn(SNAPSHOTS))
			if (!name.endsWith(".db")) await rm(join(SNAPSHOTS, name), { force: true });
		signal.throwIfAborted();
		// etcdctl logs at length before it says what was wrong.
		const why = /Error: (.*)$/s.exec(asGroundplaneError(error).message)?.[1] ?? asGroundplaneError(error).message;
		throw new GroundplaneError("StepFailed", `no snapshot of etcd could be taken, and nothing was changed: ${why}`, {
			next: `Look at the room in ${STATE} and at etcd; it is tried again by itself.`,
			cause: error,
		});
	}
	log(`snapshot of etcd: ${path}`);
}

/** How etcdctl speaks to this host's member. */
export const etcdIdentity: readonly [endpoints: string, ...identity: string[]] = [
	"--endpoints=https://127.0.0.1:2379",
	`--cacert=${KUBERNETES}/pki/etcd/ca.crt`,
	`--cert=${KUBERNETES}/pki/etcd/healthcheck-client.crt`,
	`--key=${KUBERNETES}/pki/etcd/healthcheck-client.key`,
];

/** A worker takes the kubelet's configuration of the cluster. One that is newer is not for an older kubelet, whose own was put back or never changed. */
async function changeWorker(node: VersionedNode, context: StepContext, { down }: { down: boolean }): Promise<void> {
	if (!down) await kubeadmUpgrade("node", ["preflight"], node, context);
	await startKubelet(node.kubelet, context);
	await judge(node, context);
}

/**
 * The phases of `kubeadm upgrade`, with its long one, `control-plane`, done otherwise: the manifests of all parts are made first,
 * by kubeadm too, and then put in place at once together with the kubelet (see {@link replace}). The first control plane of a
 * change also configures the cluster; the add-ons follow with the last one.
 */
async function changeControlPlane(
	node: VersionedNode,
	context: StepContext,
	{ down }: { down: boolean },
): Promise<void> {
	const { exec, signal, log } = context;
	// Whoever was stopped in the middle of it left the kubelet resting.
	await exec("systemctl", ["start", "kubelet.service"], { signal });
	const cluster = await clusterConfiguration(context);
	const leads = versionOf(cluster) !== node.version;
	log(`kubeadm upgrade: the cluster is configured for ${versionOf(cluster)}`);
	const endpoint = advertised(await readManifest("kube-apiserver.yaml")) ?? `${node.nodeAddress}:6443`;
	await writeDurable(WRITTEN.init, manifestConfiguration(cluster, node, endpoint), 0o600);
	const next = await nextManifests(context);
	if (!mayGoOnToEtcd(await readManifest("etcd.yaml"), next.get("etcd.yaml") ?? "")) next.delete("etcd.yaml");
	await kubeadmUpgrade("node", ["preflight", "control-plane", "addon", "post-upgrade"], node, context);
	if (!down) await exec("kubeadm", ["certs", "renew", "all", `--config=${WRITTEN.init}`], { signal });

	await replace(next, node.kubelet, node, context);
	await judge(node, context);

	// CoreDNS has no way back in kubeadm; see below.
	const done = ["preflight", "control-plane", "kubelet-config", ...(down ? ["addon/coredns"] : [])];
	await kubeadmUpgrade(leads ? "apply" : "node", done, node, context);
	if (down && leads && !isCoreDnsOff(cluster)) await setCoreDns(node, context);
}

/** Runs phases of `kubeadm upgrade`: all but those that are named. Its preflight never: its checks are ours already, but for a pod that it starts anywhere from an image that only upgraded nodes have. */
async function kubeadmUpgrade(
	kind: "apply" | "node",
	skipPhases: readonly string[],
	{ version, patches }: VersionedNode,
	{ exec, signal }: StepContext,
): Promise<void> {
	const common = { imagePullPolicy: "IfNotPresent", patches: { directory: patches } };
	const config = {
		apiVersion: "kubeadm.k8s.io/v1beta4",
		kind: "UpgradeConfiguration",
		apply: { ...common, kubernetesVersion: version, forceUpgrade: true },
		node: common,
	};
	await writeDurable(WRITTEN.upgrade, JSON.stringify(config, null, "\t"), 0o600);
	await clearKubeadmBackups();
	await exec("kubeadm", ["upgrade", kind, `--config=${WRITTEN.upgrade}`, `--skip-phases=${skipPhases.join(",")}`], {
		signal,
	});
}

/** What kubeadm makes manifests of: the configuration that the cluster has, for this version and this node. */
export function manifestConfiguration(
	cluster: string,
	{ version, nodeName, patches }: Pick<VersionedNode, "version" | "nodeName" | "patches">,
	endpoint: string,
): string {
	const [, advertiseAddress, port] = /^(.*):(\d+)$/.exec(endpoint) ?? [];
	const node = {
		apiVersion: "kubeadm.k8s.io/v1beta4",
		kind: "InitConfiguration",
		localAPIEndpoint: { advertiseAddress, bindPort: Number(port) },
		nodeRegistration: { name: nodeName, criSocket: CRI_SOCKET },
		patches: { directory: patches },
	};
	return `${JSON.stringify(node)}\n---\n${cluster.replace(/^kubernetesVersion:.*$/m, `kubernetesVersion: ${version}`)}`;
}

/** Where kubeadm noted that this node's API server is. */
const advertised = (manifest: string): string | undefined =>
	/kube-apiserver\.advertise-address\.endpoint:\s*"?([\d.]+:\d+)/.exec(manifest)?.[1];

/** Manifests by kubeadm, made beside those that are in use: a dry run writes the very same into a directory of our choice. */
async function nextManifests({ exec, signal }: StepContext): Promise<Map<string, string>> {
	await rm(NEXT, { recursive: true, force: true });
	await mkdir(NEXT, { recursive: true, mode: 0o700 });
	const options = { signal, env: { KUBEADM_INIT_DRYRUN_DIR: NEXT } };
	for (const phase of [
		["control-plane", "all"],
		["etcd", "local"],
	])
		await exec("kubeadm", ["init", "phase", ...phase, "--dry-run", `--config=${WRITTEN.init}`], options);
	const next = await manifestsIn(NEXT);
	await rm(NEXT, { recursive: true, force: true });
	return next;
}

/**
 * CoreDNS of the older version, which the hosts of that version have, with the configuration that it has. kubeadm's migration
 * only drops what newer versions no longer know, so an older one reads it too.
 */
async function setCoreDns({ coreDns }: VersionedNode, { exec, signal }: StepContext): Promise<void> {
	if (coreDns === "") return;
	const kubectl = (...args: string[]) => ["--kubeconfig", ADMIN, "-n", "kube-system", ...args];
	const names = await exec("kubectl", kubectl("get", "deployments", "-o", "name"), { signal });
	if (names.stdout.split("\n").includes("deployment.apps/coredns"))
		await exec("kubectl", kubectl("set", "image", "deployment/coredns", `coredns=${coreDns}`), { signal });
}

/** Whether kubeadm leaves the cluster's DNS to others (`dns.disabled` of its ClusterConfiguration). */
export const isCoreDnsOff = (cluster: string): boolean =>
	(parse(cluster) as { dns?: { disabled?: boolean } } | null)?.dns?.disabled === true;

/** kubeadm keeps a copy of etcd's data and of its files for every try, for ever; ours are bounded, and whole. */
async function clearKubeadmBackups(): Promise<void> {
	for (const name of await namesIn(`${KUBERNETES}/tmp`))
		if (name.startsWith("kubeadm-")) await rm(join(KUBERNETES, "tmp", name), { recursive: true, force: true });
}

/** kubeadm's configuration of the cluster (ClusterConfiguration, YAML); waits for an API server, this host's or another. */
async function clusterConfiguration({ exec, signal, now }: StepContext): Promise<string> {
	const question = [
		"-n",
		"kube-system",
		"get",
		"configmap",
		"kubeadm-config",
		"-o",
		"jsonpath={.data.ClusterConfiguration}",
	];
	for (const deadline = now() + API_MS; ; ) {
		const answer = await exec("kubectl", ["--kubeconfig", ADMIN, "--request-timeout=5s", ...question], {
			signal,
			codes: true,
		});
		if (versionOf(answer.stdout) !== undefined) return answer.stdout;
		if (now() > deadline)
			throw new GroundplaneError(
				"KubernetesUnavailable",
				`no API server answers: ${answer.stderr.trim().slice(-200)}`,
				{
					next: "Look at crictl ps and journalctl -u kubelet on the control planes.",
				},
			);
		await sleep(2000, undefined, { signal });
	}
}

const versionOf = (cluster: string): string | undefined => /^kubernetesVersion:\s*(\S+)$/m.exec(cluster)?.[1];

/** Waits until the node does its work at its version; sees early when it will not. */
async function judge(node: VersionedNode, context: StepContext): Promise<void> {
	await waitHealthy(node, context);
	await endStandIn(context);
}

async function waitHealthy(node: VersionedNode, context: StepContext): Promise<void> {
	const { exec, signal, now } = context;
	const deadline = now() + HEALTHY_MS;
	const before = await staticPodRuns(node.nodeName);
	for (;;) {
		const why = await unhealthy(node, context);
		if (why === undefined) return;
		const { stdout } = await exec("systemctl", ["show", "--property=NRestarts", "--value", "kubelet.service"], {
			signal,
			codes: true,
		});
		const crashes = Number(stdout);
		if (crashes >= CRASHES)
			throw new GroundplaneError(
				"StepFailed",
				`the kubelet ended ${crashes} times in a row: ${await lastWords(context)}`,
				{ next: "Look at journalctl -u kubelet on the host." },
			);
		const ended = endedMost(before, await staticPodRuns(node.nodeName));
		const isOver = now() > deadline;
		if (ended && (ended.times >= CRASHES || isOver)) {
			const times = ended.times === 1 ? "once" : `${ended.times} times`;
			const what = `${ended.name} ended ${times}: ${complaintIn(await endOfLog(ended.log))}`;
			// One that ended a single time may have been ended by us.
			throw new GroundplaneError("StepFailed", ended.times >= CRASHES ? what : `${why}; ${what}`, {
				next: `Look at ${ended.log} on the host.`,
			});
		}
		if (isOver) throw new GroundplaneError("StepFailed", why, { next: "Look at journalctl -u kubelet on the host." });
		await sleep(LOOK_MS, undefined, { signal });
	}
}

async function unhealthy(node: VersionedNode, { exec, signal, now }: StepContext): Promise<string | undefined> {
	if (!(await kubeletAnswers())) return "the kubelet does not answer on its health port";
	const ask = (...question: string[]) =>
		exec("kubectl", ["--request-timeout=5s", ...question], { signal, codes: true });
	if (node.controlPlane) {
		const local = ["--kubeconfig", ADMIN, `--server=https://${node.nodeAddress}:6443`];
		const { code, stdout, stderr } = await ask(...local, "get", "--raw=/readyz");
		if (code !== 0) return `the API server of this host is not ready: ${stderr.trim().slice(-200)}`;
		if (stdout.trim() !== "ok") return "the API server of this host is not ready";
		const version = (await ask(...local, "get", "--raw=/version")).stdout;
		if (!version.includes(`"${node.version}"`)) return `the API server of this host is not at ${node.version}`;
		const ofNode = ["--selector=tier=control-plane", `--field-selector=spec.nodeName=${node.nodeName}`];
		const pods = await ask(...local, "get", "pods", "--namespace=kube-system", ...ofNode, "-o", "json");
		if (pods.code !== 0) return `the control plane's pods can't be asked for: ${pods.stderr.trim().slice(-200)}`;
		const running = await manifestsIn(MANIFESTS);
		const problem = staticPodProblem(JSON.parse(pods.stdout) as PodList, running, node.nodeName, now());
		if (problem !== undefined) return problem;
	}
	const { code, stdout, stderr } = await ask(
		"--kubeconfig",
		KUBELET_IDENTITY,
		"get",
		"node",
		node.nodeName,
		"-o",
		"json",
	);
	if (code !== 0) return `the node can't be asked for: ${stderr.trim().slice(-200)}`;
	return nodeProblem(JSON.parse(stdout) as NodeObject, node.version);
}

interface NodeObject {
	readonly status?: {
		readonly nodeInfo?: { readonly kubeletVersion?: string };
		readonly conditions?: readonly { readonly type: string; readonly status: string; readonly message?: string }[];
	};
}

/** What keeps a Node from being Ready at a version. */
export function nodeProblem({ status }: NodeObject, version: string): string | undefined {
	const running = status?.nodeInfo?.kubeletVersion;
	if (running !== version) return `the node is at ${running}, not ${version}`;
	const ready = status?.conditions?.find(({ type }) => type === "Ready");
	return ready?.status === "True" ? undefined : `the node is not ready: ${ready?.message ?? "it has not said so"}`;
}

interface PodList {
	readonly items: readonly {
		readonly metadata: { readonly name: string };
		readonly spec: { readonly containers: readonly { readonly image: string }[] };
		readonly status?: {
			readonly phase?: string;
			readonly containerStatuses?: readonly {
				readonly state?: {
					readonly running?: { readonly startedAt?: string };
					readonly waiting?: { readonly reason?: string };
				};
			}[];
		};
	}[];
}

/**
 * Which of a control plane's static pods does not run as its manifest says, as the API server shows it (its mirror pod). kubeadm
 * counts by these pods which control planes have followed, and would leave the add-ons as they are.
 */
export function staticPodProblem(
	{ items }: PodList,
	manifests: ReadonlyMap<string, string>,
	nodeName: string,
	now: number,
): string | undefined {
	for (const [file, manifest] of manifests) {
		const name = `${file.replace(/\.yaml$/, "")}-${nodeName}`;
		const pod = items.find(({ metadata }) => metadata.name === name);
		const isCurrent = pod?.spec.containers.every(({ image }) => manifest.includes(`image: ${image}\n`)) ?? false;
		if (!isCurrent) return `pod ${name} is not made anew`;
		if (pod?.status?.phase !== "Running") return `pod ${name} is ${pod?.status?.phase ?? "not running"}`;
		// Its phase is Running also while its container ends again and again.
		for (const { state } of pod.status.containerStatuses ?? []) {
			if (state?.running === undefined)
				return `pod ${name} does not run: ${state?.waiting?.reason ?? "its container ended"}`;
			if (now - Date.parse(state.running.startedAt ?? "") < STEADY_MS) return `pod ${name} was started a moment ago`;
		}
	}
	return undefined;
}

/** The kubelet's health port (healthzPort of its configuration), which listens on loopback only. */
async function kubeletAnswers(): Promise<boolean> {
	const { promise, resolve } = Promise.withResolvers<boolean>();
	const request = get("http://127.0.0.1:10248/healthz", { timeout: 2000 }, (response) => {
		response.resume();
		resolve(response.statusCode === 200);
	});
	request.on("error", () => resolve(false));
	request.on("timeout", () => request.destroy());
	return promise;
}

/** The last thing that the kubelet said. */
async function lastWords({ exec, signal }: StepContext): Promise<string> {
	const { stdout } = await exec("journalctl", ["--unit=kubelet", "--lines=40", "--output=cat", "--no-pager"], {
		signal,
		codes: true,
	});
	return complaintIn(stdout);
}

/** The line of a log that says why its program ended; of several the last. */
export function complaintIn(text: string): string {
	const lines = text.split("\n").filter((line) => line.trim() !== "");
	const said = lines.filter((line) => !/^(Started|Stopped|Starting|Stopping|kubelet\.service:)/.test(line));
	return (said.findLast((line) => /^[EF]\d{4}|panic|rror/.test(line)) ?? said.at(-1) ?? "it said nothing").slice(
		0,
		300,
	);
}

const readManifest = async (name: string): Promise<string> => (await manifestsIn(MANIFESTS)).get(name) ?? "";
