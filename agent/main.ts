import { Command } from "commander";
import { asGroundplaneError } from "../protocol/errors.ts";
import { VERSION } from "../protocol/version.ts";
import { loadConfig, Paths, policyAllows, serviceEnvironment } from "./config.ts";
import { clockSkewSeconds, enroll, readJoinToken } from "./enroll.ts";
import { readFacts } from "./facts.ts";
import { createLog } from "./log.ts";
import { readMeasured } from "./measure.ts";
import { evaluate, probe } from "./preflight.ts";
import { describeStatus, readStatus } from "./status.ts";

const paths = new Paths();
const stop = new AbortController();
const print = (text: string) => void process.stdout.write(`${text}\n`);

const program = new Command("gp-agent")
	.description("Groundplane's agent: dials out to its region and makes this host what the region wants it to be.")
	.version(VERSION);

program
	.command("run")
	.description("what gp-agent.service runs: enrol if need be, keep the tunnel open, work")
	.option("--debug", "log more")
	.action(async ({ debug }: { debug?: boolean }) => {
		const { run } = await import("./run.ts");
		await run({
			config: loadConfig(paths),
			paths,
			log: createLog({ level: debug ? "debug" : "info" }),
			signal: stop.signal,
			// Started by agent/package/gp-agent, which alone knows how to try another version and go back.
			updates: process.env.GROUNDPLANE_LAUNCHER === undefined ? undefined : {},
		});
	});

program
	.command("enroll")
	.description("enrol with the token in /etc/groundplane/join-token, once; `run` does it by itself")
	.action(async () => {
		const config = loadConfig(paths);
		const token = readJoinToken(paths);
		if (token === undefined) throw new Error(`there is no token in ${paths.joinToken}`);
		const skew = await clockSkewSeconds(config, stop.signal);
		const observed = {
			facts: readFacts(readMeasured(paths.state)),
			checks: evaluate(probe({ clockSkewSeconds: skew })),
		};
		const { host, region, approved } = await enroll({ config, paths, token, observed, signal: stop.signal });
		print(`Enrolled as ${host} in region ${region}${approved ? "" : "; it waits for approval there"}.`);
	});

program
	.command("preflight")
	.description("check this host; ends with 1 if something keeps roles from being installed")
	.option("-o, --output <format>", "text or json", "text")
	.action(async ({ output }: { output: string }) => {
		const skew = await regionSkew();
		const checks = evaluate(
			probe({ clockSkewSeconds: skew, installed: (readStatus(paths.status)?.roles.length ?? 0) > 0 }),
		);
		if (output === "json") print(JSON.stringify(checks, null, "\t"));
		else {
			for (const { ok, name, message, next, severity } of checks) {
				print(`${ok ? "ok     " : severity === "error" ? "ERROR  " : "warning"}  ${name}: ${message}`);
				if (next) print(`           → ${next}`);
			}
		}
		if (checks.some(({ ok, severity }) => !ok && severity === "error")) process.exitCode = 1;
	});

program
	.command("report")
	.description("print what this host sends to its region: this and nothing else leaves")
	.action(async () => {
		const status = readStatus(paths.status);
		const installed = (status?.roles.length ?? 0) > 0;
		const checks = evaluate(probe({ clockSkewSeconds: await regionSkew(), installed }));
		const { renderMetrics } = await import("./metrics.ts");
		const roles = status?.roles ?? [];
		print(
			JSON.stringify(
				{
					facts: {
						type: "facts",
						agentVersion: VERSION,
						...(status?.update && { agentUpdate: status.update }),
						facts: readFacts(readMeasured(paths.state)),
						checks,
						certificateNotAfter: status?.certificateNotAfter ?? "",
					},
					roles: { type: "roles", generation: status?.desiredState?.generation ?? 0, roles },
					metrics: renderMetrics({
						checks,
						roles,
						certificateNotAfter: Date.parse(status?.certificateNotAfter ?? "1970-01-01T00:00:00Z") / 1000,
						reconnects: Math.max(0, status?.link?.reconnects ?? 0),
					}).split("\n"),
				},
				null,
				"\t",
			),
		);
	});

program
	.command("status")
	.description("how the agent is doing; ends with 1 if it is not connected")
	.option("-o, --output <format>", "text or json", "text")
	.action(({ output }: { output: string }) => {
		const status = readStatus(paths.status);
		if (!status) {
			print("The agent has not run since the host was started: systemctl status gp-agent");
			process.exitCode = 1;
			return;
		}
		const running = isAlive(status.pid);
		const supportShell = policyAllows(paths, "shell");
		if (output === "json") print(JSON.stringify({ ...status, running, supportShell }, null, "\t"));
		else {
			print(describeStatus(status, running));
			if (supportShell) print(`Shell     administrators of the region may open one here, by ${paths.policy}`);
		}
		if (!running || !status.link?.connected) process.exitCode = 1;
	});

program
	.command("doctor")
	.description(
		"why this host is not connected: goes the agent's way to the region step by step; ends with 1 if the way or the region is at fault, 2 if this host is",
	)
	.option("-o, --output <format>", "text or json", "text")
	.action(async ({ output }: { output: string }) => {
		const { describeDiagnosis, diagnose, exitCodeOf } = await import("./doctor.ts");
		const diagnosis = await diagnose({ paths, signal: stop.signal, env: process.env, isAlive });
		print(output === "json" ? JSON.stringify(diagnosis, null, "\t") : describeDiagnosis(diagnosis));
		process.exitCode = exitCodeOf(diagnosis);
	});

function isAlive(pid: number): boolean {
	try {
		process.kill(pid, 0);
		return true;
	} catch (error) {
		return (error as NodeJS.ErrnoException).code === "EPERM";
	}
}

async function regionSkew(): Promise<number | undefined> {
	try {
		return await clockSkewSeconds(loadConfig(paths, serviceEnvironment(paths)), AbortSignal.timeout(5_000));
	} catch {
		return undefined;
	}
}

for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort());
try {
	await program.parseAsync();
} catch (error) {
	const { code, message, next } = asGroundplaneError(error);
	createLog({ write: (line) => void process.stderr.write(line) }).error({ code, next }, message);
	process.exitCode = 1;
}
// Nothing that a library holds open keeps a stopped agent alive.
setTimeout(() => process.exit(), 1_000).unref();
