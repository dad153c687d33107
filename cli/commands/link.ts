import { setTimeout as delay } from "node:timers/promises";
import type { Command } from "commander";
import { durationMs } from "../../protocol/duration.ts";
import { asGroundplaneError } from "../../protocol/errors.ts";
import type { LinkFigures } from "../../protocol/link.ts";
import { type CommonOptions, command, withSession } from "../command.ts";
import { age, errorText, printOne, section, table, terminal } from "../output.ts";

interface LinkOptions extends CommonOptions {
	readonly watch?: boolean;
	readonly interval: string;
}

/** `gp host link HOST`. */
export function linkCommand(): Command {
	return command("link", "show how a host's tunnel is doing, live")
		.argument("<name>")
		.option("-w, --watch", "show it again and again, with bytes a second, until Ctrl-C")
		.option("--interval <duration>", "how often with --watch", "2s")
		.action(async (name: string, options: LinkOptions) =>
			withSession(options, async (session) => {
				const look = () => session.call<LinkFigures>("GET", `/api/v1/hosts/${encodeURIComponent(name)}/link`);
				const show = (figures: LinkFigures, last?: Sample) =>
					printOne(figures, {
						format: options.output,
						name: `host/${name}`,
						words: () => linkText({ figures, at: Date.now() }, last),
					});
				if (!options.watch) return show(await look());
				const ms = durationMs(options.interval);
				let last: Sample | undefined;
				for (;;) {
					try {
						const figures = await look();
						if (options.output === "table" && process.stdout.isTTY) process.stdout.write(HOME_AND_CLEAR);
						await show(figures, last);
						last = { figures, at: Date.now() };
					} catch (error) {
						const problem = asGroundplaneError(error);
						// What a person has to mend ends the watch, what passes doesn't.
						if (problem.status < 500) throw problem;
						terminal.err(errorText(problem));
					}
					await delay(ms);
				}
			}),
		);
}

/** ECMA-48: cursor to the top, everything below it away. */
const HOME_AND_CLEAR = "\x1b[H\x1b[J";

interface Sample {
	figures: LinkFigures;
	/** Milliseconds since the epoch. */
	at: number;
}

/** The figures in words; with an earlier sample of the same tunnel also bytes a second. */
export function linkText({ figures, at }: Sample, last?: Sample): string {
	const { host, state, gateway, since, address, reason, tunnel } = figures;
	const head = [
		`state        ${state}${since ? ` since ${since} (${age(since, at)})` : ""}${reason ? `: ${reason}` : ""}`,
		`gateway      ${gateway ?? "-"}`,
		`address      ${address ?? "-"}`,
	];
	if (!tunnel) return section(host, head);
	const { streams, services, bytesFromHost, bytesToHost, ends, reconnects } = tunnel;
	const open = Object.entries(services).map(([service, count]) => `${service} ${count}`);
	const before = last?.figures.tunnel?.connectionId === tunnel.connectionId ? last : undefined;
	const rate = (now: number, then: number | undefined) =>
		before && then !== undefined ? `${bytes(((now - then) * 1000) / Math.max(1, at - before.at))}/s` : undefined;
	const lanes = (["control", "interactive", "bulk"] as const).map((lane) => ({
		lane,
		from: bytesFromHost[lane],
		to: bytesToHost[lane],
		fromRate: rate(bytesFromHost[lane], before?.figures.tunnel?.bytesFromHost[lane]),
		toRate: rate(bytesToHost[lane], before?.figures.tunnel?.bytesToHost[lane]),
	}));
	return [
		section(host, [
			...head,
			`agent        ${tunnel.agent}`,
			`round trip   ${tunnel.rttMs === undefined ? "-" : `${tunnel.rttMs.toFixed(1)} ms`}`,
			`streams      ${streams.open} open${open.length > 0 ? ` (${open.join(", ")})` : ""}, ${streams.opened} opened, ${streams.refused} refused`,
			`stalled      ${streams.stalled === 0 ? "none" : `${streams.stalled}: the other end does not read`}`,
			`queued       ${bytes(tunnel.queuedBytes)} for the host`,
			`reconnects   ${reconnects} to this gateway`,
		]),
		`${table(lanes, [
			["lane", ({ lane }) => lane],
			["from host", ({ from }) => bytes(from)],
			...(before ? [["", ({ fromRate }: (typeof lanes)[number]) => fromRate] as const] : []),
			["to host", ({ to }) => bytes(to)],
			...(before ? [["", ({ toRate }: (typeof lanes)[number]) => toRate] as const] : []),
		])}\n`,
		ends.length > 0
			? `${table([...ends].reverse(), [
					["ended", ({ at: ended }) => `${age(ended, at)} ago`],
					["reason", ({ reason: why }) => why],
					["message", ({ message }) => message],
				])}\n`
			: "",
	]
		.filter(Boolean)
		.join("\n");
}

/** Bytes as people read them: 512 B, 1.5 KiB, 3.2 GiB. */
export function bytes(count: number): string {
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	let value = count;
	let unit = 0;
	for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
	return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}
