import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Cluster } from "../../crds/cluster.ts";
import type { Condition } from "../../crds/common.ts";
import type { Host } from "../../crds/host.ts";
import type { Region } from "../../crds/region.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { tool } from "../builder/tools.ts";
import { Lab } from "../laboratory/lab.ts";
import { type ExecResult, type RunOptions, run } from "../lib/exec.ts";
import { clusterManifest, regionManifest } from "./manifests.ts";

/** Tells the person who waits what is being done. */
export type Report = (line: string) => void;

/** Where hosts of the lab find the release that `hack/build` made. */
export const RELEASE_IN_HOST = "/opt/groundplane/release";
const root = process.env.GP_ROOT ?? process.cwd();
const release = join(root, "dist", "release");

/**
 * The demo, step by step: each step is idempotent, so that an interrupted `hack/up` is simply run again.
 * End-to-end tests use the same steps with a lab of their own.
 */
export class Demo {
	readonly lab: Lab;
	readonly region: string;
	readonly report: Report;

	constructor({ lab, region = "demo", report }: { lab: string; region?: string; report: Report }) {
		this.lab = new Lab(lab);
		this.region = region;
		this.report = report;
	}

	/** The region's domain. `.test` never resolves on the Internet (RFC 6761). */
	domain(region = this.region): string {
		return `${region}.${this.lab.name}.groundplane.test`;
	}

	get namespace(): string {
		return `region-${this.region}`;
	}

	/** Credentials of the demo: kubeconfig of the management cluster, configuration of gp. */
	get state(): string {
		return join(this.lab.directory, "state");
	}

	get kubeconfig(): string {
		return join(this.state, "kubeconfig");
	}

	/** Boots the management server and the site's hosts. Further `regions` get their domains too. */
	async machines(hosts: number, regions: readonly string[] = [this.region]): Promise<void> {
		const domains = regions.map((region) => this.domain(region));
		const bind = { source: release, target: RELEASE_IN_HOST };
		await this.lab.up({ hosts, domains, binds: { mgmt: [bind] }, log: this.report });
		await mkdir(this.state, { recursive: true, mode: 0o700 });
	}

	/** `gp server init` on the management server, and its kubeconfig for this machine. */
	async managementServer(): Promise<void> {
		const gp = `${RELEASE_IN_HOST}/bin/gp`;
		const result = await this.lab.exec("mgmt", [gp, "server", "init", "--release", RELEASE_IN_HOST], {
			timeoutMs: 15 * 60_000,
			onLine: this.report,
		});
		if (result.code !== 0) throw failed("gp server init", result);
		const address = await this.lab.address("mgmt");
		const admin = await this.lab.run("mgmt", ["cat", "/etc/kubernetes/admin.conf"]);
		await writeFile(this.kubeconfig, admin.replace(/server: .*/, `server: https://${address}:6443`), { mode: 0o600 });
	}

	async makeRegion(name = this.region): Promise<Region> {
		await this.apply(regionManifest(name, this.domain(name)));
		return this.waitReady<Region>("region", name, undefined, 10 * 60_000);
	}

	/** Signs in as the region's first administrator. */
	async signIn(): Promise<void> {
		const secret = await this.kubectl(["get", "secret", "auth-admin", "-n", this.namespace, "-o", "json"]);
		const { data } = JSON.parse(secret.stdout) as { data: { username: string; password: string } };
		const decode = (text: string) => Buffer.from(text, "base64").toString();
		const region = await this.get<Region>("region", this.region);
		await this.gp(
			[
				"login",
				...["--server", `https://${this.domain()}`],
				...["--ca-digest", region?.status?.caDigest ?? ""],
				...["--username", decode(data.username), "--password-stdin"],
			],
			{ input: decode(data.password) },
		);
	}

	/** Runs on each host the line that `gp host join-command` prints, and waits for it to be ready. */
	async enroll(names: readonly string[]): Promise<void> {
		await Promise.all(names.map((name) => this.#join(name)));
		for (const name of names) await this.waitReady<Host>("host", name, this.namespace, 120_000);
	}

	async #join(name: string): Promise<void> {
		if ((await this.get<Host>("host", name, this.namespace)) !== undefined) return;
		const { stdout } = await this.gp(["host", "join-command", "--name", name]);
		this.report(`${name}: installing the agent`);
		const result = await this.lab.exec(name, ["sh", "-c", stdout.trim()], { timeoutMs: 120_000 });
		if (result.code !== 0) throw failed(`the join command on ${name}`, result);
	}

	async makeCluster(name: string, hosts: readonly string[]): Promise<Cluster> {
		await this.apply(clusterManifest(name, this.namespace, hosts));
		return this.waitReady<Cluster>("cluster", name, this.namespace, 15 * 60_000);
	}

	/** A kubeconfig for the cluster, through the region. Returns its path. */
	async clusterKubeconfig(name: string): Promise<string> {
		const path = join(this.state, `${name}.kubeconfig`);
		const { stdout } = await this.gp(["cluster", "kubeconfig", name]);
		await writeFile(path, stdout, { mode: 0o600 });
		return path;
	}

	/** kubectl against the management cluster. */
	async kubectl(args: readonly string[], options: RunOptions = {}): Promise<ExecResult> {
		return run(await tool("kubectl"), ["--kubeconfig", this.kubeconfig, ...args], options);
	}

	/** kubectl against a cluster at the site, with the credentials of who is signed in. */
	async clusterKubectl(name: string, args: readonly string[], options: RunOptions = {}): Promise<ExecResult> {
		const path = join(this.state, `${name}.kubeconfig`);
		return run(await tool("kubectl"), ["--kubeconfig", path, ...args], { env: this.environment, ...options });
	}

	async gp(args: readonly string[], options: RunOptions = {}): Promise<ExecResult> {
		return run(join(root, "hack", "gp"), args, { env: this.environment, ...options });
	}

	get environment(): NodeJS.ProcessEnv {
		return { ...process.env, GROUNDPLANE_LAB: this.lab.name, GROUNDPLANE_CONFIG: join(this.state, "gp.json") };
	}

	async apply(manifest: unknown): Promise<void> {
		await this.kubectl(["apply", "-f", "-"], { input: JSON.stringify(manifest) });
	}

	async get<T>(kind: string, name: string, namespace?: string): Promise<T | undefined> {
		const scope = namespace === undefined ? [] : ["-n", namespace];
		const { stdout } = await this.kubectl(["get", kind, name, ...scope, "--ignore-not-found", "-o", "json"]);
		return stdout.trim() === "" ? undefined : (JSON.parse(stdout) as T);
	}

	/** Waits until one of our objects is Ready, telling what its status says meanwhile. */
	async waitReady<T>(kind: string, name: string, namespace: string | undefined, timeoutMs: number): Promise<T> {
		const deadline = Date.now() + timeoutMs;
		let last = "";
		while (Date.now() < deadline) {
			const object = await this.get<Watched>(kind, name, namespace).catch(() => undefined);
			const ready = object?.status?.conditions?.find((condition) => condition.type === "Ready");
			if (ready?.status === "True" && (ready.observedGeneration ?? 0) >= (object?.metadata.generation ?? 0)) {
				return object as T;
			}
			const line = `${kind} ${name}: ${[object?.status?.phase ?? "waiting", ready?.message].filter(Boolean).join(": ")}`;
			if (line !== last) this.report(line);
			last = line;
			await delay(1000);
		}
		throw new GroundplaneError("DeadlineExceeded", `${last} (after ${timeoutMs / 1000} s)`, {
			next: `Look at it: hack/kubectl describe ${kind} ${name}${namespace === undefined ? "" : ` -n ${namespace}`}; then run hack/up again.`,
		});
	}

	/** Waits until an object is gone. */
	async waitGone(kind: string, name: string, namespace: string | undefined, timeoutMs: number): Promise<void> {
		const deadline = Date.now() + timeoutMs;
		while (Date.now() < deadline) {
			if ((await this.get(kind, name, namespace).catch(() => "unknown")) === undefined) return;
			await delay(1000);
		}
		throw new GroundplaneError("DeadlineExceeded", `${kind} ${name} is still there after ${timeoutMs / 1000} s`, {
			next: `Look at what holds it: hack/kubectl describe ${kind} ${name}.`,
		});
	}

	/** Version of the release that was built. */
	async version(): Promise<string> {
		const { version } = JSON.parse(await readFile(join(release, "release.json"), "utf8")) as { version: string };
		return version;
	}
}

interface Watched {
	metadata: { generation?: number };
	status?: { phase?: string; conditions?: Condition[] };
}

const failed = (what: string, { code, stdout, stderr }: ExecResult): GroundplaneError =>
	new GroundplaneError("CommandFailed", `${what} ended with ${code}:\n${`${stdout}\n${stderr}`.trim().slice(-4000)}`, {
		next: "What it printed says why. Mend that and run this again: it goes on where it stopped.",
	});
