import { setTimeout as delay } from "node:timers/promises";
import type { Demo } from "../demo/demo.ts";
import { atMost, type Figure } from "./figures.ts";

const HOSTS = ["host-1", "host-2", "host-3"];

/** How long the steps of a life take, in a lab of its own: the demo from nothing, a host, a cluster. */
export async function lifecycle(demo: Demo): Promise<Figure[]> {
	await demo.lab.down();
	try {
		const up = stopwatch();
		await demo.machines(HOSTS.length);
		await demo.managementServer();
		await demo.makeRegion();
		await demo.signIn();

		// One host alone, so that nothing else is in its way.
		const joining = stopwatch();
		await demo.enroll(HOSTS.slice(0, 1));
		const hostSeconds = joining() / 1000;
		await demo.enroll(HOSTS.slice(1));

		const making = stopwatch();
		await demo.makeCluster("demo", HOSTS);
		await demo.clusterKubeconfig("demo");
		await dnsAnswers(demo);
		const clusterSeconds = making() / 1000;
		return [
			atMost("hack/up without building", up() / 60_000, "min", 4),
			atMost("host package installed → Host Ready", hostSeconds, "s", 10),
			atMost("cluster 1+2 applied → nodes Ready and CoreDNS answering", clusterSeconds, "s", 90),
		];
	} finally {
		await demo.lab.down();
	}
}

/** CoreDNS answers when its metrics say that it does: asked through the API server's proxy, so that nothing is installed. */
async function dnsAnswers(demo: Demo): Promise<void> {
	for (let i = 0; i < 120; i++) {
		const { code } = await demo.clusterKubectl(
			"demo",
			["get", "--raw", "/api/v1/namespaces/kube-system/services/kube-dns:metrics/proxy/metrics"],
			{ check: false },
		);
		if (code === 0) return;
		await delay(500);
	}
}

function stopwatch(): () => number {
	const start = performance.now();
	return () => performance.now() - start;
}
