import { type Kysely, type Selectable, sql, type Transaction } from "kysely";
import type { ErrorCode } from "../../protocol/errors.ts";
import type { AgentUpdate, HostCheck, HostFacts, RoleStatus } from "../../protocol/facts.ts";
import type { UpMessage } from "../../protocol/messages.ts";
import type { AgentOffer, OutdatedAgent } from "./agents.ts";
import { type CertificateRequest, type IssuedCertificate, normalSerial } from "./certificate-authority.ts";
import type { DocumentTable, HostsDatabase, HostTable, Link, Refusal } from "./database.ts";

/** A machine that enrolled, with the last of each of its reports and the documents signed for it, newest first. */
export interface HostRecord {
	readonly name: string;
	readonly machineId: string;
	readonly uid: string;
	readonly enrolledAt: Date;
	readonly agentVersion: string;
	readonly agentUpdate?: AgentUpdate;
	readonly agentOffer?: AgentOffer;
	readonly facts: HostFacts;
	readonly checks: readonly HostCheck[];
	readonly certificateNotAfter: Date;
	/** Absent until the agent has reported once. */
	readonly roles?: { readonly generation: number; readonly list: readonly RoleStatus[] };
	/** Generation of the document that the host accepted last. */
	readonly accepted?: number;
	/** Epoch of the tunnel over which it did. */
	readonly acceptedEpoch?: number;
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

/** What a host says of itself, but for requests. */
export type Report = Exclude<UpMessage, { type: "certificate-request" }>;

/** A report, and the epoch of the tunnel over which it came, if the gateway has said so. */
export interface HostReport {
	readonly host: string;
	readonly message: Report;
	readonly epoch?: number | undefined;
}

/** What became of a batch: hosts that are enrolled, and those of them about which something is new. */
export interface Kept {
	readonly known: ReadonlySet<string>;
	readonly changed: ReadonlySet<string>;
}

/** Of reports also the hosts of which one came late, by an older tunnel than was heard of since. */
export interface KeptReports extends Kept {
	readonly late: ReadonlySet<string>;
}

/** Reports come with the generation of a document; so many of the last ones can be told apart. */
const DOCUMENTS_KEPT = 16;

/** What the region knows of its machines, in PostgreSQL. */
export class Inventory {
	readonly #db: Kysely<HostsDatabase>;

	constructor(db: Kysely<HostsDatabase>) {
		this.#db = db;
	}

	/** One machine, in one question. */
	async find(name: string): Promise<HostRecord | undefined> {
		const { rows } = await sql<Selectable<HostTable> & { documents: DocumentRow[] }>`
			SELECT h.*, coalesce(d.documents, '[]') AS documents FROM hosts h LEFT JOIN LATERAL (
				SELECT json_agg(newest ORDER BY generation DESC) AS documents FROM (
					SELECT * FROM documents WHERE host = h.name ORDER BY generation DESC LIMIT ${DOCUMENTS_KEPT}
				) newest
			) d ON true WHERE h.name = ${name}`.execute(this.#db);
		const [row] = rows;
		return row && record(row, row.documents);
	}

	/** All machines with the uid of the Host that each belongs to. */
	async identities(): Promise<{ name: string; uid: string }[]> {
		return this.#db.selectFrom("hosts").select(["name", "uid"]).execute();
	}

	/** Addresses of the next `most` hosts after this one in the order of names, the first coming after the last. */
	async addressesAfter({ name, facts }: HostRecord, most: number): Promise<string[]> {
		const others = (which: ReturnType<typeof sql>) => sql`
			(SELECT facts->>'primaryAddress' AS address FROM hosts
			WHERE name ${which} ${name} AND facts->>'primaryAddress' NOT IN ('', ${facts.primaryAddress}) ORDER BY name LIMIT ${most})`;
		const { rows } = await sql<{ address: string }>`
			${others(sql`>`)} UNION ALL ${others(sql`<`)}`.execute(this.#db);
		return [...new Set(rows.map(({ address }) => address))].slice(0, most);
	}

	/** Hosts whose tunnel is up, as far as gateways have said. */
	async connected(): Promise<{ name: string; link: Link }[]> {
		return this.#links(sql`SELECT name, link FROM hosts WHERE link->>'state' = 'connected' ORDER BY name`);
	}

	/** How many hosts are connected, and how many were and are not any more. */
	async connections(): Promise<{ readonly connected: number; readonly disconnected: number }> {
		const { rows } = await sql<{ connected: number; disconnected: number }>`
			SELECT count(*) FILTER (WHERE link->>'state' = 'connected')::int AS connected,
				count(*) FILTER (WHERE link->>'state' = 'disconnected')::int AS disconnected FROM hosts`.execute(this.#db);
		return rows[0] ?? { connected: 0, disconnected: 0 };
	}

	/** Of each gateway's tunnels that are up the `most` oldest: those that a gateway that died and came back does not hold. */
	async oldestTunnels(most: number): Promise<{ name: string; link: Link }[]> {
		return this.#links(sql`
			SELECT name, link FROM (
				SELECT name, link, row_number() OVER (PARTITION BY link->>'gateway' ORDER BY link->>'at', name) AS place
				FROM hosts WHERE link->>'state' = 'connected'
			) tunnels WHERE place <= ${most}`);
	}

	/** The next `most` tunnels that are up after `name`, in the order of names. */
	async tunnelsAfter(name: string, most: number): Promise<{ name: string; link: Link }[]> {
		return this.#links(sql`
			SELECT name, link FROM hosts WHERE name > ${name} AND link->>'state' = 'connected' ORDER BY name LIMIT ${most}`);
	}

	async #links(query: ReturnType<typeof sql>): Promise<{ name: string; link: Link }[]> {
		return (await query.execute(this.#db)).rows as { name: string; link: Link }[];
	}

	/**
	 * Keeps reports, many in one go; of several of one kind about one host the last of the newest tunnel. What says nothing new is
	 * not written, nor what comes late by a tunnel that the host has left. A statement that fails has kept nothing of its kind.
	 */
	async keep(reports: readonly HostReport[]): Promise<KeptReports> {
		const known = new Set<string>();
		const changed = new Set<string>();
		const late = new Set<string>();
		for (const { type, set, differs, columns } of kinds) {
			const rows = new Map<string, { readonly name: string; readonly tunnel?: number | undefined }>();
			for (const { host, message, epoch } of reports) {
				if (message.type !== type) continue;
				if ((rows.get(host)?.tunnel ?? 0) > (epoch ?? Number.POSITIVE_INFINITY)) continue;
				rows.set(host, { name: host, tunnel: epoch, ...rowOf(message) });
			}
			if (rows.size === 0) continue;
			const isNew = sql`coalesce(r.tunnel > coalesce(h.reported_epoch, 0), false)`;
			const isLate = sql`coalesce(r.tunnel < h.reported_epoch, false)`;
			const result = await sql<{ name: string; changed: boolean; late: boolean }>`
				WITH r AS (
					SELECT * FROM jsonb_to_recordset(${JSON.stringify([...rows.values()].sort(byName))}::jsonb)
						AS r (name text, tunnel bigint, ${sql.raw(columns)})
				), written AS (
					UPDATE hosts h SET ${sql.raw(set)}, reported_epoch = coalesce(r.tunnel, h.reported_epoch)
					FROM r WHERE h.name = r.name AND NOT ${isLate} AND (${isNew} OR ${sql.raw(differs)})
				)
				SELECT h.name, ${isLate} AS late, NOT ${isLate} AND ${sql.raw(differs)} AS changed
				FROM r JOIN hosts h ON h.name = r.name`.execute(this.#db);
			for (const row of result.rows) {
				known.add(row.name);
				if (row.changed) changed.add(row.name);
				if (row.late) late.add(row.name);
			}
		}
		return { known, changed, late };
	}

	/** Hosts whose agent has another version than `target` or is trying it, how many came to it because they were told, and how many there are. */
	async agents(target: string): Promise<{ outdated: OutdatedAgent[]; succeeded: number; total: number }> {
		const { rows } = await sql<{ total: string; succeeded: string }>`
			SELECT count(*) AS total,
				count(*) FILTER (WHERE agent_version = ${target} AND agent_offer->>'version' = ${target}
					AND agent_update->>'phase' <> 'Trying') AS succeeded
			FROM hosts`.execute(this.#db);
		const outdated = await this.#db
			.selectFrom("hosts")
			.select(["name", "agent_version", "agent_update", "agent_offer", "link"])
			.where(sql<boolean>`(agent_version <> ${target} OR agent_update->>'phase' = 'Trying')`)
			.execute();
		return {
			total: Number(rows[0]?.total ?? 0),
			succeeded: Number(rows[0]?.succeeded ?? 0),
			outdated: outdated.map(({ name, agent_version, agent_update, agent_offer, link }) => ({
				name,
				version: agent_version,
				update: agent_update ?? undefined,
				offer: agent_offer ?? undefined,
				connected: link?.state === "connected",
			})),
		};
	}

	/** Keeps that a host is told to have a version of the agent. */
	async offerAgent(name: string, offer: AgentOffer): Promise<void> {
		await this.#db
			.updateTable("hosts")
			.set({ agent_offer: JSON.stringify(offer) })
			.where("name", "=", name)
			.execute();
	}

	/**
	 * Keeps what gateways say of tunnels, in this order, unless an older tunnel speaks up. Epochs that have fallen (a bus that lost
	 * its disk, and whose clock was set back) count anew.
	 */
	async keepLinks(links: readonly { readonly host: string; readonly link: Link }[]): Promise<Kept> {
		const hosts = [...new Set(links.map(({ host }) => host))];
		if (hosts.length === 0) return { known: new Set(), changed: new Set() };
		const before = await this.#db
			.selectFrom("hosts")
			.select(["name", "link"])
			.where("name", "=", sql<string>`any(${hosts})`)
			.execute();
		const known = new Map(before.map(({ name, link }) => [name, link]));
		const newest = new Map<string, Link>();
		for (const { host, link } of links) {
			const last = newest.get(host) ?? known.get(host) ?? null;
			if (known.has(host) && !isStale(last, link) && !isSameTunnel(last, link)) newest.set(host, link);
		}
		const rows = [...newest].map(([name, link]) => ({ name, link, last: known.get(name) })).sort(byName);
		if (rows.length === 0) return { known: new Set(known.keys()), changed: new Set() };
		const { rows: written } = await sql<{ name: string }>`
			UPDATE hosts h SET link = r.link,
				reported_epoch = CASE WHEN (r.link->>'epoch')::bigint < (h.link->>'epoch')::bigint THEN NULL ELSE h.reported_epoch END
			FROM jsonb_to_recordset(${JSON.stringify(rows)}::jsonb) AS r (name text, link jsonb, last jsonb)
			WHERE h.name = r.name AND h.link IS NOT DISTINCT FROM r.last RETURNING h.name`.execute(this.#db);
		const changed = new Set(written.map(({ name }) => name));
		// Something else was said of these meanwhile (by another pod, or that they are lost): which of it counts is judged anew.
		const overtaken = links.filter(({ host }) => newest.has(host) && !changed.has(host));
		const again = await this.keepLinks(overtaken);
		return { known: new Set(known.keys()), changed: new Set([...changed, ...again.changed]) };
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

	/** Has a machine's certificates open nothing any more. Answers whether the name is still that machine's. */
	async revoke(name: string, uid: string, now: number): Promise<boolean> {
		const { rows } = await sql`
			WITH machine AS (SELECT name FROM hosts WHERE name = ${name} AND uid = ${uid}), revoked AS (
				UPDATE certificates c SET revoked_at = ${new Date(now)} FROM machine m WHERE c.host = m.name AND c.revoked_at IS NULL
			)
			SELECT FROM machine`.execute(this.#db);
		return rows.length > 0;
	}

	/** Forgets a machine. */
	async forget(name: string, uid: string): Promise<void> {
		await this.#db.deleteFrom("hosts").where("name", "=", name).where("uid", "=", uid).execute();
	}
}

/** Statements that write many hosts take them in one order, so that two of them never wait for each other. */
const byName = (a: { readonly name: string }, b: { readonly name: string }) => (a.name < b.name ? -1 : 1);

/** Whether `next` comes from an older tunnel than the one known: a gateway that notices late that a host has left it. */
export function isStale(known: Link | null, next: Link): boolean {
	if (!known || next.epoch > known.epoch) return false;
	if (next.state === "disconnected") return next.epoch < known.epoch;
	return Date.parse(next.at) < Date.parse(known.at);
}

/** Whether `next` says again what is known of a tunnel: the time from which it has been so stays. */
export const isSameTunnel = (known: Link | null, next: Link): boolean =>
	known !== null &&
	(["state", "gateway", "epoch", "address", "reason"] as const).every((field) => known[field] === next[field]);

/** How each kind of report is kept: its fields in SQL (`r`), what they change of a host (`h`), and when that is something new. */
const kinds: readonly { type: Report["type"]; columns: string; set: string; differs: string }[] = [
	{
		type: "facts",
		columns: "agent_version text, agent_update jsonb, facts jsonb, checks jsonb, certificate_not_after timestamptz",
		set: "agent_version = r.agent_version, agent_update = r.agent_update, facts = r.facts, checks = r.checks, certificate_not_after = r.certificate_not_after",
		differs: `(h.agent_version, h.agent_update, h.facts, h.checks, h.certificate_not_after)
			IS DISTINCT FROM (r.agent_version, r.agent_update, r.facts, r.checks, r.certificate_not_after)`,
	},
	{
		type: "roles",
		columns: "roles jsonb, generation bigint",
		set: "roles = r.roles, roles_generation = r.generation",
		differs: "(h.roles, h.roles_generation) IS DISTINCT FROM (r.roles, r.generation)",
	},
	{
		// A document that is refused leaves the one before in force.
		type: "acknowledgement",
		columns: "accepted bigint, refusal jsonb",
		set: `accepted_generation = coalesce(r.accepted, h.accepted_generation), refusal = r.refusal,
			accepted_epoch = CASE WHEN r.accepted IS NULL THEN h.accepted_epoch ELSE coalesce(r.tunnel, (h.link->>'epoch')::bigint) END`,
		differs: `(h.refusal IS DISTINCT FROM r.refusal OR r.accepted IS NOT NULL
			AND (h.accepted_generation, h.accepted_epoch) IS DISTINCT FROM (r.accepted, coalesce(r.tunnel, (h.link->>'epoch')::bigint)))`,
	},
];

function rowOf(message: Report): object {
	switch (message.type) {
		case "facts": {
			const { agentVersion, agentUpdate, facts, checks, certificateNotAfter } = message;
			const agent = { agent_version: agentVersion, agent_update: agentUpdate };
			return { ...agent, facts, checks, certificate_not_after: certificateNotAfter };
		}
		case "roles":
			return { roles: message.roles, generation: message.generation };
		case "acknowledgement": {
			const { generation, accepted, reason, message: text } = message;
			return accepted ? { accepted: generation } : { refusal: { generation, reason, message: text } };
		}
	}
}

/** A row of `documents` as JSON gives it. */
type DocumentRow = Omit<Selectable<DocumentTable>, "generation" | "issued_at" | "valid_until"> & {
	generation: number;
	issued_at: string;
	valid_until: string;
};

function record(row: Selectable<HostTable>, documents: readonly DocumentRow[]): HostRecord {
	return {
		name: row.name,
		machineId: row.machine_id,
		uid: row.uid,
		enrolledAt: row.enrolled_at,
		agentVersion: row.agent_version,
		...(row.agent_update && { agentUpdate: row.agent_update }),
		...(row.agent_offer && { agentOffer: row.agent_offer }),
		facts: row.facts,
		checks: row.checks,
		certificateNotAfter: row.certificate_not_after,
		...(row.roles && { roles: { generation: Number(row.roles_generation ?? 0), list: row.roles } }),
		...(row.accepted_generation !== null && { accepted: Number(row.accepted_generation) }),
		...(row.accepted_epoch !== null && { acceptedEpoch: Number(row.accepted_epoch) }),
		...(row.refusal && { refusal: row.refusal }),
		...(row.link && { link: row.link }),
		documents: documents.map((document) => ({
			generation: document.generation,
			epoch: document.epoch,
			objectGeneration: document.object_generation,
			digest: document.digest,
			issuedAt: new Date(document.issued_at),
			validUntil: new Date(document.valid_until),
		})),
	};
}
