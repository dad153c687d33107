import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { stringify } from "yaml";
import { z } from "zod";
import { API_GROUP, API_VERSION, type CrdDefinition } from "./common.ts";
import { definitions } from "./index.ts";

// node crds/generate.ts          writes crds/generated/*.yaml
// node crds/generate.ts --check  fails when they are not what the zod sources say

type Schema = Record<string, unknown>;

/** What a structural schema may hold (KEP-1693, "Specifying a structural schema"), beside `x-kubernetes-*`. */
const keywords = [
	"description",
	"type",
	"format",
	"enum",
	"default",
	"nullable",
	"minimum",
	"maximum",
	"exclusiveMinimum",
	"exclusiveMaximum",
	"multipleOf",
	"minLength",
	"maxLength",
	"pattern",
	"minItems",
	"maxItems",
	"minProperties",
	"maxProperties",
	"required",
];

/**
 * The structural schema of a zod type, as its input: what has a default is not required, and the API server fills it in.
 * A keyword that a CRD can't hold is an error here, not a silent loss.
 */
export function structuralSchema(type: z.ZodType): Schema {
	return structural(
		z.toJSONSchema(type, { io: "input", target: "openapi-3.0", reused: "inline", cycles: "throw" }) as Schema,
		"",
	);
}

function structural(schema: Schema, path: string): Schema {
	const out: Schema = {};
	for (const keyword of keywords) if (schema[keyword] !== undefined) out[keyword] = schema[keyword];
	for (const [key, value] of Object.entries(schema)) {
		if (key.startsWith("x-kubernetes-")) out[key] = value;
		else if (!keywords.includes(key) && !handled.has(key)) {
			throw new Error(`${path || "."}: a CRD can't express "${key}"; write it as a CEL rule, or differently in zod`);
		}
	}
	if (out.type === "integer") {
		// zod's bounds of a safe integer say nothing to a reader.
		if (out.minimum === Number.MIN_SAFE_INTEGER) delete out.minimum;
		if (out.maximum === Number.MAX_SAFE_INTEGER) delete out.maximum;
		out.format = "int64";
	}
	const properties = schema.properties as Record<string, Schema> | undefined;
	if (properties !== undefined) {
		out.properties = Object.fromEntries(
			Object.entries(properties).map(([name, property]) => [name, structural(property, `${path}.${name}`)]),
		);
	}
	if (out.default !== undefined) out.default = withDefaults(out.default, out);
	if (schema.items !== undefined) out.items = structural(schema.items as Schema, `${path}[]`);
	const extra = schema.additionalProperties;
	// `false` is forbidden in CRDs: unknown fields are pruned, and refused under strict field validation.
	if (typeof extra === "object" && extra !== null && out["x-kubernetes-preserve-unknown-fields"] !== true) {
		out.additionalProperties = structural(extra as Schema, `${path}{}`);
	}
	if (out.type === undefined && out["x-kubernetes-preserve-unknown-fields"] !== true) {
		throw new Error(`${path || "."}: every node of a structural schema needs a type`);
	}
	return out;
}

/**
 * A default with the defaults of its properties filled in: the API server checks CEL rules against a default as it is written,
 * although it would fill it in later.
 */
function withDefaults(value: unknown, schema: Schema): unknown {
	if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
	const filled: Schema = { ...value };
	for (const [name, property] of Object.entries((schema.properties ?? {}) as Record<string, Schema>)) {
		const inner = filled[name] ?? property.default;
		if (inner !== undefined) filled[name] = withDefaults(inner, property);
	}
	return filled;
}

/** Read by name above, or without meaning in a CRD (`propertyNames`: keys are strings anyway; `id`, `$schema`). */
const handled = new Set(["properties", "items", "additionalProperties", "propertyNames", "$schema", "id"]);

/** The CustomResourceDefinition of a kind. */
export function customResourceDefinition(definition: CrdDefinition): Schema {
	const { kind, plural, singular, shortNames, scope, description, spec, status, rules, printerColumns } = definition;
	return {
		apiVersion: "apiextensions.k8s.io/v1",
		kind: "CustomResourceDefinition",
		metadata: {
			name: `${plural}.${API_GROUP}`,
			labels: { "app.kubernetes.io/part-of": "groundplane" },
		},
		spec: {
			group: API_GROUP,
			names: {
				kind,
				plural,
				singular,
				listKind: `${kind}List`,
				shortNames: [...shortNames],
				categories: ["groundplane"],
			},
			scope,
			versions: [
				{
					name: API_VERSION,
					served: true,
					storage: true,
					subresources: { status: {} },
					additionalPrinterColumns: printerColumns,
					schema: {
						openAPIV3Schema: {
							description,
							type: "object",
							required: ["spec"],
							properties: {
								apiVersion: { type: "string" },
								kind: { type: "string" },
								metadata: { type: "object" },
								spec: structuralSchema(spec),
								status: structuralSchema(status),
							},
							...(rules === undefined ? {} : { "x-kubernetes-validations": rules }),
						},
					},
				},
			],
		},
	};
}

/** All definitions as files: name → YAML. */
export function generate(): Map<string, string> {
	return new Map(
		definitions.map((definition) => [
			`${API_GROUP}_${definition.plural}.yaml`,
			`# Generated from crds/${definition.singular}.ts by \`npm run generate\`. Do not edit.\n${stringify(
				customResourceDefinition(definition),
				{ lineWidth: 0, aliasDuplicateObjects: false },
			)}`,
		]),
	);
}

async function main(args: readonly string[]): Promise<number> {
	const directory = join(dirname(fileURLToPath(import.meta.url)), "generated");
	const files = generate();
	await mkdir(directory, { recursive: true });
	const present = (await readdir(directory)).filter((name) => name.endsWith(".yaml"));
	const stale = present.filter((name) => !files.has(name));
	const changed: string[] = [];
	for (const [name, text] of files) {
		const old = present.includes(name) ? await readFile(join(directory, name), "utf8") : undefined;
		if (old !== text) changed.push(name);
	}
	if (args.includes("--check")) {
		for (const name of [...changed, ...stale]) {
			console.error(`crds/generated/${name} is not what the sources say: run npm run generate`);
		}
		return changed.length + stale.length === 0 ? 0 : 1;
	}
	for (const name of stale) await rm(join(directory, name));
	for (const name of changed) await writeFile(join(directory, name), files.get(name) ?? "");
	return 0;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
