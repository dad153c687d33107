import { setTimeout as sleep } from "node:timers/promises";
import { readyAmong } from "./balancer.ts";
import type { StepContext } from "./primitive.ts";

const TABLE = "groundplane-stand-in";
const PORT = 6443;
/** The kernel ends it by itself after this long, whatever becomes of the agent. */
const LONGEST_S = 90;

/**
 * Has other control planes answer who dials this host's API server while it is exchanged. Every host's load balancer, and
 * whoever else knows the address, would else be refused for as long as it takes, and kept waiting by one that listens before
 * its etcd is there. What this host itself dials is left alone: it has to see its own API server come up.
 * Where there is no other one, or nobody can say, nothing is done.
 */
export async function standIn(address: string, kubeconfig: string, context: StepContext): Promise<void> {
	const { exec, signal, log } = context;
	const question = ["-n", "default", "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes"];
	const { stdout } = await exec(
		"kubectl",
		[
			...["--kubeconfig", kubeconfig, "--request-timeout=3s", ...question],
			...["-o", "jsonpath={.items[*].endpoints[*].addresses[*]}"],
		],
		{ signal, codes: true },
	);
	const others = await readyAmong(othersIn(stdout, address), PORT);
	if (others.length === 0) return;
	const { code, stderr } = await exec("nft", ["--file", "-"], {
		signal,
		codes: true,
		input: standInRules(address, others),
	});
	log(code === 0 ? `${others.join(", ")} stand in for this API server` : `nobody stands in: ${stderr.trim()}`);
	// Who was about to connect has done so, or is led elsewhere.
	await sleep(100, undefined, { signal });
}

/** This host's API server serves again. Connections that others took stay with them; where it never comes up, the kernel's time ends it. */
export async function endStandIn({ exec, signal }: Pick<StepContext, "exec" | "signal">): Promise<void> {
	await exec("nft", ["delete", "table", "ip", TABLE], { signal, codes: true });
}

/** IPv4 addresses of API servers besides this one, as the cluster's own Service `kubernetes` has them. */
export const othersIn = (addresses: string, own: string): string[] =>
	[...new Set(addresses.split(/\s+/))].filter((each) => /^\d+(\.\d+){3}$/.test(each) && each !== own).sort();

/** The table; an element with a timeout (nft(8), SETS) makes the rule one that ends by itself. */
export function standInRules(address: string, others: readonly string[]): string {
	const map = others.map((other, index) => `${index} : ${other}`).join(", ");
	return `table ip ${TABLE}
delete table ip ${TABLE}
table ip ${TABLE} {
	set resting {
		type ipv4_addr
		flags timeout
		elements = { ${address} timeout ${LONGEST_S}s }
	}
	chain prerouting {
		type nat hook prerouting priority -105; policy accept;
		ip daddr @resting tcp dport ${PORT} dnat to numgen inc mod ${others.length} map { ${map} }
	}
	chain output {
		type filter hook output priority 0; policy accept;
		# The kernel would tell clients of the same segment a shorter way, which ends with this table.
		icmp type redirect drop
	}
	chain postrouting {
		type nat hook postrouting priority 95; policy accept;
		ct original ip daddr ${address} ct status dnat tcp dport ${PORT} masquerade
	}
}
`;
}
