import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import pino, { type Logger } from "pino";
import { parseAllDocuments, stringify } from "yaml";
import { helm, publicJwks, repository } from "../../charts/testing.ts";
import { tool } from "../../hack/builder/tools.ts";
import { type OperatorConfig, readConfig } from "../../operator/config.ts";
import { type ControllerDeps, createInformers } from "../../operator/deps.ts";
import { KubeClient } from "../../operator/kube/client.ts";
import type { KubeConfig } from "../../operator/kube/config.ts";
import { EventRecorder } from "../../operator/kube/events.ts";
import { namespaces } from "../../operator/kube/resources.ts";
import type { TestApiServer } from "./apiserver.ts";

/** The log of tests: silent unless LOG_LEVEL says otherwise. */
export const testLog: Logger = pino({ level: process.env.LOG_LEVEL ?? "silent" });

/** Installs the operator's rights as the core chart grants them, and gives the kubeconfig of its service account. */
export async function operatorAccount(api: TestApiServer): Promise<KubeConfig> {
	await api.client.create(namespaces, { metadata: { name: "groundplane-system" } });
	const chart = join(repository, "charts", "groundplane");
	const rendered = await helm(
		["template", "groundplane", chart, "--namespace", "groundplane-system", "--show-only", "templates/rbac.yaml"],
		{ release: { publicJwks } },
	);
	for (const document of parseAllDocuments(rendered)) {
		const object = document.toJS();
		if (object === null) continue;
		const [group = "", version] = object.apiVersion.includes("/")
			? object.apiVersion.split("/")
			: ["", object.apiVersion];
		const plural = `${object.kind.toLowerCase().replace(/y$/, "ie")}s`;
		const namespaced = object.metadata.namespace !== undefined;
		await api.client.apply({ group, version, plural, kind: object.kind, namespaced }, object, {
			manager: "test",
			force: true,
		});
	}
	return api.serviceAccount("groundplane-system", "groundplane-operator");
}

/** A kubeconfig file for programs (helm) that act as the account. */
export async function writeKubeconfig(config: KubeConfig, file: string): Promise<string> {
	const cluster = {
		server: config.server,
		"certificate-authority-data": Buffer.from(config.tls?.ca ?? "").toString("base64"),
	};
	const content = {
		apiVersion: "v1",
		kind: "Config",
		"current-context": "test",
		clusters: [{ name: "test", cluster }],
		users: [{ name: "test", user: { token: config.token?.() } }],
		contexts: [{ name: "test", context: { cluster: "test", user: "test" } }],
	};
	await writeFile(file, stringify(content), { mode: 0o600 });
	return file;
}

/** What the operator's controllers are given, against a test's API server. */
export async function operatorDeps(
	config: KubeConfig,
	env: Record<string, string>,
	overrides: Partial<ControllerDeps> = {},
): Promise<ControllerDeps> {
	const client = new KubeClient(config, { userAgent: "groundplane-operator" });
	const log = testLog;
	const settings: OperatorConfig = readConfig({
		VERSION: "0.1.0",
		RELEASE_JWKS: publicJwks,
		HELM: await tool("helm"),
		...env,
	});
	return {
		client,
		config: settings,
		informers: createInformers(client, log),
		events: new EventRecorder({ client, component: "groundplane-operator", instance: "test", log }),
		log,
		epoch: 1,
		now: Date.now,
		random: Math.random,
		...overrides,
	};
}
