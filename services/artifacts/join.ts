import type { AgentConfig } from "../../protocol/messages.ts";
import { debianPackage } from "./debian-package.ts";

/** What a stamped package and the script that installs it are made from. */
export interface JoinRegion {
	readonly region: string;
	readonly domain: string;
	/** The region's root, PEM. */
	readonly caBundle: string;
	readonly releaseJwks: AgentConfig["releaseJwks"];
}

export interface StampedToken {
	readonly token: string;
	readonly createdAt: string;
	readonly hostName?: string | undefined;
}

const POSTINST = `#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl enable --quiet gp-agent.service
	systemctl restart gp-agent.service
fi
`;

/** What the agent finds in /etc/groundplane/agent.json. */
export const agentConfigOf = (
	{ region, domain, caBundle, releaseJwks }: JoinRegion,
	{ hostName }: StampedToken,
): AgentConfig => ({
	region,
	address: `${domain}:443`,
	tunnelServerName: `tunnel.${domain}`,
	enrollUrl: `https://${domain}`,
	caBundle,
	releaseJwks,
	...(hostName !== undefined && { hostName }),
});

/** The package `groundplane-agent-config`: where this region is, what to trust, and the token to enrol with. */
export function stampedPackage(region: JoinRegion, token: StampedToken): Buffer {
	const time = Math.floor(Date.parse(token.createdAt) / 1000);
	return debianPackage({
		control: {
			Package: "groundplane-agent-config",
			Version: `1.${time}`,
			Architecture: "all",
			Maintainer: "Groundplane <groundplane@localhost>",
			Depends: "groundplane-agent",
			Section: "admin",
			Priority: "optional",
			Description: `Groundplane agent: configuration for region ${region.region}`,
		},
		scripts: { postinst: POSTINST },
		files: [
			{
				path: "/etc/groundplane/agent.json",
				content: `${JSON.stringify(agentConfigOf(region, token), null, "\t")}\n`,
				mode: 0o644,
			},
			{ path: "/etc/groundplane/join-token", content: `${token.token}\n`, mode: 0o600 },
		],
		time,
	});
}

/** A package that the script downloads. */
export interface Download {
	/** Path under the region's domain. */
	readonly path: string;
	readonly sha256: string;
}

/**
 * The script behind the join command: POSIX sh, all in one function so that half a download does nothing.
 *
 * It trusts the front by its public key (`--pinnedpubkey`), which came with the command out of band, and therefore passes
 * `--insecure`: the region's CA is the region's own and no machine knows it yet, while curl checks the pinned key whatever
 * it thinks of the certificate, before it sends anything. What it installs is checked by digest besides.
 */
export function joinScript(options: {
	region: string;
	domain: string;
	/** `sha256//BASE64` of the front's SubjectPublicKeyInfo. */
	pin: string;
	token: string;
	architecture: string;
	agent: Download;
	config: Download;
}): string {
	const { region, domain, pin, token, architecture, agent, config } = options;
	return `#!/bin/sh
# Joins this machine to the Groundplane region ${region}: installs the agent, which dials ${domain}:443 and nothing else.
set -eu

fail() {
	echo "gp: $1" >&2
	shift
	for line; do echo "    → $line" >&2; done
	exit 1
}

# get PATH FILE SHA256
get() {
	curl -fsSk --retry 3 --connect-timeout 15 --pinnedpubkey '${pin}' -H "@$work/header" -o "$work/$2" "https://${domain}$1" ||
		fail "can't download $1" "If the token has expired, ask for a new command: gp host join-command" \\
			"Behind a proxy, set https_proxy first."
	echo "$3  $work/$2" | sha256sum -c --status - ||
		fail "$2 is not what the region announced" \\
			"Run the command again; if it stays, something between here and the region changes downloads."
}

main() {
	sudo=
	if [ "$(id -u)" != 0 ]; then
		sudo=sudo
		command -v sudo >/dev/null || fail "this needs root, and there is no sudo" "Run the command as root."
	fi
	for tool in curl dpkg systemctl sha256sum; do
		command -v "$tool" >/dev/null || fail "$tool is missing" "Groundplane hosts are Debian or Ubuntu with systemd."
	done
	[ -d /run/systemd/system ] || fail "systemd does not run here" "Groundplane hosts are machines, not containers."
	[ "$(dpkg --print-architecture)" = ${architecture} ] ||
		fail "this machine is $(dpkg --print-architecture)" "The region has packages for ${architecture}."

	umask 077
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	echo 'Authorization: Bearer ${token}' >"$work/header"

	echo "Downloading the agent of region ${region} …"
	get ${agent.path} agent.deb ${agent.sha256}
	get ${config.path} config.deb ${config.sha256}

	proxy=\${https_proxy:-\${HTTPS_PROXY:-}}
	if [ -n "$proxy" ]; then
		case $proxy in
		*[!-A-Za-z0-9._~:/?#@!$\\&\\'\\(\\)*+,\\;=%]*) fail "https_proxy is not a URL" "Percent-encode what is unusual in it." ;;
		esac
		except=\${no_proxy:-\${NO_PROXY:-}}
		case $except in
		*[!]A-Za-z0-9._:/*,\\ [-]*) fail "no_proxy is not a list of names, addresses and networks" "Separate them by commas." ;;
		esac
		{
			printf 'https_proxy="%s"\\n' "$proxy"
			[ -z "$except" ] || printf 'no_proxy="%s"\\n' "$except"
		} | $sudo sh -c 'umask 077; cat >/etc/default/groundplane-agent'
		echo "The agent will use the proxy in https_proxy, kept in /etc/default/groundplane-agent."
	fi

	echo "Installing …"
	$sudo sh -c 'umask 022; DEBIAN_FRONTEND=noninteractive exec dpkg -i "$@"' sh "$work/agent.deb" "$work/config.deb" \\
		>"$work/log" 2>&1 || {
		cat "$work/log" >&2
		fail "the packages could not be installed" "If something they depend on is missing: apt-get -f install"
	}

	# The agent removes its token once it has enrolled.
	for _ in $(seq 60); do
		[ -e /etc/groundplane/join-token ] || break
		sleep 0.5
	done
	if [ -e /etc/groundplane/join-token ]; then
		$sudo journalctl -u gp-agent.service -n 15 --no-pager -o cat >&2 || true
		fail "installed, but not enrolled yet; the agent keeps trying" "Follow it: journalctl -fu gp-agent"
	fi
	echo "This machine is enrolled in region ${region}. See it there with: gp host list"
}

main "$@"
`;
}

/** A script that does nothing but say what is wrong. */
export function refusalScript({ code, message, next }: { code: string; message: string; next: string }): string {
	const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
	return `#!/bin/sh
echo ${quoted(`gp: ${message} (${code})`)} >&2
echo ${quoted(`    → ${next}`)} >&2
exit 1
`;
}
