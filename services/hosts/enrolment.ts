import { type Kysely, sql, type Transaction } from "kysely";
import { dnsLabel } from "../../crds/common.ts";
import type { Host } from "../../crds/host.ts";
import { isAlreadyExists, type KubeClient } from "../../operator/kube/client.ts";
import { hosts } from "../../operator/kube/resources.ts";
import { asGroundplaneError, GroundplaneError } from "../../protocol/errors.ts";
import type { EnrollRequest, EnrollResponse } from "../../protocol/messages.ts";
import { isDuplicate } from "../kit/database.ts";
import { type CertificateAuthority, type CertificateRequest, readCertificateRequest } from "./certificate-authority.ts";
import type { HostsDatabase } from "./database.ts";
import type { Inventory } from "./inventory.ts";
import { JOIN_TOKEN, type JoinTokens } from "./join-tokens.ts";

export const MANAGER = "groundplane-hosts";

/** So many enrolments at a time: each holds a connection to the database while the API server makes the Host. */
const AT_ONCE = 5;
/** An enrolment that has waited this long is refused: the machine has given up by then, and asks again. */
const MOST_WAIT_MS = 15_000;

/** How far a host's clock may be off. Beyond, certificates and signed documents would not mean the same at both ends. */
const MAX_SKEW_SECONDS = 300;

export interface EnrolmentOptions {
	readonly db: Kysely<HostsDatabase>;
	readonly tokens: JoinTokens;
	readonly inventory: Inventory;
	readonly authority: CertificateAuthority;
	readonly kube: KubeClient;
	readonly region: string;
	readonly namespace: string;
	readonly desiredStateJwks: EnrollResponse["desiredStateJwks"];
	/** Closes tunnels that were opened with the host's earlier certificates. */
	readonly cut: (host: string, keepSerial: string) => void;
	readonly now: () => number;
}

/** What the checks need to know of the machines that are there already. */
interface Known {
	/** The machine that holds the name. */
	readonly byName?: { machine_id: string } | undefined;
	/** The name that the machine holds. */
	readonly byMachine?: { name: string } | undefined;
}

/** What can be said about a request without looking anything up. Throws. */
export function checkRequest(body: Pick<EnrollRequest, "name" | "time">, csr: CertificateRequest, now: number): void {
	if (!dnsLabel.safeParse(body.name).success) {
		throw new GroundplaneError("InvalidInput", `"${body.name}" can't be the name of a host.`, {
			next: "A host's name is a DNS label: lower-case letters, digits and dashes, 63 at most. Give one with --name.",
		});
	}
	const skew = Math.round(body.time - now / 1000);
	if (Math.abs(skew) > MAX_SKEW_SECONDS) {
		const way = skew > 0 ? "ahead of" : "behind";
		throw new GroundplaneError("ClockSkew", `The host's clock is ${Math.abs(skew)} s ${way} the region's.`, {
			next: "Set the host's clock (timedatectl set-ntp true) and restart gp-agent.service.",
			details: { skewSeconds: skew },
		});
	}
	if (csr.name !== body.name) {
		throw new GroundplaneError(
			"HostNameMismatch",
			`The request is for ${body.name}, its certificate request for ${csr.name}.`,
			{
				next: "Use the agent of this region's package; it makes both of them from one name.",
			},
		);
	}
}

/** Whether this machine may have this name. Throws. */
export function checkIdentity(
	name: string,
	machineId: string,
	tokenHostName: string | null,
	{ byName, byMachine }: Known,
): void {
	if (tokenHostName !== null && tokenHostName !== name) {
		throw new GroundplaneError("HostNameMismatch", `This join token is for ${tokenHostName}, not for ${name}.`, {
			next: "Run the join command on the host that it was made for, or make another.",
		});
	}
	if (byName && byName.machine_id !== machineId) {
		throw new GroundplaneError("HostAlreadyEnrolled", `Another machine is enrolled as ${name}.`, {
			next: `Give this host another name, or delete the other one first: gp host delete ${name}`,
		});
	}
	if (byMachine && byMachine.name !== name) {
		throw new GroundplaneError("HostAlreadyEnrolled", `This machine is enrolled as ${byMachine.name} already.`, {
			next: `Delete it first (gp host delete ${byMachine.name}). If this is a clone, give it a machine id of its own: rm /etc/machine-id && systemd-machine-id-setup`,
		});
	}
}

/**
 * Turns a machine with a join token into a Host with a certificate, or leaves nothing behind: all rows are written in one
 * transaction, and a Host made on the way is deleted when it fails. When the database goes away nobody knows whether it has: the Host
 * stays, and the machine's next try takes it over. A machine that asks again with the same token (the answer got lost) enrols anew
 * without using it up.
 */
export class Enrolment {
	readonly #options: EnrolmentOptions;
	readonly #waiting: (() => void)[] = [];
	#free = AT_ONCE;

	constructor(options: EnrolmentOptions) {
		this.#options = options;
	}

	/** Enrols when it is this request's turn: hundreds of machines that start together take turns, in the order in which they came. */
	async enrol(bearer: string | undefined, body: EnrollRequest): Promise<EnrollResponse> {
		const { now } = this.#options;
		const came = now();
		if (this.#free > 0) this.#free -= 1;
		else await new Promise<void>((resolve) => this.#waiting.push(resolve));
		try {
			if (now() - came > MOST_WAIT_MS) {
				throw new GroundplaneError("Overloaded", "Too many machines enrol at this moment.", {
					next: "Nothing to do: the agent tries again.",
				});
			}
			return await this.#enrol(bearer, body);
		} finally {
			const next = this.#waiting.shift();
			if (next) next();
			else this.#free += 1;
		}
	}

	async #enrol(bearer: string | undefined, body: EnrollRequest): Promise<EnrollResponse> {
		const { db, authority, region, desiredStateJwks, cut, now } = this.#options;
		if (!bearer || !JOIN_TOKEN.test(bearer)) {
			throw new GroundplaneError("JoinTokenInvalid", "The request carries no join token.", {
				next: "Ask for one with `gp host join-command`.",
			});
		}
		const csr = await readCertificateRequest(body.csr);
		checkRequest(body, csr, now());

		let made: Host | undefined;
		try {
			const result = await db.transaction().execute((transaction) =>
				this.#enrolIn(transaction, bearer, body, csr, (host) => {
					made = host;
				}),
			);
			if (result.replaced) cut(body.name, result.issued.serial);
			return {
				region,
				host: body.name,
				certificate: result.issued.pem,
				caBundle: await authority.roots(),
				desiredStateJwks,
				approved: result.host.spec.approved,
			};
		} catch (error) {
			if (made && asGroundplaneError(error).code !== "DatabaseUnavailable") await this.#unmake(made);
			if (isDuplicate(error)) {
				throw new GroundplaneError("Conflict", "This machine is being enrolled at this very moment.", {
					next: "Nothing to do: the agent tries again.",
					cause: error,
				});
			}
			throw error;
		}
	}

	async #enrolIn(
		transaction: Transaction<HostsDatabase>,
		bearer: string,
		body: EnrollRequest,
		csr: CertificateRequest,
		onMade: (host: Host) => void,
	) {
		const { tokens, inventory, authority, now } = this.#options;
		const { name, facts } = body;
		await sql`SELECT pg_advisory_xact_lock(hashtext(${`host/${name}`}))`.execute(transaction);
		const token = await tokens.check(transaction, bearer, facts.machineId);
		const known = await transaction
			.selectFrom("hosts")
			.select(["name", "machine_id"])
			.where((where) => where.or([where("name", "=", name), where("machine_id", "=", facts.machineId)]))
			.execute();
		const byName = known.find((row) => row.name === name);
		const byMachine = known.find((row) => row.machine_id === facts.machineId);
		checkIdentity(name, facts.machineId, token.host_name, { byName, byMachine });

		const issued = await authority.issue(name, csr);
		const { host, isNew } = await this.#ensureHost(name, token.approve);
		if (isNew) onMade(host);
		const row = {
			uid: host.metadata.uid ?? "",
			agent_version: body.agentVersion,
			facts: JSON.stringify(facts),
			checks: JSON.stringify(body.checks),
			certificate_not_after: issued.notAfter,
		};
		await transaction
			.insertInto("hosts")
			.values({ name, machine_id: facts.machineId, ...row })
			.onConflict((conflict) => conflict.column("name").doUpdateSet({ ...row, enrolled_at: new Date(now()) }))
			.execute();
		const { numUpdatedRows } = await transaction
			.updateTable("certificates")
			.set({ revoked_at: new Date(now()) })
			.where("host", "=", name)
			.where("revoked_at", "is", null)
			.executeTakeFirstOrThrow();
		await inventory.addCertificate(name, csr, issued, transaction);
		if (!token.used) await tokens.use(transaction, token.id, facts.machineId, name);
		return { host, issued, replaced: numUpdatedRows > 0n };
	}

	/** The Host of that name: one that is there keeps its spec, because people and controllers own that. */
	async #ensureHost(name: string, approved: boolean): Promise<{ host: Host; isNew: boolean }> {
		const { kube, namespace, region } = this.#options;
		const signal = AbortSignal.timeout(10_000);
		try {
			const host = await kube.create(
				hosts,
				{
					apiVersion: "groundplane.io/v1alpha1",
					kind: "Host",
					metadata: {
						name,
						namespace,
						labels: { "groundplane.io/region": region, "groundplane.io/host": name },
					},
					spec: { approved, maintenance: false, roles: [] },
				},
				{ manager: MANAGER, signal },
			);
			return { host, isNew: true };
		} catch (error) {
			if (!isAlreadyExists(error)) throw error;
		}
		const existing = await kube.get(hosts, name, namespace, { signal });
		if (existing.metadata.deletionTimestamp === undefined) return { host: existing, isNew: false };
		throw new GroundplaneError("Conflict", `The host ${name} is being deleted.`, {
			next: "Nothing to do: the agent tries again until that is over.",
		});
	}

	async #unmake({ metadata: { name, namespace, uid } }: Host): Promise<void> {
		const { kube } = this.#options;
		// When this fails too, the Host stays without a machine and says so; the agent's next try takes it over.
		await kube
			.delete(hosts, { name, ...(namespace && { namespace }) }, { uid, signal: AbortSignal.timeout(10_000) })
			.catch(() => false);
	}
}
