import { createReadStream } from "node:fs";
import { appendFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { conformanceKit } from "../../hack/builder/conformance.ts";
import { demo, eventually, HOSTS, withHosts } from "./support/demo.ts";
import { ADMIN, kubectlOn, sh } from "./support/kubeadm.ts";

const MINUTE = 60_000;
const [CONTROL_PLANE] = HOSTS;
const FOLDER = "/var/tmp/conformance";
const results = join("dist", "test", "conformance");
const wanted = process.env.GROUNDPLANE_CONFORMANCE ?? "all";

/** What can't be run where nothing can be pulled or the machine lacks something, and why. */
const left: readonly { readonly why: string; readonly tests: string }[] = [
	{ why: "pulls an image from a registry although the node has it", tests: "ImageVolume .* pull policy of Always" },
];

interface Result {
	readonly name: string;
	readonly state: string;
	readonly seconds: number;
	readonly message: string;
}

/**
 * Kubernetes' own conformance tests (test/conformance/testdata/conformance.yaml) against a cluster of one control plane and two
 * workers, with the region's machine off and the agents stopped: whatever passes, the cluster does by itself.
 *
 * It runs when `GROUNDPLANE_CONFORMANCE` is set: `all`, or an expression for some of their names (`sig-network|sig-node`).
 */
describe("a cluster passes Kubernetes' conformance tests", () => {
	beforeAll(async () => {
		const { suite, ginkgo, images } = await conformanceKit();
		await withHosts();
		await demo.makeCluster("demo", HOSTS);
		for (const program of [suite, ginkgo])
			await demo.lab.copyTo(CONTROL_PLANE, program, `${FOLDER}/${basename(program)}`);
		const importOn = async (host: string) => {
			for (const image of images)
				await demo.lab.run(host, ["ctr", "-n", "k8s.io", "images", "import", "-"], { input: createReadStream(image) });
		};
		await Promise.all(HOSTS.map(importOn));
		// The certificates that kubelets serve with are the last that a cluster has of the region.
		await eventually(async () => {
			const requests = await kubectlOn(CONTROL_PLANE, "get csr --output=jsonpath='{.items[*].status.certificate}'");
			expect(requests.trim().split(" ").length).toBeGreaterThanOrEqual(HOSTS.length);
			await kubectlOn(CONTROL_PLANE, `get --raw /api/v1/nodes/${HOSTS[1]}/proxy/healthz`);
		});
		for (const host of HOSTS) await sh(host, "systemctl stop gp-agent");
		await demo.lab.stop("mgmt");
		await rm(results, { recursive: true, force: true });
		await mkdir(results, { recursive: true });
	}, 30 * MINUTE);

	afterAll(async () => {
		await demo.lab.start("mgmt");
		for (const host of HOSTS) await sh(host, "systemctl start gp-agent");
	}, 5 * MINUTE);

	it(
		"those that may run beside others",
		() => passes("beside-others", "!Serial", 4 * availableParallelism()),
		150 * MINUTE,
	);

	it("those that must run alone", () => passes("alone", "Serial", 1), 150 * MINUTE);
});

/** What fails beside others is tried once more alone: where cores are few a test may have waited for them. */
async function passes(title: string, labels: string, processes: number): Promise<void> {
	const first = await runTests(title, { labels, processes, focus: wanted === "all" ? "" : wanted });
	const failed = first.filter(({ state }) => state !== "passed").map(({ name }) => name);
	const focus = failed.map((name) => name.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|");
	const second = failed.length > 0 ? await runTests(`${title}-again`, { labels, processes: 1, focus }) : [];
	expect(first.length).toBeGreaterThan(0);
	expect(second.filter(({ state }) => state !== "passed")).toEqual([]);
}

async function runTests(
	title: string,
	{ labels, processes, focus }: { labels: string; processes: number; focus: string },
): Promise<Result[]> {
	const log = join(results, `${title}.log`);
	const seen = { done: 0, failed: 0 };
	const { code } = await demo.lab.exec(
		CONTROL_PLANE,
		[
			...["env", "-C", FOLDER, "./ginkgo", "-v", "--no-color", `--procs=${processes}`, "--timeout=140m"],
			...[`--label-filter=Conformance && ${labels}`, `--skip=${left.map(({ tests }) => tests).join("|")}`],
			...(focus ? [`--focus=${focus}`] : []),
			...[`--json-report=${title}.json`, `--junit-report=${title}.xml`, "./e2e.test", "--"],
			...["--provider=skeleton", `--kubeconfig=${ADMIN}`, "--disable-log-dump"],
		],
		{
			onLine: (line) => {
				void appendFile(log, `${line}\n`);
				if (!line.startsWith("• [")) return;
				seen.done++;
				if (line.includes("[FAILED]")) seen.failed++;
				if (seen.done % 10 === 0) demo.report(`conformance, ${title}: ${seen.done} done, ${seen.failed} failed`);
			},
		},
	);
	for (const report of [`${title}.json`, `${title}.xml`])
		await demo.lab.copyFrom(CONTROL_PLANE, `${FOLDER}/${report}`, join(results, report));
	const found = resultsIn(await readFile(join(results, `${title}.json`), "utf8"));
	const lines = found.map(({ state, seconds, name }) => `${state}\t${seconds.toFixed(0)} s\t${name}`);
	await writeFile(join(results, `${title}.txt`), `${lines.sort().join("\n")}\n`);
	demo.report(`conformance, ${title}: ended with ${code}; ${found.length} ran, see ${results}`);
	return found;
}

interface Spec {
	readonly LeafNodeType: string;
	readonly ContainerHierarchyTexts: readonly string[] | null;
	readonly LeafNodeText: string;
	readonly State: string;
	readonly RunTime: number;
	readonly Failure?: { readonly Message?: string };
}

/** What ran, and whatever failed before or after all of it; not what the filters left out. */
function resultsIn(report: string): Result[] {
	const suites = JSON.parse(report) as readonly { readonly SpecReports: readonly Spec[] | null }[];
	return suites
		.flatMap(({ SpecReports }) => SpecReports ?? [])
		.filter(({ LeafNodeType, State, Failure }) =>
			LeafNodeType === "It" ? State !== "skipped" || Failure?.Message : !["passed", "skipped"].includes(State),
		)
		.map(({ ContainerHierarchyTexts, LeafNodeText, LeafNodeType, State, RunTime, Failure }) => ({
			name: [...(ContainerHierarchyTexts ?? []), LeafNodeText || LeafNodeType].join(" "),
			state: State,
			seconds: RunTime / 1e9,
			message: Failure?.Message ?? "",
		}));
}
