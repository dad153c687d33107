import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { freePort } from "../../../test/support/ports.ts";
import type { CarrierOptions } from "./carriers.ts";

/** Another tunnel that multiplexes TCP connections over one of TLS: two programs between a port and whoever dials the one that it opens. */
export interface OtherTunnel {
	readonly name: "frp" | "chisel";
	/** Opens a port that leads to `to` through the tunnel. */
	start(to: number, options: { directory: string; tls: CarrierOptions["tls"] }): Promise<RunningTunnel>;
}

export interface RunningTunnel {
	readonly port: number;
	/** CPU that both programs have used so far, µs. */
	cpu(): number;
	stop(): Promise<void>;
}

/** Those whose programs are given: `GROUNDPLANE_FRP` names a directory with frps and frpc, `GROUNDPLANE_CHISEL` the program. */
export function otherTunnels({ GROUNDPLANE_FRP, GROUNDPLANE_CHISEL }: NodeJS.ProcessEnv): OtherTunnel[] {
	return [
		...(GROUNDPLANE_FRP === undefined ? [] : [frp(GROUNDPLANE_FRP)]),
		...(GROUNDPLANE_CHISEL === undefined ? [] : [chisel(GROUNDPLANE_CHISEL)]),
	];
}

/** https://github.com/fatedier/frp, as its documentation has it: TLS and one multiplexed connection are its defaults. */
const frp = (programs: string): OtherTunnel => ({
	name: "frp",
	async start(to, { directory }) {
		const [bindPort, port] = [await freePort(), await freePort()];
		const file = (name: string, lines: string[]) => {
			writeFileSync(join(directory, name), lines.join("\n"));
			return join(directory, name);
		};
		const server = file("frps.toml", ['bindAddr = "127.0.0.1"', `bindPort = ${bindPort}`]);
		const proxy = ["[[proxies]]", 'name = "bench"', 'type = "tcp"', `localPort = ${to}`, `remotePort = ${port}`];
		const client = file("frpc.toml", ['serverAddr = "127.0.0.1"', `serverPort = ${bindPort}`, ...proxy]);
		const gateway = run(join(programs, "frps"), ["-c", server]);
		await listening(bindPort);
		return running(port, [gateway, run(join(programs, "frpc"), ["-c", client])]);
	},
});

/** https://github.com/jpillora/chisel, over TLS as the tunnel is. */
const chisel = (program: string): OtherTunnel => ({
	name: "chisel",
	async start(to, { directory, tls }) {
		const [bindPort, port] = [await freePort(), await freePort()];
		const [cert, key, ca] = (["cert", "key", "ca"] as const).map((name) => {
			const path = join(directory, `chisel-${name}.pem`);
			writeFileSync(path, tls[name], { mode: 0o600 });
			return path;
		}) as [string, string, string];
		const where = ["--host", "127.0.0.1", "--port", String(bindPort)];
		const gateway = run(program, ["server", ...where, "--tls-cert", cert, "--tls-key", key]);
		await listening(bindPort);
		const remote = `127.0.0.1:${port}:127.0.0.1:${to}`;
		return running(port, [gateway, run(program, ["client", "--tls-ca", ca, `https://localhost:${bindPort}`, remote])]);
	},
});

function run(program: string, args: string[]): ChildProcess {
	const child = spawn(program, args, { stdio: "ignore" });
	// Told by the port that does not open.
	child.on("error", () => {});
	return child;
}

async function running(port: number, programs: readonly ChildProcess[]): Promise<RunningTunnel> {
	const stop = async () => {
		await Promise.all(
			programs.map(async (child) => {
				if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
				child.kill("SIGKILL");
				await once(child, "exit");
			}),
		);
	};
	try {
		await listening(port);
	} catch (error) {
		await stop();
		throw error;
	}
	return { port, stop, cpu: () => programs.reduce((sum, { pid }) => sum + cpuOf(pid as number), 0) };
}

/** proc_pid_stat(5): utime and stime, in hundredths of a second. */
function cpuOf(pid: number): number {
	const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
	return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

/** Waits until somebody listens on a port of this machine. */
async function listening(port: number): Promise<void> {
	for (const until = performance.now() + 30_000; performance.now() < until; await delay(50)) {
		const socket = connect(port, "127.0.0.1");
		const open = await new Promise<boolean>((resolve) => {
			socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
		});
		socket.destroy();
		if (open) return;
	}
	throw new Error(`nobody listens on port ${port} after 30 s`);
}
