import { mkdir, readFile, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { LocalBundles } from "../../agent/engine/bundles.ts";
import { Engine, type EngineLog } from "../../agent/engine/engine.ts";
import { NODE_PORTS } from "../../agent/preflight.ts";
import { removeEmptyDirectories, statOf, writeDurable } from "../../agent/primitives/durable.ts";
import { type Exec, type ExecOptions, execute } from "../../agent/primitives/exec.ts";
import { checkHost } from "../../agent/primitives/preflight.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { HostCheck, RoleStatus } from "../../protocol/facts.ts";
import type { KubernetesRoleInput } from "../../protocol/kubernetes-role.ts";
import { imageArchive, newestBundle, type Release } from "./release.ts";
import {
	type Evidence,
	type Metadata,
	CORE_NAMESPACE as NAMESPACE,
	NODE_UNITS,
	type Node,
	type Pod,
	type RegionObject,
	type ReleaseRecord,
	type ServerStatus,
	statusOf,
	type Workload,
} from "./status.ts";
import { storageObjects, VOLUMES } from "./storage.ts";

/** `--config`: what may be different from one management server to another. */
export const serverConfig = z.strictObject({
	/** Name of the node; the host's own when empty. */
	nodeName: z.string().optional(),
	/** Address of the node; the one of its default route when empty. */
	nodeAddress: z.ipv4().optional(),
	podSubnet: z.cidrv4().default("10.244.0.0/16"),
	serviceSubnet: z.cidrv4().default("10.96.0.0/12"),
	/** A further name or address of the API server. */
	endpoint: z.string().optional(),
	/** Values of charts/groundplane, over ours. */
	values: z.record(z.string(), z.unknown()).default({}),
});
export type ServerConfig = z.output<typeof serverConfig>;

export const STATE_DIR = "/var/lib/groundplane/server";
const ADMIN = "/etc/kubernetes/admin.conf";
const KUBEADM_CONFIG = "/etc/groundplane/kubernetes/kubeadm.yaml";
const READY_MS = 3 * 60_000;
const RELEASE_NAME = "groundplane";

export interface ServerOptions {
	readonly stateDir: string;
	readonly signal: AbortSignal;
	/** An existing cluster to use; without it this machine becomes one. */
	readonly kubeconfig?: string | undefined;
	readonly exec?: Exec;
	readonly log?: EngineLog;
}

type Progress = (text: string) => void;

/** The management server: a Kubernetes of one node on this machine (or one that exists), and the core in it. */
export class Server {
	readonly #options: ServerOptions;
	readonly #exec: Exec;

	constructor(options: ServerOptions) {
		this.#options = options;
		this.#exec = options.exec ?? execute;
	}

	/** Everything that this machine must be, each with its result; ports and paths only before the first installation. */
	async checks(): Promise<HostCheck[]> {
		const installed = await this.#hasKubernetes();
		return checkHost({
			cores: 2,
			memoryMiB: 3500,
			disks: installed ? [] : [{ path: "/var/lib", freeGiB: 15 }],
			ports: installed ? [] : [443, ...NODE_PORTS],
			absent: installed ? [] : ["/etc/kubernetes/kubelet.conf", "/run/containerd/containerd.sock"],
			programs: { ip: "iproute2", nft: "nftables", modprobe: "kmod", mount: "mount" },
		});
	}

	/** The role pack `kubernetes` on this machine, by the engine that hosts have. */
	async installKubernetes(release: Release, config: ServerConfig, progress: Progress): Promise<void> {
		const version = newestBundle(release, "kubernetes");
		const parameters: KubernetesRoleInput = {
			cluster: "groundplane",
			mode: "server",
			kubernetesVersion: version,
			nodeName: config.nodeName ?? nodeNameOf(hostname()),
			podSubnet: config.podSubnet,
			serviceSubnet: config.serviceSubnet,
			...(config.nodeAddress === undefined ? {} : { nodeAddress: config.nodeAddress }),
			...(config.endpoint === undefined ? {} : { endpoint: config.endpoint }),
		};
		await this.#converge(
			[{ name: "kubernetes", version, parameters }],
			new LocalBundles(release.directory, release.jwks),
			progress,
		);
		await this.#kubectl(["wait", "node", "--all", "--for=condition=Ready", "--timeout=180s"]);
		await this.#provideAddons(progress);
	}

	/** kubeadm's add-ons are its own affair once they are there; one that somebody deleted is made anew. */
	async #provideAddons(progress: Progress): Promise<void> {
		const workloads = await this.#get<Workload>("deployments,daemonsets", "kube-system");
		for (const addon of ["coredns", "kube-proxy"] as const) {
			if (workloads.some(({ metadata }) => metadata.name === addon)) continue;
			progress(`${addon} is missing: kubeadm makes it anew`);
			await this.#run("kubeadm", ["init", "phase", "addon", addon, `--config=${KUBEADM_CONFIG}`]);
		}
	}

	/** Undoes the role, so that the machine is as it was found, and deletes volumes and state. */
	async removeKubernetes(progress: Progress): Promise<void> {
		const none = new LocalBundles("/nonexistent", { keys: [] });
		await this.#converge([], none, progress);
		await rm(VOLUMES, { recursive: true, force: true });
		await rm(this.#options.stateDir, { recursive: true, force: true });
		await removeEmptyDirectories([dirname(this.#options.stateDir)]);
	}

	/** Imports the release's images into the node's container runtime; those that are there already are left alone. */
	async importImages(release: Release, progress: Progress): Promise<void> {
		const changed: string[] = [];
		const recordPath = join(this.#options.stateDir, "images.json");
		const imported: Record<string, string> = JSON.parse(await readFile(recordPath, "utf8").catch(() => "{}"));
		const { stdout } = await this.#run("ctr", ["-n", "k8s.io", "images", "ls", "-q"]);
		const present = new Set(stdout.split("\n"));
		for (const [index, image] of release.images.entries()) {
			progress(`${index + 1}/${release.images.length} ${image.reference}`);
			if (imported[image.reference] === image.sha256 && present.has(storedName(image.reference))) continue;
			await this.#run("ctr", ["-n", "k8s.io", "images", "import", "--local", await imageArchive(release, image)]);
			await this.#run("ctr", [
				...["-n", "k8s.io", "images", "label"],
				...[storedName(image.reference), "io.cri-containerd.pinned=pinned"],
			]);
			if (imported[image.reference] !== undefined) changed.push(image.reference);
			imported[image.reference] = image.sha256;
			await writeDurable(recordPath, JSON.stringify(imported), 0o600);
		}
		// Images of releases before this one: the kubelet may remove them when they are no longer used and the disk fills up.
		for (const reference of Object.keys(imported)) {
			if (release.images.some((image) => image.reference === reference)) continue;
			if (present.has(storedName(reference)))
				await this.#run("ctr", ["-n", "k8s.io", "images", "label", storedName(reference), "io.cri-containerd.pinned="]);
			delete imported[reference];
			await writeDurable(recordPath, JSON.stringify(imported), 0o600);
		}
		await this.#restartUsersOf(changed, progress);
	}

	/** An image that was built anew under its old name: pods that run the old one do not notice by themselves. */
	async #restartUsersOf(references: readonly string[], progress: Progress): Promise<void> {
		if (references.length === 0) return;
		for (const { kind, metadata, spec } of await this.#get<Workload>("deployments,statefulsets,daemonsets")) {
			if (!spec.template.spec.containers.some(({ image }) => references.includes(image))) continue;
			progress(`restarting ${metadata.namespace}/${metadata.name}`);
			const name = `${kind.toLowerCase()}/${metadata.name}`;
			await this.#kubectl(["rollout", "restart", name, "--namespace", metadata.namespace ?? "default"]);
		}
	}

	/** A StorageClass that is the default: our own on our own node, the cluster's on an existing one. */
	async provideStorage(release: Release): Promise<void> {
		if (this.#options.kubeconfig !== undefined) {
			const classes = await this.#get<StorageClass>("storageclasses");
			const isDefault = ({ metadata }: StorageClass) =>
				metadata.annotations?.["storageclass.kubernetes.io/is-default-class"] === "true";
			if (classes.some(isDefault)) return;
			throw new GroundplaneError("PrerequisiteNotMet", "the cluster has no default StorageClass", {
				next: "Install a provisioner and mark its StorageClass with storageclass.kubernetes.io/is-default-class=true.",
			});
		}
		const image = (part: string) => {
			const found = release.images.find(({ reference }) => reference.includes(part));
			if (found) return found.reference;
			throw new GroundplaneError("InvalidInput", `the release has no image ${part}`, {
				next: "Use a complete release.",
			});
		};
		const objects = storageObjects(image("local-path-provisioner"), image("local-path-helper"));
		const list = { apiVersion: "v1", kind: "List", items: objects };
		await this.#kubectl(["apply", "--server-side", "--force-conflicts", "--field-manager=gp", "-f", "-"], {
			input: JSON.stringify(list),
		});
	}

	/** `helm upgrade --install` of the core, and the wait until it is ready. */
	async installCore(release: Release, config: ServerConfig, progress: Progress): Promise<void> {
		await this.#mendHelm(release, progress);
		const ownNode = this.#options.kubeconfig === undefined;
		const values = merge(
			{
				image: { tag: release.version },
				release: { publicJwks: JSON.stringify(release.jwks) },
				bundles: release.bundles,
				...(ownNode ? { edge: { hostPort: 443, service: { type: "ClusterIP" } } } : {}),
			},
			config.values,
		);
		progress("helm upgrade --install");
		await this.#helm(
			release,
			[
				...["upgrade", "--install", RELEASE_NAME, join(release.directory, release.chart)],
				...["--namespace", NAMESPACE, "--create-namespace", "--values", "-"],
				...["--wait", "--timeout", "8m", "--history-max", "5"],
			],
			{ input: JSON.stringify(values) },
		);
	}

	/** Takes the core away from an existing cluster. Regions must be gone: the operator is what removes them. */
	async removeCore(release: Release, progress: Progress): Promise<void> {
		const regions = await this.#get("regions.groundplane.io").catch(() => []);
		if (regions.length > 0) {
			progress(`deleting ${regions.length} regions`);
			await this.#kubectl(["delete", "regions.groundplane.io", "--all", "--timeout=15m"]);
		}
		await this.#helm(release, ["uninstall", RELEASE_NAME, "--namespace", NAMESPACE, "--ignore-not-found", "--wait"]);
		await this.#kubectl(["delete", "namespace", NAMESPACE, "--ignore-not-found"]);
		await rm(this.#options.stateDir, { recursive: true, force: true });
	}

	/** Waits until every part is ready, three minutes at most. */
	async waitReady(progress: Progress): Promise<void> {
		for (const deadline = performance.now() + READY_MS; ; ) {
			const missing = (await this.status()).components.filter(({ ready }) => !ready);
			if (missing.length === 0) return;
			const names = missing.map(({ name, message }) => (message === "" ? name : `${name} (${message})`)).join(", ");
			if (performance.now() > deadline)
				throw new GroundplaneError("DeadlineExceeded", `not ready after ${READY_MS / 60_000} minutes: ${names}`, {
					next: "Look at their pods (kubectl describe), mend what they name, and run the same command again.",
				});
			progress(`waiting for ${names}`);
			await sleep(1000, undefined, { signal: this.#options.signal });
		}
	}

	/** What is installed and how it does; what should be there and is not is told too. */
	async status(): Promise<ServerStatus> {
		const ownNode = this.#options.kubeconfig === undefined;
		if (ownNode && !(await this.#hasKubernetes()))
			throw new GroundplaneError("NotFound", "there is no management server on this machine", {
				next: "Run: gp server init --release DIR. For one on another cluster give --kubeconfig.",
			});
		return statusOf(await this.#evidence(ownNode), { ownNode });
	}

	async #evidence(ownNode: boolean): Promise<Evidence> {
		const units: Record<string, string> = {};
		for (const unit of ownNode ? NODE_UNITS : [])
			units[unit] = (await this.#run("systemctl", ["is-active", unit], { codes: true })).stdout.trim();
		const list = <T>(kind: string, ...more: string[]) => this.#get<T>(kind, ...more);
		try {
			return {
				units,
				nodes: await list<Node>("nodes"),
				workloads: await list<Workload>("deployments,daemonsets,statefulsets"),
				controlPlane: ownNode ? await list<Pod>("pods", "kube-system", "tier=control-plane") : [],
				releases: await list<ReleaseRecord>("secrets", NAMESPACE, `owner=helm,name=${RELEASE_NAME}`),
				regions: await list<RegionObject>("regions.groundplane.io").catch(() => []),
			};
		} catch (error) {
			// Without an API server the machine itself still has something to say.
			if (!ownNode) throw error;
			const { message } = asGroundplaneError(error);
			return { units, apiServer: message, nodes: [], workloads: [], controlPlane: [], releases: [], regions: [] };
		}
	}

	/** Runs the engine until all roles are as wanted; a step that keeps failing is what the person must know. */
	async #converge(
		roles: { name: string; version: string; parameters: Record<string, unknown> }[],
		bundles: LocalBundles,
		progress: Progress,
	): Promise<void> {
		const { stateDir, signal, log = silent } = this.#options;
		await mkdir(stateDir, { recursive: true, mode: 0o700 });
		const engine = new Engine({ stateDir, bundles, log, exec: this.#exec });
		engine.setDesired({ roles, paused: false, validUntil: Number.MAX_SAFE_INTEGER });
		const stop = new AbortController();
		let failure: GroundplaneError | undefined;
		engine.onStatus(([role]) => {
			if (role) progress(`${role.done}/${role.total} ${role.step ?? role.phase}`);
			failure = failureOf(role);
			if (failure) stop.abort();
		});
		await engine.run(AbortSignal.any([signal, stop.signal]), { once: true });
		signal.throwIfAborted();
		if (failure) throw failure;
	}

	/** A release that was killed in the middle of its work blocks the next one: taken back first. */
	async #mendHelm(release: Release, progress: Progress): Promise<void> {
		const { code, stdout } = await this.#helm(
			release,
			["status", RELEASE_NAME, "--namespace", NAMESPACE, "--output", "json"],
			{ codes: true },
		);
		if (code !== 0) return;
		const { info, version } = JSON.parse(stdout) as { info?: { status?: string }; version?: number };
		if (!info?.status?.startsWith("pending-")) return;
		progress(`taking back an interrupted ${info.status.slice("pending-".length)}`);
		const back = (version ?? 1) > 1 ? ["rollback", RELEASE_NAME] : ["uninstall", RELEASE_NAME];
		await this.#helm(release, [...back, "--namespace", NAMESPACE, "--wait"]);
	}

	/** Objects of a namespace, or of all of them. */
	async #get<T>(kind: string, namespace?: string, selector?: string): Promise<T[]> {
		const scope = namespace === undefined ? ["--all-namespaces"] : ["--namespace", namespace];
		const which = selector === undefined ? [] : [`--selector=${selector}`];
		const { stdout } = await this.#kubectl(["get", kind, ...scope, ...which, "--output=json", "--request-timeout=30s"]);
		return (JSON.parse(stdout) as { items: T[] }).items;
	}

	async #kubectl(args: readonly string[], options: ExecOptions = {}) {
		const kubeconfig = this.#options.kubeconfig ?? ADMIN;
		return this.#run("kubectl", ["--kubeconfig", kubeconfig, "--request-timeout=5m", ...args], options);
	}

	async #helm(release: Release, args: readonly string[], options: ExecOptions = {}) {
		const home = join(this.#options.stateDir, "helm");
		return this.#run(join(release.directory, release.helm), args, {
			...options,
			env: {
				KUBECONFIG: this.#options.kubeconfig ?? ADMIN,
				HELM_CACHE_HOME: join(home, "cache"),
				HELM_CONFIG_HOME: join(home, "config"),
				HELM_DATA_HOME: join(home, "data"),
			},
		});
	}

	#run(file: string, args: readonly string[], options: ExecOptions = {}) {
		return this.#exec(file, args, { signal: this.#options.signal, ...options });
	}

	async #hasKubernetes(): Promise<boolean> {
		// Who may not look (a person who is not root) is told so by the checks.
		const journal = join(this.#options.stateDir, "roles", "kubernetes.json");
		return (await statOf(journal).catch(() => undefined)) !== undefined;
	}
}

interface StorageClass {
	readonly metadata: Metadata;
}

/**
 * When a role that fails is a matter for the person: at once when the machine or the input is at fault, after the third
 * time otherwise.
 */
export function failureOf(role: RoleStatus | undefined): GroundplaneError | undefined {
	if (role?.phase !== "Failed") return undefined;
	const final = ["PrerequisiteNotMet", "InvalidInput", "SignatureInvalid", "DigestMismatch", "BundleNotFound"];
	const attempts = Number(/\((\d+) times\)/.exec(role.message ?? "")?.[1] ?? 1);
	if (!final.includes(role.reason ?? "") && attempts < 3) return undefined;
	return new GroundplaneError("StepFailed", `${role.step}: ${role.message}`, {
		next: "Mend that and run the same command again: it goes on where it stopped.",
	});
}

/** containerd stores short references under Docker's registry. */
export function storedName(reference: string): string {
	const [first = ""] = reference.split("/");
	if (!reference.includes("/")) return `docker.io/library/${reference}`;
	return first.includes(".") || first.includes(":") || first === "localhost" ? reference : `docker.io/${reference}`;
}

/** A host name as the name of a node: a DNS label. */
export const nodeNameOf = (host: string): string =>
	(host.split(".")[0] ?? "")
		.toLowerCase()
		.replaceAll(/[^a-z0-9-]/g, "-")
		.replaceAll(/^-+|-+$/g, "") || "server";

/** Values with others laid over them, tables key by key. */
export function merge(base: Record<string, unknown>, over: Record<string, unknown>): Record<string, unknown> {
	const isTable = (value: unknown): value is Record<string, unknown> =>
		typeof value === "object" && value !== null && !Array.isArray(value);
	const merged = { ...base };
	for (const [key, value] of Object.entries(over)) {
		const below = merged[key];
		merged[key] = isTable(below) && isTable(value) ? merge(below, value) : value;
	}
	return merged;
}

const silent: EngineLog = { info: () => {}, warn: () => {}, error: () => {} };
