import { execFile } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { parseAllDocuments } from "yaml";
import { tool } from "../hack/builder/tools.ts";

/** What tests of the charts share: running programs, rendering, values that are enough. */

const run = promisify(execFile);

export const repository = join(dirname(fileURLToPath(import.meta.url)), "..");

export const publicJwks =
	'{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"release","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}';

export const regionValues = {
	region: "demo",
	domain: "demo.example.com",
	customer: "Example",
	release: { publicJwks },
	bundles: [
		{ name: "kubernetes", version: "v1.36.3", tag: "v1.36.3-0123456789ab" },
		{ name: "kubernetes", version: "v1.35.4" },
	],
};

export const coreValues = { release: { publicJwks }, bundles: regionValues.bundles };

/** A Kubernetes object as far as tests read it. */
export interface Manifest {
	apiVersion: string;
	kind: string;
	metadata: { name: string; namespace?: string; annotations?: Record<string, string>; labels?: Record<string, string> };
	data?: Record<string, string>;
	spec?: unknown;
}

/** Runs a program to its end; the error of one that fails carries what it wrote. */
export async function execute(
	file: string,
	args: readonly string[],
	{ input, env }: { input?: string; env?: Record<string, string> } = {},
): Promise<string> {
	const pending = run(file, args, { maxBuffer: 64 << 20, timeout: 120_000, env: { ...process.env, ...env } });
	pending.child.stdin?.on("error", () => undefined);
	pending.child.stdin?.end(input ?? "");
	try {
		return (await pending).stdout;
	} catch (error) {
		const { stdout, stderr } = error as { stdout?: string; stderr?: string };
		throw new Error(`${file} ${args.join(" ")}\n${stdout ?? ""}${stderr ?? ""}`);
	}
}

export const helm = async (args: readonly string[], values?: unknown, env?: Record<string, string>): Promise<string> =>
	execute(await tool("helm"), values === undefined ? args : [...args, "--values", "-"], {
		...(values === undefined ? {} : { input: JSON.stringify(values) }),
		...(env === undefined ? {} : { env }),
	});

/** Renders a chart to YAML. */
export const render = (chart: string, namespace: string, values: unknown): Promise<string> =>
	helm(["template", chart.endsWith("region") ? "region" : "groundplane", chart, "--namespace", namespace], values);

export const manifests = (yaml: string): Manifest[] =>
	parseAllDocuments(yaml)
		.map((document) => document.toJS() as Manifest | null)
		.filter((object) => object !== null);

/** One file of a ConfigMap in what a chart renders. */
export function configFile(objects: readonly Manifest[], name: string, file: string): string {
	const text = objects.find(({ kind, metadata }) => kind === "ConfigMap" && metadata.name === name)?.data?.[file];
	if (text === undefined) throw new Error(`the chart renders no ConfigMap ${name} with ${file}`);
	return text;
}

/** A container as far as tests read it. */
export interface Container {
	env?: { name: string; value?: string }[];
	ports?: { name: string; hostPort?: number }[];
	readinessProbe?: { exec?: { command: string[] } };
}

/** The container of a Deployment or StatefulSet in what a chart renders. */
export function containerOf(objects: readonly Manifest[], name: string): Container {
	const found = objects.find(({ kind, metadata }) => /^(Deployment|StatefulSet)$/.test(kind) && metadata.name === name);
	const spec = found?.spec as { template: { spec: { containers: Container[] } } } | undefined;
	const container = spec?.template.spec.containers[0];
	if (container === undefined) throw new Error(`the chart renders no Deployment or StatefulSet ${name}`);
	return container;
}
