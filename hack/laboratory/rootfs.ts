import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { cacheDirectory } from "../lib/cache.ts";
import { run } from "../lib/exec.ts";

const SUITE = "bookworm";

/** What a small server install has, plus what kubeadm's preflight asks of a host. */
const PACKAGES = [
	"ca-certificates",
	"conntrack",
	"curl",
	"dbus",
	"ethtool",
	"iproute2",
	"iptables",
	"iputils-ping",
	"kmod",
	"nftables",
	"openssl",
	"procps",
	"socat",
	"systemd",
	"systemd-sysv",
	"zstd",
];

/** What has no sense in a lab: there is no terminal and no package mirror. */
const MASKED = ["apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "dpkg-db-backup.timer"];

/** What a host runs as PID 1: see `INIT`. */
export const INIT_PATH = "/usr/local/lib/groundplane-lab/init";

/**
 * The part of a machine that firmware and kernel give and nspawn doesn't: writable cgroup v1 controllers, and a /sys that
 * shows the host's own network interfaces. Done before systemd runs, since nothing may find /sys/fs/cgroup missing.
 */
const INIT = `#!/bin/sh
# A host of the Groundplane lab: makes a container a machine, then becomes systemd.
set -eu
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
	for controller in /sys/fs/cgroup/*/; do
		mount -o remount,rw,bind "\${controller%/}"
	done
fi
mkdir -p /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
# Private, or what happens to /sys would happen to it.
mount --make-rprivate /run/cgroup
umount -R -l /sys
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
mount --make-rshared /sys
umount -R -l /run/cgroup
rmdir /run/cgroup
exec /lib/systemd/systemd
`;

/** The directory of the hosts' common root file system: made once, keyed by what goes into it, never written to afterwards. */
export async function ensureRootfs(log: (line: string) => void): Promise<string> {
	const recipe = [SUITE, ...PACKAGES, ...MASKED, INIT].join("\n");
	const key = createHash("sha256").update(recipe).digest("hex").slice(0, 12);
	const home = cacheDirectory("lab");
	const rootfs = path.join(home, `rootfs-${SUITE}-${key}`);
	if (existsSync(rootfs)) return rootfs;

	log("Making the hosts' root file system (once, about half a minute)");
	await mkdir(home, { recursive: true });
	const work = await mkdtemp(path.join(home, "making-"));
	const made = path.join(work, "root");
	try {
		await run("mmdebstrap", ["--variant=minbase", `--include=${PACKAGES.join(",")}`, SUITE, made], {
			env: { ...process.env, TMPDIR: work, DEBIAN_FRONTEND: "noninteractive" },
		});
		await customize(made);
		// Another run may have been faster: its result is as good as ours.
		await rename(made, rootfs).catch((error: unknown) => {
			if (!existsSync(rootfs)) throw error;
		});
	} finally {
		await rm(work, { recursive: true, force: true });
	}
	return rootfs;
}

async function customize(root: string): Promise<void> {
	await mkdir(path.dirname(path.join(root, INIT_PATH)), { recursive: true });
	await writeFile(path.join(root, INIT_PATH), INIT, { mode: 0o755 });
	await run("systemctl", ["--root", root, "mask", ...MASKED]);
	// Kept logs: they must outlive a power cut.
	await mkdir(path.join(root, "var/log/journal"), { recursive: true });
	for (const file of ["etc/resolv.conf", "etc/hostname", "etc/hosts", "etc/machine-id"]) {
		await rm(path.join(root, file), { force: true });
	}
}
