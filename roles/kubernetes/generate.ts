import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { stringify } from "yaml";
import { z } from "zod";
import { kubernetesRoleParameters } from "../../protocol/kubernetes-role.ts";

/** The JSON Schema of the role's parameters, as `pack.yaml` carries it for the host. */
export const parametersSchema = () => z.toJSONSchema(kubernetesRoleParameters, { io: "input" });

// `node roles/kubernetes/generate.ts` writes it there; pack.test.ts finds drift.
if (import.meta.main) {
	const path = join(import.meta.dirname, "pack.yaml");
	const [written] = (await readFile(path, "utf8")).split(/^parameters:$/m);
	await writeFile(path, written + stringify({ parameters: parametersSchema() }, { lineWidth: 0 }));
}
