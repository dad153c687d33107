import { z } from "zod";

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);

/** One file of a release bundle, addressed by its content. */
export const releaseFile = z.object({
	/** Path inside the bundle: `bin/kubelet`, `cni/bridge`, `images/coredns.tar`, `pack/pack.yaml`, `manifests/flannel.yaml`. */
	path: z.string().regex(/^[a-z0-9][A-Za-z0-9._-]*(\/[A-Za-z0-9][A-Za-z0-9._-]*)*$/),
	sha256,
	size: z.int().min(0),
	kind: z.enum(["binary", "image", "pack", "manifest", "chart", "package"]),
	/** For images: the reference under which the container runtime knows it. */
	reference: z.string().optional(),
});
export type ReleaseFile = z.output<typeof releaseFile>;

/** Content of a release bundle: the payload of `manifest.jws`, a compact JWS (EdDSA) of the release key. */
export const releaseManifest = z.object({
	schema: z.literal(1),
	name: z.string(),
	version: z.string(),
	architecture: z.enum(["amd64", "arm64"]),
	createdAt: z.string(),
	/** Versions of the parts, such as `{kubernetes: "v1.36.3", etcd: "3.6.5-0", containerd: "v2.4.2"}`. */
	components: z.record(z.string(), z.string()),
	files: z.array(releaseFile),
});
export type ReleaseManifest = z.output<typeof releaseManifest>;

export const RELEASE_MANIFEST_TYPE = "groundplane-release+jwt";
