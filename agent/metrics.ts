import { readFileSync, statfsSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { loadavg } from "node:os";
import type { Duplex } from "node:stream";
import { constants, gzipSync } from "node:zlib";
import type { HostCheck, RoleStatus } from "../protocol/facts.ts";
import { VERSION } from "../protocol/version.ts";
import { primaryInterface } from "./facts.ts";

/** What the agent adds to the host's own figures. */
export interface AgentFigures {
	checks: readonly HostCheck[];
	roles: readonly RoleStatus[];
	/** Seconds since the epoch. */
	certificateNotAfter: number;
	reconnects: number;
}

/** Kernel ticks a second: USER_HZ is 100 on every architecture that we run on. */
const USER_HZ = 100;
const CPU_MODES = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"] as const;
const MOUNTPOINTS = ["/", "/var/lib"] as const;

/**
 * The host's figures in Prometheus' text format, under node_exporter's names where it has them. Few and without help texts:
 * they cross the customer's line every minute or two.
 */
export function renderMetrics({ checks, roles, certificateNotAfter, reconnects }: AgentFigures): string {
	const lines: string[] = [];
	const add = (name: string, value: number, labels: Record<string, string> = {}) => {
		const text = Object.entries(labels).map(([key, label]) => `${key}=${JSON.stringify(label)}`);
		lines.push(`${name}${text.length > 0 ? `{${text.join(",")}}` : ""} ${value}`);
	};
	add("groundplane_agent_info", 1, { version: VERSION });
	for (const { name, ok } of checks) add("groundplane_agent_check_ok", ok ? 1 : 0, { check: name });
	for (const { name, phase } of roles) add("groundplane_agent_role_phase", 1, { role: name, phase });
	add("groundplane_agent_certificate_not_after_seconds", certificateNotAfter);
	add("groundplane_agent_tunnel_reconnects_total", reconnects);
	add("process_resident_memory_bytes", process.memoryUsage.rss());

	const [load1 = 0] = loadavg();
	add("node_load1", Math.round(load1 * 100) / 100);
	const memory = text("/proc/meminfo");
	for (const name of ["MemTotal", "MemAvailable"]) {
		const kilobytes = new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(memory)?.[1];
		if (kilobytes) add(`node_memory_${name}_bytes`, Number(kilobytes) * 1024);
	}
	const stat = text("/proc/stat");
	const cpu = /^cpu\s+(.+)$/m.exec(stat)?.[1]?.split(" ").map(Number) ?? [];
	CPU_MODES.forEach((mode, index) => {
		add("node_cpu_seconds_total", (cpu[index] ?? 0) / USER_HZ, { mode });
	});
	const boot = /^btime (\d+)$/m.exec(stat)?.[1];
	if (boot) add("node_boot_time_seconds", Number(boot));
	for (const mountpoint of MOUNTPOINTS) {
		try {
			const { bsize, blocks, bavail } = statfsSync(mountpoint);
			add("node_filesystem_size_bytes", blocks * bsize, { mountpoint });
			add("node_filesystem_avail_bytes", bavail * bsize, { mountpoint });
		} catch {
			// Not there, so there is nothing to say of it.
		}
	}
	const device = primaryInterface();
	const counters = new RegExp(`^\\s*${device}:\\s*(.+)$`, "m").exec(text("/proc/net/dev"))?.[1]?.trim().split(/\s+/);
	if (device !== "" && counters) {
		add("node_network_receive_bytes_total", Number(counters[0]), { device });
		add("node_network_transmit_bytes_total", Number(counters[8]), { device });
	}
	return `${lines.join("\n")}\n`;
}

/** Serves the metrics over streams of the tunnel. */
export class MetricsServer {
	readonly #server: Server;

	constructor(figures: () => AgentFigures) {
		this.#server = createServer((request, response) => {
			// Date and the like are bytes on the customer's line.
			response.sendDate = false;
			if (request.url !== "/metrics") {
				response.writeHead(404).end();
				return;
			}
			const body = renderMetrics(figures());
			const zipped = String(request.headers["accept-encoding"]).includes("gzip");
			const content = zipped ? gzipSync(body, { level: constants.Z_BEST_COMPRESSION }) : Buffer.from(body);
			response
				.writeHead(200, {
					"content-type": "text/plain; version=0.0.4",
					"content-length": content.length,
					...(zipped && { "content-encoding": "gzip" }),
				})
				.end(content);
		});
	}

	attach(stream: Duplex): void {
		this.#server.emit("connection", stream);
	}
}

function text(path: string): string {
	try {
		return readFileSync(path, "utf8");
	} catch {
		return "";
	}
}
