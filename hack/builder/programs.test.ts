import { expect, test } from "vitest";
import { type GoProgram, moduleVersion } from "./go.ts";
import {
	cniPrograms,
	containerdPrograms,
	corednsProgram,
	etcdProgram,
	flannelProgram,
	flannelVersion,
	kubernetesProgram,
	localPathProgram,
	localPathVersion,
	metricsServerProgram,
	metricsServerVersion,
	minors,
	nodeExporterProgram,
	nodeExporterVersion,
	prometheusProgram,
	prometheusVersion,
	runcProgram,
	toolPrograms,
} from "./programs.ts";

const programs: GoProgram[] = [
	...minors.flatMap((minor) => [
		kubernetesProgram(minor, "kubeadm"),
		etcdProgram(minor, "etcd"),
		etcdProgram(minor, "etcdctl"),
		corednsProgram(minor),
	]),
	...containerdPrograms,
	runcProgram,
	metricsServerProgram,
	nodeExporterProgram,
	...cniPrograms,
	...Object.values(toolPrograms),
];

test.each(programs)("$module $package: what is downloaded, linked in and built is one version", async (program) => {
	const version = (await moduleVersion(program)).slice(1);
	for (const text of [program.upstream?.url, program.upstream?.member])
		for (const [found] of text?.matchAll(/\d+\.\d+\.\d+/g) ?? []) expect(found).toBe(version);
	for (const value of Object.values(program.set ?? {}))
		if (/^v?\d+\.\d+\.\d+$/.test(value)) expect(value.replace(/^v/, "")).toBe(version);
});

test("the table of minors says what the modules pin", async () => {
	for (const minor of minors) {
		expect(await moduleVersion(kubernetesProgram(minor, "kubelet"))).toBe(minor.kubernetes);
		expect(await moduleVersion(etcdProgram(minor, "etcd"))).toBe(minor.etcd);
		expect(await moduleVersion(corednsProgram(minor))).toBe(minor.coredns);
	}
	expect(await moduleVersion(flannelProgram)).toBe(flannelVersion);
	expect(await moduleVersion(localPathProgram)).toBe(localPathVersion);
	expect(await moduleVersion(metricsServerProgram)).toBe(metricsServerVersion);
	expect(await moduleVersion(nodeExporterProgram)).toBe(nodeExporterVersion);
});

test("the module of Prometheus is of the version that is downloaded: v0.313.5 is v3.13.5", async () => {
	const [, major, minor, patch] = /^v0\.(\d)(\d\d)\.(\d+)$/.exec(await moduleVersion(prometheusProgram)) ?? [];
	expect(`v${major}.${Number(minor)}.${patch}`).toBe(prometheusVersion);
	for (const text of [prometheusProgram.upstream?.url, prometheusProgram.upstream?.member])
		for (const [found] of text?.matchAll(/\d+\.\d+\.\d+/g) ?? []) expect(`v${found}`).toBe(prometheusVersion);
});
