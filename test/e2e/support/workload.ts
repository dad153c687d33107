import { createReadStream } from "node:fs";
import { join } from "node:path";
import { demo } from "./demo.ts";

/** Hosts can pull nothing, so a workload brings its image: that of our services, which has Node and a shell. */
const image = (version: string) => `docker.io/groundplane/services:${version}`;

/** Puts the workload's image into the container runtime of a host. */
export async function importImage(host: string, version: string): Promise<void> {
	const archive = join("dist", "release", "images", `services-${version}.tar`);
	const { code, stderr } = await demo.lab.exec(host, ["ctr", "-n", "k8s.io", "images", "import", "-"], {
		input: createReadStream(archive),
		timeoutMs: 120_000,
	});
	if (code !== 0) throw new Error(`the workload's image could not be imported on ${host}: ${stderr}`);
}

const serve = `
	require("node:http").createServer((request, response) => {
		console.log("request " + request.method);
		response.end(process.env.POD_NAME + " on " + process.env.NODE_NAME + "\\n");
	}).listen(8080);
	process.on("SIGTERM", () => process.exit(0));`;

const fromField = (name: string, fieldPath: string) => ({ name, valueFrom: { fieldRef: { fieldPath } } });

/** A Deployment with one pod on each of `replicas` nodes, and a Service before it. */
export const webManifests = (version: string, replicas: number) => [
	{
		apiVersion: "apps/v1",
		kind: "Deployment",
		metadata: { name: "web", namespace: "default" },
		spec: {
			replicas,
			selector: { matchLabels: { app: "web" } },
			template: {
				metadata: { labels: { app: "web" } },
				spec: {
					terminationGracePeriodSeconds: 1,
					topologySpreadConstraints: [
						{
							maxSkew: 1,
							topologyKey: "kubernetes.io/hostname",
							whenUnsatisfiable: "DoNotSchedule",
							labelSelector: { matchLabels: { app: "web" } },
						},
					],
					containers: [
						{
							name: "web",
							image: image(version),
							imagePullPolicy: "Never",
							command: ["node", "-e", serve],
							env: [fromField("POD_NAME", "metadata.name"), fromField("NODE_NAME", "spec.nodeName")],
							readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 },
						},
					],
				},
			},
		},
	},
	{
		apiVersion: "v1",
		kind: "Service",
		metadata: { name: "web", namespace: "default" },
		spec: { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] },
	},
];

/** A program for `node -e` that prints the answer of the URL in its first argument, over a connection of its own. */
export const fetchScript = `
	require("node:http").get(process.argv[1], { agent: false, timeout: 5000 }, (response) => response.pipe(process.stdout))
		.on("timeout", function () { this.destroy(new Error("no answer")); })
		.on("error", (error) => { console.error(error.message); process.exit(1); });`;

/** Switches the demo cluster's metrics-server on or off. */
export const turnMetricsServer = (on: boolean) =>
	demo.kubectl([
		...["patch", "cluster", "demo", "-n", demo.namespace, "--type=merge"],
		...["-p", JSON.stringify({ spec: { addons: { metricsServer: on } } })],
	]);
