import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import {
	ALL,
	become,
	cluster,
	cutPowerAt,
	entryOf,
	expectWhole,
	keep,
	kubectl,
	NAME,
	NEW,
	OLD,
	on,
	readyOf,
	STATE,
	timed,
	untilOn,
	want,
	withFiveHosts,
} from "./support/changes.ts";
import { demo, eventually } from "./support/demo.ts";
import { filesOf } from "./support/kubeadm.ts";

const MINUTE = 60_000;
const MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml";
/** Where the new kubelet is put, after programs that are replaced and before images are imported. */
const PROGRAMS = `/opt/groundplane/kubernetes/${NEW}`;
const PATCHES = "/etc/groundplane/kubernetes/patches";
const TRAPS = "/etc/systemd/system/kubelet.service.d";
/** What the first steps of a change would change: programs that run, static pods, snapshots of etcd. */
const UNTOUCHED = `systemctl show --property=InvocationID containerd kubelet; cat /etc/kubernetes/manifests/*; ls ${STATE}/etcd`;
const SMALL = { controlPlanes: ["host-1"], workers: ["host-4"] };

/** Three control planes and two workers go to another version, and something on the way there is broken. Runs like `09-changes`. */
describe("a change of version that goes wrong", { timeout: 25 * MINUTE }, () => {
	beforeAll(withFiveHosts, 25 * MINUTE);
	afterEach(async () => {
		for (const name of ALL) await demo.lab.start(name);
		for (const name of ALL)
			await on(name, `rm -rf ${TRAPS} /run/trap ${PATCHES}/kube-apiserver*; systemctl daemon-reload`);
	}, 5 * MINUTE);

	it("runs the old version everywhere when it is set back after the first control plane has the new one", async () => {
		await become();
		await want({ version: NEW });
		await eventually(async () => expect(entryOf("host-1", await cluster())?.finished).toBeDefined(), 5 * MINUTE);
		expect(await timed(() => become(), "set back after the first control plane")).toBeLessThan(300);
	});

	it("stops where the new API server refuses a flag, with all nodes on the old version", async () => {
		await become();
		const flag = [{ op: "add", path: "/spec/containers/0/command/-", value: "--no-such-flag" }];
		await demo.lab.exec("host-1", ["tee", `${PATCHES}/kube-apiserver0+json.json`], { input: JSON.stringify(flag) });
		await want({ version: NEW });
		expect(await stopsAt("host-1")).toMatch(/API server of this host|kube-apiserver ended \d times: .*--no-such-flag/);
		await on("host-1", `rm ${PATCHES}/kube-apiserver*`);
		await become();
	});

	it("stops at a worker whose new kubelet crashes, and is taken back from there", async () => {
		await become(SMALL);
		const choose = `/usr/local/bin/kubelet --version | grep -qF ${NEW} && echo TRAP=--no-such-flag >/run/trap || : >/run/trap`;
		const start = (await on("host-4", "systemctl cat kubelet")).match(/^ExecStart=(.*)$/m)?.[1];
		const trap = `[Service]\nExecStartPre=/bin/sh -c '${choose}'\nEnvironmentFile=-/run/trap\nExecStart=\nExecStart=${start} $TRAP\n`;
		await on("host-4", `mkdir -p ${TRAPS}`);
		await demo.lab.exec("host-4", ["tee", `${TRAPS}/99-trap.conf`], { input: trap });
		await on("host-4", "systemctl daemon-reload");
		await want({ ...SMALL, version: NEW });
		expect(await stopsAt("host-4")).toMatch(/the kubelet ended \d times in a row: .*unknown flag: --no-such-flag/);
		await on("host-4", `rm -r ${TRAPS} /run/trap; systemctl daemon-reload`);
		expect(await timed(() => become(SMALL), "set back after the control plane")).toBeLessThan(300);
	});

	it("stops where a file of the bundle is corrupt, before anything was changed", async () => {
		await become(SMALL);
		const before = await on("host-1", UNTOUCHED);
		const mend = await corrupt("bin/kubelet", ["host-1", "host-4"]);
		try {
			await want({ ...SMALL, version: NEW });
			expect(await stopsAt("host-1")).toMatch(/DigestMismatch/);
			expect(await on("host-1", UNTOUCHED)).toBe(before);
		} finally {
			await mend();
		}
		expect(await timed(() => become(SMALL), "set back after the bundle was mended")).toBeLessThan(120);
	});

	it("comes back when its power is cut in the middle of a change that is then taken back", async () => {
		await become();
		await want({ version: NEW });
		await untilOn("host-1", `grep -q kube-apiserver:${NEW} ${MANIFEST}`);
		await demo.lab.stop("host-1");
		const took = await timed(async () => {
			await want();
			await delay(5_000);
			await demo.lab.start("host-1");
			await expectWhole();
		}, "set back while the first control plane is without power");
		expect(took).toBeLessThan(300);
	});

	it("goes on after a power cut in every part of a control plane's change, and of a worker's", async () => {
		await become();
		// As on hosts that never had the new version: what they kept of it would not be placed again.
		const forget = `rm -rf ${PROGRAMS}; ctr -n k8s.io images ls -q | grep ${NEW} | xargs -r ctr -n k8s.io images rm`;
		for (const name of ["host-4", "host-5"]) await on(name, forget);
		await want({ version: NEW });
		const exchanged = `grep -q kube-apiserver:${NEW} ${MANIFEST}`;
		const linked = `readlink /usr/local/bin/kubelet | grep -q ${NEW}`;
		const moments = {
			"host-1": [
				`ls ${STATE}/etcd/*.part 2>/dev/null || test -e ${STATE}/change.json`,
				// As it rests while manifests are exchanged, and not as it does before the host has booted.
				"systemctl is-active -q kubelet && : >/run/was-active; test -e /run/was-active && ! systemctl is-active -q kubelet",
			],
			"host-2": [`test -d ${STATE}/next || ${exchanged}`, exchanged],
			"host-3": [
				linked,
				"pgrep -f '^kubeadm upgrade node --config.*--skip-phases=preflight,control-plane,kubelet-config'",
			],
			"host-4": [`test -d ${PROGRAMS}`, `test -e ${STATE}/change.json`],
			"host-5": ["pgrep -f '^ctr -n k8s.io images import'", linked],
		};
		const cuts = Object.entries(moments).map(async ([name, lines]) => {
			for (const line of lines) await cutPowerAt(name, line);
		});
		await Promise.all(cuts);
		const took = await timed(() => expectWhole({ version: NEW }), "what was left after the last of ten power cuts");
		expect(took).toBeLessThan(300);
	});

	it("reaches what was wanted last although operator and agents are killed throughout, and the spec is edited in the middle of steps", async () => {
		await become(SMALL);
		const members = ["host-1", "host-4", "host-5"];
		let turn = 0;
		const operator = keep(killOperator, 30_000);
		const agents = keep(
			() => demo.lab.exec(members[turn++ % 3] ?? "", ["systemctl", "kill", "-s", "KILL", "gp-agent"]),
			15_000,
		);
		const taints = [{ key: "tier", value: "gold", effect: "NoSchedule" }];
		const wanted = { ...SMALL, version: NEW, labels: { tier: "gold" }, taints };
		const took = await timed(async () => {
			await want({ ...SMALL, version: NEW });
			await untilOn("host-1", `test -e ${STATE}/change.json`);
			await want({ ...SMALL, version: NEW, workers: ["host-4", "host-5"], labels: { tier: "silver" } });
			await untilOn("host-4", `test -e ${STATE}/change.json`);
			await want(wanted);
			await demo.waitReady("cluster", NAME, demo.namespace, 20 * MINUTE);
		}, "an upgrade with everything killed throughout, and edited twice").finally(() =>
			Promise.all([operator(), agents()]),
		);
		expect(took).toBeLessThan(900);
		await expectWhole(wanted);
		const marksOf = async () => {
			const { metadata, spec } = JSON.parse(await on("host-1", kubectl("get node host-4 -o json")));
			return { label: metadata.labels.tier, taints: spec.taints };
		};
		expect(await marksOf()).toEqual({ label: "gold", taints });
		await want({ ...SMALL, version: NEW });
		await eventually(async () => expect(await marksOf()).toEqual({ label: undefined, taints: undefined }));
	});
});

/** Waits until a change has stopped at a host, which is put back and ready within a minute and a half; answers why. */
async function stopsAt(name: string): Promise<string> {
	await eventually(async () => {
		const found = await cluster();
		expect(entryOf(name, found)?.failing ?? found?.status?.upgrade?.stopped).toBeDefined();
	}, 10 * MINUTE);
	const took = await timed(
		() =>
			eventually(async () => {
				const { status } = (await cluster()) ?? {};
				expect(status?.upgrade?.stopped?.host).toBe(name);
				expect(status?.members?.filter(({ phase }) => phase !== "Ready")).toEqual([]);
				expect(status?.upgrade?.hosts.every(({ finished }) => finished !== undefined)).toBe(true);
			}, 5 * MINUTE),
		`from the failure of ${name} until it was put back`,
	);
	expect(took).toBeLessThan(90);
	const ready = readyOf(await cluster());
	expect(ready).toMatchObject({ status: "False", reason: "UpgradeStopped" });
	expect(ready?.message).toContain(`${name} failed to become ${NEW} and was put back to ${OLD}`);
	return ready?.message ?? "";
}

/** Damages a file of the new version where the region has it, and forgets it on the hosts. Answers what mends it. */
async function corrupt(path: string, hosts: readonly string[]): Promise<() => Promise<unknown>> {
	const { sha256 = "" } = (await filesOf(NEW)).find((file) => file.path === path) ?? {};
	const flip = `for f in $(find /var/lib/containerd -path '*/snapshots/*/blobs/sha256/${sha256}*'); do
		byte=$(od -An -tu1 -j4096 -N1 $f); printf "\\\\$(printf %o $((byte ^ 1)))" | dd of=$f bs=1 seek=4096 conv=notrunc status=none; echo $f; done`;
	for (const name of hosts) await on(name, `find /var/lib/groundplane -name '${sha256}*' -delete`);
	expect(await on("mgmt", flip)).toContain(sha256);
	return () => on("mgmt", flip);
}

const killOperator = () =>
	demo.kubectl(
		[
			...["delete", "pod", "-n", "groundplane-system", "-l", "app.kubernetes.io/name=operator"],
			...["--grace-period=0", "--force"],
		],
		{ check: false },
	);
