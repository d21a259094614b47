package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	_ "modernc.org/sqlite" // by which a ledger is copied while it is open

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
)

// backup copies a site's database as an operator would, and returns what puts the copy in
// its place.
func (s *site) backup() (restore func()) {
	s.T.Helper()
	url := s.Cfg.DatabaseURL.Reveal()
	file := filepath.Join(s.T.TempDir(), "backup")
	path, isFile := strings.CutPrefix(url, "sqlite:")
	if !isFile {
		tool(s.T, "pg_dump", "--format=custom", "--file="+file, "--dbname="+url)
		return func() {
			tool(s.T, "pg_restore", "--clean", "--if-exists", "--single-transaction", "--dbname="+url, file)
		}
	}
	db, err := sql.Open("sqlite", "file:"+path)
	testkit.Must(s.T, err)
	defer func() { testkit.Must(s.T, db.Close()) }()
	_, err = db.ExecContext(s.T.Context(), "VACUUM INTO ?", file)
	testkit.Must(s.T, err)
	return func() {
		testkit.Must(s.T, s.Ledger.Close())
		for _, old := range []string{path, path + "-wal", path + "-shm"} {
			_ = os.Remove(old) // it may not be there
		}
		data, err := os.ReadFile(file)
		testkit.Must(s.T, err)
		testkit.Must(s.T, os.WriteFile(path, data, 0o600))
		s.Ledger, err = s.Cfg.OpenStore(s.T.Context())
		testkit.Must(s.T, err)
	}
}

// tool runs a program of PostgreSQL.
func tool(t testkit.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), pgtest.Program(t, program), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// TestRestored: after a database was restored from a backup, nothing that was posted since
// is posted again, nothing that was accepted is lost, and what cannot be known is told.
func TestRestored(t *testing.T) {
	t.Parallel()
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it takes half a minute of each database; set JETPOST_TEST_FULL=1")
	}
	for name, database := range map[string]string{"PostgreSQL": "", "SQLite": "sqlite:" + filepath.Join(t.TempDir(), "ledger.db")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restored(t, newSite(t, harness.SiteConfig{Lease: shortLease, Database: database, Accounts: []string{"told", "untold", "paused", "killed"}}))
		})
	}
}

func restored(t *testing.T, s *site) {
	t.Helper()
	s.Account("brief", time.Second) // its token has to be exchanged before its next post
	w := s.Worker("worker-1")
	early := []*harness.Job{{Account: "told", Id: "early", Posts: 2}, {Account: "untold", Id: "early", Posts: 1}}
	s.Publish(early)
	s.AllPublished(len(early))

	// Accepted before the backup, and posted after it. Of one account no event is left.
	due := time.Now().Add(2 * time.Second)
	waiting := []*harness.Job{
		{Account: "told", Id: "w1", Posts: 1, At: due}, {Account: "told", Id: "w2", Posts: 3, At: due},
		{Account: "untold", Id: "w3", Posts: 3, At: due}, {Account: "untold", Id: "w4", Posts: 1, At: due},
	}
	s.Publish(waiting)
	testkit.Eventually(t, "the jobs to be accepted", func() bool { return s.Counts()[jetpost.StateScheduled] == len(waiting) })
	back, from := s.backup(), time.Now()
	s.AllPublished(len(early) + len(waiting))

	// Accepted after it: some posted, one that waits, and one whose answer nobody has heard.
	later := []*harness.Job{{Account: "told", Id: "l1", Posts: 2}, {Account: "brief", Id: "l2", Posts: 1}}
	s.Publish(later)
	s.AllPublished(len(early) + len(waiting) + len(later))
	code, _, stderr := s.Run("pause", "paused", "--reason", "for the test")
	if code != exitOK {
		t.Fatal(stderr)
	}
	lost := []*harness.Job{{Account: "paused", Id: "lost1", Posts: 2}, {Account: "killed", Id: "lost2", Posts: 3}}
	s.Publish(lost[:1])
	testkit.Eventually(t, "the job of the paused account", func() bool { return s.Counts()[jetpost.StateHeld] == 1 })
	died := s.AtCall(http.MethodPost, harness.PostPath, 2, true, func() { w.Signal(syscall.SIGKILL) })
	s.Publish(lost[1:])
	testkit.Wait(t, "the worker's death", died)
	w.Exit()

	back()
	stream, err := s.Conn.JS.Stream(t.Context(), s.Conn.Names.EventsStream())
	testkit.Must(t, err)
	testkit.Must(t, stream.Purge(t.Context(), jetstream.WithPurgeSubject(s.Conn.Names.RequestEvents("untold", "*"))))
	report := s.restored(from)
	t.Logf("%+v", report)
	if report.Updated != 2 || report.Added != len(later) || report.InDoubt != 2 || len(report.NotRebuilt) > 0 {
		t.Errorf("want 2 updated, %d added, 2 in doubt", len(later))
	}
	var ids []string
	for _, l := range report.BodyLost {
		ids = append(ids, l.ID)
	}
	slices.Sort(ids)
	if fmt.Sprint(ids, report.TokensLost) != "[lost1 lost2] [brief]" {
		t.Errorf("lost are %v, with the tokens of %v", ids, report.TokensLost)
	}

	w = s.Worker("worker-2")
	all := len(early) + len(waiting) + len(later)
	s.AllPublished(all)
	s.Publish(lost, later, waiting) // all of them come again
	s.AllPublished(all + len(lost))
	posts := 0
	for _, j := range slices.Concat(early, waiting, later, lost) {
		if live := len(s.Live(j)); live != j.Posts {
			t.Errorf("job %s of %s has %d posts on X, want %d", j.Id, j.Account, live, j.Posts)
		}
		posts += j.Posts
	}
	if found := len(s.Sim.Posts("")); found != posts {
		t.Errorf("X has %d posts, want %d", found, posts)
	}
	for _, v := range s.Sim.Violations() {
		t.Errorf("violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
	harness.Stop(w)
}

// restored runs setup after a restore, once the worker that was killed counts as silent.
func (s *site) restored(from time.Time) (report app.RestoreReport) {
	s.T.Helper()
	refused := false
	testkit.Eventually(s.T, "setup after the restore", func() bool {
		code, stdout, stderr := s.Run("setup", "--restored-from", from.Format(time.RFC3339), "-o", "json")
		if refused = refused || strings.Contains(stderr, "works on the database that was restored"); code != exitOK {
			return false
		}
		testkit.Must(s.T, json.Unmarshal([]byte(stdout), &report))
		return true
	})
	if !refused {
		s.T.Log("the worker's last sign was older than three of them at once")
	}
	return report
}
