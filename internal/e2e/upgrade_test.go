package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// upgradeFrom names the commit whose program is upgraded; the one before this where empty.
const upgradeFrom = "JETPOST_UPGRADE_FROM"

const upgradedJobs, upgradedWorkers = 2000, 3

// earlier builds the program of an earlier commit, or skips the test where git has none.
func earlier(t *testing.T) (program, commit string) {
	t.Helper()
	git := func(args ...string) ([]byte, error) {
		return exec.CommandContext(t.Context(), "git", append([]string{"-C", "../.."}, args...)...).Output()
	}
	from := cmp.Or(os.Getenv(upgradeFrom), "HEAD~1")
	out, err := git("rev-parse", "--verify", "--quiet", from+"^{commit}")
	if err != nil {
		t.Skipf("skipped: git has no commit %s here; fetch the history, or name one in %s", from, upgradeFrom)
	}
	commit = strings.TrimSpace(string(out))
	dir := t.TempDir()
	source, err := git("archive", "--format=tar", commit)
	testkit.Must(t, err)
	unpack := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	unpack.Stdin = bytes.NewReader(source)
	testkit.Must(t, unpack.Run())
	program = filepath.Join(dir, "jetpost-before")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "./cmd/jetpost")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build commit %s: %v\n%s", commit, err, out)
	}
	return program, commit
}

// TestRollingUpgrade: workers of the commit before are replaced one after the other while
// jobs come all the time: none is lost, doubled or failed. A worker of before that starts
// on a schema which is newer refuses, and says what to do.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it builds another program; set JETPOST_TEST_FULL=1")
	}
	before, commit := earlier(t)
	accounts := harness.AccountNames(40)
	s := siteOf(t, before, accounts)
	old := func(name string) *harness.Process {
		p := harness.Start(t, name, s.Settings(), before, "worker", "--worker-name", name, "--lease", s.Lease.String(), "--log-level", "debug", "--log-format", "json")
		p.Until("worker.started")
		return p
	}
	var workers []*harness.Process
	for i := range upgradedWorkers {
		workers = append(workers, old(fmt.Sprintf("before-%d", i+1)))
	}
	jobs := harness.MakeJobs(upgradedJobs, accounts, func(i int) int { return 1 + i%11/10 })
	parts := slices.Collect(slices.Chunk(jobs, upgradedJobs/(upgradedWorkers+2)))
	s.Publish(harness.Deal(parts[0], 5)...)
	if code, stdout, stderr := s.Run("setup"); code != exitOK { // beside the workers of before
		t.Fatalf("setup: exit code %d\n%s%s", code, stdout, stderr)
	}
	var err error
	s.Ledger, err = s.Cfg.OpenStore(t.Context())
	testkit.Must(t, err)
	t.Cleanup(func() { _ = s.Ledger.Close() })
	s.refusesToStart(before)
	s.Publish(harness.Deal(parts[1], 5)...)
	for i := range workers {
		harness.Stop(workers[i])
		workers[i] = s.Worker(fmt.Sprintf("after-%d", i+1))
		s.Publish(harness.Deal(parts[2+i], 5)...)
	}
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	t.Logf("upgraded from %s", commit)
	harness.Stop(workers...)
}

// refusesToStart wants a program of before to say that the schema is newer, where it is.
func (s *site) refusesToStart(before string) {
	s.T.Helper()
	code, stdout, stderr := harness.RunCommand(s.T, s.Settings(), before, "requests", "list")
	if code != exitOK && !(strings.Contains(stderr, "is newer than this program") && strings.Contains(stderr, "do: run the newer jetpost")) {
		s.T.Errorf("a program of before ends with code %d\n%s%s", code, stdout, stderr)
	}
}

// siteOf is a site that a program of before has set up and imported accounts into. Its
// ledger is not open yet.
func siteOf(t *testing.T, before string, accounts []string) *site {
	t.Helper()
	s := &site{&harness.Site{T: t, Sim: &xsim.Server{}, Lease: longLease, Minute: longLease / harness.LeaseMinutes}}
	s.X = httptest.NewServer(s)
	t.Cleanup(func() { s.X.Close() })
	s.Cfg = app.Config{
		NATS: app.NATSConfig{URL: natstest.Server(t, natstest.Listen).ClientURL(), Replicas: 1}, DatabaseURL: secret.New(pgtest.New(t)),
		Keys: store.GenerateKey(), X: app.XConfig{URL: s.X.URL, ClientID: "e2e"},
	}
	if code, stdout, stderr := harness.RunCommand(t, s.Settings(), before, "setup"); code != exitOK {
		t.Fatalf("setup of before: exit code %d\n%s%s", code, stdout, stderr)
	}
	var lines bytes.Buffer
	for _, name := range accounts {
		grant, err := s.Sim.AddAccount(xsim.NewAccount{Handle: name})
		testkit.Must(t, err)
		testkit.Must(t, json.NewEncoder(&lines).Encode(app.ImportLine{
			Name: name, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken,
			ExpiresAt: time.Now().Add(time.Duration(grant.ExpiresIn) * time.Second),
		}))
	}
	load := exec.CommandContext(t.Context(), before, "accounts", "import")
	load.Env, load.Stdin = s.Settings(), &lines
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("import by the program of before: %v\n%s", err, out)
	}
	var err error
	s.Conn, err = s.Cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(t, err)
	t.Cleanup(s.Conn.Close)
	return s
}
