import { homedir } from "node:os";
import path from "node:path";

/** Where downloads and built things are kept between runs; safe to delete at any time. */
export function cacheDirectory(...parts: readonly string[]): string {
	const { GROUNDPLANE_CACHE, XDG_CACHE_HOME } = process.env;
	const root = GROUNDPLANE_CACHE ?? path.join(XDG_CACHE_HOME ?? path.join(homedir(), ".cache"), "groundplane");
	return path.join(root, ...parts);
}
