import { connect } from "node:tls";

// The operator works, and the edge closes a connection for a name that no region has.
let failed = 0;
const check = async (name, run) => {
	try {
		await run();
		console.log(`ok     ${name}`);
	} catch (error) {
		console.log(`FAILED ${name}: ${error.cause?.message ?? error.message}`);
		failed += 1;
	}
};
await check("operator is ready", async () => {
	const { status } = await fetch(process.env.OPERATOR_URL ?? "http://operator-metrics:9090/readyz", {
		signal: AbortSignal.timeout(10_000),
	});
	if (status !== 200) throw new Error(`HTTP ${status}`);
});
await check(
	"edge closes an unknown name",
	() =>
		new Promise((resolve, reject) => {
			const [host, port] = (process.env.EDGE_ADDRESS ?? "edge:443").split(":");
			let connected = false;
			const socket = connect({ host, port: Number(port), servername: "nobody.invalid", rejectUnauthorized: false });
			socket.setTimeout(8_000, () => socket.destroy(new Error("it was not closed within eight seconds")));
			socket.once("connect", () => {
				connected = true;
			});
			socket.once("secureConnect", () => reject(new Error("somebody answered")));
			socket.once("error", (error) =>
				connected && /ECONNRESET|disconnected/.test(`${error.code} ${error.message}`) ? resolve() : reject(error),
			);
		}),
);
process.exit(failed === 0 ? 0 : 1);
