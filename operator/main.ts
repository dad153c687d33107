import { randomBytes } from "node:crypto";
import pino from "pino";
import { collectDefaultMetrics } from "prom-client";
import { asGroundplaneError, GroundplaneError } from "../protocol/errors.ts";
import { createClusterController } from "./cluster/controller.ts";
import { readConfig } from "./config.ts";
import { type ControllerDeps, createInformers } from "./deps.ts";
import { healthServer, unfit } from "./health.ts";
import { createHostController } from "./host/controller.ts";
import { KubeClient } from "./kube/client.ts";
import { loadKubeConfig } from "./kube/config.ts";
import type { Runnable } from "./kube/controller.ts";
import { EventRecorder } from "./kube/events.ts";
import { type Holding, runWithLease } from "./kube/lease.ts";
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
	const kubeConfig = await loadKubeConfig();
	const userAgent = `groundplane-operator/${config.version}`;
	let holding: Holding | undefined;
	// The lease has a client of its own: the other one does nothing without it.
	const elector = new KubeClient(kubeConfig, { userAgent });
	const client = new KubeClient(kubeConfig, { userAgent, permit: () => permit(holding) });
	const instance = `${config.podName}-${randomBytes(4).toString("hex")}`;
	const shared: Omit<ControllerDeps, "epoch"> = {
		client,
		config,
		informers: createInformers(client, log),
		events: new EventRecorder({ client, component: "groundplane-operator", instance: config.podName, log }),
		log,
		now: Date.now,
		random: Math.random,
	};
	const informers = Object.values(shared.informers);
	collectDefaultMetrics();
	const server = healthServer(() => unfit(holding !== undefined, Object.values(shared.informers)));
	server.listen(config.metricsPort, config.listenAddress);
	try {
		await runWithLease(
			{ client: elector, namespace: config.namespace, name: "groundplane-operator", identity: instance, log },
			signal,
			async (lead, held) => {
				holding = held;
				const deps: ControllerDeps = { ...shared, epoch: held.epoch };
				const controllers = [
					await createRegionController(deps),
					createClusterController(deps),
					createHostController(deps),
				];
				// One that fails takes all down: the process ends and starts anew.
				const together = new AbortController();
				const run = AbortSignal.any([lead, together.signal]);
				const all: Pick<Runnable, "run">[] = [...informers, ...controllers];
				const parts = all.map((part) =>
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
		elector.close();
	}
}

/** Throws unless the lease is ours: after a pause (SIGSTOP, a frozen machine) another operator may be at work. */
function permit(holding: Holding | undefined): void {
	if (holding?.isValid() === true) return;
	throw new GroundplaneError("KubernetesUnavailable", "this operator does not hold its lease any more", {
		next: "The process ends and starts again; look at the API server's health when this happens often.",
	});
}
