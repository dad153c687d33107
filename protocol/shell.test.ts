import { Readable } from "node:stream";
import { expect, test } from "vitest";
import { Channel, encodeShell, MAX_SHELL_FRAME, parseShell, readShell, shellOpen } from "./shell.ts";

const read = async (bytes: Buffer, pieces: number) => {
	const parts = Array.from({ length: Math.ceil(bytes.length / pieces) }, (_, at) =>
		bytes.subarray(at * pieces, (at + 1) * pieces),
	);
	const frames: [number, string][] = [];
	for await (const { channel, payload } of readShell(Readable.from(parts))) frames.push([channel, payload.toString()]);
	return frames;
};

test.each([1, 2, 5, 7, 1_000_000])(
	"frames come out as they went in, however they are cut: %i bytes at a time",
	async (pieces) => {
		const bytes = Buffer.concat([
			encodeShell(Channel.open, { command: ["ls"] }),
			encodeShell(Channel.stdin, Buffer.from("größe")),
			encodeShell(Channel.stdin, Buffer.alloc(0)),
		]);
		expect(await read(bytes, pieces)).toEqual([
			[Channel.open, '{"command":["ls"]}'],
			[Channel.stdin, "größe"],
			[Channel.stdin, ""],
		]);
	},
);

test("what is long goes in several frames; one that is too long, or cut off, is a fault", async () => {
	const long = Buffer.alloc(MAX_SHELL_FRAME + 1, "x");
	const frames = await read(encodeShell(Channel.stdout, long), 10_000);
	expect(frames.map(([, text]) => text.length)).toEqual([MAX_SHELL_FRAME, 1]);
	await expect(read(Buffer.from("00ffffffff", "hex"), 5)).rejects.toThrow("longer than");
	await expect(read(encodeShell(Channel.stdout, Buffer.from("abc")).subarray(0, 6), 6)).rejects.toThrow(
		"within a frame",
	);
});

test.each([
	['{"command": ["ls", "-l"]}', true],
	['{"terminal": {"rows": 24, "columns": 80, "type": "xterm-256color"}}', true],
	['{"terminal": {"rows": 24, "columns": 80, "type": "xterm; id"}}', false],
	['{"terminal": {"rows": 0, "columns": 80, "type": "xterm"}}', false],
	['{"terminal": {"rows": "24", "columns": 80, "type": "xterm"}}', false],
	['{"command": []}', false],
	['{"command": ["a\\u0000b"]}', false],
	['{"command": ["ls"], "user": "root"}', false],
	["{", false],
])("%s is understood: %s", (text, isUnderstood) => {
	const parse = () => parseShell({ channel: Channel.open, payload: Buffer.from(text) }, Channel.open, shellOpen);
	if (isUnderstood) expect(parse()).toEqual(JSON.parse(text));
	else expect(parse).toThrow(expect.objectContaining({ code: "TunnelProtocolError" }));
});

test("a frame of another channel is not taken for the one that is expected", () => {
	const frame = { channel: Channel.stdin, payload: Buffer.from('{"command": ["ls"]}') };
	expect(() => parseShell(frame, Channel.open, shellOpen)).toThrow("was expected");
	expect(() => parseShell(undefined, Channel.open, shellOpen)).toThrow("was expected");
});
