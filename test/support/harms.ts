import { setTimeout as delay } from "node:timers/promises";
import type { Relay } from "./relay.ts";

/**
 * What happens to a line: each does its harm and resolves when the line may rest, at most `longestMs` later. The caller lets the line
 * behave again.
 */
export function harms(longestMs: number): readonly ((relay: Relay) => unknown)[] {
	const pause = (least: number, most: number) => delay(longestMs * (least + Math.random() * (most - least)));
	return [
		(relay) => relay.cut(),
		(relay) => relay.reset(),
		(relay) => relay.inject("client"),
		(relay) => relay.inject("server"),
		(relay) => {
			relay.behave({ silent: true });
			return pause(1 / 16, 1);
		},
		(relay) => {
			relay.behave({ bytesPerSecond: 200_000, delayMs: 30 });
			return pause(1 / 8, 5 / 8);
		},
		(relay) => {
			relay.behave({ lose: 0.5 });
			relay.reset();
			return pause(1 / 8, 1 / 8);
		},
		(relay) => {
			relay.behave({ refuse: true });
			relay.cut();
			return pause(1 / 16, 3 / 8);
		},
		(relay) => {
			relay.behave({ truncateAfter: 20_000 });
			return pause(1 / 8, 1 / 4);
		},
	];
}
