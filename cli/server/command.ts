import { appendFileSync, mkdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { Command, Option } from "commander";
import type { EngineLog } from "../../agent/engine/engine.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type Format, formats, printOne, section, table, terminal } from "../output.ts";
import { readRelease } from "./release.ts";
import { Server, type ServerConfig, STATE_DIR, serverConfig } from "./server.ts";
import { API_SERVER, type ServerStatus } from "./status.ts";

interface InitOptions {
	readonly release: string;
	readonly config?: string;
	readonly kubeconfig?: string;
	readonly state: string;
	readonly trustReleaseKey?: boolean;
}

const INIT_HELP = `
It makes this machine a Kubernetes of one node and installs Groundplane into it; run as root. Everything that is wrong with
the machine is listed before anything is changed. Run again, it goes on where it stopped, repairs, or upgrades.

Example:
  release/bin/gp server init --release release`;

/** `gp server`: the management server on this machine, or on a cluster that exists. */
export function serverCommand(): Command {
	const group = new Command("server").description("the management server: init, status, reset");
	group
		.command("init")
		.description("install, upgrade or repair the management server")
		.requiredOption("--release <dir>", "directory of a release, as hack/build makes it")
		.option("--config <file>", "settings (YAML): nodeName, nodeAddress, podSubnet, serviceSubnet, endpoint, values")
		.option("--kubeconfig <file>", "use this existing cluster instead of making one on this machine")
		.option("--state <dir>", "where to keep what has to be remembered", STATE_DIR)
		.option("--trust-release-key", "accept a release that is signed by another key than the installed one")
		.addHelpText("after", INIT_HELP)
		.action((options: InitOptions) => init(options));
	group
		.command("status")
		.description("show the parts of the management server, their versions and whether they are ready")
		.option("--kubeconfig <file>", "the existing cluster that it was installed on")
		.option("--state <dir>", "where init keeps what has to be remembered", STATE_DIR)
		.addOption(new Option("-o, --output <format>", "how to print").choices(formats).default("table"))
		.action((options: { kubeconfig?: string; state: string; output: Format }) => status(options));
	group
		.command("reset")
		.description("remove the management server, with all regions and their data, and leave the machine as it was found")
		.option("--release <dir>", "directory of the release; needed with --kubeconfig")
		.option("--kubeconfig <file>", "the existing cluster that it was installed on")
		.option("--state <dir>", "where init keeps what has to be remembered", STATE_DIR)
		.option("--yes", "say that it is meant: without this nothing is removed")
		.action((options: Partial<InitOptions> & { state: string; yes?: boolean }) => reset(options));
	return group;
}

async function init({ release: directory, config: configFile, kubeconfig, state, trustReleaseKey }: InitOptions) {
	const { server, log } = open(state, kubeconfig);
	const config = await readConfig(configFile);
	if (kubeconfig === undefined) await checkMachine(server);
	const release = await readRelease(resolve(directory), state, trustReleaseKey ?? false);
	const ownNode = kubeconfig === undefined;
	await work(log, [
		{
			title: "Kubernetes on this machine",
			enabled: ownNode,
			run: (progress) => server.installKubernetes(release, config, progress),
		},
		{
			title: "Images of the platform",
			enabled: ownNode,
			run: (progress) => server.importImages(release, progress),
		},
		{ title: "Storage for volumes", enabled: true, run: () => server.provideStorage(release) },
		{
			title: `Groundplane ${release.version}`,
			enabled: true,
			run: (progress) => server.installCore(release, config, progress),
		},
		{ title: "All parts ready", enabled: true, run: (progress) => server.waitReady(progress) },
	]);
	terminal.err(`Done. Next: make a region (kubectl --kubeconfig ${kubeconfig ?? "/etc/kubernetes/admin.conf"} apply).`);
}

async function status({ kubeconfig, state, output }: { kubeconfig?: string; state: string; output: Format }) {
	const { server } = open(state, kubeconfig);
	const found = await server.status();
	await printOne(found, { format: output, name: found.version ?? "", words: () => inWords(found) });
	const broken = found.components.filter(({ ready }) => !ready);
	if (broken.length > 0)
		throw new GroundplaneError("Conflict", `not ready: ${broken.map(({ name }) => name).join(", ")}`, {
			next: "Run `gp server init` again to repair it, or look at the component's pods.",
		});
	if (found.version === undefined)
		throw new GroundplaneError("NotFound", "Groundplane is not installed on this cluster", {
			next: "Run: gp server init --release DIR.",
		});
}

async function reset(options: Partial<InitOptions> & { state: string; yes?: boolean }) {
	if (!options.yes)
		throw new GroundplaneError("InvalidInput", "this removes the management server with all regions and their data", {
			next: "Add --yes if that is what you want.",
		});
	const { server, log } = open(options.state, options.kubeconfig);
	const { kubeconfig, release: directory } = options;
	if (kubeconfig !== undefined) {
		if (directory === undefined)
			throw new GroundplaneError("InvalidInput", "--kubeconfig needs --release", { next: "Add --release DIR." });
		const release = await readRelease(resolve(directory), options.state, false);
		await work(log, [{ title: "Groundplane", enabled: true, run: (progress) => server.removeCore(release, progress) }]);
		return;
	}
	await work(log, [
		{ title: "Kubernetes on this machine", enabled: true, run: (progress) => server.removeKubernetes(progress) },
	]);
}

function open(state: string, kubeconfig: string | undefined) {
	const stop = new AbortController();
	for (const name of ["SIGINT", "SIGTERM"] as const)
		process.once(name, () =>
			stop.abort(
				new GroundplaneError("CommandFailed", `stopped by ${name}`, {
					next: "Run the same command again: it goes on where it stopped.",
				}),
			),
		);
	// Not in the state, which a reset removes: what it did can be read afterwards.
	const log = fileLog(state === STATE_DIR ? "/var/log/groundplane-server.log" : join(dirname(state), "server.log"));
	return { server: new Server({ stateDir: state, signal: stop.signal, kubeconfig, log }), log };
}

async function checkMachine(server: Server): Promise<void> {
	const checks = await server.checks();
	const wrong = checks.filter(({ ok }) => !ok);
	if (wrong.length === 0) return;
	terminal.err(`This machine can't be a management server yet:`);
	for (const { message, next } of wrong) terminal.err(`  ✗ ${message}\n    → ${next}`);
	throw new GroundplaneError("PrerequisiteNotMet", `${wrong.length} of ${checks.length} checks failed`, {
		next: "Do what the list says and run the same command again. Nothing was changed.",
	});
}

async function readConfig(path: string | undefined): Promise<ServerConfig> {
	if (path === undefined) return serverConfig.parse({});
	const { parse } = await import("yaml");
	const { z } = await import("zod");
	const config = serverConfig.safeParse(parse(await readFile(path, "utf8")) ?? {});
	if (config.success) return config.data;
	throw new GroundplaneError("InvalidInput", `${path}: ${z.prettifyError(config.error)}`, {
		next: "Correct the file; docs/operators.md lists what it may hold.",
	});
}

interface Job {
	readonly title: string;
	readonly enabled: boolean;
	readonly run: (progress: (text: string) => void) => Promise<void>;
}

/** Does the jobs in order: a live list at a terminal, one plain line for each change elsewhere. */
async function work(log: EngineLog, jobs: readonly Job[]): Promise<void> {
	if (!process.stderr.isTTY) {
		for (const { title, run } of jobs.filter(({ enabled }) => enabled)) {
			const started = Date.now();
			terminal.err(`${title} …`);
			let last = "";
			await run((text) => {
				if (text !== last) terminal.err(`  ${text}`);
				last = text;
			});
			log.info({ ms: Date.now() - started }, title);
			terminal.err(`${title}: done in ${Math.round((Date.now() - started) / 1000)} s`);
		}
		return;
	}
	const { Listr } = await import("listr2");
	const tasks = jobs.map(({ title, enabled, run }) => ({
		title,
		enabled,
		task: async (_: unknown, task: { output: string }) => {
			await run((text) => {
				task.output = text;
			});
		},
	}));
	await new Listr(tasks, { concurrent: false, rendererOptions: { collapseErrors: false } }).run();
}

/** Everything the engine says goes to a file; the terminal shows progress only. */
function fileLog(path: string): EngineLog {
	const write = (level: string) => (fields: object, message: string) => {
		const error = (fields as { err?: { stack?: string } }).err;
		const line = { time: new Date().toISOString(), level, message, ...fields, ...(error ? { err: error.stack } : {}) };
		try {
			mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
			appendFileSync(path, `${JSON.stringify(line)}\n`, { mode: 0o600 });
		} catch {
			// The log is a help for the person; a full disk shows itself in the work.
		}
	};
	return { info: write("info"), warn: write("warn"), error: write("error") };
}

function inWords({ version, components, regions }: ServerStatus): string {
	const parts = table(components, [
		["component", ({ name }) => name],
		["version", ({ version }) => version],
		["ready", ({ ready }) => (ready ? "yes" : "no")],
		["message", ({ message }) => message],
	]);
	const lines = regions.map(({ name, phase }) => `${name}: ${phase}`);
	const answers = components.every(({ name }) => name !== API_SERVER);
	return `Groundplane ${version ?? (answers ? "(not installed)" : "(unknown)")}\n\n${parts}\n\n${section("Regions", lines)}`.trimEnd();
}
