import { expect, it } from "vitest";
import type { Host } from "../crds/host.ts";
import { slimHost } from "./deps.ts";

it("keeps of a host what the controllers read", () => {
	const facts = {
		primaryAddress: "192.0.2.1",
		disks: [{ name: "sda" }],
		filesystems: [{ path: "/" }],
		interfaces: [{}],
	};
	const unmet = { name: "swap", ok: false, severity: "error", message: "Swap is on." };
	const host = {
		metadata: { name: "h", labels: { a: "b" } },
		spec: { approved: true },
		status: { phase: "Ready", facts, checks: [{ ...unmet, name: "memory", ok: true }, unmet], conditions: [] },
	} as unknown as Host;
	const before = structuredClone(host);
	expect(slimHost(host)).toEqual({
		...before,
		status: {
			phase: "Ready",
			conditions: [],
			facts: { primaryAddress: "192.0.2.1", disks: [], filesystems: [], interfaces: [] },
			checks: [unmet],
		},
	});
	expect(host).toEqual(before);
	expect(slimHost({ ...host, status: undefined } as never)).toEqual({ ...host, status: undefined });
});
