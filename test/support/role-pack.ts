import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import type { RoleFacts } from "../../agent/engine/facts.ts";
import type { ReleaseFile, ReleaseManifest } from "../../protocol/release.ts";

const directory = join(import.meta.dirname, "../../roles/kubernetes");

/** The role pack `kubernetes` by the paths that it has in a bundle. */
export const packFiles: ReadonlyMap<string, string> = new Map(
	readdirSync(directory, { recursive: true, withFileTypes: true })
		.filter((entry) => entry.isFile() && !entry.name.endsWith(".ts"))
		.map((entry) => join(entry.parentPath, entry.name))
		.map((path) => [`pack/${relative(directory, path)}`, readFileSync(path, "utf8")]),
);

/** A bundle that lists these files; nothing of them is there. */
export const packManifest = (files: readonly Omit<ReleaseFile, "size" | "sha256">[]): ReleaseManifest => ({
	schema: 1,
	name: "kubernetes",
	version: "v1.36.3",
	architecture: "amd64",
	createdAt: "2026-11-01T00:00:00Z",
	components: {},
	files: files.map((file, index) => ({ ...file, size: 1, sha256: index.toString(16).padStart(64, "0") })),
});

/** A host that a pack is rendered for. */
export const packFacts: RoleFacts = {
	hostname: "host-1",
	architecture: "amd64",
	cgroup: "v2",
	resourceCapability: true,
	cores: 2,
	primaryAddress: "10.0.0.11",
};
