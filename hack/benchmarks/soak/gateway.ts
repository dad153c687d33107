import { type IssuedCertificate, regionCertificates } from "../../../test/support/certificates.ts";
import { startGateway } from "../../../test/support/gateway.ts";
import { keepLedger } from "./ledger.ts";
import { lookAtMyself } from "./report.ts";

export interface GatewayOrder {
	directory: string;
	natsUrl: string;
	hosts: string[];
}

/** Where the gateway listens, and the certificates of its region that the others need. */
export interface GatewayPlace {
	port: number;
	proxyPort: number;
	caller: IssuedCertificate;
	hosts: (IssuedCertificate & { name: string })[];
}

/** The gateway's end of the soak: the tunnel service as it runs in its pod, with a ledger of its streams. */
const account = keepLedger();

process.on("message", async (message: GatewayOrder | "look" | "settle") => {
	process.send?.(
		typeof message === "string" ? await lookAtMyself(account, message === "settle") : await start(message),
	);
});
process.on("disconnect", () => process.exit());

async function start({ directory, natsUrl, hosts }: GatewayOrder): Promise<GatewayPlace> {
	const certificates = await regionCertificates(directory);
	const { port, proxyPort } = await startGateway({ directory, certificates, natsUrl });
	return {
		port,
		proxyPort,
		caller: await certificates.issueService("clusters"),
		hosts: await Promise.all(hosts.map(async (name) => ({ name, ...(await certificates.host(name)) }))),
	};
}
