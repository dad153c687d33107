import type { Kysely, Selectable, Transaction } from "kysely";
import type { ErrorCode } from "../../protocol/errors.ts";
import type { HostCheck, HostFacts, RoleStatus } from "../../protocol/facts.ts";
import type { UpMessage } from "../../protocol/messages.ts";
import { type CertificateRequest, type IssuedCertificate, normalSerial } from "./certificate-authority.ts";
import type { DocumentTable, HostsDatabase, HostTable, Link, Refusal } from "./database.ts";

/** A machine that enrolled, with the last of each of its reports and the documents signed for it, newest first. */
export interface HostRecord {
	readonly name: string;
	readonly machineId: string;
	readonly uid: string;
	readonly agentVersion: string;
	readonly facts: HostFacts;
	readonly checks: readonly HostCheck[];
	readonly certificateNotAfter: Date;
	/** Absent until the agent has reported once. */
	readonly roles?: { readonly generation: number; readonly list: readonly RoleStatus[] };
	/** Generation of the document that the host accepted last. */
	readonly accepted?: number;
	/** The document that it refused since. */
	readonly refusal?: Refusal;
	readonly link?: Link;
	readonly documents: readonly Document[];
}

/** A signed document, without its content. */
export interface Document {
	readonly generation: number;
	readonly epoch: number;
	readonly objectGeneration: number;
	readonly digest: string;
	readonly issuedAt: Date;
	readonly validUntil: Date;
}

export interface Admission {
	readonly admitted: boolean;
	readonly reason?: ErrorCode;
	readonly message?: string;
}

type Db = Kysely<HostsDatabase> | Transaction<HostsDatabase>;

/** Reports come with the generation of a document; so many of the last ones can be told apart. */
const DOCUMENTS_KEPT = 16;

/** What the region knows of its machines, in PostgreSQL. */
export class Inventory {
	readonly #db: Kysely<HostsDatabase>;

	constructor(db: Kysely<HostsDatabase>) {
		this.#db = db;
	}

	async find(name: string): Promise<HostRecord | undefined> {
		const row = await this.#db.selectFrom("hosts").selectAll().where("name", "=", name).executeTakeFirst();
		if (!row) return undefined;
		const documents = await this.#db
			.selectFrom("documents")
			.selectAll()
			.where("host", "=", name)
			.orderBy("generation", "desc")
			.limit(DOCUMENTS_KEPT)
			.execute();
		return record(row, documents);
	}

	async names(): Promise<string[]> {
		return (await this.#db.selectFrom("hosts").select("name").execute()).map(({ name }) => name);
	}

	/** Hosts whose tunnel is up, as far as gateways have said. */
	async connected(): Promise<{ name: string; link: Link }[]> {
		const rows = await this.#db.selectFrom("hosts").select(["name", "link"]).orderBy("name").execute();
		return rows.flatMap(({ name, link }) => (link?.state === "connected" ? [{ name, link }] : []));
	}

	/** Keeps a report. False when no such host is enrolled. */
	async report(host: string, message: Exclude<UpMessage, { type: "certificate-request" }>): Promise<boolean> {
		return this.#update(host, columnsOf(message));
	}

	/** Keeps what the gateway says of a tunnel, unless an older tunnel speaks up. False when no such host is enrolled. */
	async recordLink(host: string, link: Link): Promise<boolean> {
		const row = await this.#db.selectFrom("hosts").select("link").where("name", "=", host).executeTakeFirst();
		if (!row) return false;
		return isStale(row.link, link) ? true : this.#update(host, { link: JSON.stringify(link) });
	}

	/** Whether a certificate still opens a tunnel for this host. */
	async admit(host: string, serial: string, now: number): Promise<Admission> {
		const row = await this.#db
			.selectFrom("certificates")
			.selectAll()
			.where("serial", "=", normalSerial(serial))
			.executeTakeFirst();
		const refuse = (reason: ErrorCode, message: string) => ({ admitted: false, reason, message });
		if (!row)
			return refuse("CertificateRevoked", "This certificate is not known here: the host was deleted, enrol it again.");
		if (row.host !== host) return refuse("HostNameMismatch", `This certificate belongs to ${row.host}.`);
		if (row.revoked_at) return refuse("CertificateRevoked", "This certificate was revoked: enrol the host again.");
		if (row.not_after.getTime() <= now)
			return refuse("CertificateInvalid", "This certificate has expired: enrol the host again.");
		return { admitted: true };
	}

	/** The certificate that was issued for this very request, if it still holds. */
	async issuedFor(host: string, request: CertificateRequest, now: number): Promise<string | undefined> {
		const row = await this.#db
			.selectFrom("certificates")
			.select("pem")
			.where("host", "=", host)
			.where("request_digest", "=", request.digest)
			.where("revoked_at", "is", null)
			.where("not_after", ">", new Date(now))
			.executeTakeFirst();
		return row?.pem;
	}

	async addCertificate(
		host: string,
		request: CertificateRequest,
		issued: IssuedCertificate,
		db: Db = this.#db,
	): Promise<void> {
		await db
			.insertInto("certificates")
			.values({
				serial: issued.serial,
				host,
				not_before: issued.notBefore,
				not_after: issued.notAfter,
				request_digest: request.digest,
				pem: issued.pem,
				revoked_at: null,
			})
			.execute();
		await db.deleteFrom("certificates").where("host", "=", host).where("not_after", "<", issued.notBefore).execute();
	}

	/** Keeps that a document was signed. */
	async addDocument(host: string, document: Document): Promise<void> {
		await this.#db
			.insertInto("documents")
			.values({
				host,
				generation: String(document.generation),
				epoch: document.epoch,
				object_generation: document.objectGeneration,
				digest: document.digest,
				issued_at: document.issuedAt,
				valid_until: document.validUntil,
			})
			.execute();
		await this.#db
			.deleteFrom("documents")
			.where("host", "=", host)
			.where("generation", "not in", (query) =>
				query
					.selectFrom("documents")
					.select("generation")
					.where("host", "=", host)
					.orderBy("generation", "desc")
					.limit(DOCUMENTS_KEPT),
			)
			.execute();
	}

	/** The Host changed in a way that does not change the document: its generation counts as signed all the same. */
	async coverGeneration(host: string, generation: number, objectGeneration: number): Promise<void> {
		await this.#db
			.updateTable("documents")
			.set({ object_generation: objectGeneration })
			.where("host", "=", host)
			.where("generation", "=", String(generation))
			.execute();
	}

	/** Forgets a machine: its certificates open nothing any more. */
	async forget(name: string, uid: string): Promise<boolean> {
		const { numDeletedRows } = await this.#db
			.deleteFrom("hosts")
			.where("name", "=", name)
			.where("uid", "=", uid)
			.executeTakeFirstOrThrow();
		return numDeletedRows > 0n;
	}

	async #update(host: string, set: ReturnType<typeof columnsOf> | { link: string }): Promise<boolean> {
		const { numUpdatedRows } = await this.#db
			.updateTable("hosts")
			.set(set)
			.where("name", "=", host)
			.executeTakeFirstOrThrow();
		return numUpdatedRows > 0n;
	}
}

/** Whether `next` comes from an older tunnel than the one known: a gateway that notices late that a host has left it. */
export function isStale(known: Link | null, next: Link): boolean {
	if (!known || next.epoch > known.epoch) return false;
	if (next.state === "disconnected") return next.epoch < known.epoch;
	return Date.parse(next.at) < Date.parse(known.at);
}

function columnsOf(message: Exclude<UpMessage, { type: "certificate-request" }>) {
	switch (message.type) {
		case "facts":
			return {
				agent_version: message.agentVersion,
				facts: JSON.stringify(message.facts),
				checks: JSON.stringify(message.checks),
				certificate_not_after: message.certificateNotAfter,
			};
		case "roles":
			return { roles: JSON.stringify(message.roles), roles_generation: String(message.generation) };
		case "acknowledgement": {
			const { generation, accepted, reason, message: text } = message;
			if (accepted) return { accepted_generation: String(generation), refusal: null };
			return { refusal: JSON.stringify({ generation, reason, message: text }) };
		}
	}
}

function record(row: Selectable<HostTable>, documents: readonly Selectable<DocumentTable>[]): HostRecord {
	return {
		name: row.name,
		machineId: row.machine_id,
		uid: row.uid,
		agentVersion: row.agent_version,
		facts: row.facts,
		checks: row.checks,
		certificateNotAfter: row.certificate_not_after,
		...(row.roles && { roles: { generation: Number(row.roles_generation ?? 0), list: row.roles } }),
		...(row.accepted_generation !== null && { accepted: Number(row.accepted_generation) }),
		...(row.refusal && { refusal: row.refusal }),
		...(row.link && { link: row.link }),
		documents: documents.map((document) => ({
			generation: Number(document.generation),
			epoch: document.epoch,
			objectGeneration: document.object_generation,
			digest: document.digest,
			issuedAt: document.issued_at,
			validUntil: document.valid_until,
		})),
	};
}
