import { describe, expect, it } from "vitest";
import type { Exec } from "./exec.ts";
import type { StepContext } from "./primitive.ts";
import { othersIn, standIn, standInRules } from "./stand-in.ts";

describe("who stands in for an API server", () => {
	it.each([
		["all others that the cluster's Service has", "10.0.0.3 10.0.0.1 10.0.0.2", ["10.0.0.2", "10.0.0.3"]],
		["nobody where it is alone", "10.0.0.1", []],
		["nobody when nobody could be asked", "", []],
		["none that IPv4 does not lead to", "fd00::2 10.0.0.2 10.0.0.2", ["10.0.0.2"]],
	])("%s", (_what, addresses, expected) => expect(othersIn(addresses, "10.0.0.1")).toEqual(expected));

	it("is led to by rules that end by themselves, and only who comes from elsewhere", () => {
		const rules = standInRules("10.0.0.1", ["10.0.0.2", "10.0.0.3"]);
		expect(rules).toContain("elements = { 10.0.0.1 timeout 90s }");
		expect(rules).toContain("dnat to numgen inc mod 2 map { 0 : 10.0.0.2, 1 : 10.0.0.3 }");
		expect(rules).not.toContain("nat hook output");
	});

	it("is nobody who does not say to be ready: then nothing is changed", async () => {
		const ran: string[] = [];
		const exec: Exec = async (file) => {
			ran.push(file);
			return { code: 0, stdout: "10.0.0.1 127.0.0.9", stderr: "" };
		};
		const signal = new AbortController().signal;
		await standIn("10.0.0.1", "/admin.conf", { exec, signal, log: () => {} } as unknown as StepContext);
		expect(ran).toEqual(["kubectl"]);
	});
});
