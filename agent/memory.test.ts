import { expect, test } from "vitest";
import { reclaimFile } from "./memory.ts";

test.each([
	[
		"cgroup v2",
		"0::/system.slice/gp-agent.service\n",
		{ path: "/sys/fs/cgroup/system.slice/gp-agent.service/memory.reclaim", value: "1G" },
	],
	[
		"cgroup v1, with systemd's own hierarchy beside",
		"5:name=systemd:/system.slice/gp-agent.service\n4:memory:/system.slice/gp-agent.service\n0::/system.slice/gp-agent.service\n",
		{ path: "/sys/fs/cgroup/memory/system.slice/gp-agent.service/memory.force_empty", value: "0" },
	],
	["cgroup v1 whose memory is not kept by unit", "4:memory:/\n0::/system.slice/gp-agent.service\n", undefined],
	["started by hand", "0::/user.slice/user-0.slice/session-1.scope\n", undefined],
])("whose pages the agent asks for: %s", (_name, membership, expected) => {
	expect(reclaimFile(membership)).toEqual(expected);
});
