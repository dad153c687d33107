import { Agent, request } from "node:https";
import { z } from "zod";
import type { Primitive, StepContext } from "./primitive.ts";

const balancerWant = z.object({
	/** The address that programs on this host dial; it exists on `lo` only. */
	address: z.ipv4(),
	port: z.int(),
	backends: z.array(z.ipv4()).min(1),
	table: z.string().regex(/^[a-z][a-z0-9-]*$/),
});
type Want = z.output<typeof balancerWant>;

const balancerMemory = z.object({ address: z.string(), table: z.string() });

/**
 * What was last found to answer, by table, for what follows at once. The look after an apply, and none after that, takes it for
 * granted however long a busy host took to get there: an API server that came or went in between is nothing that works against
 * the step. An apply after a look does, so that a lost API server is waited for once.
 */
const lastFound = new Map<
	string,
	{ readonly of: string; readonly by: "look" | "apply"; readonly backends: string[] }
>();

function keep({ table, backends: of }: Want, by: "look" | "apply", backends: string[]): void {
	lastFound.set(table, { of: of.join(), by, backends });
}
function take({ table, backends }: Want, by: "look" | "apply"): string[] | undefined {
	const found = lastFound.get(table);
	lastFound.delete(table);
	return found?.by === by && found.of === backends.join() ? found.backends : undefined;
}

/** Keeps TLS sessions and no connections: a host looks every few seconds, and a whole handshake each time would cost API servers of many hosts dear. */
const tlsSessions = new Agent({ keepAlive: false });

/**
 * A load balancer in the kernel: an nftables DNAT from a virtual address to the backends that answer. When
 * none does, all stay in, so that it works the moment one is back. The pack keeps a systemd unit beside it for the boot.
 */
export const balancer: Primitive<Want, z.output<typeof balancerMemory>> = {
	schema: balancerWant,
	key: ({ table }) => table,
	async observe(want, context) {
		const { stdout } = await context.exec("ip", ["-oneline", "address", "show", "dev", "lo"], {
			signal: context.signal,
		});
		if (!stdout.includes(` ${want.address}/32 `)) return { ok: false, why: `${want.address} is not on lo` };
		const installed = await installedBackends(want, context);
		if (installed === undefined) return { ok: false, why: `nftables table ${want.table} is missing` };
		const wanted = take(want, "apply") ?? (await wantedBackends(want));
		if (installed.join() !== wanted.join()) {
			keep(want, "look", wanted);
			return { ok: false, why: `it leads to ${installed.join(", ")} and should lead to ${wanted.join(", ")}` };
		}
		return { ok: true };
	},
	remember: async ({ address, table }) => ({ address, table }),
	async apply(want, { exec, signal }) {
		await exec("ip", ["address", "replace", `${want.address}/32`, "dev", "lo"], { signal });
		const backends = take(want, "look") ?? (await wantedBackends(want));
		await exec("nft", ["--file", "-"], { signal, input: ruleset({ ...want, backends }) });
		keep(want, "apply", backends);
	},
	async undo({ address, table }, { exec, signal }) {
		await exec("nft", ["delete", "table", "ip", table], { signal, codes: true });
		await exec("ip", ["address", "delete", `${address}/32`, "dev", "lo"], { signal, codes: true });
	},
};

/** The table; loading it again replaces it in one transaction (nft(8)). */
export function ruleset({ address, port, backends, table }: Want): string {
	const map = backends.map((backend, index) => `${index} : ${backend}`).join(", ");
	const rule = `ip daddr ${address} tcp dport ${port} dnat to numgen inc mod ${backends.length} map { ${map} }`;
	return `table ip ${table}
delete table ip ${table}
table ip ${table} {
	chain output {
		type nat hook output priority -110; policy accept;
		${rule}
	}
	chain prerouting {
		type nat hook prerouting priority -110; policy accept;
		${rule}
	}
	chain postrouting {
		type nat hook postrouting priority 90; policy accept;
		ip saddr ${address} oifname != "lo" masquerade
	}
}
`;
}

async function installedBackends({ table }: Want, { exec, signal }: StepContext): Promise<string[] | undefined> {
	const { code, stdout } = await exec("nft", ["list", "chain", "ip", table, "output"], { signal, codes: true });
	if (code !== 0) return undefined;
	return [...(/map \{([^}]*)\}/.exec(stdout)?.[1] ?? "").matchAll(/: ([0-9.]+)/g)]
		.map((match) => match[1] ?? "")
		.sort();
}

/** Who is ready; else who answers at all; else everybody. */
async function wantedBackends({ backends, port }: Want): Promise<string[]> {
	const all = [...new Set(backends)].sort();
	if (all.length === 1) return all;
	const states = await Promise.all(all.map((host) => stateOf(host, port)));
	const best = (["ready", "answers"] as const).find((state) => states.includes(state));
	return best === undefined ? all : all.filter((_, index) => states[index] === best);
}

/** Those of some API servers that say that they are ready. */
export async function readyAmong(hosts: readonly string[], port: number): Promise<string[]> {
	const states = await Promise.all(hosts.map((host) => stateOf(host, port)));
	return hosts.filter((_, index) => states[index] === "ready");
}

/**
 * How an API server is: one that starts, or has lost its etcd, speaks TLS and is no good. Whoever asks may know that
 * (`/readyz`, ClusterRole system:public-info-viewer) unless the cluster's people have forbidden it. Nothing is told, so whose
 * certificate it is does not matter.
 */
function stateOf(host: string, port: number): Promise<"ready" | "answers" | "silent"> {
	return new Promise((resolve) => {
		let state: "answers" | "silent" = "silent";
		const question = request({
			host,
			port,
			path: "/readyz",
			agent: tlsSessions,
			timeout: 3000,
			rejectUnauthorized: false,
		});
		const end = (said: "ready" | "answers" | "silent") => {
			resolve(said);
			question.destroy();
		};
		question.once("socket", (socket) => socket.once("secureConnect", () => (state = "answers")));
		question.once("response", ({ statusCode }) => end(statusCode === 200 ? "ready" : "answers"));
		question.once("timeout", () => end(state));
		question.on("error", () => end(state));
		question.end();
	});
}
