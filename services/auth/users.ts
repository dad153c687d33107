import type { Selectable } from "kysely";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { Role } from "../kit/auth.ts";
import { isDuplicate, type Kysely, sql } from "../kit/database.ts";
import { endSessions } from "./adapter.ts";
import { hashPassword, verifyPassword } from "./password.ts";
import type { AuthTables } from "./store.ts";

export interface UserRecord {
	readonly id: string;
	readonly name: string;
	readonly roles: Role[];
	readonly disabled: boolean;
	readonly createdAt: Date;
}

export interface UserChanges {
	readonly password?: string | undefined;
	readonly roles?: Role[] | undefined;
	readonly disabled?: boolean | undefined;
}

/** Hashing takes 19 MiB each: more at once are refused rather than piled up. */
const MAX_HASHING = 4;

const recordOf = (row: Selectable<AuthTables["users"]>): UserRecord => ({
	id: row.id,
	name: row.name,
	roles: row.roles,
	disabled: row.disabled,
	createdAt: row.created_at,
});

/** The region's users. There is always at least one administrator who can sign in. */
export class Users {
	readonly #db: Kysely<AuthTables>;
	#hashing = 0;
	/** Verified against when there is no such user, so that the time taken does not tell. */
	#decoy: string | undefined;

	constructor(db: Kysely<AuthTables>) {
		this.#db = db;
	}

	async list(): Promise<UserRecord[]> {
		return (await this.#db.selectFrom("users").selectAll().orderBy("name").execute()).map(recordOf);
	}

	/** @throws GroundplaneError NotFound */
	async get(id: string): Promise<UserRecord> {
		const user = await this.find(id);
		if (!user) throw notFound(id);
		return user;
	}

	async find(id: string): Promise<UserRecord | undefined> {
		const row = await this.#db.selectFrom("users").selectAll().where("id", "=", id).executeTakeFirst();
		return row && recordOf(row);
	}

	/** @throws GroundplaneError AlreadyExists */
	async create({ name, password, roles }: { name: string; password: string; roles: Role[] }): Promise<UserRecord> {
		const password_hash = await this.#hash(password);
		try {
			const values = { name, password_hash, roles: JSON.stringify(roles) };
			return recordOf(await this.#db.insertInto("users").values(values).returningAll().executeTakeFirstOrThrow());
		} catch (cause) {
			if (!isDuplicate(cause)) throw cause;
			throw new GroundplaneError("AlreadyExists", `There is a user ${name} already.`, {
				next: "Choose another name, or change that user.",
				cause,
			});
		}
	}

	/** Makes the first administrator when there is no user at all. Safe when two pods start together. */
	async createFirst(name: string, password: string): Promise<UserRecord | undefined> {
		const any = await this.#db.selectFrom("users").select("id").limit(1).executeTakeFirst();
		if (any) return undefined;
		return this.create({ name, password, roles: ["admin"] }).catch((error: unknown) => {
			if (error instanceof GroundplaneError && error.code === "AlreadyExists") return undefined;
			throw error;
		});
	}

	/**
	 * Changes a user. A new password and disabling end all that the user is signed in with; new roles show with the next
	 * access token.
	 *
	 * @throws GroundplaneError NotFound; Conflict when no administrator would be left.
	 */
	async update(id: string, { password, roles, disabled }: UserChanges): Promise<UserRecord> {
		const password_hash = password === undefined ? undefined : await this.#hash(password);
		return this.#inTurn(async (db) => {
			const row = await db
				.updateTable("users")
				.set({
					...(password_hash !== undefined && { password_hash }),
					...(roles && { roles: JSON.stringify(roles) }),
					...(disabled !== undefined && { disabled }),
					name: ({ ref }) => ref("name"),
				})
				.where("id", "=", id)
				.returningAll()
				.executeTakeFirst();
			if (!row) throw notFound(id);
			await keepAnAdministrator(db);
			if (password !== undefined || disabled) await endSessions(db, id);
			return recordOf(row);
		});
	}

	/** @throws GroundplaneError NotFound; Conflict when no administrator would be left. */
	async delete(id: string): Promise<void> {
		await this.#inTurn(async (db) => {
			const { numDeletedRows } = await db.deleteFrom("users").where("id", "=", id).executeTakeFirst();
			if (numDeletedRows === 0n) throw notFound(id);
			await keepAnAdministrator(db);
			await endSessions(db, id);
		});
	}

	/** The user with this name and password, or nothing: which of the two is wrong is not told. */
	async authenticate(name: string, password: string): Promise<UserRecord | undefined> {
		const row = await this.#db
			.selectFrom("users")
			.selectAll()
			.where("name", "=", name.trim().toLowerCase())
			.executeTakeFirst();
		this.#decoy ??= await this.#hash("nobody has this password");
		const correct = await this.#limited(() => verifyPassword(row?.password_hash ?? (this.#decoy as string), password));
		return row && correct && !row.disabled ? recordOf(row) : undefined;
	}

	/** A transaction alone among changes of users, so that two at once can't each remove the other's last administrator. */
	#inTurn<Result>(work: (db: Kysely<AuthTables>) => Promise<Result>): Promise<Result> {
		return this.#db.transaction().execute(async (db) => {
			await sql`lock table users in share row exclusive mode`.execute(db);
			return work(db);
		});
	}

	#hash(password: string): Promise<string> {
		return this.#limited(() => hashPassword(password));
	}

	async #limited<Result>(work: () => Promise<Result>): Promise<Result> {
		if (this.#hashing >= MAX_HASHING) {
			throw new GroundplaneError("Overloaded", "Too many people sign in at this moment.", {
				next: "Try again in a second.",
			});
		}
		this.#hashing++;
		try {
			return await work();
		} finally {
			this.#hashing--;
		}
	}
}

const notFound = (id: string) =>
	new GroundplaneError("NotFound", `There is no user ${id}.`, { next: "List the users with GET /auth/api/v1/users." });

async function keepAnAdministrator(db: Kysely<AuthTables>): Promise<void> {
	const administrator = await db
		.selectFrom("users")
		.select("id")
		.where("disabled", "=", false)
		.where(sql<boolean>`roles @> '["admin"]'`)
		.limit(1)
		.executeTakeFirst();
	if (administrator) return;
	throw new GroundplaneError("Conflict", "No administrator would be left.", {
		next: "Make another user an administrator first.",
	});
}
