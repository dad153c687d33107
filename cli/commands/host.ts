import { Command } from "commander";
import type { Host } from "../../crds/host.ts";
import { durationMs } from "../../protocol/duration.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { HostMeasurements } from "../../protocol/facts.ts";
import { type CommonOptions, command, withSession } from "../command.ts";
import { age, gibibytes, printList, printOne, section, table, terminal } from "../output.ts";
import type { Session } from "../session.ts";
import { waitFor } from "../wait.ts";
import { linkCommand } from "./link.ts";
import { shellCommand } from "./shell.ts";

const path = (name: string) => `/api/v1/hosts/${encodeURIComponent(name)}`;
const get = (session: Session, name: string) => session.call<Host>("GET", path(name));

export function hostCommand(): Command {
	const group = new Command("host").description("machines at the customer's site");

	group.addCommand(
		command("list", "list hosts").action(async (options: CommonOptions) =>
			withSession(options, async (session) => {
				const { items } = await session.call<{ items: Host[] }>("GET", "/api/v1/hosts");
				await printList(items, {
					format: options.output,
					columns: [
						["name", ({ metadata }) => metadata.name],
						["phase", ({ status }) => status?.phase],
						["connection", ({ status }) => status?.connection?.state],
						["cluster", ({ status }) => status?.cluster],
						["address", ({ status }) => status?.facts?.primaryAddress],
						["os", ({ status }) => status?.facts?.os.prettyName],
						["agent", ({ status }) => status?.agent?.version],
						["age", ({ metadata }) => age(metadata.creationTimestamp)],
					],
					name: ({ metadata }) => `host/${metadata.name}`,
					empty: "There are no hosts yet: gp host join-command",
				});
			}),
		),
	);

	group.addCommand(
		command("get", "show a host: facts, checks, roles, what is left behind, conditions")
			.argument("<name>")
			.action(async (name: string, options: CommonOptions) =>
				withSession(options, async (session) => {
					const host = await get(session, name);
					await printOne(host, { format: options.output, name: `host/${name}`, words: () => describe(host) });
				}),
			),
	);

	group.addCommand(linkCommand());
	group.addCommand(shellCommand());

	group.addCommand(
		command("join-command", "print the line that joins a machine to the region")
			.option("--name <name>", "only the host of this name may use it; any name by default")
			.option("--uses <count>", "how many machines may join with it", "1")
			.option("--lifetime <duration>", "for how long it is good, from 1m to 720h", "1h")
			.option("--no-approve", "nothing is changed on the hosts until gp host approve")
			.addHelpText("after", JOIN_HELP)
			.action(async (options: JoinOptions) => withSession(options, (session) => joinCommand(session, options))),
	);

	group.addCommand(
		command("approve", "let the region work on hosts that wait for it", { output: false })
			.argument("<names...>")
			.action(async (names: string[], options: CommonOptions) =>
				withSession(options, async (session) => {
					for (const name of names) {
						await session.call("PATCH", path(name), { approved: true });
						terminal.err(`${name} is approved.`);
					}
				}),
			),
	);

	group.addCommand(
		command("maintenance", "keep the region from changing a host, or let it again", { output: false })
			.argument("<name>")
			.argument("<on|off>")
			.action(async (name: string, state: string, options: CommonOptions) =>
				withSession(options, async (session) => {
					if (state !== "on" && state !== "off") {
						throw new GroundplaneError("InvalidInput", `"${state}" is neither on nor off.`, {
							next: `gp host maintenance ${name} on`,
						});
					}
					await session.call("PATCH", path(name), { maintenance: state === "on" });
					terminal.err(state === "on" ? `${name} is in maintenance.` : `${name} is out of maintenance.`);
				}),
			),
	);

	group.addCommand(
		command("label", "put labels on a host, by which clusters select it", { output: false })
			.argument("<name>")
			.argument("<labels...>", "KEY=VALUE, or KEY- to take a label away")
			.action(async (name: string, labels: string[], options: CommonOptions) =>
				withSession(options, async (session) => {
					await session.call("PATCH", path(name), { labels: labelChanges(labels) });
					terminal.err(`${name} is labelled.`);
				}),
			),
	);

	group.addCommand(
		command("delete", "remove a host: its roles are undone, its certificate revoked", { output: false })
			.argument("<names...>")
			.option("--wait", "wait until it is gone")
			.option("--timeout <duration>", "how long to wait", "15m")
			.action(async (names: string[], options: CommonOptions & { wait?: boolean; timeout: string }) =>
				withSession(options, async (session) => {
					for (const name of names) {
						await session.call("DELETE", path(name));
						if (options.wait) await waitGone(session, name, durationMs(options.timeout));
						terminal.err(options.wait ? `${name} is gone.` : `${name} is being removed.`);
					}
				}),
			),
	);
	return group;
}

/** What `KEY=VALUE` and `KEY-` ask for: a value, or null for a label to take away (RFC 7396). */
export function labelChanges(labels: readonly string[]): Record<string, string | null> {
	return Object.fromEntries(
		labels.map((label) => {
			const equals = label.indexOf("=");
			if (equals > 0) return [label.slice(0, equals), label.slice(equals + 1)];
			if (equals < 0 && label.length > 1 && label.endsWith("-")) return [label.slice(0, -1), null];
			throw new GroundplaneError("InvalidInput", `"${label}" is neither KEY=VALUE nor KEY-.`, {
				next: "gp host label host-1 rack=a old-label-",
			});
		}),
	);
}

const JOIN_HELP = `
Run the line on the machine (Debian or Ubuntu), as root or as somebody who may use sudo. It installs the agent, which
dials out to the region on port 443. Behind an HTTP proxy set https_proxy there first.

Examples:
  gp host join-command --name web-1
  gp host join-command --uses 20 --lifetime 24h --no-approve`;

interface JoinOptions extends CommonOptions {
	readonly name?: string;
	readonly uses: string;
	readonly lifetime: string;
	readonly approve: boolean;
}

/**
 * The line pins the public key of the region's front door and gives curl --insecure: the machine does not know the region's CA
 * yet, and with a pinned key curl refuses any other server before it sends a byte, whoever signed the certificate.
 */
async function joinCommand(session: Session, { name, uses, lifetime, approve, output }: JoinOptions): Promise<void> {
	const { pin } = await session.call<{ pin: string }>("GET", "/artifacts/v1/pin");
	const { id, token, expiresAt } = await session.call<{ id: string; token: string; expiresAt: string }>(
		"POST",
		"/api/v1/join-tokens",
		{ uses: Number(uses), lifetime, approve, ...(name !== undefined && { hostName: name }) },
	);
	const line = `curl -fsSLk --pinnedpubkey '${pin}' -H 'Authorization: Bearer ${token}' ${session.region.server}/artifacts/v1/join | sh`;
	if (output === "table" && process.stdout.isTTY) {
		const who = Number(uses) === 1 ? "one machine" : `${uses} machines`;
		terminal.err(`Run this on ${name ?? who} until ${expiresAt}, as root or as somebody who may use sudo:`);
	}
	await printOne(
		{ id, command: line, token, expiresAt },
		{ format: output, name: `join-token/${id}`, words: () => line },
	);
}

async function waitGone(session: Session, name: string, timeoutMs: number): Promise<void> {
	await waitFor(`The end of host ${name}`, timeoutMs, async () => {
		try {
			const { status } = await get(session, name);
			const [role] = status?.roles ?? [];
			return {
				isDone: false,
				progress: role
					? `${name}: ${role.name} ${role.phase} ${role.progress ?? ""} ${role.step ?? ""}`
					: `${name}: ${status?.phase}`,
			};
		} catch (error) {
			if (error instanceof GroundplaneError && error.code === "NotFound") return { isDone: true, progress: "" };
			throw error;
		}
	});
}

function describe({ metadata, spec, status = {} }: Host): string {
	const { facts, connection, agent } = status;
	const zone = metadata.labels?.["topology.kubernetes.io/zone"];
	return [
		section(metadata.name, [
			`phase        ${status.phase ?? "-"}`,
			`connection   ${connection ? `${connection.state} since ${connection.since} from ${connection.address ?? "?"}` : "never"}`,
			`approved     ${spec.approved ? "yes" : "no"}${spec.maintenance ? ", in maintenance" : ""}`,
			`cluster      ${status.cluster ?? "-"}`,
			...(zone === undefined ? [] : [`zone         ${zone}`]),
			...(agent ? [`agent        ${agent.version}, certificate until ${agent.certificateNotAfter}`] : []),
			...(facts
				? [
						`system       ${facts.os.prettyName}, kernel ${facts.kernel}, ${facts.architecture}, cgroup ${facts.cgroup}`,
						`hardware     ${facts.cpu.cores} × ${facts.cpu.model}, ${gibibytes(facts.memoryBytes)}`,
						`disks        ${facts.disks.map(({ name, sizeBytes }) => `${name} ${gibibytes(sizeBytes)}`).join(", ") || "-"}`,
						`addresses    ${facts.interfaces.map(({ name, addresses }) => `${name} ${addresses.join(" ")}`).join(", ")}`,
						...measurements(facts.measured),
					]
				: []),
		]),
		section(
			"Roles",
			(status.roles ?? []).map(({ name, version, phase, progress, step, message }) =>
				[name, version, phase, progress, step, message].filter(Boolean).join("  "),
			),
		),
		section("Left behind", leftBehind(status.leftBehind)),
		section(
			"Checks",
			(status.checks ?? []).map(
				({ name, ok, severity, message, next }) =>
					`${ok ? "ok     " : severity.padEnd(7)}  ${name}: ${message}${ok || !next ? "" : ` → ${next}`}`,
			),
		),
		conditions(status.conditions),
	]
		.filter(Boolean)
		.join("\n");
}

/** What is still on a host of clusters that are gone, a line each: what it was, since when, and when it goes. */
export const leftBehind = (entries: NonNullable<Host["status"]>["leftBehind"] = []): string[] =>
	entries.map(
		({ role, cluster, since, message }) =>
			`${role}${cluster === undefined ? "" : ` of cluster ${cluster}`}, since ${since}: ${message}`,
	);

/** What the agent has measured, a line each, with the time. */
export function measurements({ fsync, clock, peers }: HostMeasurements = {}): string[] {
	const lines: string[] = [];
	if (fsync) {
		const { writes, p50Ms, p99Ms, at } = fsync;
		lines.push(`fdatasync    p50 ${p50Ms} ms, p99 ${p99Ms} ms of ${writes} writes where etcd would be (${at})`);
	}
	if (clock) {
		const { offsetMs, uncertaintyMs, at } = clock;
		const side = offsetMs < 0 ? "behind" : "ahead of";
		lines.push(`clock        ${Math.abs(offsetMs)} ms ${side} the region's, ± ${uncertaintyMs} ms (${at})`);
	}
	if (peers) {
		const trips = peers.roundTrips.map(
			({ address, ms }) => `${address} ${ms === undefined ? "no answer" : `${ms} ms`}`,
		);
		lines.push(`peers        ${trips.join(", ")} (${peers.at})`);
	}
	return lines;
}

/** Conditions as a table. */
export function conditions(
	list: readonly { type: string; status: string; reason: string; message: string }[] = [],
): string {
	if (list.length === 0) return "";
	const text = table(list, [
		["condition", ({ type }) => type],
		["status", ({ status }) => status],
		["reason", ({ reason }) => reason],
		["message", ({ message }) => message],
	]);
	return `${text}\n`;
}
