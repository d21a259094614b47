//go:build unix

package pgtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// childVariable makes this test binary start the shared cluster, say where,
// and wait to be killed.
const childVariable = "JETPOST_PGTEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	cluster, err := shared()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = fmt.Fprintln(os.Stdout, cluster.dir)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	if _, err := findBinaries(); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"=1")
	child.Stderr = os.Stderr
	if _, err := child.StdinPipe(); err != nil { // keeps the child waiting
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("read the child's cluster directory: %v", err)
	}
	cluster := &Cluster{dir: strings.TrimSpace(line)}
	run(t, cluster.URL(), "SELECT 1")
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // "signal: killed" is expected

	// The directory goes last, after the server has stopped.
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(cluster.dir); os.IsNotExist(err) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s is still there", cluster.dir)
		}
	}
}

func TestMigratedClonesOneTemplate(t *testing.T) {
	t.Parallel()
	runs := 0
	migrate := func(ctx context.Context, url string) error {
		runs++
		return execute(ctx, url, "CREATE TABLE made_by_migrate (n int)")
	}
	first, second := Migrated(t, migrate), Migrated(t, migrate)
	run(t, first, "INSERT INTO made_by_migrate VALUES (1)")
	if n := count(t, second, "SELECT count(*) FROM made_by_migrate"); n != 0 {
		t.Errorf("the second database has %d rows of the first", n)
	}
	// An earlier run in this process may have made the template.
	if runs > 1 && os.Getenv(serverVariable) == "" {
		t.Errorf("migrate ran %d times, want at most once", runs)
	}
}

func TestNewIsEmptyAndOwn(t *testing.T) {
	t.Parallel()
	first, second := New(t), New(t)
	run(t, first, "CREATE TABLE mine (n int)")
	if n := count(t, second, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"); n != 0 {
		t.Errorf("a new database has %d relations", n)
	}
}

func TestRestartKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	cluster := Start(t)
	run(t, cluster.URL(), "CREATE TABLE desired (n int)")
	cluster.Stop(t)
	if err := execute(t.Context(), cluster.URL(), "SELECT 1"); err == nil {
		t.Error("a stopped cluster answers")
	}
	cluster.Restart(t)
	run(t, cluster.URL(), "INSERT INTO desired VALUES (1)")
	cluster.Restart(t)
	if n := count(t, cluster.URL(), "SELECT count(*) FROM desired"); n != 1 {
		t.Errorf("%d rows after a restart, want 1", n)
	}
}

func run(t *testing.T, url, statement string) {
	t.Helper()
	if err := execute(t.Context(), url, statement); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, url, query string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
