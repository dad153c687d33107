import { expect, test } from "vitest";
import { wanted } from "./shell.ts";

const tty = { isTTY: true, rows: 50, columns: 120 };
const at = (type: string, size = { rows: 50, columns: 120 }) => ({ terminal: { ...size, type } });

test.each([
	["a program", ["ls", "-l"], { stdin: tty, stdout: tty, env: {} }, { command: ["ls", "-l"] }],
	["a terminal", [], { stdin: tty, stdout: tty, env: { TERM: "xterm" } }, at("xterm")],
	["an odd terminal", [], { stdin: tty, stdout: tty, env: { TERM: "$(id)" } }, at("dumb")],
	[
		"one without a size",
		[],
		{ stdin: tty, stdout: { isTTY: true, rows: 0 }, env: {} },
		at("dumb", { rows: 24, columns: 80 }),
	],
	["commands by a pipe", [], { stdin: {}, stdout: tty, env: {} }, { command: ["/bin/sh"] }],
	["output to a file", [], { stdin: tty, stdout: {}, env: {} }, { command: ["/bin/sh"] }],
])("with %s gp host shell asks for the right thing", (_what, program, from, asks) => {
	expect(wanted(program, from)).toEqual(asks);
});
