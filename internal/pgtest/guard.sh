# Usage: guard BIN DIR SUPERUSER, with a pipe from the test process as stdin.
#
# Starts a server in DIR, says "ready", and stays until the pipe tells it to
# stop or ends, which it does when the test process dies in whatever way. Then
# the server is stopped and, unless it is to start again, its files are removed.
bin=$1 dir=$2 superuser=$3
log=$dir/log data=$dir/data

# Tests crash processes, never the machine: nothing needs to reach the disk.
start() {
	if ! [ -d "$data" ]; then
		"$bin/initdb" --pgdata="$data" --username="$superuser" \
			--auth=trust --encoding=UTF8 --locale=C --no-sync >"$log" 2>&1 || return
		echo "autovacuum = off" >>"$data/postgresql.conf" # a test may switch it on
	fi
	"$bin/pg_ctl" start --wait --silent --pgdata="$data" --log="$log" --options="\
		-k '$dir' -c listen_addresses= -c max_connections=500 \
		-c fsync=off -c full_page_writes=off" >>"$log" 2>&1
}

if start; then echo ready; else echo failed; fi
order=
read -r order
[ ! -e "$data/postmaster.pid" ] ||
	"$bin/pg_ctl" stop --wait --silent --mode=immediate --pgdata="$data" >>"$log" 2>&1 || exit
[ "$order" = stop ] || rm -rf "$dir"
