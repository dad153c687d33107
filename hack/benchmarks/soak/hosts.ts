import type { Duplex } from "node:stream";
import { Link } from "../../../agent/link/link.ts";
import { createLog } from "../../../agent/log.ts";
import type { IncomingStream, Session } from "../../../protocol/mux.ts";
import { keepLedger } from "./ledger.ts";
import { type EndReport, lookAtMyself } from "./report.ts";

export interface HostsOrder {
	serverName: string;
	hosts: { name: string; cert: string; key: string; ca: string; port: number }[];
}

export interface HostsReport extends EndReport {
	connected: number;
	reconnects: number;
}

/** The hosts' end of the soak: the agent's link, with services that do well and services that don't. */
const account = keepLedger();
const quiet = createLog({ write: () => {} });
const links: Link[] = [];

/** Sooner than an agent would, so that an hour holds many of them. */
const LIMITS = { pingAfterMs: 2_000, pingTimeoutMs: 3_000, helloMs: 3_000 };
const PHASE_MS = 3_000;
const LINE_EVERY_MS = 200;
const STUCK_MS = 12_000;
const MOST_BEFORE_BREAK = 200_000;

process.on("message", async (message: HostsOrder | "look" | "settle") => {
	if (typeof message !== "string") return process.send?.(start(message));
	const report: HostsReport = {
		...(await lookAtMyself(account, message === "settle")),
		connected: links.filter(({ session }) => session !== undefined).length,
		reconnects: links.reduce((sum, { state }) => sum + Math.max(0, state.reconnects), 0),
	};
	process.send?.(report);
});
process.on("disconnect", () => process.exit());

function start({ serverName, hosts }: HostsOrder): "started" {
	for (const { name, cert: certificate, key, ca, port } of hosts) {
		const target = { address: `127.0.0.1:${port}`, serverName, ca, certificate, key, phaseMs: PHASE_MS };
		const link = new Link({
			target: () => target,
			hostName: name,
			bootId: "boot",
			log: quiet,
			limits: LIMITS,
			onStream: (incoming) => onStream(incoming),
		});
		link.on("up", (session) => void askForArtifacts(session));
		links.push(link);
		void link.run(new AbortController().signal);
	}
	return "started";
}

function onStream(incoming: IncomingStream): void {
	if (incoming.service === "kube-apiserver") serve(incoming.accept());
	else incoming.refuse("ServiceNotAllowed", "not in the soak");
}

/** A host opens streams, too: one to control, as long as the tunnel, and one for a download that is refused. */
async function askForArtifacts(session: Session): Promise<void> {
	try {
		const control = await session.open("control", { lane: "control" });
		control.resume();
		const artifacts = await session.open("artifacts", { lane: "bulk" });
		artifacts.resume();
		artifacts.end("GET /nothing HTTP/1.1\r\nhost: artifacts\r\nconnection: close\r\n\r\n");
	} catch {
		// The tunnel broke; the next one tries again.
	}
}

/** The first byte says what this stream is to become. */
function serve(stream: Duplex): void {
	// Who has left before it said anything is let go.
	const leave = () => void stream.end();
	stream.once("end", leave);
	stream.once("data", (first: Buffer) => {
		stream.off("end", leave);
		const kind = String.fromCharCode(first[0] ?? 0);
		const rest = first.subarray(1);
		if (kind === "s") {
			// Stuck: it reads no more, and is ended in the end as an API server ends what does not get on.
			stream.pause();
			const timer = setTimeout(() => stream.destroy(new Error("this service was stuck")), STUCK_MS);
			stream.on("close", () => clearTimeout(timer));
			return;
		}
		if (kind === "w") {
			const timer = setInterval(() => stream.write(`${"event ".repeat(16)}\n`), LINE_EVERY_MS);
			stream.on("close", () => clearInterval(timer));
			stream.on("end", () => stream.end());
			return;
		}
		if (rest.length > 0) stream.write(rest);
		stream.pipe(stream);
		if (kind !== "x") return;
		let left = Math.random() * MOST_BEFORE_BREAK;
		stream.on("data", (chunk: Buffer) => {
			left -= chunk.length;
			if (left < 0) stream.destroy(new Error("this service breaks off"));
		});
	});
}
