import manifest from "../package.json" with { type: "json" };

/** Version of the platform, from package.json: all parts of a release carry the same. */
export const VERSION: string = manifest.version;
