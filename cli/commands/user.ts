import { Command, Option } from "commander";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type CommonOptions, command, withSession } from "../command.ts";
import { age, printList, printOne, readSecret, terminal } from "../output.ts";
import type { Session } from "../session.ts";

interface User {
	readonly id: string;
	readonly name: string;
	readonly roles: string[];
	readonly disabled: boolean;
	readonly createdAt: string;
}

const USERS = "/auth/api/v1/users";
const TOKENS = "/auth/api/v1/tokens";
const JOIN_TOKENS = "/api/v1/join-tokens";
const rolesOption = () =>
	new Option("--role <role>", "what the user may do; repeatable (viewer by default for a new user)")
		.choices(["admin", "operator", "developer", "viewer"])
		.argParser((value: string, previous: string[] | undefined) => [...(previous ?? []), value]);

async function find(session: Session, name: string): Promise<User> {
	const { items } = await session.call<{ items: User[] }>("GET", USERS);
	const user = items.find((item) => item.name === name);
	if (user) return user;
	throw new GroundplaneError("NotFound", `There is no user ${name}.`, { next: "See gp user list." });
}

export function userCommand(): Command {
	const group = new Command("user").description("people who may use the region");

	group.addCommand(
		command("list", "list users").action(async (options: CommonOptions) =>
			withSession(options, async (session) => {
				const { items } = await session.call<{ items: User[] }>("GET", USERS);
				await printList(items, {
					format: options.output,
					columns: [
						["name", ({ name }) => name],
						["roles", ({ roles }) => roles.join(",")],
						["state", ({ disabled }) => (disabled ? "disabled" : "active")],
						["age", ({ createdAt }) => age(createdAt)],
					],
					name: ({ name }) => `user/${name}`,
					empty: "There are no users.",
				});
			}),
		),
	);

	group.addCommand(
		command("create", "make a user; the password comes from standard input")
			.argument("<name>")
			.addOption(rolesOption())
			.action(async (name: string, options: CommonOptions & { role?: string[] }) =>
				withSession(options, async (session) => {
					const password = await readSecret("Password");
					const user = await session.call<User>("POST", USERS, { name, password, roles: options.role ?? ["viewer"] });
					await printOne(user, {
						format: options.output,
						name: `user/${name}`,
						words: () => `${name} may sign in now.`,
					});
				}),
			),
	);

	group.addCommand(
		command("update", "change a user's roles or password, or disable the user", { output: false })
			.argument("<name>")
			.addOption(rolesOption())
			.option("--password-stdin", "read a new password from standard input")
			.option("--disable", "keep the user from signing in")
			.option("--enable", "let the user sign in again")
			.action(
				async (
					name: string,
					options: CommonOptions & { role?: string[]; passwordStdin?: boolean; disable?: boolean; enable?: boolean },
				) =>
					withSession(options, async (session) => {
						const { id } = await find(session, name);
						await session.call("PATCH", `${USERS}/${id}`, {
							...(options.role && { roles: options.role }),
							...(options.passwordStdin && { password: await readSecret("Password") }),
							...((options.disable || options.enable) && { disabled: options.disable === true }),
						});
						terminal.err(`${name} is changed.`);
					}),
			),
	);

	group.addCommand(
		command("delete", "delete users with their sessions and tokens", { output: false })
			.argument("<names...>")
			.action(async (names: string[], options: CommonOptions) =>
				withSession(options, async (session) => {
					for (const name of names) {
						const { id } = await find(session, name);
						await session.call("DELETE", `${USERS}/${id}`);
						terminal.err(`${name} is deleted.`);
					}
				}),
			),
	);
	return group;
}

export function passwordCommand(): Command {
	return command("password", "change your own password", { output: false })
		.addHelpText("after", PASSWORD_HELP)
		.action(async (options: CommonOptions) =>
			withSession(options, async (session) => {
				const { name } = await session.call<User>("GET", "/auth/api/v1/me");
				await session.call("PUT", "/auth/api/v1/me/password", await readPasswords());
				terminal.err(
					`The password of ${name} is changed. Sign-ins in browsers have ended, API tokens are as good as before.`,
				);
				if (session.region.credentials?.type === "session") {
					terminal.err(`So has yours here. Sign in again: gp login ${session.region.server}`);
				}
			}),
		);
}

const PASSWORD_HELP = `
It asks for the current password and twice for the new one, which has 12 characters at least. Where there is no terminal,
both come from standard input: the current one on the first line, the new one on the second.

Example:
  gp password < passwords`;

/** The current password and the new one: asked for at a terminal, else two lines of standard input. */
export async function readPasswords(
	isTerminal = process.stdin.isTTY === true,
	read = readSecret,
): Promise<{ current: string; new: string }> {
	const refuse = (message: string, next: string) => new GroundplaneError("InvalidInput", message, { next });
	if (isTerminal) {
		const current = await read("Current password");
		const wanted = await read("New password");
		if ((await read("New password again")) === wanted) return { current, new: wanted };
		throw refuse("The new password was not the same both times.", "Nothing is changed. Run gp password again.");
	}
	const [current, wanted, ...more] = (await read("Password")).split(/\r?\n/);
	if (current && wanted && more.length === 0) return { current, new: wanted };
	throw refuse(
		"Standard input must be two lines: the current password and the new one.",
		"gp password < file, or run it at a terminal, where it asks for them.",
	);
}

interface ApiToken {
	readonly id: string;
	readonly name: string;
	readonly expiresAt: string;
	readonly lastUsedAt: string | null;
}

interface JoinToken {
	readonly id: string;
	readonly usesLeft: number;
	readonly hostName?: string;
	readonly approve: boolean;
	readonly createdBy: string;
	readonly expiresAt: string;
}

export function tokenCommand(): Command {
	const group = new Command("token").description("API tokens for programs, and the join tokens of hosts");

	group.addCommand(
		command("create", "make an API token for yourself; it is shown this once")
			.argument("<name>", "what it is for")
			.option("--expires-in <duration>", "for how long it is good", "720h")
			.action(async (name: string, options: CommonOptions & { expiresIn: string }) =>
				withSession(options, async (session) => {
					const made = await session.call<ApiToken & { token: string }>("POST", TOKENS, {
						name,
						expiresIn: options.expiresIn,
					});
					await printOne(made, { format: options.output, name: `token/${made.id}`, words: () => made.token });
				}),
			),
	);

	group.addCommand(
		command("list", "list API tokens, or the join tokens that are still good")
			.option("--join", "join tokens")
			.option("--all", "everybody's API tokens (administrators)")
			.action(async (options: CommonOptions & { join?: boolean; all?: boolean }) =>
				withSession(options, (session) =>
					options.join ? listJoinTokens(session, options) : listTokens(session, options),
				),
			),
	);

	group.addCommand(
		command("revoke", "revoke tokens", { output: false })
			.argument("<ids...>")
			.option("--join", "join tokens")
			.action(async (ids: string[], options: CommonOptions & { join?: boolean }) =>
				withSession(options, async (session) => {
					for (const id of ids) {
						await session.call("DELETE", `${options.join ? JOIN_TOKENS : TOKENS}/${encodeURIComponent(id)}`);
						terminal.err(`${id} is revoked.`);
					}
				}),
			),
	);
	return group;
}

async function listTokens(session: Session, { output, all = false }: CommonOptions & { all?: boolean }): Promise<void> {
	const { items } = await session.call<{ items: ApiToken[] }>("GET", `${TOKENS}?all=${all}`);
	await printList(items, {
		format: output,
		columns: [
			["id", ({ id }) => id],
			["name", ({ name }) => name],
			["expires", ({ expiresAt }) => expiresAt],
			["last used", ({ lastUsedAt }) => (lastUsedAt ? `${age(lastUsedAt)} ago` : "never")],
		],
		name: ({ id }) => `token/${id}`,
		empty: "There are no API tokens: gp token create NAME",
	});
}

async function listJoinTokens(session: Session, { output }: CommonOptions): Promise<void> {
	const { items } = await session.call<{ items: JoinToken[] }>("GET", JOIN_TOKENS);
	await printList(items, {
		format: output,
		columns: [
			["id", ({ id }) => id],
			["host", ({ hostName }) => hostName ?? "any"],
			["uses left", ({ usesLeft }) => usesLeft],
			["approves", ({ approve }) => (approve ? "yes" : "no")],
			["by", ({ createdBy }) => createdBy],
			["expires", ({ expiresAt }) => expiresAt],
		],
		name: ({ id }) => `join-token/${id}`,
		empty: "There are no join tokens: gp host join-command",
	});
}
