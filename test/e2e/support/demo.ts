import { appendFileSync, mkdirSync } from "node:fs";
import { Demo } from "../../../hack/demo/demo.ts";
import { saveSnapshots } from "./snapshots.ts";

/** Name of the lab that end-to-end tests share; a demo of the same machine stands beside it. */
export const LAB = process.env.GROUNDPLANE_TEST_LAB ?? "test";
export const HOSTS = ["host-1", "host-2", "host-3"] as const;

/** The demo of the tests, stage by stage: what an earlier file has made is found and kept, so any file can run alone. */
export const demo = new Demo({ lab: LAB, report: log });

/** Progress goes to a file: it explains a failure, and would drown the results. */
function log(line: string): void {
	mkdirSync("dist/test/e2e", { recursive: true });
	appendFileSync("dist/test/e2e/progress.log", `${new Date().toISOString()} ${line}\n`);
}

export async function withRegion(): Promise<Demo> {
	await demo.machines(HOSTS.length);
	const { code } = await demo.lab.exec("mgmt", ["test", "-e", "/var/lib/groundplane/server"]);
	if (code !== 0) await saveSnapshots(demo, ["mgmt"]);
	await demo.managementServer();
	await demo.makeRegion();
	await demo.signIn();
	return demo;
}

export async function withHosts(): Promise<Demo> {
	await withRegion();
	await demo.enroll(HOSTS);
	return demo;
}

export async function withCluster(): Promise<Demo> {
	await withHosts();
	await demo.makeCluster("demo", HOSTS);
	await demo.clusterKubeconfig("demo");
	return demo;
}

/** Tries until `check` gives something, or the time is over; the last error tells what was wrong. */
export async function eventually<T>(check: () => Promise<T>, timeoutMs = 60_000, everyMs = 500): Promise<T> {
	const deadline = Date.now() + timeoutMs;
	for (;;) {
		try {
			return await check();
		} catch (error) {
			if (Date.now() >= deadline) throw error;
			await new Promise((resolve) => setTimeout(resolve, everyMs));
		}
	}
}
