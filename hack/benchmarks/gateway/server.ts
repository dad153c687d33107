import { createServer } from "node:tls";
import { createLog } from "../../../services/kit/log.ts";
import { startService } from "../../../services/kit/service.ts";
import { tunnelService } from "../../../services/tunnel/service.ts";

/** The gateway as it runs in its pod, or for comparison nothing but Node's own TLS. */
export interface ServerOrder {
	kind: "gateway" | "tls";
	env: Record<string, string>;
	tls: { cert: string; key: string; ca: string };
	port: number;
}

process.on("message", (message: ServerOrder | "memory") => {
	if (message !== "memory") {
		void start(message).then(() => process.send?.("listening"));
		return;
	}
	globalThis.gc?.();
	process.send?.(process.memoryUsage());
});
process.on("disconnect", () => process.exit());

async function start({ kind, env, tls, port }: ServerOrder): Promise<void> {
	if (kind === "gateway") {
		const signal = new AbortController().signal;
		await startService(tunnelService, { env, signal, log: createLog("tunnel", "error") });
		return;
	}
	const server = createServer(
		{ ...tls, requestCert: true, rejectUnauthorized: true, minVersion: "TLSv1.3" },
		(socket) => void socket.on("error", () => {}).resume(),
	);
	await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", () => resolve()));
}
