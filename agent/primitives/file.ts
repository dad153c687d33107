import { createHash } from "node:crypto";
import { chmod, chown, copyFile, lchown, readFile, readlink, rm, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import {
	makeDirectories,
	missingDirectories,
	removeEmptyDirectories,
	removeUnfinished,
	statOf,
	syncDirectory,
	writeDurable,
} from "./durable.ts";
import type { Primitive, StepContext } from "./primitive.ts";

export const fileMode = z
	.string()
	.regex(/^0[0-7]{3}$/)
	.transform((text) => Number.parseInt(text, 8));

const fileWant = z.object({ path: z.string().startsWith("/"), content: z.string(), mode: fileMode.prefault("0644") });

/** What stood at a path before us. */
export const pathMemory = z.object({
	path: z.string(),
	/** Directories above it that were not there. */
	createdDirectories: z.array(z.string()),
	before: z.discriminatedUnion("kind", [
		z.object({ kind: z.literal("nothing") }),
		z.object({ kind: z.literal("file"), backup: z.string(), mode: z.int(), uid: z.int(), gid: z.int() }),
		z.object({ kind: z.literal("link"), target: z.string(), uid: z.int(), gid: z.int() }),
	]),
});
export type PathMemory = z.output<typeof pathMemory>;

/** A file with this content. */
export const file: Primitive<z.output<typeof fileWant>, PathMemory> = {
	schema: fileWant,
	key: ({ path }) => path,
	async observe({ path, content, mode }) {
		const found = await statOf(path);
		if (!found?.isFile()) return { ok: false, why: `${path} is missing` };
		if ((found.mode & 0o777) !== mode) return { ok: false, why: `${path} has another mode` };
		if ((await readFile(path, "utf8")) !== content) return { ok: false, why: `${path} has other content` };
		return { ok: true };
	},
	remember: ({ path }, context) => rememberPath(path, context),
	async apply({ path, content, mode }) {
		await makeDirectories(dirname(path));
		await writeDurable(path, content, mode);
	},
	undo: restorePath,
};

/** Keeps what stands at a path, so that {@link restorePath} can put it back. */
export async function rememberPath(path: string, { backupDir }: Pick<StepContext, "backupDir">): Promise<PathMemory> {
	const createdDirectories = await missingDirectories(dirname(path));
	const found = await statOf(path);
	if (!found) return { path, createdDirectories, before: { kind: "nothing" } };
	const { uid, gid } = found;
	if (found.isSymbolicLink())
		return { path, createdDirectories, before: { kind: "link", target: await readlink(path), uid, gid } };
	if (!found.isFile())
		throw new GroundplaneError("PrerequisiteNotMet", `${path} is in the way: it is neither a file nor a link`, {
			next: `Move ${path} away.`,
		});
	await makeDirectories(backupDir, 0o700);
	const backup = join(backupDir, createHash("sha256").update(path).digest("hex").slice(0, 32));
	await copyFile(path, backup);
	await chmod(backup, 0o600);
	await syncDirectory(backupDir);
	return { path, createdDirectories, before: { kind: "file", backup, mode: found.mode & 0o7777, uid, gid } };
}

export async function restorePath({ path, createdDirectories, before }: PathMemory): Promise<void> {
	if (before.kind === "nothing") await rm(path, { force: true });
	else if (before.kind === "link") {
		await rm(path, { force: true });
		await symlink(before.target, path);
		await lchown(path, before.uid, before.gid);
	} else if (await statOf(before.backup)) {
		await writeDurable(path, await readFile(before.backup), before.mode);
		await chown(path, before.uid, before.gid);
		await rm(before.backup, { force: true });
	}
	await removeUnfinished(path);
	await removeEmptyDirectories(createdDirectories);
}
