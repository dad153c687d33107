import { type ChildProcess, spawn } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parse, stringify } from "yaml";
import { tool } from "../../hack/builder/tools.ts";
import { isNotFound, KubeClient } from "../../operator/kube/client.ts";
import { type KubeConfig, loadKubeConfig } from "../../operator/kube/config.ts";
import type { KubeObject, Resource } from "../../operator/kube/resources.ts";
import { freePort } from "./ports.ts";
import { dyingWithParent } from "./postgres.ts";

/** A Kubernetes API server of a test's own, on 127.0.0.1: real kube-apiserver and etcd, no controllers, no nodes. */
export interface TestApiServer {
	/** `https://127.0.0.1:PORT` */
	readonly server: string;
	/** Its etcd: `http://127.0.0.1:PORT` */
	readonly etcd: string;
	/** Path of a kubeconfig with all rights (group system:masters). */
	readonly kubeconfig: string;
	readonly config: KubeConfig;
	/** A client with all rights. */
	readonly client: KubeClient;
	/** Directory that goes with the server. */
	readonly directory: string;
	/** A kubeconfig's content for a service account, by a token of the TokenRequest API. Makes the account when there is none. */
	serviceAccount(namespace: string, name: string): Promise<KubeConfig>;
	/** Drops etcd's history up to now, so that older watches and continue tokens get 410. */
	compact(): Promise<void>;
	/** Ends the API server as a power cut would; etcd stays. */
	kill(): Promise<void>;
	/** Starts it again after {@link kill}, on the same port. */
	start(): Promise<void>;
	/** Ends everything and deletes its data. */
	stop(): Promise<void>;
}

/** Admission plugins that need controllers which do not run here. */
const disabled = "ServiceAccount,DefaultStorageClass,DefaultTolerationSeconds";

/**
 * Starts an API server; with `crds` the platform's definitions are installed and served. It compacts etcd's history at this interval,
 * such as `5m` (its own default); without one that is the test's to ask for. Takes about 3 s.
 */
export async function startApiServer({
	crds = true,
	compaction = "0",
}: {
	crds?: boolean;
	compaction?: string;
} = {}): Promise<TestApiServer> {
	const [etcdBinary, apiserverBinary] = await Promise.all([tool("etcd"), tool("kube-apiserver")]);
	const directory = await mkdtemp(join(tmpdir(), "gp-apiserver-"));
	const [clientPort, peerPort, port] = [await freePort(), await freePort(), await freePort()];
	const etcdUrl = `http://127.0.0.1:${clientPort}`;
	const server = `https://127.0.0.1:${port}`;
	const token = randomBytes(16).toString("hex");
	const serviceAccountKey = join(directory, "sa.key");
	const tokens = join(directory, "tokens.csv");
	const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
	await writeFile(serviceAccountKey, privateKey.export({ type: "sec1", format: "pem" }), { mode: 0o600 });
	await writeFile(tokens, `${token},admin,admin,"system:masters"\n`, { mode: 0o600 });

	const etcd = new Process(etcdBinary, [
		`--data-dir=${join(directory, "etcd")}`,
		`--listen-client-urls=${etcdUrl}`,
		`--advertise-client-urls=${etcdUrl}`,
		`--listen-peer-urls=http://127.0.0.1:${peerPort}`,
		`--initial-advertise-peer-urls=http://127.0.0.1:${peerPort}`,
		`--initial-cluster=default=http://127.0.0.1:${peerPort}`,
		"--unsafe-no-fsync",
		"--log-level=warn",
	]);
	const apiserver = new Process(apiserverBinary, [
		`--etcd-servers=${etcdUrl}`,
		`--cert-dir=${join(directory, "certificates")}`,
		"--bind-address=127.0.0.1",
		`--secure-port=${port}`,
		`--token-auth-file=${tokens}`,
		"--authorization-mode=RBAC",
		// As kubeadm has it: network plugins are privileged.
		"--allow-privileged=true",
		"--service-cluster-ip-range=10.0.0.0/24",
		"--service-account-issuer=https://kubernetes.default.svc",
		`--service-account-key-file=${serviceAccountKey}`,
		`--service-account-signing-key-file=${serviceAccountKey}`,
		`--disable-admission-plugins=${disabled}`,
		"--endpoint-reconciler-type=none",
		`--etcd-compaction-interval=${compaction}`,
		"--shutdown-delay-duration=0s",
	]);
	const kubeconfig = join(directory, "kubeconfig");

	async function ready(): Promise<void> {
		const deadline = Date.now() + 60_000;
		for (;;) {
			try {
				// It makes its own certificate on the first start.
				const ca = await readFile(join(directory, "certificates", "apiserver.crt"), "utf8");
				await writeFile(kubeconfig, kubeconfigOf(server, ca, token), { mode: 0o600 });
				const client = new KubeClient(await loadKubeConfig({ kubeconfig }), { timeout: 2000 });
				const answer = await client.requestText("GET", "/readyz").finally(() => client.close());
				if (answer === "ok") return;
			} catch (error) {
				const process = etcd.exited ? etcd : apiserver.exited ? apiserver : undefined;
				if (process !== undefined) throw new Error(`${process.name} ended:\n${process.output}`);
				if (Date.now() > deadline) throw new Error(`no API server within 60 s:\n${apiserver.output}`, { cause: error });
			}
			await delay(50);
		}
	}

	etcd.start();
	apiserver.start();
	try {
		await ready();
	} catch (error) {
		await Promise.all([apiserver.stop("SIGKILL"), etcd.stop("SIGKILL")]);
		await rm(directory, { recursive: true, force: true });
		throw error;
	}
	const config = await loadKubeConfig({ kubeconfig });
	const client = new KubeClient(config);
	if (crds) await installCrds(client);
	return {
		server,
		etcd: etcdUrl,
		kubeconfig,
		config,
		client,
		directory,
		async serviceAccount(namespace, name) {
			const account: Resource = {
				group: "",
				version: "v1",
				plural: "serviceaccounts",
				kind: "ServiceAccount",
				namespaced: true,
			};
			if ((await client.find(account, name, namespace)) === undefined) {
				await client.create(account, { metadata: { name, namespace } });
			}
			const { status } = await client.request<{ status: { token: string } }>(
				"POST",
				`/api/v1/namespaces/${namespace}/serviceaccounts/${name}/token`,
				{ body: { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec: { expirationSeconds: 3600 } } },
			);
			return { server, tls: config.tls ?? {}, token: () => status.token };
		},
		async compact() {
			const { metadata } = await client.list<KubeObject>(namespacesResource, { limit: 1 });
			// etcd's JSON gateway (its gRPC API by HTTP).
			const answer = await fetch(`${etcdUrl}/v3/kv/compaction`, {
				method: "POST",
				body: JSON.stringify({ revision: metadata.resourceVersion, physical: true }),
			});
			if (!answer.ok) throw new Error(`etcd would not compact: ${await answer.text()}`);
		},
		kill: () => apiserver.stop("SIGKILL"),
		async start() {
			apiserver.start();
			await ready();
		},
		async stop() {
			client.close();
			await apiserver.stop("SIGKILL");
			await etcd.stop("SIGKILL");
			await rm(directory, { recursive: true, force: true });
		},
	};
}

const namespacesResource: Resource = {
	group: "",
	version: "v1",
	plural: "namespaces",
	kind: "Namespace",
	namespaced: false,
};
const crdResource: Resource<
	KubeObject & { spec?: { group: string; versions: { name: string }[]; names: { plural: string } } }
> = {
	group: "apiextensions.k8s.io",
	version: "v1",
	plural: "customresourcedefinitions",
	kind: "CustomResourceDefinition",
	namespaced: false,
};

/** Installs `crds/generated` and waits until the API server serves every kind. */
async function installCrds(client: KubeClient): Promise<void> {
	const directory = fileURLToPath(new URL("../../crds/generated/", import.meta.url));
	const files = (await readdir(directory)).filter((name) => name.endsWith(".yaml"));
	await Promise.all(
		files.map(async (file) => {
			const definition = parse(await readFile(join(directory, file), "utf8"));
			await client.apply(crdResource, definition, { manager: "test", force: true });
			const { group, names, versions } = definition.spec;
			const path = `/apis/${group}/${versions[0].name}/${names.plural}`;
			for (const deadline = Date.now() + 20_000; ; await delay(50)) {
				try {
					await client.request("GET", path);
					return;
				} catch (error) {
					if (!isNotFound(error) || Date.now() > deadline) throw error;
				}
			}
		}),
	);
}

const kubeconfigOf = (server: string, ca: string, token: string): string =>
	stringify({
		apiVersion: "v1",
		kind: "Config",
		"current-context": "test",
		clusters: [
			{
				name: "test",
				cluster: { server, "certificate-authority-data": Buffer.from(ca).toString("base64") },
			},
		],
		users: [{ name: "test", user: { token } }],
		contexts: [{ name: "test", context: { cluster: "test", user: "test" } }],
	});

/** A child process that can be ended and started again. */
class Process {
	readonly name: string;
	readonly #binary: string;
	readonly #args: readonly string[];
	#child: ChildProcess | undefined;
	#ended: Promise<void> = Promise.resolve();
	#output: string[] = [];
	exited = false;

	constructor(binary: string, args: readonly string[]) {
		this.#binary = binary;
		this.#args = args;
		this.name = binary.slice(binary.lastIndexOf("/") + 1);
	}

	/** Its last lines. */
	get output(): string {
		return this.#output.join("").slice(-4000);
	}

	start(): void {
		this.exited = false;
		this.#output = [];
		const child = spawn(...dyingWithParent(this.#binary, this.#args), { stdio: ["ignore", "pipe", "pipe"] });
		for (const stream of [child.stdout, child.stderr]) {
			stream.on("data", (chunk: Buffer) => {
				this.#output.push(chunk.toString());
				if (this.#output.length > 200) this.#output.shift();
			});
		}
		this.#child = child;
		this.#ended = new Promise((resolve) => {
			child.once("exit", () => {
				this.exited = true;
				resolve();
			});
			child.once("error", (error) => {
				this.#output.push(error.message);
				this.exited = true;
				resolve();
			});
		});
		process.once("exit", this.#killAtExit);
	}

	async stop(signal: NodeJS.Signals): Promise<void> {
		this.#child?.kill(signal);
		process.off("exit", this.#killAtExit);
		await this.#ended;
	}

	readonly #killAtExit = (): void => {
		this.#child?.kill("SIGKILL");
	};
}
