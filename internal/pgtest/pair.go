//go:build unix

package pgtest

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/testkit"
)

// Pair is a server and its synchronous standby: both have every acknowledged commit.
type Pair struct{ Primary, Standby *Cluster }

// promoteSeconds is how long a standby has to become a primary.
const promoteSeconds = 60

// StartPair runs a pair for this test alone.
func StartPair(t testkit.T) *Pair {
	t.Helper()
	p := &Pair{Primary: Start(t)}
	standby, err := newCluster()
	if err != nil {
		t.Fatal(err)
	}
	standby.endWith(t)
	bin := p.Primary.bin
	if program, err := filepath.EvalSymlinks(filepath.Join(bin, "postgres")); err == nil {
		bin = filepath.Dir(program) // a PATH may have only some of the programs
	}
	backup := exec.Command(filepath.Join(bin, "pg_basebackup"), "--pgdata="+filepath.Join(standby.dir, "data"),
		"--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--host="+p.Primary.dir, "--username="+superuser)
	backup.Dir = standby.dir
	backup.SysProcAttr = &syscall.SysProcAttr{Credential: serverUser()}
	if out, err := backup.CombinedOutput(); err != nil {
		t.Fatalf("copy primary: %v\n%s", err, out)
	}
	standby.Restart(t)
	p.Standby = standby
	for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if err := execute(t.Context(), p.Primary.URL(), statement); err != nil {
			t.Fatal(err)
		}
	}
	p.wait(t, p.Primary, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")
	return p
}

// URL is that of the server that takes writes.
func (p *Pair) URL() string {
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/postgres"}
	u.RawQuery = url.Values{
		"host": {p.Primary.dir + "," + p.Standby.dir}, "target_session_attrs": {"read-write"},
	}.Encode()
	return u.String()
}

// Promote makes the standby a primary that takes writes.
func (p *Pair) Promote(t testkit.T) {
	t.Helper()
	if err := execute(t.Context(), p.Standby.URL(), "SELECT pg_promote(true, "+strconv.Itoa(promoteSeconds)+")"); err != nil {
		t.Fatal(err)
	}
	p.wait(t, p.Standby, "SELECT NOT pg_is_in_recovery()")
}

func (*Pair) wait(t testkit.T, c *Cluster, fact string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), promoteSeconds*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for is := false; !is; {
		if err := conn.QueryRow(ctx, fact).Scan(&is); err != nil {
			t.Fatalf("%s: %v", fact, err)
		}
	}
}

// Kill ends every process of the server with SIGKILL, like a power failure. Its data
// stays, and its clients get no message.
func (c *Cluster) Kill(t testkit.T) {
	t.Helper()
	file := filepath.Join(c.dir, "data", "postmaster.pid")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("kill cluster: %v", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	postmaster, err := strconv.Atoi(first)
	if err != nil {
		t.Fatalf("kill cluster: %v", err)
	}
	processes := append([]int{postmaster}, children(postmaster)...)
	for _, pid := range processes {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && pid == postmaster {
			t.Fatalf("kill cluster: %v", err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatalf("kill cluster: %v", err)
	}
}

// children are the processes that a server has started.
func children(parent int) (pids []int) {
	out, _ := exec.Command("ps", "-o", "pid=", "--ppid", strconv.Itoa(parent)).Output()
	for field := range strings.FieldsSeq(string(out)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
