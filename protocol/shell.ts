import type { Readable } from "node:stream";
import { z } from "zod";
import { errorCodes } from "./errors.ts";
import { protocolError } from "./frames.ts";

/** What an HTTP request for a support shell upgrades to (RFC 9110 §7.8). */
export const SHELL_PROTOCOL = "groundplane-shell.v1";

/**
 * What a frame of a support shell carries. The first ones are as in Kubernetes' remote command protocol
 * (`v4.channel.k8s.io`); its zero-length frame of standard input, too, says that there is no more.
 */
export const Channel = { stdin: 0, stdout: 1, stderr: 2, exit: 3, resize: 4, open: 5, caller: 6 } as const;
export type Channel = (typeof Channel)[keyof typeof Channel];

export interface ShellFrame {
	readonly channel: number;
	readonly payload: Buffer;
}

const HEADER_BYTES = 5;
export const MAX_SHELL_FRAME = 64 * 1024;

const size = z.int().min(1).max(1_000);
/** Of a terminal, in characters. */
export const shellSize = z.object({ rows: size, columns: size });

/** Who opened it: the region's first frame, so that nobody can say it for themselves. */
export const shellCaller = z.object({ user: z.string().min(1).max(256), requestId: z.string().max(64) });

/** What is wanted, the caller's first frame: a login shell at a terminal, or a program with arguments and no terminal. */
export const shellOpen = z.union([
	z.strictObject({ terminal: shellSize.extend({ type: z.string().regex(/^[\w.+-]{1,32}$/) }) }),
	z.strictObject({
		command: z
			.array(
				z
					.string()
					.max(16_384)
					.regex(/^[^\0]*$/),
			)
			.min(1)
			.max(256),
	}),
]);
export type ShellOpen = z.output<typeof shellOpen>;

/** How it ended, the last frame: the program's exit code (128 and more: a signal), or why it was ended. */
export const shellExit = z.union([
	z.object({ exitCode: z.int() }),
	z.object({
		error: z.object({
			code: z.enum(Object.keys(errorCodes) as [keyof typeof errorCodes]),
			message: z.string(),
			next: z.string(),
		}),
	}),
]);
export type ShellExit = z.output<typeof shellExit>;

/** A frame: channel, length of the payload (32 bits, big-endian), payload; what is long becomes several. */
export function encodeShell(channel: Channel, payload: Uint8Array | object): Buffer {
	const bytes = payload instanceof Uint8Array ? payload : Buffer.from(JSON.stringify(payload));
	const frames: Buffer[] = [];
	for (let from = 0; from === 0 || from < bytes.length; from += MAX_SHELL_FRAME) {
		const part = bytes.subarray(from, from + MAX_SHELL_FRAME);
		const header = Buffer.alloc(HEADER_BYTES);
		header.writeUInt8(channel);
		header.writeUInt32BE(part.length, 1);
		frames.push(header, Buffer.from(part.buffer, part.byteOffset, part.length));
	}
	return Buffer.concat(frames);
}

/** Frames of a stream, to its end. Throws `TunnelProtocolError` at one that is too long or cut off. */
export async function* readShell(stream: Readable): AsyncGenerator<ShellFrame> {
	let held: Buffer = Buffer.alloc(0);
	for await (const chunk of stream as AsyncIterable<Buffer>) {
		held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
		while (held.length >= HEADER_BYTES) {
			const end = HEADER_BYTES + held.readUInt32BE(1);
			if (end > HEADER_BYTES + MAX_SHELL_FRAME) throw protocolError(`a frame is longer than ${MAX_SHELL_FRAME} bytes`);
			if (held.length < end) break;
			yield { channel: held.readUInt8(), payload: held.subarray(HEADER_BYTES, end) };
			held = held.subarray(end);
		}
	}
	if (held.length > 0) throw protocolError("the stream ended within a frame");
}

/** The JSON of a frame. Throws `TunnelProtocolError` when it isn't what it should be. */
export function parseShell<Schema extends z.ZodType>(
	frame: ShellFrame | undefined,
	channel: Channel,
	schema: Schema,
): z.output<Schema> {
	if (frame?.channel !== channel) throw protocolError(`frame ${channel} was expected, not ${frame?.channel}`);
	try {
		return schema.parse(JSON.parse(frame.payload.toString("utf8")));
	} catch (cause) {
		throw protocolError(`frame ${channel} can't be read: ${(cause as Error).message.replaceAll("\n", " ")}`);
	}
}
