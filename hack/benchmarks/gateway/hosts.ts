import { Link } from "../../../agent/link/link.ts";
import { createLog } from "../../../agent/log.ts";

/** What the bench tells this process: which hosts to be, and where the gateway is. */
export interface HostsOrder {
	/** Hosts dial one after the other, so that of two tries one comes to each of two gateways. */
	ports: readonly number[];
	serverName: string;
	ca: string;
	hosts: { name: string; certificate: string; key: string }[];
	/** Dial one after the other with this pause, in milliseconds: a fleet that has grown, not one that was switched on. */
	pauseMs: number;
}

/** What it tells: how many are connected, and when each came (milliseconds since the epoch). */
export interface HostsReport {
	connected: number;
	/** How many have a spare tunnel. */
	spared: number;
	/** Times at which tunnels opened since the last `reset`. */
	opened: number[];
	/** Tries to open one since then. */
	dials: number[];
}

const quiet = createLog({ write: () => {} });
const links: Link[] = [];
let opened: number[] = [];
let dials: number[] = [];

process.on("message", (message: HostsOrder | "report" | "reset") => {
	if (message === "report") {
		const connected = links.filter(({ session }) => session !== undefined).length;
		const spared = links.filter(({ state }) => state.spare !== undefined).length;
		process.send?.({ connected, spared, opened, dials } satisfies HostsReport);
	} else if (message === "reset") {
		opened = [];
		dials = [];
	} else void start(message);
});
process.on("disconnect", () => process.exit());

async function start({ ports, serverName, ca, hosts, pauseMs }: HostsOrder): Promise<void> {
	for (const { name, certificate, key } of hosts) {
		let dialled = 0;
		const link = new Link({
			target: () => {
				dials.push(Date.now());
				const port = ports[dialled++ % ports.length];
				return { address: `127.0.0.1:${port}`, serverName, ca, certificate, key };
			},
			hostName: name,
			bootId: "boot",
			log: quiet,
			onStream: (incoming) => incoming.refuse("ServiceNotAllowed", "a host of the bench has no services"),
		});
		link.on("up", (session) => {
			// As an agent does: it stays open as long as the tunnel. The gateway has taken it when it is open.
			session.open("control", { lane: "control" }).then(
				(control) => {
					opened.push(Date.now());
					control.resume();
				},
				() => {},
			);
		});
		links.push(link);
		void link.run(new AbortController().signal);
		if (pauseMs > 0) await new Promise((resolve) => setTimeout(resolve, pauseMs));
	}
}
