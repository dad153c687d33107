import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { demo } from "./demo.ts";

/** Runs once for all end-to-end files: a leftover of an earlier run goes first, logs stay behind, the lab goes last. */
export default async function setup(): Promise<() => Promise<void>> {
	const keep = process.env.GROUNDPLANE_KEEP_LAB !== undefined;
	if (!keep) await demo.lab.down();
	return async () => {
		await collectLogs().catch((error) => console.error("logs could not be collected:", error));
		if (!keep) await demo.lab.down();
	};
}

/** What explains a failure: the plane's objects and logs, and every host's journal. */
async function collectLogs(): Promise<void> {
	const directory = join("dist", "test", "e2e");
	await mkdir(directory, { recursive: true });
	const save = async (name: string, produce: () => Promise<{ stdout: string; stderr: string }>) => {
		const { stdout, stderr } = await produce().catch((error: unknown) => ({ stdout: "", stderr: String(error) }));
		await writeFile(join(directory, name), stdout + stderr);
	};
	await save("objects.txt", () =>
		demo.kubectl(["get", "regions,hosts,clusters,pods,events", "-A", "-o", "wide"], { check: false }),
	);
	await save("custom-resources.yaml", () =>
		demo.kubectl(["get", "regions,hosts,clusters", "-A", "-o", "yaml"], { check: false }),
	);
	for (const selector of ["app.kubernetes.io/part-of=groundplane"]) {
		for (const namespace of ["groundplane-system", demo.namespace]) {
			await save(`${namespace}.log`, () =>
				demo.kubectl(
					[
						"logs",
						"-n",
						namespace,
						"-l",
						selector,
						"--all-containers",
						"--prefix",
						"--tail=2000",
						"--max-log-requests=50",
					],
					{ check: false },
				),
			);
		}
	}
	for (const { name: host } of await demo.lab.list()) {
		await save(`${host}.journal`, () =>
			demo.lab.exec(host, ["journalctl", "--no-pager", "-n", "3000"], { timeoutMs: 30_000 }),
		);
	}
}
