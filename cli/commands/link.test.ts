import { expect, test } from "vitest";
import type { LinkFigures } from "../../protocol/link.ts";
import { bytes, linkText } from "./link.ts";

const at = Date.parse("2026-01-01T01:00:00Z");
const figures = {
	host: "web-1",
	state: "Connected",
	gateway: "tunnel-a",
	since: "2026-01-01T00:00:00Z",
	address: "192.0.2.7",
	tunnel: {
		agent: "0.1.0",
		connectionId: "c",
		epoch: 7,
		rttMs: 12.34,
		streams: { open: 3, opened: 90, refused: 0, stalled: 1 },
		services: { control: 1, "kube-apiserver": 2 },
		queuedBytes: 2048,
		bytesFromHost: { control: 100, interactive: 5000, bulk: 0 },
		bytesToHost: { control: 100, interactive: 1_000_000, bulk: 0 },
		reconnects: 1,
		ends: [{ at: "2026-01-01T00:00:00Z", reason: "TunnelClosed", message: "the gateway is stopping" }],
	},
} satisfies LinkFigures;

test("a link in words", () => {
	expect(linkText({ figures, at })).toBe(
		[
			"web-1",
			"  state        Connected since 2026-01-01T00:00:00Z (60m)",
			"  gateway      tunnel-a",
			"  address      192.0.2.7",
			"  agent        0.1.0",
			"  round trip   12.3 ms",
			"  streams      3 open (control 1, kube-apiserver 2), 90 opened, 0 refused",
			"  stalled      1: the other end does not read",
			"  queued       2.0 KiB for the host",
			"  reconnects   1 to this gateway",
			"",
			"LANE         FROM HOST  TO HOST",
			"control      100 B      100 B",
			"interactive  4.9 KiB    977 KiB",
			"bulk         0 B        0 B",
			"",
			"ENDED    REASON        MESSAGE",
			"60m ago  TunnelClosed  the gateway is stopping",
			"",
		].join("\n"),
	);
});

test("bytes a second come from two looks at the same tunnel", () => {
	const bytesToHost = { ...figures.tunnel.bytesToHost, interactive: 1_000_000 - 20_480 };
	const before = { figures: { ...figures, tunnel: { ...figures.tunnel, bytesToHost } }, at: at - 2_000 };
	expect(linkText({ figures, at }, before)).toContain("interactive  4.9 KiB    0 B/s  977 KiB  10.0 KiB/s");
	const other = { ...before, figures: { ...figures, tunnel: { ...figures.tunnel, connectionId: "older" } } };
	expect(linkText({ figures, at }, other)).not.toContain("/s");
});

test("a host that is away: since when and why", () => {
	const away = { host: "web-1", state: "Disconnected", since: figures.since, reason: "TunnelLost" } as const;
	expect(linkText({ figures: away, at })).toBe(
		[
			"web-1",
			"  state        Disconnected since 2026-01-01T00:00:00Z (60m): TunnelLost",
			"  gateway      -",
			"  address      -",
			"",
		].join("\n"),
	);
});

test.each([
	[0, "0 B"],
	[1023, "1023 B"],
	[1536, "1.5 KiB"],
	[3.2 * 2 ** 30, "3.2 GiB"],
	[500 * 2 ** 40, "500 TiB"],
])("%i bytes are %s", (count, text) => expect(bytes(count)).toBe(text));
