import { describe, expect, it } from "vitest";
import { cluster, host } from "../testing/objects.ts";
import { concernsOf, underWay } from "./derive.ts";

const NOW = Date.parse("2026-01-01T01:00:00Z");
const ready = (message: string) => [
	{ type: "Ready", status: "False" as const, reason: "x", message, lastTransitionTime: "2026-01-01T00:00:00Z" },
];

describe("what needs a person", () => {
	it("names what does, the grave things first, and leaves alone what goes on by itself", () => {
		const concerns = concernsOf(
			[
				host("fine"),
				host("new", { phase: "AwaitingApproval" }),
				host("cut", {
					phase: "Disconnected",
					connection: { state: "Disconnected", since: "2026-01-01T00:48:00Z", reason: "Timeout" },
				}),
				host("swap", {
					phase: "Failed",
					checks: [
						{ name: "clock", ok: false, severity: "warning", message: "No time service.", next: "Install one." },
						{ name: "swap", ok: false, severity: "error", message: "Swap is on.", next: "Run swapoff -a." },
					],
				}),
				host("busy", { phase: "Working" }),
				host("serviced", { phase: "Maintenance" }),
			],
			[
				cluster("pending", { phase: "Pending", conditions: ready("There is no host h9.") }),
				cluster("making", { phase: "Provisioning", conditions: ready("Under way.") }),
			],
			NOW,
		);
		expect(concerns.map(({ name, tone }) => [name, tone])).toEqual([
			["cut", "danger"],
			["swap", "danger"],
			["pending", "warning"],
			["new", "info"],
		]);
		expect(concerns[0]?.message).toContain("for 12 min (Timeout)");
		expect(concerns[1]).toMatchObject({ message: "Swap is on.", next: "Run swapoff -a." });
		expect(concerns[2]?.message).toBe("There is no host h9.");
	});
});

describe("what is under way", () => {
	it("names each cluster's step and each host at work, not what failed or is out of reach", () => {
		const role = { name: "kubernetes", phase: "Applying" as const, step: "kubeadm init", progress: "3/19" };
		const work = underWay(
			[
				host("a", { roles: [role] }),
				host("failed", { roles: [{ ...role, phase: "Failed" }] }),
				host("gone", { roles: [role], connection: { state: "Disconnected" } }),
				host("leaving", { roles: [{ name: "kubernetes", phase: "Removing" }] }),
			],
			[
				cluster("c", { phase: "Provisioning", ready: "0/3", progress: { step: "Making", host: "a" } }),
				cluster("bad", { phase: "Degraded", progress: { step: "Waiting for the node to be ready", host: "gone" } }),
			],
		);
		expect(work.map(({ name, what, host: on, progress }) => [name, what, on, progress])).toEqual([
			["c", "Making", "a", "0/3"],
			["a", "Applying kubernetes", "a", "3/19"],
			["leaving", "Undoing kubernetes", "leaving", undefined],
		]);
	});
});
