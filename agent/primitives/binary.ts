import { dirname } from "node:path";
import { z } from "zod";
import { digestOf } from "./digest.ts";
import { copyDurable, makeDirectories, statOf } from "./durable.ts";
import { fileMode, type PathMemory, rememberPath, restorePath } from "./file.ts";
import type { Primitive } from "./primitive.ts";

const binaryWant = z.object({
	path: z.string().startsWith("/"),
	/** Path inside the bundle. */
	blob: z.string(),
	mode: fileMode.prefault("0755"),
	/** Names it in place of its path, when that has a version in it: the file of the version before stays beside it. */
	slot: z.string().optional(),
});

/** A file of the bundle at a path of the host; replaced by rename, so that what runs it goes on with the old one. */
export const binary: Primitive<z.output<typeof binaryWant>, PathMemory> = {
	schema: binaryWant,
	key: ({ path, slot }) => slot ?? path,
	async observe({ path, blob, mode }, context) {
		const found = await statOf(path);
		if (!found?.isFile()) return { ok: false, why: `${path} is missing` };
		const { sha256, size } = context.file(blob);
		if (found.size !== size || (await digestOf(path)) !== sha256) return { ok: false, why: `${path} differs` };
		if ((found.mode & 0o777) !== mode) return { ok: false, why: `${path} has another mode` };
		return { ok: true };
	},
	remember: ({ path }, context) => rememberPath(path, context),
	async apply({ path, blob, mode }, context) {
		const source = await context.blob(blob);
		await makeDirectories(dirname(path));
		await copyDurable(source, path, mode);
	},
	undo: restorePath,
};
