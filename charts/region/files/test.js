const front = process.env.FRONT_URL ?? "https://front";
// A path of each service that needs no sign-in, or that must ask for one.
const expected = {
	"/healthz": [200],
	"/auth/.well-known/openid-configuration": [200],
	"/openapi.json": [200, 401],
	"/api/v1/join-tokens": [401],
	"/": [200],
	"/internal/v1/targets": [404],
};
let failed = 0;
for (const [path, statuses] of Object.entries(expected)) {
	try {
		const { status } = await fetch(front + path, { redirect: "manual", signal: AbortSignal.timeout(10_000) });
		const ok = statuses.includes(status);
		console.log(`${ok ? "ok    " : "FAILED"} ${path}: ${status}${ok ? "" : `, expected ${statuses.join(" or ")}`}`);
		if (!ok) failed += 1;
	} catch (error) {
		console.log(`FAILED ${path}: ${error.cause?.message ?? error.message}`);
		failed += 1;
	}
}
process.exit(failed === 0 ? 0 : 1);
