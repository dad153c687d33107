import { createHash } from "node:crypto";
import type { EngineLike } from "../../agent/control.ts";
import type { Journal } from "../../agent/engine/journal.ts";
import type { RenderedRole, Step } from "../../agent/engine/pack.ts";
import { type Action, plan, record } from "../../agent/engine/plan.ts";
import type { Observation } from "../../agent/primitives/primitive.ts";
import type { DesiredRole, DesiredState } from "../../protocol/desired-state.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { RoleStatus } from "../../protocol/facts.ts";
import type { SimulatedClusters } from "./clusters.ts";

/** How long steps take and how often they fail. */
export interface Pace {
	/** 1 is as long as on real hosts, 0 at once. */
	readonly factor: number;
	/** Probability that a step fails once. */
	readonly failures: number;
}

export interface SimulatedEngineOptions {
	readonly host: string;
	readonly address: string;
	readonly clusters: SimulatedClusters;
	readonly pace: Pace;
	/** In [0, 1). */
	readonly random: () => number;
}

/**
 * Steps of the role `kubernetes` in a few, with milliseconds as measured in the lab: downloads and images by far the longest,
 * then kubeadm. `prepares` is what a host may do before its control plane is there.
 */
const steps = [
	{ name: "preflight", ms: 300, prepares: true },
	{ name: "fetch files", ms: 6_000, prepares: true },
	{ name: "containerd", ms: 1_500, prepares: true },
	{ name: "image", ms: 5_000, prepares: true },
	{ name: "balancer", ms: 200, prepares: false },
	{ name: "kubelet", ms: 500, prepares: false },
	{ name: "node", ms: 10_000, prepares: false },
	{ name: "access", ms: 300, prepares: false },
] as const;
const JOIN_WORKER_MS = 3_000;
const NODE_READY_MS = 8_000;
const FIRST_RETRY = 1_000;
const LAST_RETRY = 60_000;

/**
 * A host without a host: the agent's own `plan` over steps that only take their time, and a kubeadm that makes simulated
 * clusters. Works one action after the other as the agent's engine does, reports alike, and sleeps while there is nothing to do.
 */
export class SimulatedEngine implements EngineLike {
	readonly #options: SimulatedEngineOptions;
	readonly #listeners = new Set<(roles: RoleStatus[]) => void>();
	readonly #journals = new Map<string, Journal>();
	readonly #statuses = new Map<string, RoleStatus>();
	#desired: Pick<DesiredState, "roles" | "paused" | "validUntil"> | undefined;
	#working = false;
	#again = false;
	#stopped = false;
	#timers = new Set<NodeJS.Timeout>();
	/** Actions done so far; the same one is not done twice while nothing asks for it. */
	actions = 0;

	constructor(options: SimulatedEngineOptions) {
		this.#options = options;
	}

	setDesired(desired: Pick<DesiredState, "roles" | "paused" | "validUntil">): void {
		this.#desired = desired;
		this.#again = true;
		void this.#work();
	}

	status(): RoleStatus[] {
		return [...this.#statuses.values()];
	}

	onStatus(listener: (roles: RoleStatus[]) => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	stop(): void {
		this.#stopped = true;
		for (const timer of this.#timers) clearTimeout(timer);
	}

	async #work(): Promise<void> {
		if (this.#working) return;
		this.#working = true;
		try {
			while (this.#again && !this.#stopped) {
				this.#again = false;
				const desired = this.#desired;
				if (!desired || desired.paused) continue;
				const names = new Set([...this.#journals.keys(), ...desired.roles.map(({ name }) => name)]);
				for (const name of names) await this.#converge(name);
			}
		} finally {
			this.#working = false;
		}
	}

	/** Does what there is to do for one role until nothing is left, or the desired state has changed. */
	async #converge(name: string): Promise<void> {
		const desired = this.#desired;
		const wanted = desired?.roles.find((role) => role.name === name);
		const rendered = wanted && renderSimulated(wanted);
		const observed = new Map<string, Observation>();
		for (let failures = 0; !this.#stopped && this.#desired === desired; ) {
			const journal = this.#journals.get(name);
			const [action] = plan(rendered, journal, observed);
			if (!action) {
				if (wanted) this.#tell(wanted, rendered, { phase: "Applied" });
				return;
			}
			const step = action.do === "undo" ? action.entry.name : action.do === "forget" ? undefined : action.step.name;
			this.actions += 1;
			if (action.do !== "check") {
				const removing = action.do !== "apply";
				this.#tell(wanted ?? { name, version: journal?.version ?? "", parameters: {} }, rendered, {
					phase: removing ? "Removing" : "Applying",
					...(step !== undefined && { step }),
				});
			}
			try {
				await this.#do(action, name, wanted, rendered, observed);
				failures = 0;
			} catch (thrown) {
				const error = asGroundplaneError(thrown);
				failures += 1;
				this.#tell(wanted ?? { name, version: journal?.version ?? "", parameters: {} }, rendered, {
					phase: "Failed",
					...(step !== undefined && { step }),
					reason: error.code,
					message: `${error.message} ${error.next}`,
				});
				observed.clear();
				const ceiling = Math.min(LAST_RETRY, FIRST_RETRY * 2 ** Math.min(failures, 10));
				await this.#sleep((ceiling / 2) * (1 + this.#options.random()));
			}
		}
	}

	async #do(
		action: Action,
		name: string,
		wanted: DesiredRole | undefined,
		rendered: RenderedRole | undefined,
		observed: Map<string, Observation>,
	): Promise<void> {
		const { pace, random } = this.#options;
		const journal = this.#journals.get(name);
		switch (action.do) {
			case "check": {
				const entry = journal?.entries.find((one) => one.name === action.step.name);
				observed.set(action.step.name, { ok: entry?.state === "applied" && entry.digest === action.step.digest });
				return;
			}
			case "apply": {
				const { step } = action;
				const begun = journal?.entries.some((one) => one.name === step.name && one.state === "applied");
				// What was there already and only changes is quick.
				const { ms } = step.want as { ms: number };
				await this.#sleep((begun ? Math.min(ms, 1_000) : ms) * pace.factor * (0.75 + random() / 2));
				if (random() < pace.failures) {
					throw new GroundplaneError("StepFailed", `${step.name} failed, as it was told to.`, {
						next: "Nothing: it is tried again.",
					});
				}
				if (step.name === "node" && wanted) this.#kubeadm(wanted);
				this.#write(name, wanted, rendered, step);
				observed.set(step.name, { ok: true });
				return;
			}
			case "undo":
				await this.#sleep(300 * pace.factor);
				if (journal) {
					const entries = journal.entries.filter((entry) => entry.name !== action.entry.name);
					this.#journals.set(name, { ...journal, entries });
				}
				return;
			case "forget":
				this.#journals.delete(name);
				if (!wanted) {
					this.#statuses.delete(name);
					this.#report();
				}
		}
	}

	/** What kubeadm would do: make a cluster, or join the one that is there with a token that it knows. */
	#kubeadm({ version, parameters }: DesiredRole): void {
		const { clusters, host, pace, random } = this.#options;
		const { clusterId = "", mode, bootstrapToken = "", caCertHashes = [] } = parameters as Record<string, never>;
		let cluster = clusters.get(clusterId);
		if (mode === "init" && cluster === undefined) {
			cluster = clusters.init(clusterId);
			cluster.addToken(bootstrapToken);
		} else if (mode !== "init") {
			const known = cluster?.nodes.includes(host);
			if (
				!cluster ||
				!(caCertHashes as string[]).includes(cluster.caCertHash) ||
				!(known || cluster.knows(bootstrapToken))
			) {
				throw new GroundplaneError("StepFailed", "kubeadm join: the cluster does not know this token.", {
					next: "Nothing: the operator makes it known again.",
				});
			}
		}
		if (mode !== "join-worker") cluster?.controlPlanes.add(host);
		cluster?.register(host, version);
		this.#later(NODE_READY_MS * pace.factor * (0.75 + random() / 2), () => cluster?.ready(host));
	}

	#write(name: string, wanted: DesiredRole | undefined, rendered: RenderedRole | undefined, step: Step): void {
		const before: Journal = this.#journals.get(name) ?? {
			schema: 1,
			role: name,
			version: wanted?.version ?? "",
			identity: rendered?.identity ?? "",
			entries: [],
			outputs: {},
		};
		const entry = {
			name: step.name,
			use: step.use,
			key: step.key,
			state: "applied" as const,
			digest: step.digest,
			memory: null,
		};
		const outputs = step.name === "node" && wanted ? this.#outputs(wanted) : before.outputs;
		const entries = record(before.entries, entry, rendered?.steps ?? []);
		this.#journals.set(name, { ...before, version: wanted?.version ?? before.version, entries, outputs });
	}

	#outputs({ version, parameters }: DesiredRole): Record<string, string> {
		const { host, address, clusters } = this.#options;
		const cluster = clusters.get(String(parameters.clusterId ?? ""));
		const isControlPlane = parameters.mode !== "join-worker";
		return {
			kubeletVersion: version,
			nodeName: host,
			nodeAddress: address,
			...(isControlPlane && cluster ? { caCertHash: cluster.caCertHash } : {}),
		};
	}

	#tell(
		role: DesiredRole,
		rendered: RenderedRole | undefined,
		status: Pick<RoleStatus, "phase"> & Partial<RoleStatus>,
	): void {
		const journal = this.#journals.get(role.name);
		const outputs = journal?.outputs ?? {};
		this.#statuses.set(role.name, {
			name: role.name,
			version: role.version,
			done: journal?.entries.length ?? 0,
			total: rendered?.steps.length ?? steps.length,
			...(Object.keys(outputs).length > 0 && { outputs }),
			...status,
		});
		this.#report();
	}

	#report(): void {
		const roles = this.status();
		for (const listener of this.#listeners) listener(roles);
	}

	#sleep(ms: number): Promise<void> {
		return new Promise((resolve) => this.#later(ms, resolve));
	}

	#later(ms: number, work: () => void): void {
		const timer = setTimeout(() => {
			this.#timers.delete(timer);
			work();
		}, ms);
		this.#timers.add(timer);
	}
}

/** The role's steps for these parameters, as the pack would fill them in: digests follow what each step depends on. */
function renderSimulated({ version, parameters }: DesiredRole): RenderedRole {
	const { mode, cluster, clusterId, prepare } = parameters;
	const digest = (...parts: unknown[]) => createHash("sha256").update(JSON.stringify(parts)).digest("hex");
	const kind = mode === "join-worker" ? "worker" : "control-plane";
	return {
		identity: digest(cluster, clusterId, kind),
		secrets: [],
		steps: steps
			.filter(({ prepares }) => prepares || prepare !== true)
			.map(({ name, ms }) => ({
				name,
				use: "simulated",
				key: name,
				want: { ms: name === "node" && mode === "join-worker" ? JOIN_WORKER_MS : ms },
				digest: digest(name, name === "balancer" ? parameters.controlPlaneAddresses : version),
				timeout: 300_000,
				recheck: undefined,
			})),
	};
}
