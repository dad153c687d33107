import { readFile, writeFile } from "node:fs/promises";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { isMissing } from "./durable.ts";
import type { Primitive } from "./primitive.ts";

const sysctlWant = z.object({
	/** Names and values: `net.ipv4.ip_forward: "1"`. */
	values: z.record(z.string().regex(/^[a-z0-9_-]+(\.[A-Za-z0-9_-]+)+$/), z.string()),
	/** Names that a kernel may lack. */
	optional: z.array(z.string()).default([]),
});

const sysctlMemory = z.object({ before: z.record(z.string(), z.string()) });

/** Kernel parameters now; the pack puts a file into /etc/sysctl.d beside it for the next boot. */
export const sysctl: Primitive<z.output<typeof sysctlWant>, z.output<typeof sysctlMemory>> = {
	schema: sysctlWant,
	key: () => "sysctl",
	async observe({ values, optional }) {
		for (const [name, value] of Object.entries(values)) {
			const found = await read(name);
			if (found === undefined && optional.includes(name)) continue;
			if (found !== value) return { ok: false, why: `${name} is ${found ?? "unknown to this kernel"}, not ${value}` };
		}
		return { ok: true };
	},
	async remember({ values }) {
		const before: Record<string, string> = {};
		for (const name of Object.keys(values)) {
			const found = await read(name);
			if (found !== undefined) before[name] = found;
		}
		return { before };
	},
	async apply({ values, optional }) {
		for (const [name, value] of Object.entries(values)) {
			const found = await read(name);
			if (found === value || (found === undefined && optional.includes(name))) continue;
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

const pathOf = (name: string) => `/proc/sys/${name.replaceAll(".", "/")}`;

async function read(name: string): Promise<string | undefined> {
	try {
		return (await readFile(pathOf(name), "utf8")).trim();
	} catch (error) {
		if (isMissing(error)) return undefined;
		throw error;
	}
}
