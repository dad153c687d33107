import type { Readable } from "node:stream";
import { protocolError } from "./frames.ts";

/** Longest line of a control stream. */
export const MAX_LINE_BYTES = 1024 * 1024;

/** Lines of a stream, without their ends. Throws `TunnelProtocolError` at a line that is too long. */
export async function* readLines(stream: Readable, maxBytes = MAX_LINE_BYTES): AsyncGenerator<string> {
	let parts: Buffer[] = [];
	let length = 0;
	for await (const chunk of stream as AsyncIterable<Buffer>) {
		let from = 0;
		for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, from)) {
			parts.push(chunk.subarray(from, end));
			from = end + 1;
			const line = Buffer.concat(parts).toString("utf8").trim();
			parts = [];
			length = 0;
			if (line !== "") yield line;
		}
		if (from === chunk.length) continue;
		parts.push(chunk.subarray(from));
		length += chunk.length - from;
		if (length > maxBytes) throw protocolError(`a control line is longer than ${maxBytes} bytes`);
	}
}
