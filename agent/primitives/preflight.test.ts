import { expect, it } from "vitest";
import { portsIn } from "./preflight.ts";

const head =
	"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n";

it.each([
	["nothing", head, []],
	[
		"IPv4: a listener, and not a connection of the same program",
		`${head}   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:01BB 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
`,
		[443, 6443],
	],
	[
		"IPv6",
		`${head}  12: 00000000000000000000000000000000:280A 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
`,
		[10250],
	],
])("finds the listening ports of the kernel's table: %s", (_what, table, ports) =>
	expect(portsIn(table)).toEqual(ports),
);
