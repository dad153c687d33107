import { createHash, X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { namesIn, statOf } from "./durable.ts";
import { leaveEtcd } from "./etcd-members.ts";
import { pointKubelet } from "./kubelet.ts";
import type { Primitive, StepContext } from "./primitive.ts";
import { endStandIn } from "./stand-in.ts";
import {
	changeVersion,
	damageOf,
	forgetVersions,
	lastSnapshot,
	repairNode,
	settleVersion,
	type VersionedNode,
	versionProblem,
} from "./version-change.ts";

const kubeadmWant = z.object({
	mode: z.enum(["init", "join-control-plane", "join-worker"]),
	/** Path of the kubeadm configuration (kubeadm.k8s.io/v1beta4). */
	config: z.string().startsWith("/"),
	/** Directory of kubeadm's patches for this host. */
	patches: z.string().startsWith("/"),
	nodeName: z.string(),
	nodeAddress: z.string(),
	version: z.string(),
	/** Path of this version's kubelet. */
	kubelet: z.string().regex(/^\/opt\/groundplane\/kubernetes\/v[^/]+\/kubelet$/),
	/** Image of this version's CoreDNS. */
	coreDns: z.string().default(""),
	ignorePreflightErrors: z.array(z.string()).default([]),
	skipPhases: z.array(z.string()).default([]),
	/** Publish the control plane's certificates for others to join (the key is in the configuration). */
	uploadCertificates: z.stringbool().or(z.boolean()).default(false),
});
type Want = z.output<typeof kubeadmWant>;

const kubeadmMemory = z.object({ mode: z.string(), nodeName: z.string() });

const KUBERNETES = "/etc/kubernetes";
const ADMIN = `${KUBERNETES}/admin.conf`;
const KUBELET_IDENTITY = `${KUBERNETES}/kubelet.conf`;
const CRI_SOCKET = "unix:///run/containerd/containerd.sock";

/**
 * A node of a Kubernetes cluster, made by kubeadm and unmade by `kubeadm reset`.
 *
 * Once it was made to the end it is never made again, whatever happens to it: that could destroy a cluster. Before that,
 * what a crash left is finished when it came up, and reset and done again when it did not; see {@link decide}.
 */
export const kubeadm: Primitive<Want, z.output<typeof kubeadmMemory>> = {
	schema: kubeadmWant,
	key: () => "node",
	async observe(want, context, applied) {
		if (applied.last === undefined) return { ok: false, why: `this host is not yet ${describe(want)}` };
		if (!(await statOf(KUBELET_IDENTITY)))
			throw new GroundplaneError("StepFailed", `${KUBELET_IDENTITY} is gone: someone reset this node by hand`, {
				next: "Remove this host from its cluster and add it again; nothing is made anew by itself, since that could destroy a cluster.",
			});
		const why = (await versionProblem(versioned(want), context.now())) ?? (await damageOf(context));
		return why === undefined ? { ok: true, outputs: await outputsOf(want) } : { ok: false, why };
	},
	async remember({ mode, nodeName }) {
		const foreign = (await namesIn(`${KUBERNETES}/manifests`)).length > 0 || (await statOf("/var/lib/etcd/member"));
		if (foreign || (await statOf(KUBELET_IDENTITY)))
			throw new GroundplaneError("PrerequisiteNotMet", "this host already is a node of a Kubernetes cluster", {
				next: "If that cluster is no longer needed, run `kubeadm reset` on the host; otherwise take another host.",
			});
		return { mode, nodeName };
	},
	async apply(want, context, applied) {
		if (applied.last !== undefined) {
			const another = (await versionProblem(versioned(want), context.now())) !== undefined;
			return another ? changeVersion(versioned(want), context) : repairNode(versioned(want), context);
		}
		await pointKubelet(want.kubelet);
		await create(want, context);
		await settleVersion(want.version);
	},
	async undo({ mode, nodeName }, context) {
		const skipEtcd = mode !== "join-worker" && (await leaveEtcd(nodeName, context));
		await reset(context, { skipEtcd });
		await endStandIn(context);
		await forgetVersions();
	},
};

const versioned = ({ mode, ...want }: Want): VersionedNode => ({ ...want, controlPlane: mode !== "join-worker" });

async function create(want: Want, context: StepContext): Promise<void> {
	let decision = decide(want.mode, await inspect());
	if (decision === "resume" && !(await comesUp(want, context))) decision = "redo";
	context.log(`kubeadm ${want.mode}: ${decision}`);
	if (decision === "resume") return finish(want, context);
	if (decision === "redo") await reset(context, { skipEtcd: want.mode !== "join-control-plane" });
	await make(want, context);
}

/** What kubeadm left on the disk. */
export interface Found {
	readonly etcdData: boolean;
	readonly apiServerManifest: boolean;
	readonly adminConfig: boolean;
	readonly kubeletConfig: boolean;
	readonly kubeletIdentity: boolean;
	readonly anything: boolean;
}

/**
 * What to do about a node that was never finished. `resume` means: as far as the files tell, it can come up; give it time,
 * and if it does, run the phases that remain. Only a control plane that does not come up, or one that lacks files it
 * can't do without, is reset, and no other node has joined it then, since joins wait for this step to be done.
 */
export function decide(mode: Want["mode"], found: Found): "fresh" | "resume" | "redo" {
	if (!found.anything) return "fresh";
	if (!found.kubeletConfig || !found.kubeletIdentity) return "redo";
	if (mode === "join-worker") return "resume";
	return found.etcdData && found.apiServerManifest && found.adminConfig ? "resume" : "redo";
}

async function inspect(): Promise<Found> {
	const there = async (path: string) => (await statOf(path)) !== undefined;
	const kubeletConfig = await there("/var/lib/kubelet/config.yaml");
	const kubeletIdentity = (await there(KUBELET_IDENTITY)) || (await there(`${KUBERNETES}/bootstrap-kubelet.conf`));
	const left = [...(await namesIn(KUBERNETES)), ...(await namesIn("/var/lib/etcd"))].filter(
		(name) => name !== "manifests" && name !== "tmp",
	);
	return {
		etcdData: await there("/var/lib/etcd/member"),
		apiServerManifest: await there(`${KUBERNETES}/manifests/kube-apiserver.yaml`),
		adminConfig: await there(ADMIN),
		kubeletConfig,
		kubeletIdentity,
		anything: kubeletConfig || left.length > 0 || (await namesIn(`${KUBERNETES}/manifests`)).length > 0,
	};
}

/** Gives a half-made node two minutes to come up by itself. */
async function comesUp(want: Want, { exec, signal, now }: StepContext): Promise<boolean> {
	await exec("systemctl", ["start", "kubelet"], { signal, codes: true });
	const question =
		want.mode === "join-worker"
			? ["--kubeconfig", KUBELET_IDENTITY, "get", "node", want.nodeName, "--output=name"]
			: ["--kubeconfig", ADMIN, `--server=https://${want.nodeAddress}:6443`, "get", "--raw=/readyz"];
	const deadline = now() + 120_000;
	while (now() < deadline) {
		const { code } = await exec("kubectl", ["--request-timeout=5s", ...question], { signal, codes: true });
		if (code === 0) return true;
		await sleep(2000, undefined, { signal });
	}
	return false;
}

async function make(want: Want, { exec, signal }: StepContext): Promise<void> {
	await exec("kubeadm", [...verb(want), ...phases(want, [])], { signal });
}

/** The phases that may still be missing once the control plane answers; all of them can be run again. */
async function finish(want: Want, { exec, signal }: StepContext): Promise<void> {
	if (want.mode === "init") {
		const done = ["preflight", "certs", "kubeconfig", "etcd", "control-plane", "kubelet-start"];
		await exec("kubeadm", [...verb(want), ...phases(want, done)], { signal });
	}
	if (want.mode === "join-control-plane")
		await exec("kubeadm", ["join", "phase", "control-plane-join", "mark-control-plane", "--config", want.config], {
			signal,
		});
}

const verb = ({ mode, config, ignorePreflightErrors }: Want) => [
	mode === "init" ? "init" : "join",
	"--config",
	config,
	...(ignorePreflightErrors.length > 0 ? [`--ignore-preflight-errors=${ignorePreflightErrors.join(",")}`] : []),
];

function phases({ mode, skipPhases, uploadCertificates }: Want, done: readonly string[]): string[] {
	const skipped = [...done, ...skipPhases, ...(mode === "init" ? ["show-join-command"] : [])];
	return [
		...(mode === "init" && uploadCertificates ? ["--upload-certs"] : []),
		...(skipped.length > 0 ? [`--skip-phases=${skipped.join(",")}`] : []),
	];
}

/** With `skipEtcd` its member is gone already: kubeadm would ask for it at length, of an API server that has just lost its etcd. */
async function reset({ exec, signal }: StepContext, { skipEtcd }: { skipEtcd: boolean }): Promise<void> {
	await exec(
		"kubeadm",
		[
			"reset",
			"--force",
			"--cleanup-tmp-dir",
			`--cri-socket=${CRI_SOCKET}`,
			...(skipEtcd ? ["--skip-phases=remove-etcd-member"] : []),
		],
		{ signal },
	);
	// What `reset` leaves although `init` and `join` trip over it.
	for (const path of ["/var/lib/etcd/member", "/var/lib/kubelet/config.yaml"])
		await exec("rm", ["-rf", "--one-file-system", path], { signal });
}

async function outputsOf({ mode, nodeName, nodeAddress, version }: Want): Promise<Record<string, string>> {
	const ca = mode === "join-worker" ? undefined : await readFile(`${KUBERNETES}/pki/ca.crt`, "utf8");
	const etcdSnapshot = await lastSnapshot();
	return {
		mode,
		nodeName,
		nodeAddress,
		kubeletVersion: version,
		...(ca === undefined ? {} : { caCertHash: spkiHash(ca) }),
		...(etcdSnapshot === undefined ? {} : { etcdSnapshot }),
	};
}

/** The pin that `kubeadm join --discovery-token-ca-cert-hash` takes: SHA-256 over the SubjectPublicKeyInfo (RFC 7469). */
export function spkiHash(pem: string): string {
	const spki = new X509Certificate(pem).publicKey.export({ type: "spki", format: "der" });
	return `sha256:${createHash("sha256").update(spki).digest("hex")}`;
}

const describe = ({ mode }: Want) => (mode === "init" ? "a control plane" : "a member of its cluster");
