import { setTimeout as delay } from "node:timers/promises";
import { ASKED, EPOCH, type Host } from "../../crds/host.ts";
import type { KubeClient } from "../../operator/kube/client.ts";
import { Controller } from "../../operator/kube/controller.ts";
import { Reflector } from "../../operator/kube/reflector.ts";
import { hosts, secrets } from "../../operator/kube/resources.ts";
import { priorities, TokenBucket, WorkQueue } from "../../operator/kube/workqueue.ts";
import { asGroundplaneError, type GroundplaneError } from "../../protocol/errors.ts";
import type { DownMessage } from "../../protocol/messages.ts";
import type { Log } from "../kit/log.ts";
import { type Counter, Gauge, type Metrics } from "../kit/metrics.ts";
import { backoffMs } from "../kit/retry.ts";
import { type AgentsPlan, agentOf, planAgents } from "./agents.ts";
import {
	contentOf,
	type DesiredStateSigner,
	isAsked,
	nextDocument,
	type RoleSecrets,
	renewAt,
	secretNames,
} from "./desired-state.ts";
import { MANAGER } from "./enrolment.ts";
import type { Document, HostRecord, Inventory } from "./inventory.ts";
import { type News, newsOf, type Written, writtenOf } from "./news.ts";
import { type OwnStatus, ownPart, statusOf } from "./status.ts";

export interface HostsControllerOptions {
	readonly kube: KubeClient;
	readonly namespace: string;
	readonly inventory: Inventory;
	readonly signer: DesiredStateSigner;
	readonly lifetimeMs: number;
	/** The version of the agent that the region serves, and how often to look which host is told next to have it. */
	readonly agentVersion: string;
	readonly agentsMs: number;
	/** Sends a message to a host; nobody may be there to hear it. */
	readonly send: (host: string, message: DownMessage) => void;
	/** Closes a host's tunnels for good and drops what the bus still holds of it. */
	readonly farewell: (host: string) => Promise<void>;
	readonly log: Log;
	readonly metrics: Metrics;
	readonly documentsSigned: Counter;
	readonly now: () => number;
}

/** What this process has done about a host. Times are on the clock that only goes forward: one that is set back must put nothing off. */
interface Course {
	/** What was sent to it, and on which of its connections. */
	sent?: { readonly generation: number; readonly connection: string; readonly attempts: number; readonly at: number };
	/** What its last document was made from, and when: its Secrets were read then. */
	based?: { readonly basis: string; readonly at: number };
	/** On which account it was last asked whether it is there. */
	asked?: string;
	/** When a change of its status that can wait is to be written. */
	due?: { readonly news: News; readonly at: number };
	/** When its status was last written. */
	wroteAt?: number;
	/** What keeps its document from being signed. */
	problem?: GroundplaneError | undefined;
}

/** Reports come in bursts; the status is written once for all of them. */
const DEBOUNCE_MS = 250;
/** How long the first status of a host waits for the next of what makes it: the machine's enrolment, its tunnel, its first acknowledgement. */
const ARRIVAL_MS = 5_000;
/** Every Host is looked at again after this long; machines without a Host more often. */
const RESYNC_MS = 3_600_000;
const SWEEP_MS = 10 * 60_000;
/**
 * Of changes that can wait so many are written in a second: whether hosts are connected, once more than a burst of them have come or
 * gone, and what every reconnection changes (gateway, address, since when), which nobody waits for. A site that loses its line takes all
 * of its hosts along, and most are back before their turn has come; their documents wait for no status.
 */
const WRITES_PER_SECOND = 30;
const MINOR_WRITES_PER_SECOND = 10;
const FLIPS_AT_ONCE = 100;
const LATE_WRITERS = 2;
/** How far a role has come is written once in this time for each host: three objects tell of every step. */
const PROGRESS_MS = 1_000;
/** A document that is accepted is compared with its Secrets after so long, when something makes its host be looked at. */
const SECRETS_MS = 60_000;
/** So many other hosts a free host is told of: of up to seventeen, every two are measured by one of them. */
const PEERS = 8;
/** A host that accepts documents answers in milliseconds; then ever more patience. */
const RESEND = { baseMs: 4_000, maxMs: 120_000 };

/**
 * Keeps each Host and its machine in step: signs and sends desired state, writes what the machine reports into the Host's
 * status, and forgets a machine whose Host is gone.
 */
export class HostsController {
	readonly #options: HostsControllerOptions;
	readonly #reflector: Reflector<Host>;
	readonly #controller: Controller<Host>;
	readonly #courses = new Map<string, Course>();
	/** Digest of our part of the status that a Host of the store has: the parts themselves are large. */
	readonly #written = new WeakMap<Host, Written>();
	/** Hosts whose status says something new that can wait: their writes take no worker from those who wait for documents. */
	readonly #later = new WorkQueue({ name: "host-statuses" });
	readonly #flips = new TokenBucket(WRITES_PER_SECOND, FLIPS_AT_ONCE, () => performance.now());
	/** How far the hosts have come to the region's version of the agent; unknown until the first look. */
	#agents: AgentsPlan | undefined;

	constructor(options: HostsControllerOptions) {
		this.#options = options;
		const { kube, namespace, log } = options;
		this.#reflector = new Reflector({
			client: kube,
			resource: hosts,
			namespace,
			log,
			transform: (host) => {
				const trimmed = withoutReports(host);
				this.#written.set(trimmed, writtenOf(ownPart(host.status)));
				return trimmed;
			},
		});
		this.#controller = new Controller({
			name: "hosts",
			primary: this.#reflector,
			reconcile: (key, signal) => this.#reconcile(key.slice(namespace.length + 1), signal),
			concurrency: 4,
			resync: RESYNC_MS,
			timeout: 30_000,
			maxDelay: 60_000,
			log,
		});
		const count = (gauge: Gauge) => this.#countHosts(gauge);
		new Gauge({
			name: "groundplane_hosts",
			help: "Hosts of the region by the state of their connection.",
			labelNames: ["connection"],
			registers: [options.metrics.registry],
			collect() {
				return count(this);
			},
		});
		const agents = () => this.#agents;
		new Gauge({
			name: "groundplane_agent_updates",
			help: "Hosts that were told to change their agent's version: under way, and failed.",
			labelNames: ["state"],
			registers: [options.metrics.registry],
			collect() {
				this.set({ state: "under-way" }, agents()?.underWay ?? 0);
				this.set({ state: "failed" }, agents()?.failed.length ?? 0);
			},
		});
	}

	/** Something is new about a host, to be looked at in `delay` milliseconds. */
	changed(host: string, delay = DEBOUNCE_MS): void {
		this.#controller.enqueue(`${this.#options.namespace}/${host}`, delay);
	}

	/** The Host as last seen. */
	host(name: string): Host | undefined {
		return this.#reflector.get(`${this.#options.namespace}/${name}`);
	}

	get hasSynced(): boolean {
		return this.#reflector.hasSynced;
	}

	async run(signal: AbortSignal): Promise<void> {
		const { log, agentsMs } = this.#options;
		signal.addEventListener("abort", () => this.#later.shutDown(), { once: true });
		const every = async (ms: number, what: string, work: () => Promise<void>) => {
			await this.#reflector.waitForSync(signal).catch(() => undefined);
			while (!signal.aborted) {
				await work().catch((err: unknown) => log.warn({ err }, `can't ${what}; trying again later`));
				await delay(ms, undefined, { signal }).catch(() => undefined);
			}
		};
		await Promise.all([
			this.#reflector.run(signal),
			this.#controller.run(signal),
			...Array.from({ length: LATE_WRITERS }, () => this.#writeLater(signal)),
			every(SWEEP_MS, "go through the inventory", () => this.#sweep()),
			every(agentsMs, "look after the agents' versions", () => this.#rollAgents()),
		]);
	}

	async #reconcile(name: string, signal: AbortSignal): Promise<{ requeueAfter?: number }> {
		const { kube, namespace, inventory } = this.#options;
		const machine = await inventory.find(name);
		let host = this.host(name);
		// The store may lag behind an enrolment: before anything is forgotten, the API server is asked.
		if (machine && host?.metadata.uid !== machine.uid) host = await kube.find(hosts, name, namespace, { signal });
		if (machine && host?.metadata.uid !== machine.uid) {
			await this.#forget(machine);
			this.changed(name);
			return {};
		}
		if (!host) {
			this.#courses.delete(name);
			return {};
		}
		this.#ask(host);
		const { current, problem, requeueAfter } = machine
			? await this.#deliver(host, machine, signal)
			: { current: undefined, problem: undefined, requeueAfter: undefined };
		this.#course(name).problem = problem;
		const writeIn = await this.#writeStatus(host, current, signal);
		// A Secret that is missing may come without the Host changing.
		if (problem) throw problem;
		const again = Math.min(requeueAfter ?? Number.POSITIVE_INFINITY, writeIn ?? Number.POSITIVE_INFINITY);
		return Number.isFinite(again) ? { requeueAfter: again } : {};
	}

	#course(name: string): Course {
		const known = this.#courses.get(name);
		if (known) return known;
		const course = {};
		this.#courses.set(name, course);
		return course;
	}

	/** Any answer will do: a host that gives none has its tunnel closed by the gateway. */
	#ask(host: Host): void {
		const { send, now } = this.#options;
		const { name, annotations } = host.metadata;
		const course = this.#course(name);
		if (!isAsked(host, course.asked, now())) return;
		course.asked = annotations?.[ASKED] ?? "";
		send(name, { type: "report" });
	}

	/** Signs a new document if need be, and sends the current one until the host has acknowledged it. */
	async #deliver(
		host: Host,
		machine: HostRecord,
		signal: AbortSignal,
	): Promise<{ current: HostRecord; problem?: GroundplaneError; requeueAfter?: number }> {
		const { inventory, lifetimeMs, documentsSigned, now } = this.#options;
		const [last] = machine.documents;
		const objectGeneration = host.metadata.generation ?? 0;
		// The store has not caught up with what was signed already.
		if (last && objectGeneration < last.objectGeneration) return { current: machine, requeueAfter: 1_000 };
		const agent = agentOf(host, machine.agentOffer, this.#options.agentVersion);
		const basis = basisOf(host, agent);
		if (last && this.#isDelivered(machine, last, basis)) {
			return { current: machine, requeueAfter: Math.max(1_000, renewAt(last) - now()) };
		}
		let content: ReturnType<typeof contentOf>;
		try {
			content = contentOf(host, await this.#secrets(host, signal), agent);
		} catch (error) {
			return { current: machine, problem: asGroundplaneError(error) };
		}
		const document = nextDocument(last, { content, objectGeneration, now: now(), lifetimeMs });
		let current = machine;
		if (document.generation !== last?.generation) {
			await inventory.addDocument(machine.name, document);
			documentsSigned.inc();
			current = { ...machine, documents: [document, ...machine.documents] };
		} else if (document.objectGeneration !== last.objectGeneration) {
			await inventory.coverGeneration(machine.name, document.generation, objectGeneration);
			current = { ...machine, documents: [document, ...machine.documents.slice(1)] };
		}
		this.#course(machine.name).based = { basis, at: performance.now() };
		const resendIn = await this.#send(current, document, content);
		const renewIn = Math.max(1_000, renewAt(document) - now());
		return { current, requeueAfter: Math.min(renewIn, resendIn ?? renewIn) };
	}

	/**
	 * Whether the last document is accepted and says all that there is to say: most of what hosts report changes nothing in it. The
	 * Secrets' content is looked at anew now and then, since a change of it is told by nobody.
	 */
	#isDelivered(machine: HostRecord, last: Document, basis: string): boolean {
		const { based } = this.#course(machine.name);
		return (
			based?.basis === basis &&
			performance.now() - based.at < SECRETS_MS &&
			this.#options.now() < renewAt(last) &&
			machine.link?.state === "connected" &&
			machine.accepted === last.generation &&
			machine.acceptedEpoch === machine.link.epoch
		);
	}

	/**
	 * Sends the document until the host has accepted it over the tunnel that is up: once over each, since a host may have lost what
	 * it kept. Returns when to look again.
	 */
	async #send(
		machine: HostRecord,
		document: Document,
		content: ReturnType<typeof contentOf>,
	): Promise<number | undefined> {
		const { inventory, signer, send } = this.#options;
		const { name, link, accepted, acceptedEpoch } = machine;
		const course = this.#course(name);
		if (link?.state !== "connected") {
			delete course.sent;
			return undefined;
		}
		const connection = `${link.gateway}/${link.epoch}/${link.at}`;
		const { sent } = course;
		const isAgain = sent?.generation === document.generation && sent.connection === connection;
		if (accepted === document.generation && acceptedEpoch === link.epoch) return undefined;
		const attempts = isAgain ? sent.attempts : 0;
		const pause = RESEND.baseMs / 2 + backoffMs(attempts, RESEND);
		const at = performance.now();
		if (isAgain && at < sent.at + RESEND.baseMs / 2) return sent.at + pause - at;
		// One that has a role is told where its control planes are: they are what it is near to or far from.
		const isFree = content.roles.length === 0 && !content.paused;
		const peers = isFree ? await inventory.addressesAfter(machine, PEERS) : [];
		send(name, { type: "desired-state", jws: await signer.sign(name, document, content, peers) });
		course.sent = { generation: document.generation, connection, attempts: attempts + 1, at: performance.now() };
		return pause;
	}

	async #secrets(host: Host, signal: AbortSignal): Promise<RoleSecrets> {
		const { kube, namespace } = this.#options;
		const found = new Map<string, Record<string, string>>();
		for (const name of secretNames(host)) {
			const secret = await kube.find(secrets, name, namespace, { signal });
			if (!secret) continue;
			const decode = ([key, value]: [string, string]) => [key, Buffer.from(value, "base64").toString("utf8")];
			found.set(name, Object.fromEntries(Object.entries(secret.data ?? {}).map(decode)));
		}
		return found;
	}

	/** Writes our part of the status if it has changed, or has it written later. Returns when to look again, if that can wait. */
	async #writeStatus(host: Host, machine: HostRecord | undefined, signal: AbortSignal): Promise<number | undefined> {
		const { name } = host.metadata;
		const course = this.#course(name);
		const { status, news } = this.#news(host, machine);
		if (news === "none") {
			delete course.due;
			return undefined;
		}
		const arrivesIn = arrival(host, machine, this.#options.now());
		if (arrivesIn > 0) return arrivesIn;
		const waitMs = this.#turnIn(course, news);
		if (news === "flip" || news === "minor") {
			this.#later.addAfter(name, waitMs, urgency(news));
			return undefined;
		}
		if (waitMs > 0) return waitMs;
		await this.#write(host, status, signal);
		return undefined;
	}

	/** Writes statuses that could wait, those that still say something new when their turn has come. */
	async #writeLater(signal: AbortSignal): Promise<void> {
		for (let name = await this.#later.get(); name !== undefined; name = await this.#later.get()) {
			try {
				const host = this.host(name);
				if (host) await this.#writeNow(host, signal);
				this.#later.forget(name);
			} catch (err) {
				if (!signal.aborted) this.#options.log.warn({ err, host: name }, "can't write a status; trying again");
				this.#later.addRateLimited(name);
			}
			this.#later.done(name);
		}
	}

	async #writeNow(host: Host, signal: AbortSignal): Promise<void> {
		const { name } = host.metadata;
		const { status, news } = this.#news(host, await this.#options.inventory.find(name));
		const course = this.#course(name);
		if (news === "none") return void delete course.due;
		// It was away when its turn was given, and is back.
		const waitMs = this.#turnIn(course, news);
		if (waitMs > 0) return this.#later.addAfter(name, waitMs, urgency(news));
		// Only who is written takes a turn: of a site that is back before its turn came, none must keep others waiting.
		if (news === "flip") await delay(this.#flips.reserve(), undefined, { signal });
		await this.#write(host, status, signal);
	}

	#news(host: Host, machine: HostRecord | undefined): { status: OwnStatus; news: News } {
		const { agentVersion: target, now } = this.#options;
		const { problem } = this.#course(host.metadata.name);
		const status = statusOf(host, machine, { problem, agents: this.#agents && { target, ...this.#agents }, now });
		const written = this.#written.get(host) ?? writtenOf(ownPart(host.status));
		return { status, news: newsOf(written, writtenOf(status)) };
	}

	async #write({ metadata }: Host, status: OwnStatus, signal: AbortSignal): Promise<void> {
		const { name, namespace, uid } = metadata;
		const course = this.#course(name);
		delete course.due;
		course.wroteAt = performance.now();
		await this.#options.kube.apply(
			hosts,
			// The uid keeps a status from landing on another Host that took the name meanwhile.
			{ metadata: { name, ...(namespace && { namespace }), ...(uid && { uid }) }, status },
			{ manager: MANAGER, force: true, subresource: "status", signal },
		);
	}

	/** How long a change waits that need not be told at once. */
	#turnIn(course: Course, news: News): number {
		const now = performance.now();
		if (course.due?.news !== news) course.due = { news, at: now + this.#waitMs(course, news, now) };
		return course.due.at - now;
	}

	/** When a whole region reconnects, its statuses must not all be written at once. */
	#waitMs({ wroteAt = Number.NEGATIVE_INFINITY }: Course, news: News, now: number): number {
		switch (news) {
			case "progress":
				return wroteAt + PROGRESS_MS - now;
			case "minor":
				return Math.random() * (this.#reflector.list().length / MINOR_WRITES_PER_SECOND) * 1000;
			default:
				return 0;
		}
	}

	/**
	 * The Host of a machine was deleted: its certificates and its tunnel go, and it may enrol anew. The machine is forgotten last: until
	 * gateways have heard that it is cut off, however often database or bus go away, all of it is done again.
	 */
	async #forget({ name, uid }: HostRecord): Promise<void> {
		const { inventory, farewell, log, now } = this.#options;
		if (!(await inventory.revoke(name, uid, now()))) return;
		await farewell(name);
		await inventory.forget(name, uid);
		this.#courses.delete(name);
		log.info({ host: name }, "the Host is gone: revoked its certificates, closed its tunnel");
	}

	/** Machines whose Host went while nobody watched. */
	async #sweep(): Promise<void> {
		for (const { name, uid } of await this.#options.inventory.identities()) {
			if (this.host(name)?.metadata.uid !== uid) this.changed(name);
		}
	}

	/** Tells the next hosts to take the region's version of the agent. */
	async #rollAgents(): Promise<void> {
		const { inventory, agentVersion: target, log, now } = this.#options;
		const agents = await inventory.agents(target);
		const plan = planAgents({ target, ...agents, hostOf: (name) => this.host(name), now: now() });
		if (plan.stopped && !this.#agents?.stopped) {
			log.error({ version: target, failed: plan.failed }, "no further host is told to take this version of the agent");
		}
		if (plan.stopped !== this.#agents?.stopped) {
			// All who wait say now why they do, but not all in the same second.
			const spreadMs = (agents.outdated.length / WRITES_PER_SECOND) * 1000;
			for (const { name } of agents.outdated) this.changed(name, DEBOUNCE_MS + Math.random() * spreadMs);
		}
		this.#agents = plan;
		for (const { name, retry } of plan.tell) {
			await inventory.offerAgent(name, { version: target, retry, at: new Date(now()).toISOString() });
			log.info({ host: name, version: target }, "told a host to take the region's version of the agent");
			this.changed(name);
		}
	}

	/** As gateways have said, which in a storm is sooner than what statuses say. Nothing while there is no database to ask. */
	async #countHosts(gauge: Gauge): Promise<void> {
		gauge.reset();
		const connections = await this.#options.inventory.connections().catch(() => undefined);
		if (connections === undefined) return;
		const { connected, disconnected } = connections;
		gauge.set({ connection: "Connected" }, connected);
		gauge.set({ connection: "Disconnected" }, disconnected);
		gauge.set({ connection: "Never" }, Math.max(0, this.#reflector.list().length - connected - disconnected));
	}
}

/**
 * For how many milliseconds the first status waits, 0 when it need not. A Host that was made a moment ago is most likely one whose
 * enrolment is not over yet; a machine that has enrolled dials at once, and one that has dialled takes its first document: one status
 * for all of it. Each is waited for {@link ARRIVAL_MS} at most, whatever the clocks of others say.
 */
export function arrival(
	{ metadata, status }: Pick<Host, "metadata" | "status">,
	machine: Pick<HostRecord, "enrolledAt" | "link" | "accepted"> | undefined,
	now: number,
): number {
	if (machine === undefined && status?.conditions !== undefined) return 0;
	if (machine?.link !== undefined && machine.accepted !== undefined) return 0;
	const came = machine?.enrolledAt.getTime() ?? Date.parse(metadata.creationTimestamp ?? "");
	const dialled = machine?.link?.state === "connected" ? Date.parse(machine.link.at) : came;
	const age = now - Math.min(Math.max(came, dialled), came + 2 * ARRIVAL_MS);
	return age > -ARRIVAL_MS && age < ARRIVAL_MS ? ARRIVAL_MS - Math.max(0, age) : 0;
}

/** What a document is made from, but for the content of Secrets; annotations don't count in `metadata.generation`. */
const basisOf = ({ metadata }: Host, agent: ReturnType<typeof agentOf>) =>
	JSON.stringify([metadata.generation, metadata.deletionTimestamp, metadata.annotations?.[EPOCH], agent]);

/** Whether a host is there matters to people; by which gateway, hardly. */
const urgency = (news: News) => (news === "minor" ? priorities.resync : priorities.status);

/** A Host without what its machine reports: most of its bytes, and the inventory has it. */
function withoutReports(host: Host): Host {
	const { facts: _facts, checks: _checks, roles: _roles, agent: _agent, ...status } = host.status ?? {};
	return { ...host, ...(host.status && { status }) };
}
