import { mkdtempSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Exec } from "./exec.ts";
import { type KubeletPlaces, pointKubelet, startKubelet } from "./kubelet.ts";

let root: string;
let places: KubeletPlaces;
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "kubelet-"));
	places = { link: join(root, "kubelet"), files: [join(root, "config.yaml")], started: join(root, "state", "started") };
	writeFileSync(join(root, "config.yaml"), "old");
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** systemd and its kubelet, which runs whatever was linked when it started. */
function machine() {
	let starts = 0;
	let running = "";
	const start = () => {
		starts += 1;
		running = readlinkSync(places.link);
	};
	const exec: Exec = async (_file, [verb]) => {
		if (verb === "restart") start();
		if (verb === "stop") running = "";
		const stdout = verb === "show" ? `invocation-${starts}\n` : "";
		return { code: verb === "is-active" && running === "" ? 3 : 0, stdout, stderr: "" };
	};
	const context = { exec, signal: new AbortController().signal };
	return { exec, context, boot: start, running: () => running, starts: () => starts };
}

describe("the kubelet that runs", () => {
	it("is the one that is linked, and is not restarted for nothing", async () => {
		const { context, running, starts } = machine();
		await startKubelet("/v1.35.4/kubelet", context, places);
		await startKubelet("/v1.35.4/kubelet", context, places);
		expect([running(), starts()]).toEqual(["/v1.35.4/kubelet", 1]);
		await startKubelet("/v1.36.3/kubelet", context, places);
		expect([running(), starts()]).toEqual(["/v1.36.3/kubelet", 2]);
	});

	it("is started anew when its configuration has changed, or it was stopped", async () => {
		const { context, exec, starts } = machine();
		await startKubelet("/v1.35.4/kubelet", context, places);
		writeFileSync(join(root, "config.yaml"), "new");
		await startKubelet("/v1.35.4/kubelet", context, places);
		expect(starts()).toBe(2);
		await exec("systemctl", ["stop", "kubelet.service"]);
		await startKubelet("/v1.35.4/kubelet", context, places);
		expect(starts()).toBe(3);
	});

	it("is set back also when the power was cut between link and start, and the host booted with the other one", async () => {
		const { context, boot, running } = machine();
		await startKubelet("/v1.35.4/kubelet", context, places);
		await pointKubelet("/v1.36.3/kubelet", places);
		boot();
		expect(running()).toBe("/v1.36.3/kubelet");
		await startKubelet("/v1.35.4/kubelet", context, places);
		expect(running()).toBe("/v1.35.4/kubelet");
	});
});
