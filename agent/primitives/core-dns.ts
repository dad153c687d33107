import { rm } from "node:fs/promises";
import { parse, stringify } from "yaml";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { writeDurable } from "./durable.ts";
import type { Primitive, StepContext } from "./primitive.ts";
import { isCoreDnsOff, manifestConfiguration } from "./version-change.ts";

const coreDnsWant = z.object({
	wanted: z.boolean(),
	version: z.string(),
	nodeName: z.string(),
	nodeAddress: z.string(),
	/** Directory of kubeadm's patches for this host. */
	patches: z.string().startsWith("/"),
	/** Where kubeadm's configuration for it is written. */
	config: z.string().startsWith("/"),
});

/** All that kubeadm makes of CoreDNS (its phase `addon coredns`), by kind and name. */
const OBJECTS = [
	"Deployment/coredns",
	"Service/kube-dns",
	"ConfigMap/coredns",
	"ServiceAccount/coredns",
	"ClusterRole/system:coredns",
	"ClusterRoleBinding/system:coredns",
];
const KUBEADM_CONFIG = "ConfigMap/kubeadm-config";
/** By which the step `addons-off` finds what belongs to an add-on. */
const LABEL = { key: "groundplane.io/addon", value: "coredns" } as const;

const objectList = z.object({
	items: z.array(
		z.looseObject({
			kind: z.string(),
			metadata: z.looseObject({
				name: z.string(),
				labels: z.record(z.string(), z.string()).default({}),
				/** Who wrote fields of it. */
				managedFields: z.array(z.object({ manager: z.string().default("") })).default([]),
			}),
			data: z.record(z.string(), z.string()).default({}),
		}),
	),
});
type KubeObject = z.output<typeof objectList>["items"][number];

/**
 * CoreDNS as kubeadm makes it, there or not: with a label by which it can be taken away, and kubeadm's own note in the cluster's
 * configuration (`dns.disabled`), without which a change of version would bring back what is off and leave behind what is on.
 * kubeadm writes the objects anew with a version, without the label. The objects themselves end by the step `addons-off`.
 */
export const coreDns: Primitive<z.output<typeof coreDnsWant>, { readonly config: string }> = {
	schema: coreDnsWant,
	key: () => "core-dns",
	async observe({ wanted }, context, applied) {
		const found = await look(context);
		// An API server that does not answer is not a reason to do it again; what was never done is not done by that.
		if (typeof found === "string") return applied.last === applied.now ? { ok: true } : { ok: false, why: found };
		const why = problemOf(found, wanted);
		return why === undefined ? { ok: true } : { ok: false, why };
	},
	remember: async ({ config }) => ({ config }),
	async apply({ wanted, config, ...node }, context) {
		let found = await look(context);
		if (typeof found === "string")
			throw new GroundplaneError("KubernetesUnavailable", found, { next: "It is tried again by itself." });
		const isOff = isCoreDnsOff(configurationOf(found));
		if (!wanted) {
			if (isOff) return;
			// All that is to be taken away has to be found, also what nobody has labelled yet. A cluster that never had kubeadm's, and
			// was made when that was not noted yet, may have a DNS of its people by these names.
			await label(unlabelled(found.filter(isKubeadms)), context);
			await configure(found, { disabled: true }, context);
			return;
		}
		const [foreign] = isOff ? unlabelled(found) : [];
		if (foreign !== undefined)
			throw new GroundplaneError("PrerequisiteNotMet", `the cluster has a DNS of its own: ${foreign} in kube-system`, {
				next: "Take it away, and CoreDNS is installed in its place; or leave addons.coredns off.",
			});
		const cluster = isOff ? await configure(found, { disabled: false }, context) : configurationOf(found);
		if (missing(found).length > 0) {
			await writeDurable(config, manifestConfiguration(cluster, node, `${node.nodeAddress}:6443`), 0o600);
			await context.exec("kubeadm", ["init", "phase", "addon", "coredns", `--config=${config}`], {
				signal: context.signal,
			});
			found = await look(context);
		}
		await label(typeof found === "string" ? OBJECTS : unlabelled(found), context);
	},
	/** The objects live and end with their cluster. */
	undo: ({ config }) => rm(config, { force: true }),
};

/** What the cluster has of it, and kubeadm's configuration; why nobody knows when no API server answers. */
async function look(context: StepContext): Promise<KubeObject[] | string> {
	const { code, stdout, stderr } = await kubectl(
		context,
		["get", "--ignore-not-found", "--show-managed-fields", "--output=json", KUBEADM_CONFIG, ...OBJECTS],
		{ codes: true },
	);
	if (code !== 0) return `no API server answers: ${stderr.trim().slice(-200)}`;
	return objectList.parse(JSON.parse(stdout)).items;
}

const idOf = ({ kind, metadata }: KubeObject): string => `${kind}/${metadata.name}`;
const configurationOf = (found: readonly KubeObject[]): string =>
	found.find((each) => idOf(each) === KUBEADM_CONFIG)?.data.ClusterConfiguration ?? "";
const missing = (found: readonly KubeObject[]): string[] =>
	OBJECTS.filter((id) => !found.some((each) => idOf(each) === id));
const isKubeadms = ({ metadata }: KubeObject): boolean =>
	metadata.managedFields.some(({ manager }) => manager === "kubeadm");
const unlabelled = (found: readonly KubeObject[]): string[] =>
	found.filter((each) => OBJECTS.includes(idOf(each)) && each.metadata.labels[LABEL.key] !== LABEL.value).map(idOf);

function problemOf(found: readonly KubeObject[], wanted: boolean): string | undefined {
	const isOff = isCoreDnsOff(configurationOf(found));
	if (isOff === wanted) return `kubeadm takes CoreDNS for switched ${isOff ? "off" : "on"}`;
	if (!wanted) return undefined;
	const [gone] = missing(found);
	if (gone !== undefined) return `${gone} is missing`;
	const [bare] = unlabelled(found);
	return bare === undefined ? undefined : `${bare} does not bear the label of the add-on`;
}

async function label(ids: readonly string[], context: StepContext): Promise<void> {
	if (ids.length > 0) await kubectl(context, ["label", "--overwrite", ...ids, `${LABEL.key}=${LABEL.value}`]);
}

/** Writes kubeadm's configuration over what was read and nothing newer: another control plane may do the same. Gives it back. */
async function configure(
	found: readonly KubeObject[],
	dns: { readonly disabled: boolean },
	context: StepContext,
): Promise<string> {
	const object = found.find((each) => idOf(each) === KUBEADM_CONFIG);
	const cluster = parse(configurationOf(found)) as { dns?: object };
	// As Go reads it, for which a plain `on` is no text: so may a cluster be called.
	const ClusterConfiguration = stringify({ ...cluster, dns: { ...cluster.dns, ...dns } }, { version: "1.1" });
	// The API server keeps these itself.
	const metadata = { ...object?.metadata, managedFields: undefined };
	const input = JSON.stringify({ ...object, metadata, data: { ...object?.data, ClusterConfiguration } });
	await kubectl(context, ["replace", "--filename=-"], { input });
	return ClusterConfiguration;
}

const kubectl = (
	{ exec, signal }: StepContext,
	args: readonly string[],
	options: { readonly input?: string; readonly codes?: true } = {},
) =>
	exec(
		"kubectl",
		["--kubeconfig=/etc/kubernetes/admin.conf", "--request-timeout=30s", "--namespace=kube-system", ...args],
		{
			...options,
			signal,
		},
	);
