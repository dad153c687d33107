import { type Cluster, clusterSpec } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { FORMER_CLUSTER } from "../host/summary.ts";
import { clusterOf } from "./assign.ts";
import type { Extras } from "./extras.ts";
import { roleOf } from "./members.ts";
import { plan } from "./plan.ts";
import { type Action, BUSY_MS, type NodeState, type Observed, type Plan } from "./state.ts";

export const NOW = Date.parse("2026-01-01T00:00:00Z");
export const HASH = `sha256:${"a".repeat(64)}`;
const TICK_MS = 3000;

/**
 * How properties are run: the same cases each time, so that what is red is what was changed. Who looks for faults that nobody
 * knows yet gives a number of cases of his own, `PROPERTY_RUNS=5000`, and gets other ones each time.
 */
export const cases = (numRuns: number): { readonly numRuns: number; readonly seed?: number } =>
	process.env.PROPERTY_RUNS === undefined ? { numRuns, seed: 1 } : { numRuns: Number(process.env.PROPERTY_RUNS) };

/**
 * A region in memory that does what a plan says, the way hosts, kubeadm and etcd would: roles take a few looks to be applied,
 * a control plane does not answer while it changes, etcd has members that live and that are dead.
 */
export class Site {
	cluster: Cluster;
	hosts: Host[];
	nodes = new Map<string, NodeState & { pods: number }>();
	/** Members of etcd. */
	readonly etcd = new Set<string>();
	/** `host@version` that can't be made; a host that runs it already goes on. */
	readonly broken = new Set<string>();
	/** Nodes whose pods a budget holds for ever. */
	readonly held = new Set<string>();
	versions = ["v1.35.4", "v1.36.3"];
	extras: Extras;
	removedApis: string[] = [];
	blockedBudgets: string[] = [];
	joinSecret = false;
	token = false;
	certificates = true;
	/** Whether the network plugin is there, without which no node is ready. */
	plugin = true;
	now = NOW;
	finished: readonly string[] | undefined;
	last: Plan | undefined;
	readonly history: string[] = [];

	constructor(spec: unknown, hosts: readonly string[]) {
		this.cluster = {
			apiVersion: "groundplane.io/v1alpha1",
			kind: "Cluster",
			metadata: {
				name: "demo",
				namespace: "region-r",
				uid: "u1",
				generation: 1,
				creationTimestamp: "2026-01-01T00:00:00Z",
			},
			spec: clusterSpec.parse(spec),
		};
		this.hosts = hosts.map((name, index) => host(name, index));
	}

	get observed(): Observed {
		const base = {
			cluster: this.cluster,
			hosts: this.hosts,
			others: [],
			versions: this.versions,
			...(this.extras && { extras: this.extras }),
			joinSecret: this.joinSecret,
			now: this.now,
		};
		const asked = this.hosts.filter(
			(each) =>
				isConnected(each) &&
				roleOf(each) !== undefined &&
				!this.isAnothers(each) &&
				report(each)?.outputs?.caCertHash !== undefined,
		);
		const apiServers = new Map(asked.map((each) => [each.metadata.name, { ready: this.answers(each) }]));
		if (![...apiServers.values()].some(({ ready }) => ready))
			return { ...base, unreachable: "no control plane is up and connected" };
		return {
			...base,
			workload: {
				nodes: [...this.nodes.values()].map(({ pods, ...node }) => {
					const alive = this.hosts.some((each) => each.metadata.name === node.name && isConnected(each));
					return {
						...node,
						ready: node.ready && alive,
						...(node.drainStarted === undefined ? {} : { evictable: pods }),
						...(node.drainStarted !== undefined && this.held.has(node.name)
							? { blockedBy: ["shop/never (pod web-1)"] }
							: {}),
					};
				}),
				dnsReady: asked.some(
					(each) => (roleOf(each)?.parameters.addons as { coredns?: boolean } | undefined)?.coredns === true,
				),
				bootstrapToken: this.token,
				certificates: this.certificates,
				servingRequests: [],
				apiServers,
				preflight: { removedApis: this.removedApis, blockedBudgets: this.blockedBudgets },
			},
		};
	}

	private isAnothers(each: Host): boolean {
		return roleOf(each) !== undefined && clusterOf(each) !== this.cluster.metadata.name;
	}

	/** Members of etcd that live. A control plane that is being changed is down for that long. */
	get etcdWell(): number {
		return this.hosts.filter((each) => this.etcd.has(each.metadata.name) && this.answersAlone(each)).length;
	}
	get etcdHasQuorum(): boolean {
		return this.etcdWell >= Math.floor(this.etcd.size / 2) + 1;
	}

	private answersAlone(each: Host): boolean {
		return isConnected(each) && !this.isAnothers(each) && report(each)?.phase === "Applied";
	}
	private answers(each: Host): boolean {
		return this.answersAlone(each) && this.etcdHasQuorum;
	}

	/** One look: plan, do, let the hosts work for a moment. */
	step(): void {
		const result = plan(this.observed);
		this.last = result;
		for (const action of result.actions) this.do(action);
		this.cluster = {
			...this.cluster,
			status: {
				...result.status,
				conditions: result.conditions.map((c) => ({ ...c, lastTransitionTime: "2026-01-01T00:00:00Z" })),
			},
		};
		for (const each of this.hosts) this.work(each);
		this.now += TICK_MS;
	}

	run(steps: number): this {
		for (let i = 0; i < steps && this.finished === undefined; i++) this.step();
		return this;
	}

	/** Runs until the plan is at rest: Ready, or a person's turn. */
	settle(most = 400): this {
		for (let i = 0; i < most; i++) {
			this.step();
			if (this.last?.requeueAfter !== BUSY_MS && this.last?.actions.length === 0) break;
		}
		return this;
	}

	/** A person changes the spec. */
	edit(change: Record<string, unknown>): this {
		const { metadata } = this.cluster;
		this.cluster = {
			...this.cluster,
			spec: clusterSpec.parse({ ...this.cluster.spec, ...change }),
			metadata: { ...metadata, generation: (metadata.generation ?? 0) + 1 },
		};
		return this;
	}

	/** A person deletes the cluster: from now on it is going, until `finished`. */
	delete(): void {
		const { metadata } = this.cluster;
		const deletionTimestamp = new Date(this.now).toISOString();
		this.cluster = { ...this.cluster, metadata: { ...metadata, deletionTimestamp } };
	}
	annotate(annotations: Record<string, string>): void {
		const { metadata } = this.cluster;
		this.cluster = {
			...this.cluster,
			metadata: { ...metadata, annotations: { ...metadata.annotations, ...annotations } },
		};
	}
	/** Lets the hosts do what they are asked, when nobody plans any more. */
	settleHosts(): void {
		for (let i = 0; i < 5; i++) for (const each of this.hosts) this.work(each);
	}

	powerOff(name: string): void {
		const each = this.host(name);
		each.status = {
			...each.status,
			connection: { state: "Disconnected", since: new Date(this.now).toISOString() },
		};
	}
	/** A Host is deleted by force: nobody knows any more what becomes of its machine. */
	deleteHost(name: string): void {
		this.hosts = this.hosts.filter(({ metadata }) => metadata.name !== name);
	}
	/** A machine is enrolled under a name that no Host has. */
	enrol(name: string): void {
		if (!this.has(name)) this.hosts.push(host(name, 8));
	}
	/** A person keeps the region from changing a host, or ends that. */
	maintain(name: string, maintenance: boolean): void {
		const { spec, metadata } = this.host(name);
		Object.assign(this.host(name), {
			spec: { ...spec, maintenance },
			metadata: { ...metadata, generation: (metadata.generation ?? 0) + 1 },
		});
	}
	powerOn(name: string): void {
		const each = this.host(name);
		each.status = { ...each.status, connection: { state: "Connected", since: new Date(this.now).toISOString() } };
	}

	get reason(): string | undefined {
		return this.last?.conditions.find(({ type }) => type === "Ready")?.reason;
	}
	get message(): string | undefined {
		return this.last?.conditions.find(({ type }) => type === "Ready")?.message;
	}
	/** First occurrences of actions, in order. */
	get firsts(): string[] {
		return this.history.filter((entry, index, all) => all.indexOf(entry) === index);
	}
	versionsOf(): Record<string, string | undefined> {
		return Object.fromEntries([...this.nodes.values()].map(({ name, version }) => [name, version]));
	}

	private do(action: Action): void {
		this.history.push(nameOf(action));
		switch (action.type) {
			case "createJoinSecret":
				this.joinSecret = true;
				break;
			case "deleteJoinSecret":
				this.joinSecret = false;
				break;
			case "createBootstrapToken":
				this.token = true;
				break;
			case "deleteBootstrapToken":
				this.token = false;
				break;
			case "applyRole":
				this.setRole(action.host, [action.role]);
				break;
			case "removeRole":
				this.setRole(action.host, []);
				break;
			case "drain":
				this.change(action.host, ({ pods, drainStarted, ...node }) => ({
					...node,
					unschedulable: true,
					drainStarted: drainStarted ?? this.now,
					pods: this.held.has(action.host) && !action.force ? pods : Math.max(0, pods - 1),
				}));
				break;
			case "uncordon":
				this.change(action.host, ({ drainStarted, ...node }) => ({ ...node, unschedulable: false, pods: 2 }));
				break;
			case "markNode":
				this.change(action.host, (node) => ({
					...node,
					labels: Object.fromEntries(
						Object.entries({ ...node.labels, ...action.patch.labels }).filter((entry) => entry[1] !== null),
					) as Record<string, string>,
					taints: action.patch.taints,
					pool: action.patch.pool,
				}));
				break;
			case "deleteNode":
				this.nodes.delete(action.host);
				break;
			case "removeFinalizer":
				this.finished = action.leftBehind;
				break;
		}
	}

	private change(name: string, to: (node: NodeState & { pods: number }) => NodeState & { pods: number }): void {
		const node = this.nodes.get(name);
		if (node) this.nodes.set(name, to(node));
	}

	/** The host's agent: pending, applying, applied or failed; a role that is not wanted any more is undone. */
	private work(each: Host): void {
		if (!isConnected(each) || each.spec.maintenance || this.isAnothers(each)) return;
		const name = each.metadata.name;
		const wanted = roleOf(each);
		const now = report(each);
		each.status = { ...each.status, desiredState: { reportedGeneration: each.metadata.generation ?? 0 } };
		if (wanted === undefined) {
			// kubeadm reset takes the member out of etcd before it stops it. One that is new resets nothing.
			if (now !== undefined) this.etcd.delete(name);
			const isUndone = now === undefined || now.phase === "Removing";
			each.status.roles = isUndone ? [] : [{ ...now, phase: "Removing" }];
			return;
		}
		const { mode, prepare } = wanted.parameters;
		const isWorker = mode === "join-worker";
		// The role pack's identity: a host that changes between control plane and worker is reset and made anew.
		if (this.at.get(name)?.endsWith(`/${!isWorker}`)) this.etcd.delete(name);
		const key = `${wanted.version}/${prepare === true}/${isWorker}`;
		const isNew = now === undefined || this.at.get(name) !== key;
		this.at.set(name, key);
		if (isNew || now === undefined) {
			const { reason, message, ...rest } = now ?? { name: "kubernetes" };
			const phase = "Applying" as const;
			each.status.roles = [{ ...rest, version: wanted.version, phase, step: "containerd", progress: "3/19" }];
			return;
		}
		if (prepare === true) {
			each.status.roles = [{ name: "kubernetes", version: wanted.version, phase: "Applied" }];
			return;
		}
		if (now.phase !== "Applied" && this.broken.has(`${name}@${wanted.version}`)) {
			const failed = { phase: "Failed" as const, step: "node", reason: "StepFailed", message: "it does not come up." };
			each.status.roles = [{ ...now, ...failed }];
			return;
		}
		for (const former of (wanted.parameters.formerControlPlanes as string[] | undefined) ?? [])
			this.etcd.delete(former);
		if (wanted.parameters.publishCertificates !== undefined) this.certificates = true;
		const isControlPlane = !isWorker;
		const joins = isControlPlane && !this.etcd.has(name);
		if (joins && this.etcd.size > 0 && !this.etcdHasQuorum) return;
		if (joins) this.etcd.add(name);
		each.status.roles = [
			{
				name: "kubernetes",
				version: wanted.version,
				phase: "Applied",
				outputs: {
					nodeName: name,
					mode: String(mode),
					kubeletVersion: wanted.version,
					...(isControlPlane ? { caCertHash: HASH } : {}),
				},
			},
		];
		const labels = isControlPlane ? { "node-role.kubernetes.io/control-plane": "" } : {};
		const node = this.nodes.get(name) ?? { name, labels, taints: [], unschedulable: false, pods: 2 };
		const { plugin } = this;
		this.nodes.set(name, { ...node, ready: plugin, networkMissing: !plugin, version: wanted.version });
	}

	private readonly at = new Map<string, string>();

	/** Pins of the cluster's CA that hosts were told. */
	readonly pins = new Set<unknown>();
	private setRole(name: string, roles: Host["spec"]["roles"]): void {
		for (const { parameters } of roles) for (const pin of parameters.caCertHashes as string[]) this.pins.add(pin);
		const found = this.host(name);
		found.spec = { ...found.spec, roles };
		const annotations = roles.length > 0 ? {} : { [FORMER_CLUSTER]: this.cluster.metadata.name };
		found.metadata = { ...found.metadata, annotations, generation: (found.metadata.generation ?? 0) + 1 };
	}

	has(name: string): boolean {
		return this.hosts.some(({ metadata }) => metadata.name === name);
	}
	host(name: string): Host {
		const found = this.hosts.find((each) => each.metadata.name === name);
		if (found === undefined) throw new Error(`no host ${name}`);
		return found;
	}
}

function nameOf(action: Action): string {
	if (action.type === "applyRole") {
		const verb = action.role.parameters.prepare === true ? "prepare" : "applyRole";
		return `${verb} ${action.host}@${action.role.version}`;
	}
	return "host" in action ? `${action.type} ${action.host}` : action.type;
}

export const report = (each: Host) => each.status?.roles?.find((role) => role.name === "kubernetes");
const isConnected = (each: Host) => each.status?.connection?.state === "Connected";

export const host = (name: string, index: number): Host => ({
	apiVersion: "groundplane.io/v1alpha1",
	kind: "Host",
	metadata: { name, namespace: "region-r", generation: 1, uid: name, labels: { rack: index % 2 === 0 ? "a" : "b" } },
	spec: { approved: true, maintenance: false, roles: [] },
	status: { connection: { state: "Connected" }, roles: [], facts: { primaryAddress: `10.0.0.${index + 1}` } as never },
});
