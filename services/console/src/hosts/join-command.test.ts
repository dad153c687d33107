import { expect, it } from "vitest";
import { isHostName, joinCommand } from "./join-command.ts";

it("is one line that pins the key and carries the token", () => {
	expect(joinCommand({ origin: "https://demo.example.com", pin: "sha256//abc=", token: "gpj_x" })).toBe(
		"curl -fsSLk --pinnedpubkey 'sha256//abc=' -H 'Authorization: Bearer gpj_x' https://demo.example.com/artifacts/v1/join | sh",
	);
});

it.each([
	["host-1", true],
	["a".repeat(63), true],
	["a".repeat(64), false],
	["Host", false],
	["-a", false],
	["a.b", false],
	["", false],
])("takes %s as a host's name: %s", (name, ok) => expect(isHostName(name)).toBe(ok));
