import { describe, expect, it } from "vitest";
import { byName, bytes, duration, percent, phaseWords, shortSystem } from "./words.ts";

describe("words", () => {
	it.each([
		["AwaitingApproval", "Awaiting approval"],
		["NotReady", "Not ready"],
		["Ready", "Ready"],
	])("%s reads %s", (phase, words) => expect(phaseWords(phase)).toBe(words));

	it.each([
		[0, "0 B"],
		[1536, "1.5 KiB"],
		[64 * 2 ** 30, "64 GiB"],
		[960197124096, "894 GiB"],
		[8 * 2 ** 40, "8 TiB"],
	])("%d bytes are %s", (value, text) => expect(bytes(value)).toBe(text));

	it.each([
		[-5_000, "0 s"],
		[59_400, "59 s"],
		[65_000, "1 min 5 s"],
		[120_000, "2 min"],
		[3_720_000, "1 h 2 min"],
		[47 * 3_600_000, "47 h"],
		[49 * 3_600_000, "2 d"],
	])("%d ms are %s", (ms, text) => expect(duration(ms)).toBe(text));

	it.each([
		["7/19", 37],
		["19/19", 100],
		["0/0", undefined],
		["many", undefined],
		[undefined, undefined],
	])("progress %s is %s per cent", (text, share) => expect(percent(text)).toBe(share));

	it("orders names as people do", () => {
		expect(["host-10", "host-2", "Host-1"].sort(byName)).toEqual(["Host-1", "host-2", "host-10"]);
	});

	it("shortens a system's name", () => {
		expect(shortSystem("Debian GNU/Linux 13 (trixie)")).toBe("Debian 13");
		expect(shortSystem("Ubuntu 26.04 LTS")).toBe("Ubuntu 26.04 LTS");
	});
});
