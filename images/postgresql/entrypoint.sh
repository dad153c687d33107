#!/bin/sh
# Makes the database cluster once, brings roles and databases to what they should be at every start, then becomes the server.
# A crash at any line is repaired by the next start: initdb works beside the final directory and is moved into place when complete,
# and init.sql can run any number of times.
set -eu
umask 0077

data="${DATA_DIR:-/var/lib/postgresql/data}/15"
config="${CONFIG_FILE:-/etc/postgresql/postgresql.conf}"
sockets="${SOCKET_DIR:-/run/postgresql}"
init="${INIT_SQL:-/usr/local/share/groundplane/init.sql}"
# init.sql reads the passwords from these files, so the values never appear in an argument list.
export PASSWORDS_DIR="${PASSWORDS_DIR:-/etc/groundplane/passwords}"

if [ ! -s "$data/PG_VERSION" ]; then
	rm -rf "$data.new"
	initdb --pgdata "$data.new" --username postgres --encoding UTF8 --locale C.UTF-8 --data-checksums \
		--auth-local peer --auth-host reject --no-instructions
	mv "$data.new" "$data"
fi

# Nobody but this script can connect while roles and databases are being made: no TCP, a socket directory of its own.
private="$(mktemp -d)"
# A postmaster.pid of a container that was killed names a process id that may now be somebody else's.
rm -f "$data/postmaster.pid"
pg_ctl start --pgdata "$data" --wait --timeout 600 --silent --log "$private/log" \
	--options "-c config_file=$config -c listen_addresses='' -c port=5432 -c unix_socket_directories='$private' -c logging_collector=off" \
	|| { cat "$private/log" >&2; exit 1; }
psql --host "$private" --username postgres --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 --output /dev/null --file "$init" \
	|| { cat "$private/log" >&2; pg_ctl stop --pgdata "$data" --mode immediate --silent || true; exit 1; }
pg_ctl stop --pgdata "$data" --mode fast --wait --timeout 600 --silent
rm -rf "$private"

exec postgres -D "$data" -c "config_file=$config" -c "unix_socket_directories=$sockets"
