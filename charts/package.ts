import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { regionDashboard } from "./dashboards/region.ts";

const charts = dirname(fileURLToPath(import.meta.url));

export interface PackagedCharts {
	/** Directory of the core's chart. */
	readonly groundplane: string;
	/** Directory of a region's chart. */
	readonly region: string;
}

/**
 * Writes both charts as plain directories under `out`, ready for `helm install` anywhere: the CRDs are copied in (in the tree they
 * are a link to crds/generated), the dashboards are rendered to JSON, and chart and platform carry `version`.
 */
export async function packageCharts({
	out,
	version,
}: {
	out: string;
	version?: string | undefined;
}): Promise<PackagedCharts> {
	const [groundplane, region] = [join(out, "groundplane"), join(out, "region")];
	for (const chart of [groundplane, region]) {
		await rm(chart, { recursive: true, force: true });
		await mkdir(chart, { recursive: true });
	}
	await cp(join(charts, "groundplane"), groundplane, { recursive: true, dereference: true });
	await cp(join(charts, "region"), region, { recursive: true, dereference: true });
	const dashboards = join(region, "files", "dashboards");
	await mkdir(dashboards, { recursive: true });
	await writeFile(join(dashboards, "region.json"), `${JSON.stringify(regionDashboard(), null, 1)}\n`);
	if (version !== undefined) {
		for (const chart of [groundplane, region]) {
			const file = join(chart, "Chart.yaml");
			const text = await readFile(file, "utf8");
			await writeFile(file, text.replace(/^(version|appVersion): .*$/gm, `$1: ${version}`));
		}
	}
	return { groundplane, region };
}

if (import.meta.main) {
	const { values } = parseArgs({ options: { out: { type: "string" }, version: { type: "string" } } });
	const packaged = await packageCharts({
		out: values.out ?? join(charts, "..", "dist", "charts"),
		version: values.version,
	});
	console.log(`${packaged.groundplane}\n${packaged.region}`);
}
