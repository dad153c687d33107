import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import {
	endedMost,
	endOfLog,
	keepManifests,
	missingManifests,
	putBackManifests,
	staticPodRuns,
} from "./static-pods.ts";

let root: string;
let kept: string;
let manifests: string;
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "static-pods-"));
	kept = join(root, "kept");
	manifests = join(root, "manifests");
	mkdirSync(manifests);
	for (const name of ["etcd.yaml", "kube-scheduler.yaml", "someone-elses.yaml"])
		writeFileSync(join(manifests, name), `of ${name}`);
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

it("puts back what was removed, and leaves alone what was changed and what is not kubeadm's", async () => {
	await keepManifests(kept, manifests);
	expect(readdirSync(kept)).toEqual(["etcd.yaml", "kube-scheduler.yaml"]);
	expect(await missingManifests(kept, manifests)).toEqual([]);
	writeFileSync(join(manifests, "etcd.yaml"), "changed by hand");
	rmSync(join(manifests, "kube-scheduler.yaml"));
	rmSync(join(manifests, "someone-elses.yaml"));
	expect(await missingManifests(kept, manifests)).toEqual(["kube-scheduler.yaml"]);
	await putBackManifests(kept, manifests);
	expect(readFileSync(join(manifests, "kube-scheduler.yaml"), "utf8")).toBe("of kube-scheduler.yaml");
	expect(readFileSync(join(manifests, "etcd.yaml"), "utf8")).toBe("changed by hand");
	expect(readdirSync(manifests).sort()).toEqual(["etcd.yaml", "kube-scheduler.yaml"]);
});

it("finds nothing missing on a worker, nor where nothing was kept yet", async () => {
	expect(await missingManifests(kept, manifests)).toEqual([]);
	rmSync(manifests, { recursive: true });
	await keepManifests(kept, manifests);
	expect(await missingManifests(kept, manifests)).toEqual([]);
});

it("follows a change of version: what is kept is what was there last", async () => {
	await keepManifests(kept, manifests);
	writeFileSync(join(manifests, "etcd.yaml"), "newer");
	await keepManifests(kept, manifests);
	rmSync(manifests, { recursive: true });
	await putBackManifests(kept, manifests);
	expect(readFileSync(join(manifests, "etcd.yaml"), "utf8")).toBe("newer");
});

it("counts by their logs how often static pods ended, and knows one that was changed from the one before", async () => {
	const log = (pod: string, container: string, count: number, text = "") => {
		mkdirSync(join(root, "pods", pod, container), { recursive: true });
		writeFileSync(join(root, "pods", pod, container, `${count}.log`), text);
	};
	const runs = () => staticPodRuns("host-1", join(root, "pods"));
	expect((await runs()).size).toBe(0);
	log("kube-system_etcd-host-1_aa", "etcd", 7);
	log("kube-system_etcd-host-11_aa", "etcd", 50);
	log("kube-system_coredns-1_ff", "coredns", 50);
	const before = await runs();
	expect(endedMost(before, before)).toBeUndefined();
	// The first run of a pod that was changed is no end of anything.
	log("kube-system_kube-apiserver-host-1_bb", "kube-apiserver", 0);
	expect(endedMost(before, await runs())).toBeUndefined();
	log("kube-system_etcd-host-1_aa", "etcd", 8);
	log(
		"kube-system_kube-apiserver-host-1_bb",
		"kube-apiserver",
		2,
		"2026-01-01T00:00:00Z stderr F Error: unknown flag\n",
	);
	const most = endedMost(before, await runs());
	expect(most).toMatchObject({ name: "kube-apiserver", times: 2 });
	expect(await endOfLog(most?.log ?? "")).toBe("Error: unknown flag\n");
	expect(await endOfLog(join(root, "none"))).toBe("");
});
