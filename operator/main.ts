import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import pino from "pino";
import { collectDefaultMetrics, register } from "prom-client";
import { asGroundplaneError } from "../protocol/errors.ts";
import { createClusterController } from "./cluster/controller.ts";
import { readConfig } from "./config.ts";
import type { ControllerDeps } from "./deps.ts";
import { createHostController } from "./host/controller.ts";
import { KubeClient } from "./kube/client.ts";
import { loadKubeConfig } from "./kube/config.ts";
import { EventRecorder } from "./kube/events.ts";
import { runWithLease } from "./kube/lease.ts";
import { Reflector } from "./kube/reflector.ts";
import { clusters, hosts, regions } from "./kube/resources.ts";
import { createRegionController } from "./region/controller.ts";

const config = readConfig(process.env);
const log = pino({
	level: config.logLevel,
	base: { component: "operator" },
	timestamp: pino.stdTimeFunctions.isoTime,
	formatters: { level: (level) => ({ level }) },
});

/** How long what is under way may take to end after a signal to stop. */
const GRACE_MS = 20_000;

const stop = new AbortController();
for (const signal of ["SIGTERM", "SIGINT"] as const) {
	process.once(signal, () => {
		log.info({ signal }, "stopping");
		stop.abort();
		setTimeout(() => process.exit(1), GRACE_MS).unref();
	});
}

try {
	await main(stop.signal);
	log.info("stopped");
	process.exit(0);
} catch (error) {
	const { code, message, next, cause } = asGroundplaneError(error);
	log.fatal({ code, err: message, next, cause: cause instanceof Error ? cause.stack : undefined }, "the operator ends");
	process.exit(1);
}

async function main(signal: AbortSignal): Promise<void> {
	const client = new KubeClient(await loadKubeConfig(), { userAgent: `groundplane-operator/${config.version}` });
	const instance = `${config.podName}-${randomBytes(4).toString("hex")}`;
	const shared: Omit<ControllerDeps, "epoch"> = {
		client,
		config,
		informers: {
			regions: new Reflector({ client, resource: regions, log }),
			hosts: new Reflector({ client, resource: hosts, log }),
			clusters: new Reflector({ client, resource: clusters, log }),
		},
		events: new EventRecorder({ client, component: "groundplane-operator", instance: config.podName, log }),
		log,
		now: Date.now,
		random: Math.random,
	};
	const informers = Object.values(shared.informers);
	let leading = false;
	// A standby is ready: it takes over at once. The leader is when it knows everything.
	const server = serveHealth(() => !leading || informers.every(({ hasSynced }) => hasSynced));
	try {
		await runWithLease(
			{ client, namespace: config.namespace, name: "groundplane-operator", identity: instance, log },
			signal,
			async (lead, { epoch }) => {
				leading = true;
				const deps: ControllerDeps = { ...shared, epoch };
				const controllers = [
					await createRegionController(deps),
					createClusterController(deps),
					createHostController(deps),
				];
				// One that fails takes all down: the process ends and starts anew.
				const together = new AbortController();
				const run = AbortSignal.any([lead, together.signal]);
				const parts = [...informers, ...controllers].map((part) =>
					part.run(run).catch((error) => {
						together.abort();
						throw error;
					}),
				);
				const ends = await Promise.allSettled(parts);
				for (const end of ends) if (end.status === "rejected") throw end.reason;
			},
		);
	} finally {
		server.close();
		client.close();
	}
}

/** `/healthz` (the process answers), `/readyz` and `/metrics`, plain HTTP. */
function serveHealth(ready: () => boolean) {
	collectDefaultMetrics();
	const server = createServer((request, response) => {
		const answer = (status: number, body: string, type = "text/plain") =>
			response.writeHead(status, { "content-type": type }).end(body);
		switch (request.url) {
			case "/healthz":
				return answer(200, "ok");
			case "/readyz":
				return ready() ? answer(200, "ok") : answer(503, "not all objects are known yet");
			case "/metrics":
				return register.metrics().then(
					(text) => answer(200, text, register.contentType),
					(error) => answer(500, String(error)),
				);
			default:
				return answer(404, "not found");
		}
	});
	server.listen(config.metricsPort, config.listenAddress);
	return server;
}
