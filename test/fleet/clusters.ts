import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { text } from "node:stream/consumers";

interface ApiObject {
	readonly metadata: { readonly name: string; readonly namespace?: string; [field: string]: unknown };
	[field: string]: unknown;
}

/**
 * What kubeadm makes of simulated hosts: a Kubernetes API as much as the operator asks of it, in memory, spoken over the
 * `kube-apiserver` streams of the cluster's control planes. Objects are kept by their path; unknown collections are empty.
 */
export class SimulatedCluster {
	readonly caCertHash: string;
	readonly controlPlanes = new Set<string>();
	readonly #objects = new Map<string, ApiObject>();
	readonly #server: Server;

	constructor(id: string) {
		this.caCertHash = `sha256:${Buffer.from(id).toString("hex").padEnd(64, "0").slice(0, 64)}`;
		this.#server = createServer((request, response) => {
			void this.#answer(request, response).catch((error: unknown) => {
				response.destroy(error instanceof Error ? error : new Error(String(error)));
			});
		});
		// A connection through the tunnel has no socket whose time could run out.
		this.#server.keepAliveTimeout = 0;
		const dns = { name: "coredns-0", namespace: "kube-system", labels: { "k8s-app": "kube-dns" } };
		this.#objects.set("/api/v1/namespaces/kube-system/pods/coredns-0", {
			metadata: dns,
			status: { phase: "Running", conditions: [{ type: "Ready", status: "True" }] },
		});
	}

	/** Serves the API on a stream of a control plane's tunnel. */
	serve(stream: Duplex): void {
		this.#server.emit("connection", stream);
	}

	get nodes(): string[] {
		return [...this.#objects.values()].filter(({ kind }) => kind === "Node").map(({ metadata }) => metadata.name);
	}

	/** A kubelet registers its node, not ready yet. */
	register(name: string, version: string): void {
		const path = `/api/v1/nodes/${name}`;
		const known = this.#objects.get(path);
		this.#objects.set(path, {
			...known,
			kind: "Node",
			metadata: known?.metadata ?? { name, labels: {} },
			status: {
				nodeInfo: { kubeletVersion: version },
				conditions: [{ type: "Ready", status: "False", message: "container runtime network not ready" }],
			},
		});
	}

	ready(name: string): void {
		const node = this.#objects.get(`/api/v1/nodes/${name}`);
		if (node) {
			const status = { ...(node.status as object), conditions: [{ type: "Ready", status: "True" }] };
			this.#objects.set(`/api/v1/nodes/${name}`, { ...node, status });
		}
	}

	/** Whether a bootstrap token is known here, as a join needs it. */
	knows(token: string): boolean {
		return this.#objects.has(`/api/v1/namespaces/kube-system/secrets/bootstrap-token-${token.split(".")[0]}`);
	}

	/** Makes a bootstrap token known, as `kubeadm init` does. */
	addToken(token: string): void {
		const name = `bootstrap-token-${token.split(".")[0]}`;
		this.#objects.set(`/api/v1/namespaces/kube-system/secrets/${name}`, {
			kind: "Secret",
			metadata: { name, namespace: "kube-system" },
		});
	}

	async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
		const { pathname: path, searchParams } = new URL(request.url ?? "/", "http://cluster");
		const body = request.method === "GET" ? "" : await text(request);
		const send = (code: number, value: unknown) =>
			response.writeHead(code, { "content-type": "application/json" }).end(JSON.stringify(value));
		const status = (code: number, reason: string) =>
			send(code, { kind: "Status", apiVersion: "v1", status: "Failure", code, reason, message: `${path}: ${reason}` });
		const object = this.#objects.get(path);
		switch (request.method) {
			case "GET":
				if (/^\/(readyz|livez|healthz)/.test(path)) return void response.end("ok");
				// Nobody has asked for an API that a newer version removes.
				if (path === "/metrics") return void response.end("");
				if (object) return void send(200, object);
				if (!isCollection(path)) return void status(404, "NotFound");
				return void send(200, {
					metadata: { resourceVersion: "1" },
					items: this.#list(path, searchParams.get("labelSelector"), searchParams.get("fieldSelector")),
				});
			case "POST": {
				const made = JSON.parse(body || "{}") as ApiObject;
				const target = `${path}/${made.metadata?.name}`;
				if (this.#objects.has(target)) return void status(409, "AlreadyExists");
				this.#objects.set(target, made);
				return void send(201, made);
			}
			case "PATCH":
			case "PUT": {
				if (!object) return void status(404, "NotFound");
				const merged = merge(object, JSON.parse(body)) as ApiObject;
				this.#objects.set(path, merged);
				return void send(200, merged);
			}
			case "DELETE":
				if (!this.#objects.delete(path)) return void status(404, "NotFound");
				return void send(200, { kind: "Status", status: "Success" });
			default:
				return void status(405, "MethodNotAllowed");
		}
	}

	#list(path: string, labels: string | null, fields: string | null): ApiObject[] {
		const [, namespace, plural] = /^\/api\/v1(?:\/namespaces\/([^/]+))?\/([^/]+)$/.exec(path) ?? [];
		const inside = [...this.#objects].filter(([at]) =>
			namespace === undefined ? at.includes(`/${plural}/`) : at.startsWith(`${path}/`),
		);
		return inside
			.map(([, one]) => one)
			.filter(({ metadata, spec }) => {
				const own = (metadata.labels ?? {}) as Record<string, string>;
				const wanted = (labels ?? "").split(",").filter(Boolean);
				if (!wanted.every((pair) => own[pair.split("=")[0] ?? ""] === pair.split("=").at(-1))) return false;
				const node = /^spec\.nodeName=(.+)$/.exec(fields ?? "")?.[1];
				return node === undefined || (spec as { nodeName?: string } | undefined)?.nodeName === node;
			});
	}
}

/** Paths of collections end with a plural: an even number of words after the group and version. */
function isCollection(path: string): boolean {
	const rest = path.replace(/^\/(api\/v1|apis\/[^/]+\/[^/]+)\/(namespaces\/[^/]+\/)?/, "");
	return !rest.includes("/");
}

/** RFC 7386. */
function merge(target: unknown, patch: unknown): unknown {
	if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
	const result: Record<string, unknown> = typeof target === "object" && target !== null ? { ...target } : {};
	for (const [key, value] of Object.entries(patch)) {
		if (value === null) delete result[key];
		else result[key] = merge(result[key], value);
	}
	return result;
}

/** Clusters by the id in the role's parameters (the Cluster's uid). */
export class SimulatedClusters {
	readonly #clusters = new Map<string, SimulatedCluster>();

	/** How often `kubeadm init` was run for each id: more than once made a second cluster. */
	readonly inits = new Map<string, number>();

	get(id: string): SimulatedCluster | undefined {
		return this.#clusters.get(id);
	}

	init(id: string): SimulatedCluster {
		this.inits.set(id, (this.inits.get(id) ?? 0) + 1);
		const cluster = new SimulatedCluster(id);
		this.#clusters.set(id, cluster);
		return cluster;
	}
}
