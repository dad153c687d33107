import { spawn } from "node:child_process";
import { Command } from "commander";
import { GroundplaneError } from "../../protocol/errors.ts";
import { runProgram } from "../lib/program.ts";
import { Lab } from "./lab.ts";

const program = new Command("hack/lab")
	.description("The lab: real Debian hosts, a provider's segment and a customer's site behind a firewall.")
	.option("--lab <name>", "the lab; several can stand side by side", process.env.GROUNDPLANE_LAB ?? "demo")
	.enablePositionalOptions();
const lab = () => new Lab(program.opts<{ lab: string }>().lab);
const collect = (value: string, list: string[]) => [...list, value];
const say = (line: string) => void process.stderr.write(`${line}\n`);

program
	.command("up")
	.description("make the lab, or repair it and add what is missing")
	.option("--hosts <n>", "hosts in the customer's site (3)", Number)
	.option("--domain <domain>", "a name that means mgmt, as does tunnel.DOMAIN (may be repeated)", collect, [])
	.action(async ({ hosts, domain }: { hosts?: number; domain: string[] }) => {
		table(await lab().up({ hosts, domains: domain, log: say }));
	});
program
	.command("down")
	.description("remove every trace of the lab")
	.action(() => lab().down());
program
	.command("list")
	.description("show the hosts")
	.option("-o, --output <format>", "json, or a table")
	.action(async ({ output }: { output?: string }) => {
		const hosts = await lab().list();
		if (output === "json") process.stdout.write(`${JSON.stringify(hosts, undefined, 2)}\n`);
		else table(hosts);
	});
program
	.command("exec")
	.description("run a command in a host as root")
	.argument("<host>")
	.argument("<command...>")
	.passThroughOptions()
	.action(async (host: string, words: string[]) => {
		const argv = words[0] === "--" ? words.slice(1) : words;
		const [file = "", ...args] = await lab().commandIn(host, argv);
		// The command gets the signals of the terminal itself; we only wait for it.
		for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => {});
		const child = spawn(file, args, { stdio: "inherit" });
		process.exitCode = await new Promise<number>((resolve) => {
			child.once("exit", (code) => resolve(code ?? 137));
			child.once("error", () => resolve(127));
		});
	});
program
	.command("start")
	.description("power a host on")
	.argument("<host>")
	.action((host: string) => lab().start(host));
program
	.command("stop")
	.description("cut a host's power")
	.argument("<host>")
	.action((host: string) => lab().stop(host));
program
	.command("reboot")
	.description("reboot a host in order")
	.argument("<host>")
	.action((host: string) => lab().reboot(host));
program
	.command("cut")
	.description("cut the site, or one host of it, off from the provider")
	.argument("[host]")
	.action((host?: string) => lab().cut(host));
program
	.command("heal")
	.description("undo cut")
	.argument("[host]")
	.action((host?: string) => lab().heal(host));
program
	.command("cp")
	.description("copy a file or a directory's content into a host, or a file out of one")
	.argument("<source>", "PATH or HOST:PATH")
	.argument("<destination>", "HOST:PATH or PATH")
	.action(async (source: string, destination: string) => {
		const [from, to] = [remote(source), remote(destination)];
		if (to && !from) return lab().copyTo(to.host, source, to.path);
		if (from && !to) return lab().copyFrom(from.host, from.path, destination);
		throw new GroundplaneError("InvalidInput", "One of the two must be in a host, the other one here", {
			next: "Write hack/lab cp FILE HOST:/PATH or hack/lab cp HOST:/PATH FILE.",
		});
	});
program
	.command("ip")
	.description("print a host's address")
	.argument("<host>")
	.action(async (host: string) => void process.stdout.write(`${await lab().address(host)}\n`));
program
	.command("proxy")
	.description("start an HTTP proxy in the site, the only way out for the hosts that are named; prints its URL")
	.argument("[host...]")
	.option("--off", "take it away")
	.action(async (hosts: string[], { off }: { off?: true }) => {
		if (off) await lab().proxyOff();
		else process.stdout.write(`${await lab().proxy(hosts)}\n`);
	});

function remote(text: string): { host: string; path: string } | undefined {
	const [, host, path] = /^([a-z][a-z0-9-]*):(.+)$/.exec(text) ?? [];
	return host === undefined || path === undefined ? undefined : { host, path };
}

function table(hosts: Awaited<ReturnType<Lab["list"]>>): void {
	const rows = [
		["HOST", "SEGMENT", "ADDRESS", "STATE", "UPLINK"],
		...hosts.map(({ name, segment, address, state, cut }) => [name, segment, address, state, cut ? "cut" : "ok"]),
	];
	const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
	for (const row of rows) {
		process.stdout.write(
			`${row
				.map((cell, column) => cell.padEnd(widths[column] ?? 0))
				.join("   ")
				.trimEnd()}\n`,
		);
	}
}

await runProgram(program);
