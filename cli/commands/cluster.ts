import { readFile } from "node:fs/promises";
import { Command } from "commander";
import type { Cluster } from "../../crds/cluster.ts";
import { durationMs } from "../../protocol/duration.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type CommonOptions, command, configStore, withSession } from "../command.ts";
import { age, printList, printOne, section, table, terminal } from "../output.ts";
import type { Session } from "../session.ts";
import { waitFor } from "../wait.ts";
import { progressOf, waitReady } from "../wait-cluster.ts";
import { upgradeCommand } from "./cluster-upgrade.ts";
import { conditions } from "./host.ts";

const path = (name: string) => `/api/v1/clusters/${encodeURIComponent(name)}`;
const get = (session: Session, name: string) => session.call<Cluster>("GET", path(name));

interface WaitOptions extends CommonOptions {
	readonly wait?: boolean;
	readonly timeout: string;
}

export function clusterCommand(): Command {
	const group = new Command("cluster").description("Kubernetes clusters on the region's hosts");

	group.addCommand(
		command("list", "list clusters").action(async (options: CommonOptions) =>
			withSession(options, async (session) => {
				const { items } = await session.call<{ items: Cluster[] }>("GET", "/api/v1/clusters");
				await printList(items, {
					format: options.output,
					columns: [
						["name", ({ metadata }) => metadata.name],
						["phase", ({ status }) => status?.phase],
						["version", ({ spec, status }) => status?.version ?? spec.version],
						["ready", ({ status }) => status?.ready],
						["step", ({ status }) => status?.progress?.step],
						["host", ({ status }) => status?.progress?.host],
						["age", ({ metadata }) => age(metadata.creationTimestamp)],
					],
					name: ({ metadata }) => `cluster/${metadata.name}`,
					empty: "There are no clusters yet: gp cluster apply -f FILE",
				});
			}),
		),
	);

	group.addCommand(
		command("get", "show a cluster: members, what is being done, conditions")
			.alias("show")
			.argument("<name>")
			.option("-w, --watch", "print each step as it comes: host, since when, how long it usually takes, what is next")
			.action(async (name: string, options: CommonOptions & { watch?: boolean }) =>
				withSession(options, async (session) => {
					if (options.watch) return watchCluster(session, name);
					const cluster = await get(session, name);
					await printOne(cluster, { format: options.output, name: `cluster/${name}`, words: () => describe(cluster) });
				}),
			),
	);

	group.addCommand(
		command("apply", "make clusters, or change them, as a file says")
			.requiredOption("-f, --file <file>", "YAML or JSON of Cluster objects; - for standard input")
			.option("--wait", "wait until they are ready, and show what is being done")
			.option("--timeout <duration>", "how long to wait", "20m")
			.addHelpText("after", APPLY_HELP)
			.action(async (options: WaitOptions & { file: string }) =>
				withSession(options, async (session) => {
					for (const wanted of await readClusters(options.file)) await apply(session, wanted, options);
				}),
			),
	);

	group.addCommand(
		command(
			"delete",
			"delete clusters: their nodes are drained, the hosts left as they were; an adopted cluster is released and runs on",
			{ output: false },
		)
			.argument("<names...>")
			.option("--wait", "wait until they are gone, and show what is being done")
			.option("--timeout <duration>", "how long to wait", "20m")
			.option("--force", "drain nothing and wait for no host; says its price first, and needs --yes")
			.option("--yes", "pay the price of --force")
			.action(async (names: string[], options: WaitOptions & { force?: boolean; yes?: boolean }) =>
				withSession(options, async (session) => {
					for (const name of names) {
						if (options.force && !options.yes) throw await priceOfForce(session, name);
						await session.call("DELETE", `${path(name)}${options.force ? "?force=true" : ""}`);
						if (options.wait) await waitGone(session, name, durationMs(options.timeout));
						terminal.err(options.wait ? `${name} is gone.` : `${name} is being deleted.`);
					}
				}),
			),
	);

	group.addCommand(upgradeCommand());

	group.addCommand(
		command("kubeconfig", "print a kubeconfig for a cluster, through the region", { output: false })
			.argument("<name>")
			.addHelpText("after", KUBECONFIG_HELP)
			.action(async (name: string, options: CommonOptions) =>
				withSession(options, async (session) => terminal.out(await kubeconfig(session, name))),
			),
	);

	group.addCommand(
		command("credential", "print a credential for kubectl, which calls this by itself", { output: false }).action(
			async (options: CommonOptions) =>
				withSession(options, async (session) => {
					const { token, expiresAt } = await session.accessToken();
					terminal.out(
						JSON.stringify({
							apiVersion: "client.authentication.k8s.io/v1",
							kind: "ExecCredential",
							status: { token, expirationTimestamp: new Date(expiresAt - 30_000).toISOString() },
						}),
					);
				}),
		),
	);
	return group;
}

const APPLY_HELP = `
Example of a file:
  kind: Cluster
  metadata: {name: shop}
  spec:
    version: v1.36.3
    controlPlane: {hosts: [host-1]}
    workers: [{name: workers, hosts: [host-2, host-3]}]`;

const KUBECONFIG_HELP = `
There is no secret in it: kubectl asks gp for a token each time, so it is of use where gp is signed in to the region.

Example:
  gp cluster kubeconfig shop > shop.kubeconfig
  kubectl --kubeconfig shop.kubeconfig get nodes`;

type Wanted = Pick<Cluster, "metadata" | "spec">;

async function readClusters(file: string): Promise<Wanted[]> {
	const { parseAllDocuments } = await import("yaml");
	let text = "";
	if (file === "-") for await (const chunk of process.stdin) text += chunk;
	else {
		text = await readFile(file, "utf8").catch((cause: Error) => {
			throw new GroundplaneError("InvalidInput", `Can't read ${file}: ${cause.message}`, {
				next: "Check the path.",
				cause,
			});
		});
	}
	const refuse = (why: string) => {
		throw new GroundplaneError("InvalidInput", `${file}: ${why}`, {
			next: "It must hold objects with kind: Cluster, metadata.name and spec. See gp cluster apply --help for an example.",
		});
	};
	const documents = parseAllDocuments(text).filter((document) => document.contents !== null);
	if (documents.length === 0) refuse("there is nothing in it.");
	return documents.map((document) => {
		const [problem] = document.errors;
		if (problem) refuse(problem.message);
		const object = document.toJS() as Partial<Cluster> | null;
		if (object?.kind !== "Cluster") refuse(`kind is ${object?.kind ?? "missing"}, not Cluster.`);
		if (!object?.metadata?.name || !object.spec) refuse("metadata.name or spec is missing.");
		return object as Wanted;
	});
}

async function apply(session: Session, { metadata, spec }: Wanted, options: WaitOptions): Promise<void> {
	const { name, labels } = metadata;
	const body = { metadata: { name, ...(labels && { labels }) }, spec };
	const existing = await get(session, name).catch((error: unknown) => {
		if (error instanceof GroundplaneError && error.code === "NotFound") return undefined;
		throw error;
	});
	const applied = existing
		? await session.call<Cluster>("PUT", path(name), body)
		: await session.call<Cluster>("POST", "/api/v1/clusters", body);
	const isChanged = existing?.metadata.generation !== applied.metadata.generation;
	const what = existing ? (isChanged ? "changed" : "unchanged") : "made";
	if (options.wait) {
		terminal.err(`${name} is ${what}; waiting until it is ready.`);
		await waitReady(session, name, durationMs(options.timeout));
	}
	const words = () => `${name} is ${options.wait ? "ready" : what}.`;
	await printOne(applied, { format: options.output, name: `cluster/${name}`, words });
}

async function waitGone(session: Session, name: string, timeoutMs: number): Promise<void> {
	await waitFor(`The end of cluster ${name}`, timeoutMs, async () => {
		try {
			const { status } = await get(session, name);
			return { isDone: false, progress: `${name}: ${progressOf(status)}` };
		} catch (error) {
			if (error instanceof GroundplaneError && error.code === "NotFound") return { isDone: true, progress: "" };
			throw error;
		}
	});
}

/** Prints each step until the person has seen enough. */
async function watchCluster(session: Session, name: string): Promise<void> {
	await waitFor(`Cluster ${name}`, Number.POSITIVE_INFINITY, async () => {
		const { status } = await get(session, name);
		const ready = status?.conditions?.find(({ type }) => type === "Ready");
		const why = status?.progress === undefined && ready?.status === "False" ? `: ${ready.message}` : "";
		return { isDone: false, progress: `${progressOf(status)}${why}` };
	});
}

/** What `--force` costs, as the reason why it is not done without `--yes`. */
async function priceOfForce(session: Session, name: string): Promise<GroundplaneError> {
	const { spec, status } = await get(session, name);
	const members = status?.members ?? [];
	const out = members.filter(({ phase }) => phase === "NotReady" || phase === "Failed").map(({ host }) => host);
	const gone =
		out.length > 0
			? ` Not well now: ${out.join(", ")}; what runs there goes on until the host is in contact again.`
			: "";
	if (spec.adopt)
		return new GroundplaneError(
			"PrerequisiteNotMet",
			`--force releases ${name} at once: it runs on, and a host that is out of reach takes the region's access back at its next contact.`,
			{ next: `Leave --force out to wait for that, or run: gp cluster delete ${name} --force --yes` },
		);
	return new GroundplaneError(
		"PrerequisiteNotMet",
		`--force ends ${name} at once on all of its ${members.length} hosts: pods are killed without notice or drain, and what they kept in their containers and in emptyDir volumes is lost; hostPath directories and local-path volumes stay on the hosts' disks. A host that can't be cleaned now is not waited for: it is listed in its status (leftBehind), can't join another cluster, and cleans itself at its next contact.${gone}`,
		{ next: `Leave --force out to end it in order, or run: gp cluster delete ${name} --force --yes` },
	);
}

/** The region's kubeconfig, with the absolute path of this gp and its configuration in it. */
async function kubeconfig(session: Session, name: string): Promise<string> {
	const { parse, stringify } = await import("yaml");
	const config = parse(await session.call<string>("GET", `${path(name)}/kubeconfig`)) as {
		users: { user: { exec: Record<string, unknown> } }[];
	};
	const exec = config.users[0]?.user.exec;
	if (!exec) {
		throw new GroundplaneError("Internal", "The region's kubeconfig has no credential plugin.", {
			next: "Update gp and the region.",
		});
	}
	const [program, ...first] = await selfCommand();
	exec.command = program;
	exec.args = [...first, "cluster", "credential", "--region", session.domain];
	if (process.env.GROUNDPLANE_CONFIG) exec.env = [{ name: "GROUNDPLANE_CONFIG", value: configStore().path }];
	return stringify(config, { lineWidth: 0 });
}

/** How to start this very gp from anywhere: its launcher, the single executable, or Node with the source. */
async function selfCommand(): Promise<string[]> {
	if (process.env.GROUNDPLANE_GP_PATH) return [process.env.GROUNDPLANE_GP_PATH];
	const { isSea } = await import("node:sea");
	return isSea() || !process.argv[1] ? [process.execPath] : [process.execPath, process.argv[1]];
}

function describe({ metadata, spec, status = {} }: Cluster): string {
	const members = status.members ?? [];
	return [
		section(metadata.name, [
			`phase     ${progressOf(status)}`,
			`version   ${status.version ?? spec.version}`,
			`endpoint  ${status.endpoint ?? "-"}`,
			`networks  pods ${spec.network.podSubnet}, services ${spec.network.serviceSubnet}, ${spec.network.cni}`,
		]),
		members.length === 0
			? ""
			: `${table(members, [
					["host", ({ host }) => host],
					["role", ({ role, pool }) => (pool ? `${role} (${pool})` : role)],
					["phase", ({ phase }) => phase],
					["version", ({ version }) => version],
					["message", ({ message }) => message],
				])}\n`,
		conditions(status.conditions),
	]
		.filter(Boolean)
		.join("\n");
}
