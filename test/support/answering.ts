import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { onTestFinished } from "vitest";
import { KubeClient } from "../../operator/kube/client.ts";

/** A client of an API server that answers as a test wants it to, for what a real one can't be made to do. Both end with the test. */
export async function answering(
	answer: RequestListener,
	options?: ConstructorParameters<typeof KubeClient>[1],
): Promise<KubeClient> {
	const server = createServer(answer).listen(0, "127.0.0.1");
	await once(server, "listening");
	const client = new KubeClient({ server: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }, options);
	onTestFinished(() => {
		client.close();
		server.close();
	});
	return client;
}
