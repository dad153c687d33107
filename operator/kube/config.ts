import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";

/**
 * How to reach an API server. Our own loader, because `@kubernetes/client-node` costs 85 MB of resident memory: it knows the
 * in-cluster service account and kubeconfigs with client certificates or tokens; credential plugins (`exec`) are refused.
 */
export interface KubeConfig {
	/** Base URL, such as `https://10.96.0.1:443`. */
	readonly server: string;
	/** Namespace of the context or of the pod. */
	readonly namespace?: string;
	readonly tls?: {
		readonly ca?: string;
		readonly cert?: string;
		readonly key?: string;
		readonly servername?: string;
	};
	/** Bearer token. Asked for at each request, because projected tokens are rotated. */
	readonly token?: () => string;
}

const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount";
/** Projected tokens live an hour or more and are renewed well ahead: reading the file once a minute is enough. */
const tokenMaxAge = 60_000;

/** A clock that only goes forward: one that is set back must not keep a token that has run out. */
const forward = () => performance.now();

/** Reads a token file at most once a minute, so that rotation is followed without a file read per request. */
function tokenFile(path: string, now: () => number): () => string {
	let token = "";
	let readAt = Number.NEGATIVE_INFINITY;
	return () => {
		if (now() - readAt > tokenMaxAge) {
			token = readFileSync(path, "utf8").trim();
			readAt = now();
		}
		return token;
	};
}

/**
 * Loads the given kubeconfig, else that of `$KUBECONFIG`, else the pod's service account, else `~/.kube/config`.
 * Throws `InvalidConfiguration` when none of them can be used.
 */
export async function loadKubeConfig(
	options: { kubeconfig?: string; context?: string; now?: () => number } = {},
): Promise<KubeConfig> {
	const { kubeconfig = process.env.KUBECONFIG, context, now = forward } = options;
	if (kubeconfig !== undefined && kubeconfig !== "") return fromFile(kubeconfig, context, now);
	const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = process.env;
	if (host !== undefined && port !== undefined) return inCluster(host, port, now);
	return fromFile(join(homedir(), ".kube", "config"), context, now);
}

async function inCluster(host: string, port: string, now: () => number): Promise<KubeConfig> {
	const [ca, namespace] = await Promise.all([
		readFile(join(serviceAccount, "ca.crt"), "utf8"),
		readFile(join(serviceAccount, "namespace"), "utf8"),
	]).catch((cause) => {
		throw invalid("the pod has no service account token", "Set automountServiceAccountToken on the pod.", cause);
	});
	const address = host.includes(":") ? `[${host}]` : host;
	return {
		server: `https://${address}:${port}`,
		namespace: namespace.trim(),
		tls: { ca },
		token: tokenFile(join(serviceAccount, "token"), now),
	};
}

async function fromFile(path: string, context: string | undefined, now: () => number): Promise<KubeConfig> {
	const text = await readFile(path, "utf8").catch((cause) => {
		throw invalid(
			`kubeconfig ${path} can't be read`,
			"Give a kubeconfig by $KUBECONFIG, or run inside a cluster.",
			cause,
		);
	});
	return parseKubeConfig(text, {
		directory: dirname(resolve(path)),
		...(context === undefined ? {} : { context }),
		now,
	});
}

interface KubeConfigFile {
	"current-context"?: string;
	contexts?: { name: string; context?: { cluster?: string; user?: string; namespace?: string } }[];
	clusters?: {
		name: string;
		cluster?: {
			server?: string;
			"certificate-authority"?: string;
			"certificate-authority-data"?: string;
			"insecure-skip-tls-verify"?: boolean;
			"tls-server-name"?: string;
		};
	}[];
	users?: {
		name: string;
		user?: {
			token?: string;
			tokenFile?: string;
			"client-certificate"?: string;
			"client-certificate-data"?: string;
			"client-key"?: string;
			"client-key-data"?: string;
			exec?: unknown;
			"auth-provider"?: unknown;
		};
	}[];
}

/** Parses a kubeconfig; relative paths in it are relative to `directory`. */
export async function parseKubeConfig(
	text: string,
	{ directory, context: wanted, now = forward }: { directory: string; context?: string; now?: () => number },
): Promise<KubeConfig> {
	// Only here, because inside a cluster no YAML is parsed and the parser costs memory.
	const { parse } = await import("yaml");
	const file = (parse(text) ?? {}) as KubeConfigFile;
	const contextName = wanted ?? file["current-context"];
	const context = file.contexts?.find((c) => c.name === contextName)?.context;
	const cluster = file.clusters?.find((c) => c.name === context?.cluster)?.cluster;
	const user = file.users?.find((u) => u.name === context?.user)?.user ?? {};
	if (context === undefined || cluster?.server === undefined) {
		throw invalid(
			`the kubeconfig has no usable context ${JSON.stringify(contextName ?? "")}`,
			"Choose a context that names a cluster with a server (kubectl config use-context).",
		);
	}
	if (user.exec !== undefined || user["auth-provider"] !== undefined) {
		throw invalid(
			"the kubeconfig gets its credentials from a plugin, which is not supported",
			"Give a kubeconfig with a client certificate or a token (kubectl create token, or a service account).",
		);
	}
	if (cluster["insecure-skip-tls-verify"] === true) {
		throw invalid(
			"the kubeconfig turns off certificate verification, which is not supported",
			"Put the API server's CA into certificate-authority-data.",
		);
	}
	const pem = (data: string | undefined, name: string | undefined): string | undefined => {
		if (data !== undefined) return Buffer.from(data, "base64").toString("utf8");
		return name === undefined ? undefined : readFileSync(resolve(directory, name), "utf8");
	};
	const tls = {
		ca: pem(cluster["certificate-authority-data"], cluster["certificate-authority"]),
		cert: pem(user["client-certificate-data"], user["client-certificate"]),
		key: pem(user["client-key-data"], user["client-key"]),
		servername: cluster["tls-server-name"],
	};
	const { token, tokenFile: tokenPath } = user;
	return {
		server: cluster.server.replace(/\/+$/, ""),
		tls: Object.fromEntries(Object.entries(tls).filter(([, value]) => value !== undefined)),
		...(context.namespace === undefined ? {} : { namespace: context.namespace }),
		...(token !== undefined
			? { token: () => token }
			: tokenPath !== undefined
				? { token: tokenFile(resolve(directory, tokenPath), now) }
				: {}),
	};
}

const invalid = (message: string, next: string, cause?: unknown) =>
	new GroundplaneError("InvalidConfiguration", message, { next, cause });
