import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { keepManifests, missingManifests, putBackManifests } from "./static-pods.ts";

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
