import { GroundplaneError } from "./errors.ts";

const unitMs = { h: 3_600_000, m: 60_000, s: 1_000 } as const;

/** Milliseconds of a duration as our custom resources and configuration write it: `90s`, `10m`, `1h30m`. */
export function durationMs(text: string): number {
	const parts = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$/.exec(text);
	if (text === "" || parts === null) {
		throw new GroundplaneError("InvalidInput", `"${text}" is not a duration`, {
			next: "Write it like 90s, 10m or 1h30m.",
		});
	}
	const [, h = "0", m = "0", s = "0"] = parts;
	return Number(h) * unitMs.h + Number(m) * unitMs.m + Number(s) * unitMs.s;
}
