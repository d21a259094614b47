package main

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
	"github.com/jetpost/jetpost/internal/pgtest"
)

// backup copies a site's database as an operator would, and returns what puts the copy in
// its place.
func (s *site) backup() (restore func()) {
	s.t.Helper()
	url := s.cfg.DatabaseURL.Reveal()
	file := filepath.Join(s.t.TempDir(), "backup")
	path, isFile := strings.CutPrefix(url, "sqlite:")
	if !isFile {
		tool(s.t, "pg_dump", "--format=custom", "--file="+file, "--dbname="+url)
		return func() {
			tool(s.t, "pg_restore", "--clean", "--if-exists", "--single-transaction", "--dbname="+url, file)
		}
	}
	db, err := sql.Open("sqlite", "file:"+path)
	must(s.t, err)
	defer func() { must(s.t, db.Close()) }()
	_, err = db.ExecContext(s.t.Context(), "VACUUM INTO ?", file)
	must(s.t, err)
	return func() {
		must(s.t, s.ledger.Close())
		for _, old := range []string{path, path + "-wal", path + "-shm"} {
			_ = os.Remove(old) // it may not be there
		}
		data, err := os.ReadFile(file)
		must(s.t, err)
		must(s.t, os.WriteFile(path, data, 0o600))
		s.ledger, err = s.cfg.OpenStore(s.t.Context())
		must(s.t, err)
	}
}

// tool runs a program of PostgreSQL.
func tool(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), pgtest.Program(t, program), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// TestRestored: after a database was restored from a backup, nothing that was posted since
// is posted again, nothing that was accepted is lost, and what cannot be known is told.
func TestRestored(t *testing.T) {
	t.Parallel()
	for name, database := range map[string]string{"PostgreSQL": "", "SQLite": "sqlite:" + filepath.Join(t.TempDir(), "ledger.db")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restored(t, newSite(t, siteConfig{lease: shortLease, database: database, accounts: []string{"told", "untold", "paused", "killed"}}))
		})
	}
}

func restored(t *testing.T, s *site) {
	t.Helper()
	s.account("brief", time.Second) // its token has to be exchanged before its next post
	w := s.worker("worker-1")
	early := []*job{{account: "told", id: "early", posts: 2}, {account: "untold", id: "early", posts: 1}}
	s.publish(early)
	s.allPublished(len(early))

	// Accepted before the backup, and posted after it. Of one account no event is left.
	due := time.Now().Add(2 * time.Second)
	waiting := []*job{
		{account: "told", id: "w1", posts: 1, at: due}, {account: "told", id: "w2", posts: 3, at: due},
		{account: "untold", id: "w3", posts: 3, at: due}, {account: "untold", id: "w4", posts: 1, at: due},
	}
	s.publish(waiting)
	eventually(t, "the jobs to be accepted", func() bool { return s.counts()[jetpost.StateScheduled] == len(waiting) })
	back, from := s.backup(), time.Now()
	s.allPublished(len(early) + len(waiting))

	// Accepted after it: some posted, one that waits, and one whose answer nobody has heard.
	later := []*job{{account: "told", id: "l1", posts: 2}, {account: "brief", id: "l2", posts: 1}}
	s.publish(later)
	s.allPublished(len(early) + len(waiting) + len(later))
	code, _, stderr := s.run("pause", "paused", "--reason", "for the test")
	if code != exitOK {
		t.Fatal(stderr)
	}
	lost := []*job{{account: "paused", id: "lost1", posts: 2}, {account: "killed", id: "lost2", posts: 3}}
	s.publish(lost[:1])
	eventually(t, "the job of the paused account", func() bool { return s.counts()[jetpost.StateHeld] == 1 })
	died := s.atCall(http.MethodPost, postPath, 2, true, func() { w.signal(syscall.SIGKILL) })
	s.publish(lost[1:])
	wait(t, "the worker's death", died)
	w.exit()

	back()
	stream, err := s.conn.JS.Stream(t.Context(), s.conn.Names.EventsStream())
	must(t, err)
	must(t, stream.Purge(t.Context(), jetstream.WithPurgeSubject(s.conn.Names.RequestEvents("untold", "*"))))
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

	w = s.worker("worker-2")
	all := len(early) + len(waiting) + len(later)
	s.allPublished(all)
	s.publish(lost, later, waiting) // all of them come again
	s.allPublished(all + len(lost))
	posts := 0
	for _, j := range slices.Concat(early, waiting, later, lost) {
		if live := len(s.live(j)); live != j.posts {
			t.Errorf("job %s of %s has %d posts on X, want %d", j.id, j.account, live, j.posts)
		}
		posts += j.posts
	}
	if found := len(s.sim.Posts("")); found != posts {
		t.Errorf("X has %d posts, want %d", found, posts)
	}
	for _, v := range s.sim.Violations() {
		t.Errorf("violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
	stop(w)
}

// restored runs setup after a restore, once the worker that was killed counts as silent.
func (s *site) restored(from time.Time) (report app.RestoreReport) {
	s.t.Helper()
	refused := false
	eventually(s.t, "setup after the restore", func() bool {
		code, stdout, stderr := s.run("setup", "--restored-from", from.Format(time.RFC3339), "-o", "json")
		if refused = refused || strings.Contains(stderr, "works on the database that was restored"); code != exitOK {
			return false
		}
		must(s.t, json.Unmarshal([]byte(stdout), &report))
		return true
	})
	if !refused {
		s.t.Log("the worker's last sign was older than three of them at once")
	}
	return report
}
