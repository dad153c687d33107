import { type ChildProcess, execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Logger } from "pino";
import { GroundplaneError } from "../../protocol/errors.ts";

export const RELEASE = "region";
/** Labels of helm's release Secret that carry what was installed. */
export const DIGEST_LABEL = "groundplane.io/digest";
export const VERSION_LABEL = "groundplane.io/version";

const firstRetry = 30_000;
const lastRetry = 1_800_000;
const maxOutput = 1 << 20;

export interface HelmOptions {
	/** The helm program. */
	helm: string;
	/** Where helm keeps its caches. */
	workDir: string;
	/** Directory of the chart. */
	chart: string;
	/** How long an upgrade may take to become ready before it is rolled back; Go duration. */
	timeout: string;
	log: Logger;
	now: () => number;
	random: () => number;
}

interface Failure {
	job: "upgrade" | "uninstall";
	digest: string;
	message: string;
	retryAt: number;
	count: number;
}

interface Job {
	kind: "upgrade" | "uninstall";
	child: ChildProcess;
	ended: Promise<void>;
}

/**
 * Runs helm, at most once at a time for a region, beside the reconciler: an upgrade that waits for readiness takes minutes, and
 * status must go on. What went wrong is remembered with the time of the next attempt; success forgets it.
 */
export class Helm {
	readonly #options: HelmOptions;
	readonly #jobs = new Map<string, Job>();
	readonly #failures = new Map<string, Failure>();
	/** Called when a job has ended. */
	onEnd: (region: string) => void = () => undefined;

	constructor(options: HelmOptions) {
		this.#options = options;
	}

	running(region: string): "upgrade" | "uninstall" | undefined {
		return this.#jobs.get(region)?.kind;
	}

	failure(region: string): Failure | undefined {
		return this.#failures.get(region);
	}

	/** Forgets a region that is gone. */
	forget(region: string): void {
		this.#failures.delete(region);
	}

	/**
	 * Installs or upgrades. With `rollback` helm waits until everything is ready and goes back to what was before when it isn't in
	 * time. Values go by standard input: they are in no argument and no file.
	 */
	upgrade(
		region: string,
		namespace: string,
		values: Record<string, unknown>,
		{ digest, version, rollback }: { digest: string; version: string; rollback: boolean },
	): void {
		const { chart, timeout } = this.#options;
		const args = [
			...["upgrade", "--install", RELEASE, chart, "--namespace", namespace, "--values", "-"],
			...["--history-max", "3", "--labels", `${DIGEST_LABEL}=${digest},${VERSION_LABEL}=${version}`],
			// What somebody changed by hand is taken back.
			...["--server-side", "true", "--force-conflicts"],
			...(rollback ? ["--rollback-on-failure", "--timeout", timeout] : ["--timeout", timeout]),
		];
		this.#start("upgrade", region, digest, args, JSON.stringify(values));
	}

	/** Removes the release and its objects. */
	uninstall(region: string, namespace: string): void {
		const { timeout } = this.#options;
		const args = ["uninstall", RELEASE, "--namespace", namespace, "--ignore-not-found", "--timeout", timeout];
		this.#start("uninstall", region, "", args, "");
	}

	/** Ends what runs (helm cleans up on SIGTERM) and waits for it. */
	async stop(): Promise<void> {
		const jobs = [...this.#jobs.values()];
		for (const { child } of jobs) child.kill("SIGTERM");
		await Promise.all(jobs.map(({ ended }) => ended));
	}

	#start(kind: Job["kind"], region: string, digest: string, args: readonly string[], input: string): void {
		if (this.#jobs.has(region)) return;
		const { helm, workDir, log, now, random } = this.#options;
		const startedAt = now();
		const { promise: ended, resolve } = Promise.withResolvers<void>();
		const env: NodeJS.ProcessEnv = {
			PATH: process.env.PATH,
			HOME: workDir,
			HELM_CACHE_HOME: join(workDir, "helm", "cache"),
			HELM_CONFIG_HOME: join(workDir, "helm", "config"),
			HELM_DATA_HOME: join(workDir, "helm", "data"),
			// Little memory: it runs next to us in the pod.
			GOGC: "50",
			...pick(process.env, ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]),
		};
		const child = execFile(helm, args, { env, maxBuffer: maxOutput, encoding: "utf8" }, (error, _stdout, stderr) => {
			this.#jobs.delete(region);
			const seconds = (now() - startedAt) / 1000;
			if (error === null) {
				this.#failures.delete(region);
				log.info({ region, job: kind, seconds }, "helm is done");
			} else {
				const before = this.#failures.get(region);
				const count = before?.job === kind && before.digest === digest ? before.count + 1 : 1;
				const delay = Math.min(lastRetry, firstRetry * 2 ** (count - 1)) * (0.75 + random() / 2);
				const message = `helm ${kind} failed: ${reasonOf(stderr, error)}`;
				this.#failures.set(region, { job: kind, digest, message, retryAt: now() + delay, count });
				log.warn({ region, job: kind, seconds, code: "HelmFailed", err: message, retryIn: delay }, "helm failed");
			}
			resolve();
			this.onEnd(region);
		});
		// A helm that can't be started, or ends early, closes its end: the callback above says why.
		child.stdin?.on("error", () => undefined);
		child.stdin?.end(input);
		this.#jobs.set(region, { kind, child, ended });
	}
}

/** What helm said, in one line. Of much the ends are kept: the first error stands at the beginning, the last one at the end. */
function reasonOf(stderr: string, error: Error): string {
	const text = stderr
		.split("\n")
		.filter((line) => line.trim() !== "" && !/^(level=|time=)/.test(line))
		.join(" ")
		.replace(/^Error: /, "")
		.trim();
	if (text === "") return error.message.split("\n")[0] ?? "it gave no reason";
	return text.length <= 1000 ? text : `${text.slice(0, 700)} … ${text.slice(-300)}`;
}

const pick = (env: NodeJS.ProcessEnv, names: readonly string[]): NodeJS.ProcessEnv =>
	Object.fromEntries(names.flatMap((name) => (env[name] === undefined ? [] : [[name, env[name]]])));

/** Digest of a chart's directory: a new chart is a new wanted state even when the values are the same. */
export async function chartDigest(directory: string): Promise<string> {
	const entries = await readdir(directory, { recursive: true, withFileTypes: true }).catch((cause) => {
		throw new GroundplaneError("InvalidConfiguration", `the chart ${directory} can't be read`, {
			next: "Set REGION_CHART to the directory of charts/region.",
			cause,
		});
	});
	const hash = createHash("sha256");
	const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
	for (const file of files.sort())
		hash
			.update(file.slice(directory.length))
			.update("\0")
			.update(await readFile(file))
			.update("\0");
	return hash.digest("hex");
}
