import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import { isAlreadyExists, isConflict, type KubeClient } from "./client.ts";
import { leaderStatus } from "./metrics.ts";
import { type Lease, leases } from "./resources.ts";

export interface LeaseOptions {
	client: KubeClient;
	namespace: string;
	name: string;
	/** Unique to this process: the pod's name with something random. */
	identity: string;
	log: Logger;
	/** Others may take over when the lease was not renewed for this long (milliseconds, whole seconds). */
	leaseDuration?: number;
	/** The holder gives up when it could not renew for this long; less than `leaseDuration`. */
	renewDeadline?: number;
	/** How often it is tried. */
	retryPeriod?: number;
	now?: () => number;
	random?: () => number;
}

/** What the holder of a lease is told. */
export interface Holding {
	/** The Lease's `leaseTransitions`: a fencing token that grows with every holder. */
	readonly epoch: number;
	/** Whether the lease is still ours by our own clock. A process that was stopped for a while (SIGSTOP, a frozen VM) finds that it is not, before it has heard of its successor. */
	isValid(): boolean;
}

/**
 * Leader election on a `Lease`, as client-go does it: waits for the lease, runs `lead` while it holds it, and gives it back.
 *
 * Returns when `signal` aborted or `lead` ended. When the lease is lost, `lead`'s signal is aborted and an error is thrown at once:
 * the process should exit, because what `lead` still has under way can't be trusted to stop in time.
 */
export async function runWithLease(
	options: LeaseOptions,
	signal: AbortSignal,
	lead: (signal: AbortSignal, holding: Holding) => Promise<void>,
): Promise<void> {
	const { name, identity, retryPeriod = 2000, random = Math.random, log } = options;
	const elector = new Elector(options);
	const pause = (s: AbortSignal) =>
		delay(retryPeriod * (1 + random() / 5), undefined, { signal: s }).catch(() => undefined);
	leaderStatus.set({ name }, 0);
	while (!signal.aborted && !(await elector.tryHold(signal))) await pause(signal);
	if (signal.aborted) return;

	log.info({ lease: name, identity }, "holding the lease");
	leaderStatus.set({ name }, 1);
	const stop = new AbortController();
	const leading = AbortSignal.any([signal, stop.signal]);
	const renewal = new AbortController();
	const lost = (async () => {
		while (!renewal.signal.aborted) {
			await pause(renewal.signal);
			if (renewal.signal.aborted) return;
			if (!(await elector.tryHold(renewal.signal)) && elector.isLost()) {
				throw new GroundplaneError("KubernetesUnavailable", `the lease ${name} was lost`, {
					next: "The process ends and starts again; look at the API server's health when this happens often.",
				});
			}
		}
	})();
	try {
		await Promise.race([lead(leading, { epoch: elector.epoch, isValid: () => !elector.isLost() }), lost]);
	} finally {
		leaderStatus.set({ name }, 0);
		stop.abort();
		renewal.abort();
		await lost.catch(() => undefined);
	}
	await elector.release();
}

class Elector {
	readonly #options: LeaseOptions;
	readonly #now: () => number;
	readonly #duration: number;
	/** The lease as last seen and when (on our own clock: the clocks of two machines are never compared). */
	#seen: { version: string | undefined; at: number } = { version: undefined, at: 0 };
	#held: Lease | undefined;
	#renewedAt = 0;
	#takenByOther = false;

	constructor(options: LeaseOptions) {
		this.#options = options;
		this.#now = options.now ?? (() => performance.now());
		this.#duration = options.leaseDuration ?? 15_000;
	}

	/** Number of the holding: every later holder has a higher one. */
	get epoch(): number {
		return this.#held?.spec?.leaseTransitions ?? 0;
	}

	/** Takes or renews the lease. False when another one holds it or it could not be written. */
	async tryHold(signal: AbortSignal): Promise<boolean> {
		const { client, namespace, name, identity, log, renewDeadline = 10_000 } = this.#options;
		// An answer that comes after the renew deadline is of no use, and waiting for it would hide the loss.
		const within = AbortSignal.any([signal, AbortSignal.timeout(renewDeadline / 2)]);
		const startedAt = this.#now();
		try {
			// Its own lease is renewed without reading it first; a conflict then says that somebody else wrote.
			const lease = this.#held ?? (await client.find(leases, name, namespace, { signal: within }));
			if (lease === undefined) {
				// Minutes since 1970, not 0: a Lease that was deleted and made again still has a higher epoch than the old one.
				const first = Math.floor(Date.now() / 60_000);
				this.#held = await client.create(leases, this.#lease({}, first), { signal: within });
			} else {
				const mine = lease.spec?.holderIdentity === identity;
				// Who has held it takes it no second time: what it leads goes by the epoch of the first.
				if (!mine && this.#renewedAt > 0) this.#takenByOther = true;
				if (!mine && (this.#takenByOther || this.#isValid(lease))) return false;
				const transitions = (lease.spec?.leaseTransitions ?? 0) + (mine ? 0 : 1);
				this.#held = await client.replace(leases, this.#lease(lease, transitions), { signal: within });
			}
			this.#renewedAt = startedAt;
			return true;
		} catch (error) {
			if (signal.aborted) return false;
			this.#held = undefined;
			if (!isConflict(error) && !isAlreadyExists(error)) {
				const { code, message } = asGroundplaneError(error);
				log.warn({ code, err: message, lease: name }, "the lease could not be read or written, trying again");
			}
			return false;
		}
	}

	/** Whether a holder must stop: another one has it, or it was not renewed in time. */
	isLost(): boolean {
		return this.#takenByOther || this.#now() - this.#renewedAt > (this.#options.renewDeadline ?? 10_000);
	}

	/** Gives the lease back, so that the next one need not wait until it runs out. */
	async release(): Promise<void> {
		const { client, log, name, namespace, identity } = this.#options;
		this.#held = undefined;
		for (let attempt = 0; ; attempt++) {
			try {
				// Read anew: a renewal that was broken off may have been written all the same.
				const lease = await client.get(leases, name, namespace);
				if (lease.spec?.holderIdentity !== identity) return;
				const spec = { ...lease.spec, holderIdentity: "", leaseDurationSeconds: 1 };
				await client.replace(leases, { ...lease, spec });
				return;
			} catch (error) {
				if (isConflict(error) && attempt < 5) continue;
				log.warn({ lease: name, err: asGroundplaneError(error).message }, "the lease runs out by itself");
				return;
			}
		}
	}

	/** Whether the holder renewed within the lease's duration, by when we saw it change. */
	#isValid(lease: Lease): boolean {
		if (lease.spec?.holderIdentity === undefined || !lease.spec.holderIdentity) return false;
		const version = lease.metadata.resourceVersion;
		if (version !== this.#seen.version) this.#seen = { version, at: this.#now() };
		return this.#now() - this.#seen.at < (lease.spec.leaseDurationSeconds ?? 15) * 1000;
	}

	#lease(old: Partial<Lease>, leaseTransitions: number): Lease {
		const { namespace, name, identity } = this.#options;
		// MicroTime: six digits are required.
		const now = new Date().toISOString().replace("Z", "000Z");
		const mine = old.spec?.holderIdentity === identity;
		return {
			metadata: old.metadata ?? { name, namespace },
			spec: {
				holderIdentity: identity,
				leaseDurationSeconds: Math.ceil(this.#duration / 1000),
				acquireTime: mine ? (old.spec?.acquireTime ?? now) : now,
				renewTime: now,
				leaseTransitions,
			},
		};
	}
}
