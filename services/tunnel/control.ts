import type { Duplex } from "node:stream";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type DownMessage, downMessage, type UpMessage, upMessage } from "../../protocol/messages.ts";
import { readLines } from "../../protocol/ndjson.ts";

/** Messages to a host that doesn't read may take this much memory; then its tunnel is cut. */
const MAX_UNREAD_BYTES = 4 * 1024 * 1024;

/** What the bridge needs of the bus. */
export interface ControlBus {
	/** Publishes a message of a host; rejects when the bus didn't take it. */
	publish(type: UpMessage["type"], message: UpMessage): Promise<void>;
	/** A line that is not on the list, or a message that the bus did not take. */
	dropped(reason: "not-on-the-list" | "bus"): void;
}

/** Writes a message to a host's control stream. Throws Overloaded when the host has stopped reading. */
export function sendDown(stream: Duplex, message: DownMessage): void {
	if (stream.writableLength > MAX_UNREAD_BYTES) {
		throw new GroundplaneError("Overloaded", "the host does not read its control messages", {
			next: "Look at the agent's log on the host: journalctl -u gp-agent.",
		});
	}
	stream.write(`${JSON.stringify(message)}\n`);
}

/** Parses a message for a host as it comes from the bus; undefined when it is not on the list. */
export function parseDown(text: string): DownMessage | undefined {
	try {
		return downMessage.parse(JSON.parse(text));
	} catch {
		return undefined;
	}
}

/**
 * Carries what a host says to the bus, one message after the other, so that a host that talks a lot slows itself down only.
 * What the bus doesn't take is asked for again a little later: every message is a full report.
 * Resolves when the host ends the stream.
 */
export async function bridgeUp(stream: Duplex, bus: ControlBus, { retryMs = 5_000 } = {}): Promise<void> {
	let asking: NodeJS.Timeout | undefined;
	try {
		for await (const line of readLines(stream)) {
			const message = parseUp(line);
			if (message === undefined) {
				bus.dropped("not-on-the-list");
				continue;
			}
			try {
				await bus.publish(message.type, message);
			} catch {
				bus.dropped("bus");
				asking ??= setTimeout(
					() => {
						asking = undefined;
						if (!stream.destroyed) sendDown(stream, { type: "report" });
					},
					retryMs * (1 + Math.random()),
				);
			}
		}
	} finally {
		clearTimeout(asking);
	}
}

function parseUp(line: string): UpMessage | undefined {
	try {
		return upMessage.parse(JSON.parse(line));
	} catch {
		return undefined;
	}
}
