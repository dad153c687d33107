import { X509Certificate } from "node:crypto";
import { EventEmitter } from "node:events";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import type { JSONWebKeySet } from "jose";
import type { DesiredState } from "../protocol/desired-state.ts";
import { asGroundplaneError, GroundplaneError } from "../protocol/errors.ts";
import type { AgentUpdate, HostCheck, HostFacts, RoleStatus } from "../protocol/facts.ts";
import { type DownMessage, downMessage, type UpMessage, upMessage } from "../protocol/messages.ts";
import type { Session } from "../protocol/mux.ts";
import { readLines } from "../protocol/ndjson.ts";
import { VERSION } from "../protocol/version.ts";
import { keepDesiredState, keptDesiredState, verifyDesiredState } from "./desired.ts";
import { belongsTogether, certificateRequest, type Identity, newKey, renewAt, saveIdentity } from "./identity.ts";
import type { Log } from "./log.ts";

/** What the control channel needs of the engine. */
export interface EngineLike {
	setDesired(desired: Pick<DesiredState, "roles" | "paused" | "validUntil">): void;
	status(): RoleStatus[];
	onStatus(listener: (roles: RoleStatus[]) => void): () => void;
}

export interface ControlOptions {
	stateDir: string;
	identity: Identity;
	engine: EngineLike;
	/** The host as it is now. */
	observe: () => { facts: HostFacts; checks: HostCheck[] };
	/** Where it stands with another version of the agent; undefined when it can't change its version. */
	update?: () => AgentUpdate | undefined;
	log: Log;
	/** Milliseconds since the epoch. */
	now?: () => number;
}

/** How often the host is looked at for changes. */
const OBSERVE_MS = 60_000;
/** What changes with ordinary use (free space) is reported with the next change that matters, or after this long. */
const MINOR_CHANGE_MS = 3_600_000;
/** Role progress is reported at most this often. */
const ROLES_MS = 500;
/** Pause before a control stream that ended is opened again, and before an unanswered certificate request is repeated. */
const REOPEN_MS = 2_000;
const RENEWAL_RETRY_MS = 10 * 60_000;

/**
 * What agent and region say to each other. Reports are whole and repeated, so nothing depends on a single message:
 * facts on connect and when they change, roles when they change, an acknowledgement for every document.
 */
export class Control extends EventEmitter<{ changed: []; accepted: []; renewed: [identity: Identity] }> {
	readonly #options: ControlOptions;
	readonly #now: () => number;
	#identity: Identity;
	#desired: DesiredState | undefined;
	#refusal: { reason: string; message: string } | undefined;
	#stream: Duplex | undefined;
	#sentFacts = { all: "", major: "", at: 0 };
	#rolesTimer: NodeJS.Timeout | undefined;
	#pendingKey: string | undefined;
	#requestedAt = 0;

	constructor(options: ControlOptions) {
		super();
		this.#options = options;
		this.#identity = options.identity;
		this.#now = options.now ?? Date.now;
	}

	get identity(): Identity {
		return this.#identity;
	}

	/** The document that counts. */
	get desired(): DesiredState | undefined {
		return this.#desired;
	}

	/** Why the last document was refused, if it was. */
	get refusal(): { reason: string; message: string } | undefined {
		return this.#refusal;
	}

	/** Gives the engine the kept document, so that the host goes on with it while it is cut off. */
	async restore(): Promise<void> {
		const { region, host } = this.#identity;
		this.#desired = await keptDesiredState(this.#options.stateDir, { jwks: this.#jwks, region, host });
		if (this.#desired) this.#options.engine.setDesired(this.#desired);
	}

	/** Watches the host and the certificate until `signal` aborts; sessions come by {@link attend}. */
	async run(signal: AbortSignal): Promise<void> {
		const forget = this.#options.engine.onStatus(() => this.#rolesChanged());
		while (!signal.aborted) {
			await delay(OBSERVE_MS, undefined, { signal }).catch(() => {});
			if (signal.aborted) break;
			this.#sendFacts({ always: false });
			this.#renewIfDue();
		}
		forget();
		clearTimeout(this.#rolesTimer);
	}

	/** Holds a control stream on this session until the session ends or leaves. */
	async attend(session: Session): Promise<void> {
		while (!session.leaving) {
			try {
				await this.#converse(await session.open("control", { lane: "control" }));
			} catch (error) {
				const problem = asGroundplaneError(error);
				if (!session.leaving) this.#options.log.warn({ code: problem.code, next: problem.next }, problem.message);
			}
			await Promise.race([session.closed, delay(REOPEN_MS)]);
		}
	}

	/** Everything that is sent on connect: `gp-agent report` prints it. */
	reports(): UpMessage[] {
		const { facts, checks } = this.#options.observe();
		const certificateNotAfter = new X509Certificate(this.#identity.certificate).validToDate.toISOString();
		const agentUpdate = this.#options.update?.();
		return [
			{ type: "facts", agentVersion: VERSION, ...(agentUpdate && { agentUpdate }), facts, checks, certificateNotAfter },
			...(this.#desired
				? [{ type: "roles" as const, generation: this.#desired.generation, roles: this.#options.engine.status() }]
				: []),
		];
	}

	/** Something about the host has changed that the region should hear of before the next look. */
	observeNow(): void {
		this.#sendFacts({ always: false });
	}

	async #converse(stream: Duplex): Promise<void> {
		this.#stream = stream;
		try {
			this.#report();
			this.#renewIfDue();
			for await (const line of readLines(stream)) await this.#onMessage(parse(line));
		} finally {
			// A newer session may have its own stream by now.
			if (this.#stream === stream) this.#stream = undefined;
			stream.destroy();
		}
	}

	async #onMessage(message: DownMessage | undefined): Promise<void> {
		switch (message?.type) {
			case "desired-state":
				return this.#onDesiredState(message.jws);
			case "certificate":
				return this.#onCertificate(message);
			case "report":
				this.#report();
				return;
			case undefined:
				this.#options.log.warn({}, "the region sent a message that this version does not know; dropped");
		}
	}

	async #onDesiredState(jws: string): Promise<void> {
		const { engine, log, stateDir } = this.#options;
		const { region, host } = this.#identity;
		const last = this.#desired;
		try {
			const now = Math.floor(this.#now() / 1000);
			const state = await verifyDesiredState(jws, { jwks: this.#jwks, region, host, last, now });
			await keepDesiredState(stateDir, jws);
			this.#desired = state;
			this.#refusal = undefined;
			engine.setDesired(state);
			const { epoch, generation, paused, roles } = state;
			if (generation !== last?.generation || epoch !== last.epoch) {
				log.info({ epoch, generation, paused, roles: roles.map(({ name }) => name) }, "desired state accepted");
			}
			this.#send({ type: "acknowledgement", epoch, generation, accepted: true });
			this.#sendRoles();
			this.emit("accepted");
		} catch (error) {
			const { code, message, next } = asGroundplaneError(error);
			const claim = unverifiedNumbers(jws);
			this.#refusal = { reason: code, message };
			log.error({ code, next }, `desired state refused: ${message}`);
			this.#send({ type: "acknowledgement", ...claim, accepted: false, reason: code, message });
		}
		this.emit("changed");
	}

	/** A renewed certificate: taken when it is for the key that was made for it and names this host. */
	async #onCertificate({ certificate, caBundle }: Extract<DownMessage, { type: "certificate" }>): Promise<void> {
		const { log, stateDir } = this.#options;
		try {
			const key = [this.#pendingKey, this.#identity.key].find(
				(one) => one !== undefined && belongsTogether(certificate, one),
			);
			if (
				key === undefined ||
				!new X509Certificate(certificate).subject.split("\n").includes(`CN=${this.#identity.host}`)
			) {
				throw new GroundplaneError("CertificateInvalid", "the new certificate is not for this host's key and name", {
					next: "Nothing: the old one stays in use, and a new one is asked for again.",
				});
			}
			this.#identity = { ...this.#identity, key, certificate, caBundle };
			await saveIdentity(stateDir, this.#identity);
			this.#pendingKey = undefined;
			log.info({ until: new X509Certificate(certificate).validTo }, "certificate renewed");
			this.emit("renewed", this.#identity);
			this.emit("changed");
		} catch (error) {
			const { code, message, next } = asGroundplaneError(error);
			log.error({ code, next }, message);
		}
	}

	#renewIfDue(): void {
		const now = this.#now();
		if (!this.#stream || now < renewAt(this.#identity.certificate) || now - this.#requestedAt < RENEWAL_RETRY_MS)
			return;
		this.#requestedAt = now;
		this.#pendingKey ??= newKey();
		this.#send({ type: "certificate-request", csr: certificateRequest(this.#pendingKey, this.#identity.host) });
	}

	#report(): void {
		this.#sendFacts({ always: true });
		this.#sendRoles();
	}

	#sendFacts({ always }: { always: boolean }): void {
		const [message] = this.reports();
		if (!this.#stream || message?.type !== "facts") return;
		const { facts, checks } = message;
		const all = JSON.stringify(message);
		const major = JSON.stringify([
			{ ...facts, filesystems: facts.filesystems.map(({ path, sizeBytes }) => [path, sizeBytes]) },
			checks.map(({ name, ok, severity }) => [name, ok, severity]),
			message.certificateNotAfter,
			message.agentUpdate,
		]);
		const last = this.#sentFacts;
		const old = all !== last.all && this.#now() - last.at > MINOR_CHANGE_MS;
		if (!always && major === last.major && !old) return;
		this.#sentFacts = { all, major, at: this.#now() };
		this.#send(message);
		this.emit("changed");
	}

	#rolesChanged(): void {
		this.#rolesTimer ??= setTimeout(() => {
			this.#rolesTimer = undefined;
			this.#sendRoles();
			this.emit("changed");
		}, ROLES_MS);
	}

	#sendRoles(): void {
		const desired = this.#desired;
		if (desired) this.#send({ type: "roles", generation: desired.generation, roles: this.#options.engine.status() });
	}

	/** The sending end checks as well: what is not on the list does not leave the host. */
	#send(message: UpMessage): void {
		if (this.#stream && !this.#stream.destroyed) this.#stream.write(`${JSON.stringify(upMessage.parse(message))}\n`);
	}

	get #jwks(): JSONWebKeySet {
		return this.#identity.desiredStateJwks as unknown as JSONWebKeySet;
	}
}

function parse(line: string): DownMessage | undefined {
	try {
		return downMessage.parse(JSON.parse(line));
	} catch {
		return undefined;
	}
}

/** What a document says of itself, for the answer to one that is not believed. */
function unverifiedNumbers(jws: string): { epoch: number; generation: number } {
	try {
		const claims = JSON.parse(Buffer.from(jws.split(".")[1] ?? "", "base64url").toString("utf8")) as Record<
			string,
			unknown
		>;
		const number = (value: unknown) => (Number.isSafeInteger(value) ? (value as number) : 0);
		return { epoch: number(claims.epoch), generation: number(claims.generation) };
	} catch {
		return { epoch: 0, generation: 0 };
	}
}
