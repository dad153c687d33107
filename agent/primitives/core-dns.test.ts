import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { parse } from "yaml";
import { coreDns } from "./core-dns.ts";
import type { Exec } from "./exec.ts";
import type { StepContext } from "./primitive.ts";

let root: string;
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "core-dns-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const IDS = [
	"Deployment/coredns",
	"Service/kube-dns",
	"ConfigMap/coredns",
	"ServiceAccount/coredns",
	"ClusterRole/system:coredns",
	"ClusterRoleBinding/system:coredns",
];
const OURS = { "groundplane.io/addon": "coredns" };
const node = { version: "v1.36.3", nodeName: "c1", nodeAddress: "10.0.0.1", patches: "/patches" };
const never = { last: undefined, now: "1" };
const once = { last: "1", now: "1" };

/** What kubectl and kubeadm do to a cluster of these objects. */
class Cluster {
	labels = new Map<string, Record<string, string>>();
	disabled: boolean | undefined;
	answers = true;
	/** Who made the objects. */
	manager = "kubeadm";
	readonly done: string[] = [];

	constructor(ids: readonly string[], labels: Record<string, string> = {}) {
		for (const id of ids) this.labels.set(id, labels);
	}

	readonly exec: Exec = async (file, args, { input = "" } = {}) => {
		if (!this.answers) return { code: 1, stdout: "", stderr: "connection refused" };
		if (file === "kubeadm") {
			const text = readFileSync(args.at(-1)?.replace("--config=", "") ?? "", "utf8");
			const [, configuration = ""] = text.split("\n---\n");
			expect(parse(configuration)).toMatchObject({
				kubernetesVersion: node.version,
				networking: { dnsDomain: "shop" },
			});
			this.done.push(args.slice(0, 4).join(" "));
			for (const id of IDS) this.labels.set(id, { "k8s-app": "kube-dns" });
		}
		const [verb] = args.filter((arg) => !arg.startsWith("--"));
		if (verb === "label")
			for (const id of args) if (this.labels.has(id)) this.labels.set(id, { ...this.labels.get(id), ...OURS });
		if (verb === "replace") {
			const { data, metadata } = JSON.parse(input);
			expect(metadata).toEqual({ name: "kubeadm-config", resourceVersion: "7", labels: {} });
			// kubeadm reads it as YAML 1.1.
			const configuration = parse(data.ClusterConfiguration, { version: "1.1" });
			expect(configuration).toMatchObject({ clusterName: "on" });
			this.disabled = configuration.dns.disabled;
			this.done.push(`disabled: ${this.disabled}`);
		}
		if (verb !== "get") return { code: 0, stdout: "", stderr: "" };
		const dns = this.disabled === undefined ? "dns: {}" : `dns:\n  disabled: ${this.disabled}`;
		const ClusterConfiguration = `clusterName: "on"\nkubernetesVersion: v1.35.4\nnetworking:\n  dnsDomain: shop\n${dns}\n`;
		const items = [
			{ kind: "ConfigMap", metadata: { name: "kubeadm-config", resourceVersion: "7" }, data: { ClusterConfiguration } },
			...[...this.labels].map(([id, labels]) => ({
				kind: id.split("/")[0],
				metadata: { name: id.split("/")[1], labels, managedFields: [{ manager: this.manager }] },
			})),
		];
		return { code: 0, stdout: JSON.stringify({ kind: "List", items }), stderr: "" };
	};

	get context(): StepContext {
		const nothing = () => {
			throw new Error("not asked for");
		};
		return {
			exec: this.exec,
			blob: nothing,
			file: nothing,
			backupDir: root,
			signal: new AbortController().signal,
			now: Date.now,
			log: () => {},
		};
	}

	/** Applies it when it is not as wanted, after which it has to be; tells why it was not. */
	async converge(wanted: boolean): Promise<string | undefined> {
		const want = { ...node, wanted, config: join(root, "kubeadm.yaml") };
		const { ok, why } = await coreDns.observe(want, this.context, never);
		if (ok) return undefined;
		await coreDns.apply(want, this.context, never);
		expect(await coreDns.observe(want, this.context, once)).toEqual({ ok: true });
		return why;
	}
	get ours(): string[] {
		return IDS.filter((id) => this.labels.get(id)?.["groundplane.io/addon"] === "coredns");
	}
}

it("leaves what kubeadm made with the cluster as it is, but for the label by which it can be taken away", async () => {
	const cluster = new Cluster(IDS);
	expect(await cluster.converge(true)).toMatch(/does not bear the label/);
	expect(cluster.done).toEqual([]);
	expect(cluster.ours).toEqual(IDS);
	expect(await cluster.converge(true)).toBeUndefined();
});

it("labels it again when kubeadm wrote it anew, and has it made again when somebody took a part away", async () => {
	const cluster = new Cluster(IDS, OURS);
	cluster.labels.set("Deployment/coredns", {});
	expect(await cluster.converge(true)).toBe("Deployment/coredns does not bear the label of the add-on");
	cluster.labels.delete("Service/kube-dns");
	expect(await cluster.converge(true)).toBe("Service/kube-dns is missing");
	expect(cluster.done).toEqual(["init phase addon coredns"]);
	expect(cluster.ours).toEqual(IDS);
});

it("is switched off for kubeadm too, labelled so that all of it is found, and on again", async () => {
	const cluster = new Cluster(IDS);
	await cluster.converge(false);
	expect(cluster.done).toEqual(["disabled: true"]);
	expect(cluster.ours).toEqual(IDS);
	cluster.labels.clear();
	expect(await cluster.converge(false)).toBeUndefined();
	await cluster.converge(true);
	expect(cluster.done.slice(1)).toEqual(["disabled: false", "init phase addon coredns"]);
	expect(cluster.ours).toEqual(IDS);
});

it("never touches a DNS that the cluster's people brought", async () => {
	const cluster = new Cluster(["Deployment/coredns", "Service/kube-dns"]);
	cluster.disabled = true;
	expect(await cluster.converge(false)).toBeUndefined();
	await expect(cluster.converge(true)).rejects.toThrow("a DNS of its own: Deployment/coredns");
	expect(cluster.done).toEqual([]);
	expect(cluster.ours).toEqual([]);
});

it("leaves a DNS that the cluster's people brought before kubeadm was told that it is theirs", async () => {
	const cluster = new Cluster(IDS);
	cluster.manager = "helm";
	await cluster.converge(false);
	expect(cluster.done).toEqual(["disabled: true"]);
	expect(cluster.ours).toEqual([]);
});

it("does nothing again because no API server answers, and does not pass over what is asked for anew", async () => {
	const cluster = new Cluster(IDS, OURS);
	cluster.answers = false;
	const want = { ...node, wanted: true, config: "/none" };
	expect(await coreDns.observe(want, cluster.context, once)).toEqual({ ok: true });
	expect(await coreDns.observe(want, cluster.context, never)).toMatchObject({ ok: false });
	const another = { last: "1", now: "2" };
	expect(await coreDns.observe({ ...want, wanted: false }, cluster.context, another)).toMatchObject({ ok: false });
});
