# Usage: guard BIN DIR SUPERUSER, with a pipe from the test process as stdin.
#
# Starts a server in DIR, says "ready", and stays until the pipe tells it to
# stop or ends, which it does when the test process dies in whatever way. Then
# the server is stopped and, unless it is to start again, its files are removed.
bin=$1 dir=$2 superuser=$3
log=$dir/log

# Tests crash processes, never the machine: nothing needs to reach the disk.
start() {
	[ -d "$dir/data" ] || "$bin/initdb" --pgdata="$dir/data" --username="$superuser" \
		--auth=trust --encoding=UTF8 --locale=C --no-sync >"$log" 2>&1 || return
	"$bin/pg_ctl" start --wait --silent --pgdata="$dir/data" --log="$log" --options="\
		-k '$dir' -c listen_addresses= -c max_connections=500 \
		-c fsync=off -c full_page_writes=off -c autovacuum=off" >>"$log" 2>&1
}

if start; then echo ready; else echo failed; fi
order=
read -r order
[ ! -e "$dir/data/postmaster.pid" ] ||
	"$bin/pg_ctl" stop --wait --silent --mode=immediate --pgdata="$dir/data" >>"$log" 2>&1 || exit
[ "$order" = stop ] || rm -rf "$dir"
