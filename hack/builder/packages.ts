import { access } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";
import { locked } from "./cache.ts";
import { part, run } from "./run.ts";

/** Debian packages behind the programs and headers that builds, the lab and tests need. A path means: the package is there when the file is. */
const packages = {
	buildah: "buildah",
	mmdebstrap: "mmdebstrap",
	gcc: "gcc",
	"pkg-config": "pkg-config",
	"dpkg-deb": "dpkg",
	strip: "binutils",
	patchelf: "patchelf",
	"/usr/include/seccomp.h": "libseccomp-dev",
	"/usr/include/stdlib.h": "libc6-dev",
	"/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
	// The lab.
	"systemd-nspawn": "systemd-container",
	ip: "iproute2",
	nft: "nftables",
	nsenter: "util-linux",
	unshare: "util-linux",
	sysctl: "procps",
	tar: "tar",
	// Integration tests: the real things, run as local processes.
	"/usr/lib/postgresql": "postgresql",
	haproxy: "haproxy",
	promtool: "prometheus",
	curl: "curl",
	openssl: "openssl",
} as const;

export type Needed = keyof typeof packages;

/** Makes sure that programs of Debian packages are there: installs them as root, else says what to install. */
export async function needPackages(...needed: Needed[]): Promise<void> {
	if ((await missing(needed)).length === 0) return;
	await locked("apt", async () => {
		const names = (await missing(needed)).map((name) => packages[name]);
		if (names.length === 0) return;
		const hint = { next: `Install them: apt-get install ${names.join(" ")}` };
		if (process.getuid?.() !== 0)
			throw new GroundplaneError("PrerequisiteNotMet", `Debian packages are missing: ${names.join(", ")}`, hint);
		await part(`install ${names.join(", ")}`, async () => {
			await run("apt-get", ["update", "-qq"], hint);
			await run("apt-get", ["install", "-y", "-qq", "--no-install-recommends", ...names], {
				...hint,
				env: { DEBIAN_FRONTEND: "noninteractive" },
			});
		});
	});
}

async function missing(needed: readonly Needed[]): Promise<Needed[]> {
	const found = await Promise.all(needed.map((name) => (name.startsWith("/") ? exists(name) : inPath(name))));
	return needed.filter((_, index) => !found[index]);
}

async function inPath(name: string): Promise<boolean> {
	const places = [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"].map((directory) =>
		exists(join(directory, name)),
	);
	return (await Promise.all(places)).includes(true);
}

const exists = (path: string) =>
	access(path).then(
		() => true,
		() => false,
	);
