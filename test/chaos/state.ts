import { copyFile, mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import pg from "pg";
import { ROOT } from "../../hack/builder/javascript.ts";
import { clusters, hosts } from "../../operator/kube/resources.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { NAMESPACE, type Plane } from "../fleet/plane.ts";

const DIRECTORY = join(ROOT, "dist/test/chaos");

/**
 * Runs something; when it fails, leaves in `dist/test/chaos` what everybody believes at that moment (`state.json`: clusters, each host
 * as the API, the inventory and the host itself have it) and the log of each part, so that it can be seen who forgot what.
 */
export async function explained(plane: Plane, fleet: Fleet, work: () => Promise<void>): Promise<void> {
	try {
		await work();
	} catch (error) {
		const summary = await keep(plane, fleet).catch((cause: unknown) => [`The state could not be kept: ${cause}`]);
		throw new Error(`${(error as Error).message}\n${summary.join("\n")}\nAll of it is in ${DIRECTORY}.`, {
			cause: error,
		});
	}
}

/** Writes the files. Answers a line for each cluster and each host that is not as it should be. */
async function keep(plane: Plane, fleet: Fleet): Promise<string[]> {
	await rm(DIRECTORY, { recursive: true, force: true });
	await mkdir(DIRECTORY, { recursive: true });
	for (const file of await readdir(plane.directory))
		if (file.endsWith(".log")) await copyFile(join(plane.directory, file), join(DIRECTORY, file));

	const [simulated, objects, made, rows] = await Promise.all([
		fleet.states(),
		plane.kube.listAll(hosts, { namespace: NAMESPACE }).then(({ items }) => items),
		plane.kube.listAll(clusters, { namespace: NAMESPACE }).then(({ items }) => items),
		inventory(plane),
	]);
	const all = simulated
		.toSorted((a, b) => (a.name < b.name ? -1 : 1))
		.map((host) => ({
			name: host.name,
			host,
			inventory: rows.find(({ name }) => name === host.name),
			object: objects.find(({ metadata }) => metadata.name === host.name),
		}));
	const state = { at: new Date().toISOString(), clusters: made, hosts: all };
	await writeFile(join(DIRECTORY, "state.json"), JSON.stringify(state, undefined, "\t"));
	return [
		...made.map(({ metadata, status }) => `${metadata.name}: ${status?.phase}, ${JSON.stringify(status?.progress)}`),
		...all
			.filter(({ object }) => object?.status?.phase !== "Ready")
			.map(
				({ name, host, object, inventory: row }) =>
					`${name}: ${object?.status?.phase}; says ${JSON.stringify(object?.status?.connection)}; known ${JSON.stringify(row?.link)}; ` +
					`is ${host.connected ? "connected" : `away (${host.lastError})`}, accepted ${JSON.stringify(host.accepted)}`,
			),
	];
}

/** Each machine as the hosts service has it, with its newest documents. */
async function inventory({
	databaseUrl,
}: Plane): Promise<{ name: string; link: unknown; [column: string]: unknown }[]> {
	const database = new pg.Client({ connectionString: databaseUrl });
	await database.connect();
	try {
		const { rows } = await database.query(`
			SELECT name, uid, link, accepted_generation, accepted_epoch, refusal, roles_generation, roles, (
				SELECT json_agg(d ORDER BY generation DESC) FROM documents d WHERE host = h.name
			) AS documents FROM hosts h ORDER BY name`);
		return rows;
	} finally {
		await database.end();
	}
}
