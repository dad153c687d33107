import { expect, test } from "vitest";
import { hashPassword, verifyPassword } from "./password.ts";

test("a hash is salted, is told from others, and fits what other libraries write", async () => {
	const [one, two] = await Promise.all([hashPassword("secret"), hashPassword("secret")]);
	expect(one).toMatch(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$/);
	expect(one).not.toBe(two);
	expect(await verifyPassword(one, "secret")).toBe(true);
	expect(await verifyPassword(one, "Secret")).toBe(false);
	// Written by the reference implementation's command line (phc-winner-argon2), with other parameters.
	const foreign = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
	expect(await verifyPassword(foreign, "password")).toBe(true);
});
