import { expect, test } from "vitest";
import { Admission } from "./admission.ts";

function startAdmission(answers: (unknown | Error)[]) {
	let now = 0;
	const asked: number[] = [];
	const admission = new Admission({
		ask: async () => {
			asked.push(now);
			const answer = answers.shift();
			if (answer instanceof Error) throw answer;
			return answer;
		},
		now: () => now,
		pause: async (ms) => {
			now += ms;
		},
	});
	const wait = (ms: number) => {
		now += ms;
	};
	return { admission, asked, wait };
}

const nobody = () => new Error("no responders");

test("while nobody answers yet the host waits, and is let in by the first answer", async () => {
	const { admission, asked } = startAdmission([nobody(), nobody(), { admitted: true }]);
	await admission.admit("a", "1");
	expect(asked).toHaveLength(3);
	expect(asked.at(-1)).toBeLessThan(3_000);
});

test("a host that nobody knows is told to come back after three seconds without an answer", async () => {
	const { admission, asked } = startAdmission(Array.from({ length: 100 }, nobody));
	await expect(admission.admit("a", "1")).rejects.toMatchObject({ code: "BusUnavailable" });
	expect(asked.length).toBeLessThan(8);
});

test("what the hosts service can't look up is no answer: who was admitted stays, who is unknown comes back", async () => {
	const away = { admitted: false, reason: "DatabaseUnavailable", message: "The database can't be reached." };
	const { admission } = startAdmission([{ admitted: true }, ...Array.from({ length: 100 }, () => away)]);
	await admission.admit("a", "1");
	await admission.admit("a", "1", { fresh: true });
	await expect(admission.admit("b", "1")).rejects.toMatchObject({ code: "BusUnavailable" });
});

test("one that was admitted lately stays welcome at once, and a refusal counts for a moment", async () => {
	const { admission, asked, wait } = startAdmission([
		{ admitted: true },
		nobody(),
		{ admitted: false, reason: "CertificateRevoked", message: "stolen" },
	]);
	await admission.admit("a", "1");
	await admission.admit("a", "1");
	expect(asked).toHaveLength(1);
	wait(120_000);
	await admission.admit("a", "1");
	expect(asked).toHaveLength(2);
	await expect(admission.admit("a", "1", { fresh: true })).rejects.toMatchObject({ code: "CertificateRevoked" });
	await expect(admission.admit("a", "1")).rejects.toMatchObject({ code: "CertificateRevoked" });
	expect(asked).toHaveLength(3);
});
