import { setTimeout as delay } from "node:timers/promises";
import pino from "pino";
import { register } from "prom-client";
import { readConfig } from "../../../operator/config.ts";
import { createInformers } from "../../../operator/deps.ts";
import { createHostController } from "../../../operator/host/controller.ts";
import { KubeClient } from "../../../operator/kube/client.ts";
import { loadKubeConfig } from "../../../operator/kube/config.ts";
import { EventRecorder } from "../../../operator/kube/events.ts";

// The operator's host controller and its caches alone, for rounds over all hosts. It speaks as test/fleet/reference does.

const startedAt = performance.now();
const log = pino({ level: "silent" });
const client = new KubeClient(await loadKubeConfig());
const informers = createInformers(client, log);
const stop = new AbortController();
const controller = createHostController({
	client,
	informers,
	config: readConfig(process.env),
	events: new EventRecorder({ client, component: "bench", instance: "bench", log }),
	log,
	epoch: 1,
	now: Date.now,
	random: Math.random,
});
const parts = [...Object.values(informers), controller].map((part: { run(signal: AbortSignal): Promise<void> }) =>
	part.run(stop.signal),
);

const total = async (name: string, where: Record<string, string>): Promise<number> =>
	((await register.getSingleMetric(name)?.get())?.values ?? [])
		.filter(({ labels }) => Object.entries(where).every(([k, v]) => (labels as Record<string, unknown>)[k] === v))
		.reduce((sum, { value }) => sum + value, 0);
const reconciled = () => total("controller_runtime_reconcile_total", { controller: "host" });
const writes = () => total("rest_client_requests_total", { method: "PATCH" });

/** Until each host was looked at `rounds` times. */
async function idle(from: number, rounds: number): Promise<void> {
	while (!controller.isIdle || (await reconciled()) < from + rounds * informers.hosts.size) await delay(1);
}
const say = (event: string, facts: object) =>
	console.log(JSON.stringify({ event, rssMiB: process.memoryUsage.rss() / 2 ** 20, ...facts }));

await Promise.all(Object.values(informers).map((informer) => informer.waitForSync()));
await idle(0, 1);
say("idle", { seconds: (performance.now() - startedAt) / 1000 });

process.stdin.setEncoding("utf8");
for await (const line of process.stdin) {
	const rounds = Number(String(line).replace("resync ", ""));
	const [at, before, cpu] = [performance.now(), await reconciled(), process.cpuUsage()];
	for (let round = 1; round <= rounds; round++) {
		controller.resync();
		await idle(before, round);
	}
	const { user, system } = process.cpuUsage(cpu);
	say("resync", {
		reconciles: (await reconciled()) - before,
		seconds: (performance.now() - at) / 1000,
		cpuSeconds: (user + system) / 1e6,
		writes: await writes(),
	});
}
stop.abort();
await Promise.all(parts);
client.close();
