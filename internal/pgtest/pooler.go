//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost/internal/testkit"
)

const (
	// poolerConfig is for transaction mode, with fewer server sessions than a test has
	// clients.
	poolerConfig = `
[databases]
* = host=%s port=%d user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 500
server_reset_query_always = 0
`
	// poolerScript ends the pooler with this process, however that ends.
	poolerScript = `"$0" "$1" & read -r _; kill -INT $!; wait`
	poolerStart  = 30 * time.Second
)

// Pooler starts PgBouncer in transaction mode in front of the server of a database, for
// this test alone. It returns the URL of the same database behind it.
func Pooler(t testkit.T, database string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			t.Fatalf("find PgBouncer: %v: install it (apt-get install pgbouncer)", err)
		}
	}
	server, err := pgconn.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	address := testkit.ClosedAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "jetpost-pooler-") // the server's user may not enter those of a test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(dir, "pgbouncer.ini")
	config := fmt.Sprintf(poolerConfig, server.Host, server.Port, server.User, port)
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil { //nolint:gosec // the server's user reads it
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the same
		t.Fatal(err)
	}
	process := exec.Command("/bin/sh", "-c", poolerScript, program, file)
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: serverUser()}
	lifeline, err := process.StdinPipe()
	if err == nil {
		err = process.Start()
	}
	if err != nil {
		t.Fatalf("start PgBouncer: %v", err)
	}
	t.Cleanup(func() {
		_ = lifeline.Close()
		_ = process.Wait()
	})
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.Host, u.RawQuery = address, "sslmode=disable"
	answers(t, u.String())
	return u.String()
}

// answers waits until a server takes connections.
func answers(t testkit.T, database string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), poolerStart)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, database)
		if err == nil {
			_ = conn.Close(ctx)
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("start PgBouncer: %v", err)
		}
	}
}

// listen takes a port of this machine.
func listen(t testkit.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
