import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import type { DesiredRole, DesiredState } from "../../protocol/desired-state.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { RoleStatus } from "../../protocol/facts.ts";
import type { ReleaseManifest } from "../../protocol/release.ts";
import { type Exec, execute } from "../primitives/exec.ts";
import { primitives } from "../primitives/index.ts";
import type { Observation, Primitive, StepContext } from "../primitives/primitive.ts";
import type { BundleSource } from "./bundles.ts";
import { type RoleFacts, readRoleFacts } from "./facts.ts";
import { type Journal, Journals } from "./journal.ts";
import { type RenderedRole, render, type Step } from "./pack.ts";
import { type Action, plan, record } from "./plan.ts";

export interface EngineLog {
	info(fields: object, message: string): void;
	warn(fields: object, message: string): void;
	error(fields: object, message: string): void;
}

export interface EngineOptions {
	/** Where journals and what must be put back are kept; on a disk that survives a reboot. */
	readonly stateDir: string;
	readonly bundles: BundleSource;
	readonly log: EngineLog;
	readonly exec?: Exec;
	readonly facts?: () => RoleFacts;
	/** Milliseconds since the epoch. */
	readonly now?: () => number;
	/** In [0, 1), for jitter. */
	readonly random?: () => number;
	/** How often a role that is as it should be is looked at again, in milliseconds. */
	readonly recheckMs?: number;
}

export type DesiredRoles = Pick<DesiredState, "roles" | "paused" | "validUntil">;

const FIRST_RETRY = 1000;
const LAST_RETRY = 60_000;
const DOWNLOADS = 4;
const FETCHING = "fetch files";

/** What the engine knows of one role while it runs; everything that must outlive it is in the journal. */
interface Run {
	readonly name: string;
	desired: DesiredRole | undefined;
	fingerprint: string;
	rendered: RenderedRole | undefined;
	/** Everything is here that has to be before the first step. */
	prepared: boolean;
	manifest: ReleaseManifest | undefined;
	readonly observed: Map<string, Observation>;
	/** When a step was last looked at. */
	readonly checkedAt: Map<string, number>;
	/** Everything was as wanted at least once since the last change of the desired state. */
	converged: boolean;
	/** Entries to undo when removal began. */
	toRemove: number;
	current: string | undefined;
	failure: { readonly error: GroundplaneError; readonly step: string } | undefined;
	failures: number;
	notBefore: number;
	/** Files that come while steps are done already; absent when nothing has to come. */
	fetching: Fetching | undefined;
}

interface Fetching {
	done: number;
	readonly total: number;
	/** Ends it, and resolves when nothing of it is under way any more. What has come of a file so far stays. */
	readonly stop: () => Promise<void>;
}

/**
 * Makes this host play the roles of its desired state, and keeps it so: looks, plans, does one step, looks again.
 * What it did is in a journal, so that it goes on after a crash at any line, and can undo all of it.
 */
export class Engine {
	readonly #options: Required<EngineOptions>;
	readonly #journals: Journals;
	#journal = new Map<string, Journal>();
	readonly #runs = new Map<string, Run>();
	#desired: DesiredRoles | undefined;
	readonly #listeners = new Set<(roles: RoleStatus[]) => void>();
	#reported = "";
	#wake = Promise.withResolvers<void>();
	#underWay: { readonly role: string; readonly abort: AbortController } | undefined;

	constructor(options: EngineOptions) {
		this.#options = {
			exec: execute,
			facts: readRoleFacts,
			now: Date.now,
			random: Math.random,
			recheckMs: 300_000,
			...options,
		};
		this.#journals = new Journals(options.stateDir);
	}

	/** What the host should be from now on. Before the first call nothing is done, and nothing is undone. */
	setDesired(desired: DesiredRoles): void {
		this.#desired = desired;
		this.#endUnwanted();
		this.#wake.resolve();
	}

	/** A step towards something that is no longer wanted is not waited for. */
	#endUnwanted(): void {
		const running = this.#underWay;
		const before = running && this.#runs.get(running.role)?.desired;
		const after = this.#desired?.roles.find(({ name }) => name === running?.role);
		if (before && after?.version !== before.version)
			running.abort.abort(
				new GroundplaneError(
					"StepFailed",
					after
						? `version ${after.version} was asked for while this step ran`
						: "the role was taken away while this step ran",
					{ next: after ? "Nothing: the host goes there." : "Nothing: what it did is undone." },
				),
			);
	}

	/** Calls back with all roles whenever one of them has changed. Returns how to stop that. */
	onStatus(listener: (roles: RoleStatus[]) => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** All roles and where they stand. */
	status(): RoleStatus[] {
		return [...this.#runs.values()].map((run) => this.#statusOf(run));
	}

	/**
	 * Works until the signal aborts; the step under way is then stopped, and taken up again by the next run. With `once`
	 * it also ends when every step was looked at and all is as wanted: a status tells that sooner, out of the journal.
	 */
	async run(signal: AbortSignal, { once = false }: { readonly once?: boolean } = {}): Promise<void> {
		this.#journal = await this.#journals.load();
		const stop = () => this.#wake.resolve();
		signal.addEventListener("abort", stop);
		try {
			while (!signal.aborted) {
				this.#wake = Promise.withResolvers();
				const wait = await this.#turn(signal);
				this.#report();
				if (wait > 0 && once && this.#settled()) return;
				if (wait > 0) await this.#sleep(wait);
			}
		} finally {
			signal.removeEventListener("abort", stop);
			for (const { fetching } of this.#runs.values()) await fetching?.stop();
		}
	}

	/** One look and at most one step. Gives the milliseconds until there is something to do again. */
	async #turn(signal: AbortSignal): Promise<number> {
		if (!this.#desired) return LAST_RETRY;
		await this.#adopt(this.#desired);
		if (this.#frozen()) return LAST_RETRY;
		let next = this.#options.recheckMs;
		for (const run of this.#runs.values()) {
			const wait = run.notBefore - this.#options.now();
			if (wait > 0) {
				next = Math.min(next, wait);
				continue;
			}
			if (await this.#advance(run, signal)) return 0;
			next = Math.min(next, run.notBefore - this.#options.now());
			if (signal.aborted) return 0;
		}
		return Math.max(next, 1);
	}

	/** Takes over the desired state: roles to remove come first, since a role to come may need their place. */
	async #adopt({ roles }: DesiredRoles): Promise<void> {
		const wanted = new Map(roles.map((role) => [role.name, role]));
		const gone = [...new Set([...this.#journal.keys(), ...this.#runs.keys()])].filter((name) => !wanted.has(name));
		const order = [...gone, ...wanted.keys()];
		const before = [...this.#runs.values()];
		const runs = order.map((name) => this.#runOf(name, wanted.get(name)));
		for (const run of before) if (!runs.includes(run)) await run.fetching?.stop();
		this.#runs.clear();
		for (const run of runs) {
			if (run.desired || this.#journal.has(run.name)) this.#runs.set(run.name, run);
			// Taken away before its first step: only what was fetched for it is there.
			else if (before.some(({ name, desired }) => name === run.name && desired)) await this.#forget(run);
		}
	}

	#runOf(name: string, desired: DesiredRole | undefined): Run {
		const fingerprint = fingerprintOf(desired);
		const known = this.#runs.get(name);
		if (known?.fingerprint === fingerprint) return known;
		return {
			name,
			desired,
			fingerprint,
			rendered: undefined,
			prepared: false,
			manifest: undefined,
			observed: new Map(),
			checkedAt: new Map(),
			converged: false,
			toRemove: this.#journal.get(name)?.entries.length ?? 0,
			current: undefined,
			failure: undefined,
			failures: 0,
			notBefore: 0,
			fetching: undefined,
		};
	}

	/** Does the next action of a role. False when there was none: all is as it should be, until `run.notBefore`. */
	async #advance(run: Run, signal: AbortSignal): Promise<boolean> {
		const { now, random, log } = this.#options;
		try {
			if (run.desired && !run.prepared) await this.#unlessUnwanted(run, signal, (either) => this.#prepare(run, either));
			this.#expire(run);
			const [action] = plan(run.rendered, this.#journal.get(run.name), run.observed);
			if (!action) {
				run.converged = true;
				run.current = undefined;
				run.failure = undefined;
				run.failures = 0;
				run.notBefore = this.#nextCheck(run);
				return false;
			}
			await this.#do(run, action, signal);
			return true;
		} catch (thrown) {
			if (signal.aborted) return false;
			const error = this.#withoutSecrets(run, asGroundplaneError(thrown));
			run.failures += 1;
			run.failure = { error, step: run.current ?? "prepare" };
			// Full jitter, doubling from one second up to a minute; for ever, and in the status all the while.
			const ceiling = Math.min(LAST_RETRY, FIRST_RETRY * 2 ** Math.min(run.failures, 10));
			run.notBefore = now() + ceiling / 2 + random() * (ceiling / 2);
			run.observed.clear();
			log.warn(
				{ role: run.name, step: run.failure.step, code: error.code, attempt: run.failures, err: error },
				error.message,
			);
			return true;
		}
	}

	/** Fetches the bundle's manifest and pack, fills in the steps, and fetches what they need that is not on the host. */
	async #prepare(run: Run, signal: AbortSignal): Promise<void> {
		const { bundles, facts } = this.#options;
		const { desired } = run;
		if (!desired) return;
		run.current = "fetch the role pack";
		this.#report();
		const manifest = await bundles.manifest(desired.name, desired.version, signal);
		const packs = manifest.files.filter(({ kind, path }) => kind === "pack" || path.startsWith("pack/"));
		const files = new Map<string, string>();
		for (const file of packs) files.set(file.path, await readFile(await bundles.blob(file, signal), "utf8"));
		run.manifest = manifest;
		run.rendered = render(manifest, files, desired.parameters, facts());
		const journal = this.#journal.get(run.name);
		// After a restart of the agent a role that was applied counts as such until a look at the host says otherwise.
		run.converged =
			journal?.identity === run.rendered.identity && run.rendered.steps.every((step) => isDone(step, journal));
		if (journal && journal.version !== desired.version) {
			// Nothing of a node that works is touched before all of the new version is here.
			const fetching = this.#fetch(run, manifest, signal);
			await fetching.whole.finally(fetching.stop);
			await this.#pruneBundles(run, journal.version, manifest, signal);
		} else if (!journal || journal.identity === run.rendered.identity) {
			run.fetching = this.#fetch(run, manifest, signal);
		}
		run.prepared = true;
		this.#recovered(run);
	}

	/** Forgets a failure that is over: of this step, or of what had to be here before any. */
	#recovered(run: Run, step?: string): void {
		const { failure, rendered } = run;
		if (!failure || (failure.step !== step && rendered?.steps.some(({ name }) => name === failure.step))) return;
		run.failure = undefined;
		run.failures = 0;
	}

	/** Keeps the files of the version that is wanted and of the one before, for the way back; those of older ones go. */
	async #pruneBundles(run: Run, before: string, manifest: ReleaseManifest, signal: AbortSignal): Promise<void> {
		// With another role on the host the files of that one would have to be known too.
		if (this.#runs.size > 1) return;
		const { bundles } = this.#options;
		const previous = await bundles.manifest(run.name, before, signal).catch(() => undefined);
		if (previous) await bundles.prune?.(new Set([...manifest.files, ...previous.files].map(({ sha256 }) => sha256)));
	}

	/**
	 * Fetches what steps need that are not done, in their order and a few at a time, so that no step waits for the network
	 * longer than it must. What can't be fetched is said by `whole`, or by the step that needs it.
	 */
	#fetch(run: Run, manifest: ReleaseManifest, signal: AbortSignal): Fetching & { readonly whole: Promise<void> } {
		const { bundles } = this.#options;
		const journal = this.#journal.get(run.name);
		const needed = (run.rendered?.steps ?? []).filter((step) => !isDone(step, journal)).map(blobOf);
		const queue = [...new Set(needed)].flatMap((path) => manifest.files.find((file) => file.path === path) ?? []);
		const abort = new AbortController();
		const either = AbortSignal.any([signal, abort.signal]);
		const worker = async () => {
			for (let file = queue.shift(); file && !either.aborted; file = queue.shift()) {
				await bundles.blob(file, either);
				fetching.done += 1;
				if (run.current?.startsWith(FETCHING)) this.#tellFetching(run, fetching);
			}
		};
		const fetching = { done: 0, total: queue.length, stop, whole: Promise.resolve() };
		if (queue.length > 0) this.#tellFetching(run, fetching);
		const workers = Array.from({ length: DOWNLOADS }, worker);
		const settled = Promise.allSettled(workers);
		fetching.whole = Promise.all(workers).then(() => {});
		fetching.whole.catch(() => {});
		async function stop() {
			abort.abort();
			await settled;
		}
		return fetching;
	}

	#tellFetching(run: Run, { done, total }: Fetching): void {
		run.current = `${FETCHING} ${done}/${total}`;
		this.#report();
	}

	/** Has the file of a step here before its time begins to count: a line may be slow, a step may not. */
	async #arrive(run: Run, step: Step, signal: AbortSignal): Promise<void> {
		const path = blobOf(step);
		const file = run.manifest?.files.find((one) => one.path === path);
		if (!file) return;
		if (run.fetching && run.fetching.done < run.fetching.total) this.#tellFetching(run, run.fetching);
		await this.#options.bundles.blob(file, signal);
	}

	/** Forgets observations that are older than their interval, so that drift is found. */
	#expire(run: Run): void {
		if (!run.converged) return;
		for (const step of run.rendered?.steps ?? []) {
			const interval = step.recheck ?? this.#options.recheckMs;
			if ((run.checkedAt.get(step.name) ?? 0) + interval <= this.#options.now()) run.observed.delete(step.name);
		}
	}

	#nextCheck(run: Run): number {
		const steps = run.rendered?.steps ?? [];
		const times = steps.map((step) => (run.checkedAt.get(step.name) ?? 0) + (step.recheck ?? this.#options.recheckMs));
		return Math.min(this.#options.now() + this.#options.recheckMs, ...times);
	}

	async #do(run: Run, action: Action, signal: AbortSignal): Promise<void> {
		if (action.do === "forget") return this.#forget(run);
		const name = action.do === "undo" ? action.entry.name : action.step.name;
		const timeout = action.do === "undo" ? 300_000 : action.step.timeout;
		await this.#unlessUnwanted(run, signal, async (either, abort) => {
			if (action.do === "apply") await this.#arrive(run, action.step, either);
			const deadline = setTimeout(() => {
				abort(
					new GroundplaneError("StepTimeout", `${name} took longer than ${timeout / 1000} s`, {
						next: "Look at the host's load, disk and network; it is tried again by itself.",
					}),
				);
			}, timeout);
			try {
				const context = this.#context(run, either);
				if (action.do === "check") await this.#check(run, action.step, context);
				else if (action.do === "apply") await this.#apply(run, action.step, context);
				else await this.#undo(run, action.entry, context);
			} finally {
				clearTimeout(deadline);
			}
		});
	}

	/** Work for a role that {@link setDesired} may end at any moment: a step, or the files of a version that come. */
	async #unlessUnwanted(
		run: Run,
		signal: AbortSignal,
		work: (either: AbortSignal, abort: (reason: GroundplaneError) => void) => Promise<void>,
	): Promise<void> {
		const abort = new AbortController();
		this.#underWay = { role: run.name, abort };
		this.#endUnwanted();
		try {
			await work(AbortSignal.any([signal, abort.signal]), (reason) => abort.abort(reason));
		} catch (error) {
			// Whoever threw because of our signal says so in many ways; its reason is what matters.
			throw abort.signal.aborted ? abort.signal.reason : error;
		} finally {
			this.#underWay = undefined;
		}
	}

	async #check(run: Run, step: Step, context: StepContext): Promise<void> {
		if (!run.converged) {
			run.current = step.name;
			this.#report();
		}
		const entry = this.#journal.get(run.name)?.entries.find(({ name }) => name === step.name);
		const applied = { last: entry?.state === "applied" ? entry.digest : undefined, now: step.digest };
		const observation = await primitiveOf(step.use).observe(step.want, context, applied);
		run.observed.set(step.name, observation);
		run.checkedAt.set(step.name, this.#options.now());
		if (!observation.ok && run.converged) {
			run.converged = false;
			run.current = step.name;
			this.#options.log.info({ role: run.name, step: step.name, why: observation.why }, "repairing drift");
		}
		// As wanted without us having done it, or changed in words only: it is ours from now on, with what it was.
		if (observation.ok && (entry?.state !== "applied" || entry.digest !== step.digest)) {
			if (!entry) await this.#begin(run, step, context);
			await this.#write(run, step, "applied", step.digest);
		}
		await this.#keepOutputs(run, observation);
	}

	async #apply(run: Run, step: Step, context: StepContext): Promise<void> {
		run.current = step.name;
		this.#report();
		const started = this.#options.now();
		const entry = this.#journal.get(run.name)?.entries.find(({ name }) => name === step.name);
		if (!entry) await this.#begin(run, step, context);
		const applied = { last: entry?.state === "applied" ? entry.digest : undefined, now: step.digest };
		await primitiveOf(step.use).apply(step.want, context, applied);
		const seen = await primitiveOf(step.use).observe(step.want, context, { last: step.digest, now: step.digest });
		if (!seen.ok)
			throw new GroundplaneError("StepFailed", `${step.name} was done, but: ${seen.why ?? "it is not as wanted"}`, {
				next: "Something on the host works against it; look at the message and the host's journal.",
			});
		await this.#write(run, step, "applied", step.digest);
		run.observed.set(step.name, seen);
		await this.#keepOutputs(run, seen);
		run.checkedAt.set(step.name, this.#options.now());
		this.#recovered(run, step.name);
		this.#options.log.info({ role: run.name, step: step.name, ms: this.#options.now() - started }, "step done");
	}

	/** Outputs last until they change: others build on them, also while a step fails or the agent starts anew. */
	async #keepOutputs(run: Run, { outputs = {} }: Observation): Promise<void> {
		const journal = this.#journal.get(run.name);
		if (!journal || Object.entries(outputs).every(([name, value]) => journal.outputs[name] === value)) return;
		const updated = { ...journal, outputs: { ...journal.outputs, ...outputs } };
		await this.#journals.save(updated);
		this.#journal.set(run.name, updated);
	}

	/** Remembers what is there and writes that down, before anything is changed. */
	async #begin(run: Run, step: Step, context: StepContext): Promise<void> {
		const memory = await primitiveOf(step.use).remember(step.want, context);
		await this.#write(run, step, "started", undefined, memory);
	}

	async #write(
		run: Run,
		step: Step,
		state: "started" | "applied",
		digest: string | undefined,
		memory?: unknown,
	): Promise<void> {
		const steps = run.rendered?.steps ?? [];
		const journal = this.#journal.get(run.name);
		const entry = journal?.entries.find(({ name }) => name === step.name);
		const updated: Journal = {
			schema: 1,
			role: run.name,
			version: run.desired?.version ?? journal?.version ?? "",
			identity: run.rendered?.identity ?? journal?.identity ?? "",
			outputs: journal?.outputs ?? {},
			entries: record(
				journal?.entries ?? [],
				{
					name: step.name,
					use: step.use,
					key: step.key,
					state,
					...(digest === undefined ? {} : { digest }),
					memory: memory ?? entry?.memory,
				},
				steps,
			),
		};
		await this.#journals.save(updated);
		this.#journal.set(run.name, updated);
	}

	async #undo(run: Run, entry: Journal["entries"][number], context: StepContext): Promise<void> {
		run.current = `undo ${entry.name}`;
		run.converged = false;
		this.#report();
		await primitiveOf(entry.use).undo(entry.memory, context);
		const journal = this.#journal.get(run.name);
		if (!journal) return;
		const updated = { ...journal, entries: journal.entries.filter(({ name }) => name !== entry.name) };
		await this.#journals.save(updated);
		this.#journal.set(run.name, updated);
		run.observed.delete(entry.name);
		run.failure = undefined;
		run.failures = 0;
		this.#options.log.info({ role: run.name, step: entry.name }, "step undone");
	}

	async #forget(run: Run): Promise<void> {
		await this.#journals.remove(run.name);
		this.#journal.delete(run.name);
		if (this.#journal.size === 0) await this.#options.bundles.prune?.(new Set());
		this.#options.log.info({ role: run.name }, "role removed");
	}

	#context(run: Run, signal: AbortSignal): StepContext {
		const { exec, bundles, now, log } = this.#options;
		const file = (path: string) => {
			const found = run.manifest?.files.find((one) => one.path === path);
			if (found) return found;
			throw new GroundplaneError("BundleNotFound", `the bundle of role ${run.name} has no file ${path}`, {
				next: "Take another version of the bundle.",
			});
		};
		return {
			exec,
			file,
			blob: (path) => bundles.blob(file(path), signal),
			backupDir: this.#journals.backupDir(run.name),
			signal,
			now,
			log: (message) => log.info({ role: run.name, step: run.current }, message),
		};
	}

	/** After a turn that found nothing to do: nobody waits to try again. */
	#settled(): boolean {
		return !this.#frozen() && [...this.#runs.values()].every(({ failure }) => failure === undefined);
	}

	#frozen(): boolean {
		const desired = this.#desired;
		return !desired || desired.paused || this.#options.now() / 1000 > desired.validUntil;
	}

	#withoutSecrets(run: Run, error: GroundplaneError): GroundplaneError {
		const secrets = run.rendered?.secrets ?? [];
		const cause = error.cause instanceof Error ? error.cause.message : "";
		if (!secrets.some((secret) => error.message.includes(secret) || cause.includes(secret))) return error;
		const message = secrets.reduce((text, secret) => text.replaceAll(secret, "[secret]"), error.message);
		return new GroundplaneError(error.code, message, { next: error.next });
	}

	#statusOf(run: Run): RoleStatus {
		const journal = this.#journal.get(run.name);
		const steps = run.rendered?.steps ?? [];
		const left = journal?.entries.length ?? 0;
		const changing = !run.desired || (journal && run.rendered && journal.identity !== run.rendered.identity);
		const outputs = journal?.outputs ?? {};
		const common = {
			name: run.name,
			version: run.desired?.version ?? journal?.version ?? "",
			...(Object.keys(outputs).length > 0 ? { outputs } : {}),
			...(changing
				? { done: Math.max(run.toRemove - left, 0), total: run.toRemove }
				: { done: steps.filter((step) => isDone(step, journal)).length, total: steps.length }),
		};
		// Asked for something else a moment ago: how it stood with what was wanted before is no answer to that.
		const wanted = this.#desired?.roles.find(({ name }) => name === run.name);
		if (fingerprintOf(wanted) !== run.fingerprint) return { ...common, phase: wanted ? "Pending" : "Removing" };
		if (run.failure) {
			const { error, step } = run.failure;
			const tries = run.failures > 1 ? ` (${run.failures} times)` : "";
			const message = `${error.message}${tries}. ${error.next}`;
			return { ...common, phase: "Failed", step, reason: error.code, message };
		}
		if (changing) return { ...common, phase: "Removing", step: run.current };
		if (run.converged) return { ...common, done: steps.length, phase: "Applied" };
		return { ...common, phase: run.current === undefined ? "Pending" : "Applying", step: run.current };
	}

	#report(): void {
		const roles = this.status();
		const text = JSON.stringify(roles);
		if (text === this.#reported) return;
		this.#reported = text;
		for (const listener of this.#listeners) listener(roles);
	}

	async #sleep(milliseconds: number): Promise<void> {
		let timer: NodeJS.Timeout | undefined;
		const time = new Promise<void>((resolve) => {
			timer = setTimeout(resolve, milliseconds);
		});
		await Promise.race([time, this.#wake.promise]);
		clearTimeout(timer);
	}
}

/** Tells whether a role is wanted as it was. */
const fingerprintOf = (desired: DesiredRole | undefined): string =>
	createHash("sha256")
		.update(JSON.stringify(desired ?? null))
		.digest("hex");

/** Path inside the bundle of the file that a step puts onto the host, for those that do. */
const blobOf = ({ want }: Step): unknown => (want as { blob?: unknown }).blob;

function isDone(step: Step, journal: Journal | undefined): boolean {
	const entry = journal?.entries.find(({ name }) => name === step.name);
	return entry?.state === "applied" && entry.digest === step.digest;
}

function primitiveOf(use: string): Primitive {
	const primitive = primitives[use];
	if (primitive) return primitive;
	throw new GroundplaneError("StepFailed", `this agent does not know how to do \`${use}\``, {
		next: "Upgrade the agent.",
	});
}
