import { readFile } from "node:fs/promises";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { statOf, writeDurable } from "./durable.ts";
import { pathMemory, rememberPath, restorePath } from "./file.ts";
import type { Primitive, StepContext } from "./primitive.ts";

const unitWant = z.object({
	/** With its suffix: `containerd.service`. */
	name: z.string().regex(/^[A-Za-z0-9@_.-]+\.(service|timer|socket|mount)$/),
	/** The unit file, written to /etc/systemd/system. */
	content: z.string(),
	/** Whether it should run now, and not only be there and enabled. */
	start: z.boolean().default(true),
	/** Anything whose change restarts it; the pack lists digests of steps here (`restartOn`). */
	triggers: z.array(z.string()).default([]),
	/** A program that must succeed while the unit is as it should be; else it is restarted. */
	probe: z.array(z.string()).optional(),
	/** What the probe must print too: a regular expression. */
	probePrints: z.string().optional(),
	/** For how long it may take until the probe succeeds after a start, in seconds. */
	readyWithin: z.int().default(30),
	directory: z.string().default("/etc/systemd/system"),
});

const unitMemory = z.object({ name: z.string(), file: pathMemory, enabled: z.boolean(), active: z.boolean() });

/** A systemd unit: its file, enabled, running; removed, it is stopped, disabled and what was there before is put back. */
export const unit: Primitive<z.output<typeof unitWant>, z.output<typeof unitMemory>> = {
	schema: unitWant,
	key: ({ name }) => name,
	async observe(want, context, applied) {
		const path = `${want.directory}/${want.name}`;
		if (!(await statOf(path)) || (await readFile(path, "utf8")) !== want.content)
			return { ok: false, why: `${path} differs` };
		if (applied.last !== applied.now)
			return { ok: false, why: `${want.name} has to be restarted: what it reads changed` };
		if (!(await isEnabled(want.name, context))) return { ok: false, why: `${want.name} is not enabled` };
		if (want.start && !(await isActive(want.name, context))) return { ok: false, why: `${want.name} is not active` };
		if (want.start && !(await probe(want, context))) return { ok: false, why: `${want.name} does not do its work` };
		return { ok: true };
	},
	async remember({ name, directory }, context) {
		return {
			name,
			file: await rememberPath(`${directory}/${name}`, context),
			enabled: await isEnabled(name, context),
			active: await isActive(name, context),
		};
	},
	async apply(want, context) {
		const { name, content, directory, start } = want;
		await writeDurable(`${directory}/${name}`, content);
		await systemctl(context, "daemon-reload");
		await systemctl(context, "enable", name);
		if (!start) {
			// Someone else starts it (kubeadm the kubelet): when it runs already, it takes up what changed.
			await systemctl(context, "try-restart", name);
			return;
		}
		await systemctl(context, "reset-failed", name).catch(() => {}); // unknown to systemd until its first start
		await systemctl(context, "restart", name);
		const deadline = context.now() + want.readyWithin * 1000;
		while (!(await probe(want, context))) {
			if (context.now() > deadline)
				throw new GroundplaneError("StepFailed", `${name} was started but does not do its work`, {
					next: `Look at: journalctl -u ${name}`,
				});
			await new Promise((resolve) => setTimeout(resolve, 250));
			context.signal.throwIfAborted();
		}
	},
	async undo({ name, file, enabled, active }, context) {
		if ((await statOf(file.path)) && file.before.kind === "nothing") {
			await context.exec("systemctl", ["disable", "--now", name], { signal: context.signal, codes: true });
			if (await isActive(name, context)) await systemctl(context, "stop", name);
		}
		await restorePath(file);
		await systemctl(context, "daemon-reload");
		await context.exec("systemctl", ["reset-failed", name], { signal: context.signal, codes: true });
		if (file.before.kind === "nothing") return;
		await systemctl(context, enabled ? "enable" : "disable", name);
		await systemctl(context, active ? "restart" : "stop", name);
	},
};

function systemctl({ exec, signal }: StepContext, ...args: string[]) {
	return exec("systemctl", args, { signal });
}

async function isEnabled(name: string, { exec, signal }: StepContext): Promise<boolean> {
	const { stdout } = await exec("systemctl", ["is-enabled", name], { signal, codes: true });
	return stdout.trim() === "enabled";
}

async function isActive(name: string, { exec, signal }: StepContext): Promise<boolean> {
	const { stdout } = await exec("systemctl", ["is-active", name], { signal, codes: true });
	return stdout.trim() === "active";
}

async function probe(
	{ probe, probePrints }: z.output<typeof unitWant>,
	{ exec, signal }: StepContext,
): Promise<boolean> {
	const [program, ...args] = probe ?? [];
	if (program === undefined) return true;
	const { code, stdout } = await exec(program, args, { signal, codes: true });
	return code === 0 && (probePrints === undefined || new RegExp(probePrints).test(stdout));
}
