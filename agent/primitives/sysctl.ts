import { readFile, writeFile } from "node:fs/promises";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { isMissing } from "./durable.ts";
import type { Primitive } from "./primitive.ts";

const sysctlWant = z.object({
	/** Names and values: `net.ipv4.ip_forward: "1"`. */
	values: z.record(z.string().regex(/^[a-z0-9_-]+(\.[A-Za-z0-9_-]+)+$/), z.string()),
	/** Numbers that must be at least this; larger ones stay. */
	minimum: z.record(z.string().regex(/^[a-z0-9_-]+(\.[A-Za-z0-9_-]+)+$/), z.int()).default({}),
	/** Names that a kernel may lack. */
	optional: z.array(z.string()).default([]),
});

const sysctlMemory = z.object({ before: z.record(z.string(), z.string()) });

/** Kernel parameters now; the pack puts a file into /etc/sysctl.d beside it for the next boot. */
export const sysctl: Primitive<z.output<typeof sysctlWant>, z.output<typeof sysctlMemory>> = {
	schema: sysctlWant,
	key: () => "sysctl",
	async observe(want) {
		const [wrong] = await differing(want);
		return wrong ? { ok: false, why: `${wrong.name} is ${wrong.found ?? "unknown to this kernel"}` } : { ok: true };
	},
	async remember({ values, minimum }) {
		const before: Record<string, string> = {};
		for (const name of [...Object.keys(values), ...Object.keys(minimum)]) {
			const found = await read(name);
			if (found !== undefined) before[name] = found;
		}
		return { before };
	},
	async apply(want) {
		for (const { name, value } of await differing(want)) {
			try {
				await writeFile(pathOf(name), value);
			} catch (error) {
				throw new GroundplaneError("PrerequisiteNotMet", `can't set ${name} to ${value}`, {
					next: `Try: sysctl -w ${name}=${value}. A kernel module may be missing (br_netfilter for net.bridge.*).`,
					cause: error,
				});
			}
		}
	},
	async undo({ before }) {
		for (const [name, value] of Object.entries(before)) {
			const found = await read(name);
			if (found !== undefined && found !== value) await writeFile(pathOf(name), value);
		}
	},
};

/** What is not as wanted, and to what it has to be set. */
async function differing({ values, minimum, optional }: z.output<typeof sysctlWant>) {
	const wrong: { name: string; value: string; found: string | undefined }[] = [];
	for (const [name, value] of Object.entries(values)) {
		const found = await read(name);
		if (found !== value && !(found === undefined && optional.includes(name))) wrong.push({ name, value, found });
	}
	for (const [name, least] of Object.entries(minimum)) {
		const found = await read(name);
		if (found !== undefined && Number(found) < least) wrong.push({ name, value: String(least), found });
	}
	return wrong;
}

const pathOf = (name: string) => `/proc/sys/${name.replaceAll(".", "/")}`;

async function read(name: string): Promise<string | undefined> {
	try {
		return (await readFile(pathOf(name), "utf8")).trim();
	} catch (error) {
		if (isMissing(error)) return undefined;
		throw error;
	}
}
