import { connect } from "node:tls";

/** Nothing but idle TLS connections: what Node itself takes for a host. */
process.on("message", async (order: { port: number; count: number; cert: string; key: string; ca: string }) => {
	const { port, count, cert, key, ca } = order;
	for (let i = 0; i < count; i++) {
		const socket = connect({ host: "127.0.0.1", port, cert, key, ca, servername: "localhost" });
		socket.on("error", () => {});
		await new Promise((resolve) => socket.once("secureConnect", resolve));
		socket.resume();
	}
	process.send?.("connected");
});
process.on("disconnect", () => process.exit());
