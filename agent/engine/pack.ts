import { createHash } from "node:crypto";
import mustache from "mustache";
import { parse } from "yaml";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import type { ReleaseManifest } from "../../protocol/release.ts";
import { primitives } from "../primitives/index.ts";
import type { RoleFacts } from "./facts.ts";

const name = z.string().regex(/^[a-z][a-zA-Z0-9]*$/);
const milliseconds = z
	.string()
	.regex(/^\d+[smh]$/)
	.transform(
		(text) => Number.parseInt(text, 10) * { s: 1000, m: 60_000, h: 3_600_000 }[text.at(-1) as "s" | "m" | "h"],
	);

const packStep = z.strictObject({
	/** A template: with `each` it must tell the steps apart. */
	name: z.string(),
	use: z.string(),
	/** Names of `values` that must all hold, or give some text; `!name` negates. */
	when: z.array(z.string().regex(/^!?[a-z][a-zA-Z0-9]*$/)).default([]),
	/** One step for every string (`item`), or for every file of the bundle below a path (`item.path`, `item.base`, `item.reference`). */
	each: z
		.union([
			z.array(z.string()),
			z.strictObject({
				files: z.string(),
				only: z.array(z.string()).optional(),
				except: z.array(z.string()).default([]),
			}),
		])
		.optional(),
	/** What the primitive is told; every string is a template. `template: x` in place of `content` loads pack/templates/x. */
	with: z.record(z.string(), z.unknown()).default({}),
	/** Names of earlier steps whose change is one of this step too. */
	restartOn: z.array(z.string()).default([]),
	timeout: milliseconds.prefault("1m"),
	/** How often it is looked at while all is well; the engine's own interval when empty. */
	recheck: milliseconds.optional(),
});

/** `pack/pack.yaml` of a role's bundle: what the engine does to make a host play the role, as data. */
export const packSchema = z.strictObject({
	schema: z.literal(1),
	name: z.string(),
	/** JSON Schema of the parameters. */
	parameters: z.record(z.string(), z.unknown()),
	/** Parameters that must not appear in a log or a status. */
	secrets: z.array(z.string()).default([]),
	/** Templates. When what they give changes, the role is undone and made anew instead of being changed. */
	identity: z.array(z.string()).default([]),
	/** Names for the templates: a template gives a string; a table of path → allowed values gives a condition. */
	values: z.record(name, z.union([z.string(), z.record(z.string(), z.array(z.unknown()))])).default({}),
	steps: z.array(packStep),
});
export type Pack = z.output<typeof packSchema>;

/** A step with everything filled in: what is to be done on this host. */
export interface Step {
	readonly name: string;
	readonly use: string;
	readonly want: unknown;
	readonly key: string;
	/** SHA-256 over what it wants, files of the bundle by their digest. */
	readonly digest: string;
	readonly timeout: number;
	readonly recheck: number | undefined;
}

export interface RenderedRole {
	readonly steps: readonly Step[];
	readonly identity: string;
	/** Values to blot out wherever text leaves the engine. */
	readonly secrets: readonly string[];
}

/** Text files of a pack: path inside the bundle → content. */
export type PackFiles = ReadonlyMap<string, string>;

/** Fills a pack's steps with a role's parameters. Pure. Throws InvalidInput for parameters that the pack refuses. */
export function render(
	manifest: ReleaseManifest,
	files: PackFiles,
	input: Readonly<Record<string, unknown>>,
	facts: RoleFacts,
): RenderedRole {
	const pack = readPack(files);
	const parameters = validate(pack, input);
	const view: Record<string, unknown> = {
		parameters,
		facts,
		release: { version: manifest.version, components: manifest.components },
		enumerated: enumerate(parameters),
		images: Object.fromEntries(
			manifest.files
				.filter(({ kind }) => kind === "image")
				.map(({ path, reference }) => [baseName(path), reference ?? ""]),
		),
	};
	view.json = () => (path: string) => JSON.stringify(lookUp(view, path.trim()) ?? null);
	const text = (template: string, item?: unknown) =>
		mustache.render(template, item === undefined ? view : { ...view, item }, {}, { escape: String });
	const conditions = new Map<string, boolean>();
	for (const [key, value] of Object.entries(pack.values)) {
		const result =
			typeof value === "string"
				? text(value)
				: Object.entries(value).every(([path, allowed]) => allowed.includes(lookUp(view, path)));
		conditions.set(key, typeof result === "boolean" ? result : result !== "");
		view[key] = result;
	}

	const steps: Step[] = [];
	for (const step of pack.steps) {
		const holds = step.when.every((condition) => {
			const value = conditions.get(condition.replace("!", ""));
			if (value === undefined) throw broken(`step ${step.name} asks for an unknown condition ${condition}`);
			return condition.startsWith("!") ? !value : value;
		});
		if (!holds) continue;
		for (const item of itemsOf(step.each, manifest)) {
			const primitive = primitives[step.use];
			if (!primitive) throw broken(`step ${step.name} uses ${step.use}, which this agent does not know`);
			const filled = fill(step.with, (template) => text(template, item), files) as Record<string, unknown>;
			if (step.restartOn.length > 0)
				filled.triggers = step.restartOn.map((prefix) => {
					const before = steps.filter((one) => one.name === prefix || one.name.startsWith(`${prefix}/`));
					if (before.length === 0)
						throw broken(`step ${step.name} restarts on ${prefix}, which does not come before it`);
					return before.map(({ digest }) => digest).join();
				});
			const parsed = primitive.schema.safeParse(filled);
			if (!parsed.success) throw broken(`step ${step.name}: ${z.prettifyError(parsed.error)}`);
			const want = parsed.data;
			steps.push({
				name: text(step.name, item),
				use: step.use,
				want,
				key: primitive.key(want),
				digest: digest([step.use, want, blobDigest(want, manifest)]),
				timeout: step.timeout,
				recheck: step.recheck,
			});
		}
	}
	const twice = steps.find(({ name }, index) => steps.findIndex((other) => other.name === name) !== index);
	if (twice) throw broken(`two steps are named ${twice.name}`);
	return {
		steps,
		identity: JSON.stringify(pack.identity.map((template) => text(template))),
		secrets: pack.secrets.map((key) => parameters[key]).filter((value) => typeof value === "string"),
	};
}

function readPack(files: PackFiles): Pack {
	const source = files.get("pack/pack.yaml");
	if (source === undefined) throw broken("it has no pack/pack.yaml");
	const pack = packSchema.safeParse(parse(source));
	if (!pack.success) throw broken(z.prettifyError(pack.error));
	return pack.data;
}

function validate(pack: Pack, input: Readonly<Record<string, unknown>>): Record<string, unknown> {
	const parameters = z.fromJSONSchema(pack.parameters as never).safeParse(input);
	if (parameters.success) return parameters.data as Record<string, unknown>;
	throw new GroundplaneError(
		"InvalidInput",
		`parameters of role ${pack.name}: ${z.prettifyError(parameters.error).replaceAll(/\s*\n\s*/g, " ")}`,
		{ next: "Correct the role's parameters in the Host, or the Cluster that they come from." },
	);
}

/** Lists and tables as `[{index, key, value}]`, for templates that number or pair things. */
function enumerate(parameters: Readonly<Record<string, unknown>>): Record<string, unknown> {
	const tables = Object.entries(parameters).filter(([, value]) => typeof value === "object" && value !== null);
	return Object.fromEntries(
		tables.map(([name, table]) => [
			name,
			Object.entries(table as object).map(([key, value], index) => ({ index, key, value })),
		]),
	);
}

const baseName = (path: string) => path.slice(path.lastIndexOf("/") + 1).replace(/\.tar$/, "");

function itemsOf(each: Pack["steps"][number]["each"], manifest: ReleaseManifest): unknown[] {
	if (each === undefined) return [undefined];
	if (Array.isArray(each)) return each;
	return manifest.files
		.filter(({ path }) => path.startsWith(each.files))
		.filter(({ path }) => each.only?.includes(baseName(path)) ?? !each.except.includes(baseName(path)))
		.map(({ path, reference }) => ({
			path,
			reference,
			base: baseName(path),
		}));
}

/** Fills the templates in a step's `with`; a list in the pack may be one template that gives JSON. */
function fill(value: unknown, text: (template: string) => string, files: PackFiles): unknown {
	if (typeof value === "string") return text(value);
	if (Array.isArray(value)) return value.map((element) => fill(element, text, files));
	if (typeof value !== "object" || value === null) return value;
	const { template, json, ...rest } = value as Record<string, unknown>;
	if (typeof json === "string") return JSON.parse(text(json));
	const filled = Object.fromEntries(Object.entries(rest).map(([key, element]) => [key, fill(element, text, files)]));
	if (typeof template !== "string") return filled;
	const content = files.get(`pack/${template}`);
	if (content === undefined) throw broken(`pack/${template} is missing`);
	return { ...filled, content: template.endsWith(".mustache") ? text(content) : content };
}

function lookUp(view: Readonly<Record<string, unknown>>, path: string): unknown {
	return path
		.split(".")
		.reduce<unknown>(
			(at, key) => (typeof at === "object" && at !== null ? (at as Record<string, unknown>)[key] : undefined),
			view,
		);
}

function blobDigest(want: unknown, manifest: ReleaseManifest): string | undefined {
	const blob = (want as { blob?: unknown }).blob;
	if (typeof blob !== "string") return undefined;
	const file = manifest.files.find(({ path }) => path === blob);
	if (!file) throw broken(`the file ${blob} is missing`);
	return file.sha256;
}

const digest = (value: unknown) => createHash("sha256").update(JSON.stringify(value)).digest("hex");

const broken = (what: string) =>
	new GroundplaneError("InvalidInput", `the role pack is broken: ${what}`, {
		next: "Take another version of the bundle, or a newer agent; this bundle can't be installed.",
	});
