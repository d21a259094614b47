//go:build unix

package pgtest

import (
	"bufio"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/jetpost/jetpost/internal/testkit"
)

// debianBinaries is where Debian and Ubuntu keep each version's server
// programs, which are not on the PATH there.
const debianBinaries = "/usr/lib/postgresql/*/bin"

// superuser owns every private cluster. It has no password: the socket is in a
// directory that only its owner may enter.
const superuser = "jetpost"

// Cluster is a private PostgreSQL server. It listens on a Unix socket only, so
// that no two clusters ever compete for a port.
type Cluster struct {
	bin string // directory of initdb, pg_ctl and postgres
	dir string // data, log and socket; owned by the user that the server runs as

	// lifeline is the pipe that the guard reads: the server ends with it. The kernel
	// closes it when this process dies, even by kill -9.
	lifeline io.WriteCloser
	guard    *exec.Cmd // nil while stopped
}

// guardScript runs beside the test process and ends the server with it.
//
//go:embed guard.sh
var guardScript string

// shared starts the cluster of this test process for the first test that needs it. It
// is a variable of the package because nothing shorter-lived spans all tests of a
// process. The guard stops it.
var shared = sync.OnceValues(func() (*Cluster, error) {
	c, err := newCluster()
	if err != nil {
		return nil, err
	}
	return c, c.start()
})

// Start runs a cluster for this test alone, which may stop and restart it.
func Start(t testkit.T) *Cluster {
	t.Helper()
	c, err := newCluster()
	if err != nil {
		t.Fatal(err)
	}
	c.endWith(t)
	c.Restart(t)
	return c
}

// endWith ends the cluster with the test.
func (c *Cluster) endWith(t testkit.T) {
	t.Helper()
	t.Cleanup(func() {
		if c.guard != nil {
			if err := c.lifeline.Close(); err != nil {
				t.Errorf("end cluster: %v", err)
			}
			if err := c.guard.Wait(); err != nil {
				t.Errorf("end cluster: %v", err)
			}
		}
		if err := os.RemoveAll(c.dir); err != nil {
			t.Errorf("remove cluster: %v", err)
		}
	})
}

// URL is the cluster's own database, which is empty at first.
func (c *Cluster) URL() string {
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/postgres"}
	u.RawQuery = url.Values{"host": {c.dir}}.Encode()
	return u.String()
}

// Stop ends the server like a crash: sessions are cut, nothing is flushed, and the next
// start recovers. Commits survive.
func (c *Cluster) Stop(t testkit.T) {
	t.Helper()
	if c.guard == nil {
		return
	}
	if _, err := io.WriteString(c.lifeline, "stop\n"); err != nil {
		t.Fatalf("stop cluster: %v", err)
	}
	if err := c.guard.Wait(); err != nil {
		t.Fatalf("stop cluster: %v", err)
	}
	c.guard = nil
}

// Restart stops the server, if it runs, and starts it on the same data and at the same
// URL.
func (c *Cluster) Restart(t testkit.T) {
	t.Helper()
	c.Stop(t)
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
}

func newCluster() (*Cluster, error) {
	bin, err := findBinaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "jetpost-pg-")
	if err != nil {
		return nil, fmt.Errorf("create cluster directory: %w", err)
	}
	if owner := serverUser(); owner != nil {
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return nil, fmt.Errorf("hand cluster directory to the server's user: %w", err)
		}
	}
	return &Cluster{bin: bin, dir: dir}, nil
}

// start runs the guard and waits until it says that the server is ready.
func (c *Cluster) start() error {
	guard := exec.Command("/bin/sh", "-c", guardScript, "guard", c.bin, c.dir, superuser)
	guard.Dir = c.dir // initdb complains about a directory it may not enter
	guard.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	// An own session keeps the terminal's interrupt from killing the guard
	// before it has done its work.
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: serverUser()}
	lifeline, err := guard.StdinPipe()
	if err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	answer, err := guard.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	if err := guard.Start(); err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	line, err := bufio.NewReader(answer).ReadString('\n')
	if err != nil || line != "ready\n" {
		logs, _ := os.ReadFile(filepath.Join(c.dir, "log"))
		return errors.Join(fmt.Errorf("start cluster with %s: the guard said %q\n%s", c.bin, line, logs),
			lifeline.Close(), guard.Wait())
	}
	c.lifeline, c.guard = lifeline, guard
	return nil
}

// serverUser is the user that the server runs as, nil for the user of this process:
// PostgreSQL refuses to run as root.
func serverUser() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return nil
}

// findBinaries returns the directory of the server programs: the one on the PATH,
// otherwise the highest installed version.
func findBinaries() (string, error) {
	candidates, err := filepath.Glob(debianBinaries)
	if err != nil {
		return "", fmt.Errorf("find PostgreSQL: %w", err)
	}
	slices.SortFunc(candidates, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
	candidates = slices.Concat(filepath.SplitList(os.Getenv("PATH")), candidates)
	for _, dir := range candidates {
		if complete(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find PostgreSQL: no initdb, pg_ctl and postgres in PATH or %s: "+
		"install it (apt-get install postgresql), or set %s, which serves all tests but those that stop a server",
		debianBinaries, serverVariable)
}

func complete(dir string) bool {
	for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}

// version reads 15 from /usr/lib/postgresql/15/bin, and 9.6 as well.
func version(bin string) float64 {
	v, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(bin)), 64)
	return v
}

// Program is the path of a program of the PostgreSQL that tests use, such as pg_dump.
func Program(t testkit.T, name string) string {
	t.Helper()
	bin, err := findBinaries()
	if err != nil {
		t.Fatal(err)
	}
	// A PATH may name some of the programs alone, by links.
	program, err := filepath.EvalSymlinks(filepath.Join(bin, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(filepath.Dir(program), name)
}
