/**
 * An HTTP CONNECT proxy as customers have one: it stands in the site, and lets through to the provider's 443 only.
 * Arguments: address and port to listen at, the provider's address, and the lab's record (for the domains that mean it).
 */
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect } from "node:net";
import type { LabRecord } from "./record.ts";

const [address = "", port = "", provider = "", recordFile = ""] = process.argv.slice(2);

function allowed(target: string): boolean {
	const { domains } = JSON.parse(readFileSync(recordFile, "utf8")) as LabRecord;
	const names = [provider, ...domains.flatMap((domain) => [domain, `tunnel.${domain}`])];
	return names.some((name) => target.toLowerCase() === `${name}:443`);
}

const server = createServer((_request, response) => {
	response.writeHead(405, { allow: "CONNECT" }).end("This proxy only does CONNECT.\n");
});
server.on("connect", (request, client, head) => {
	const target = request.url ?? "";
	const ok = allowed(target);
	process.stdout.write(
		`${new Date().toISOString()} ${request.socket.remoteAddress} ${target} ${ok ? "allowed" : "refused"}\n`,
	);
	client.on("error", () => client.destroy());
	if (!ok) {
		client.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
		return;
	}
	const upstream = connect(443, provider);
	upstream.once("connect", () => {
		client.write("HTTP/1.1 200 Connection established\r\n\r\n");
		if (head.length > 0) upstream.write(head);
		upstream.pipe(client).pipe(upstream);
	});
	upstream.on("error", () => {
		if (upstream.bytesRead === 0 && upstream.connecting)
			client.end("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
		else client.destroy();
	});
	client.on("close", () => upstream.destroy());
	upstream.on("close", () => client.destroy());
});
server.listen(Number(port), address);
