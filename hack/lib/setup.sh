# Sourced by every launcher in hack/: finds the repository, installs the npm packages that the lock file names
# (once, again only when the lock file changed), and puts the Node of node_modules first in PATH.
GP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export GP_ROOT

if ! command -v npm >/dev/null 2>&1; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "Installing npm (Debian packages nodejs and npm) ..." >&2
		apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >&2
	fi
	command -v npm >/dev/null 2>&1 || {
		echo "npm is missing: install Node.js (20 or newer) with npm, and run this again." >&2
		exit 1
	}
fi

gp_install_packages() {
	local wanted
	wanted=$(sha256sum <"$GP_ROOT/package-lock.json" | cut -d' ' -f1)
	[ "$(cat "$GP_ROOT/node_modules/.groundplane-lock" 2>/dev/null)" = "$wanted" ] && return
	# Two launchers started at once must not install over each other.
	exec 9>"$GP_ROOT/.npm-install.lock"
	flock 9
	if [ "$(cat "$GP_ROOT/node_modules/.groundplane-lock" 2>/dev/null)" != "$wanted" ]; then
		echo "Installing npm packages ..." >&2
		# Not `npm ci`: it refuses a lock file without the packages of platforms that a registry does not carry (optional
		# dependencies for other systems). This installs what the lock file says all the same, and writes nothing to it.
		(cd "$GP_ROOT" && npm install --no-save --no-audit --no-fund --loglevel=error >&2) || exit 1
		[ -x "$GP_ROOT/node_modules/.bin/node" ] || {
			echo "npm did not install Node 26 (package node): allow its install script and run this again." >&2
			exit 1
		}
		echo "$wanted" >"$GP_ROOT/node_modules/.groundplane-lock"
	fi
	flock -u 9
	exec 9>&-
}
gp_install_packages
export PATH="$GP_ROOT/node_modules/.bin:$PATH"
