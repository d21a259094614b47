package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	prunedMany = 1_000_000 // requests
	// paceMany is how many posts a pace is measured over, before and after.
	paceMany    = 10_000
	leastPace   = 0.8 // of the pace before and after, while requests are pruned
	mostWaiting = 2000
)

// fillFinished makes requests that were published a hundred days ago, of forty accounts.
const fillFinished = `
INSERT INTO requests (account, id, seq, state, revision, event, began_at, accepted_at, due_at, updated_at, body, digest)
SELECT 'acct' || n %% 40, 'old-' || n, n, 'published', 3, 'request.published', t, t, t, t, convert_to(repeat('x', 300), 'UTF8'), sha256(n::text::bytea)
FROM generate_series(1, %[1]d) AS n, LATERAL (SELECT now() - interval '100 days' + n * interval '1 second' / 1000 AS t) AS times;
INSERT INTO posts (account, request_id, idx, state, post_id, sent_at, attempt, text_hash)
SELECT account, id, 0, 'posted', '1' || lpad(substr(id, 5), 12, '0'), began_at, 1, digest FROM requests WHERE id LIKE 'old-%%';
UPDATE lanes SET next_seq = %[1]d + 1;
ANALYZE;`

// stream publishes jobs for as long as the test wants, and never more ahead of X than a
// queue that fits into NATS.
type stream struct {
	s    *site
	made atomic.Int64 // posts at X
	sent atomic.Int64 // jobs
}

func (w *stream) run(ctx context.Context, accounts []string) {
	for n := 0; ctx.Err() == nil; n++ {
		if w.sent.Load()-w.made.Load() >= mostWaiting {
			select {
			case <-ctx.Done():
			case <-time.After(testkit.AskAgain):
			}
			n--
			continue
		}
		j := &harness.Job{Account: accounts[n%len(accounts)], Id: fmt.Sprintf("new-%d", n), Posts: 1}
		if _, err := w.s.Conn.JS.Publish(ctx, "publish.request."+j.Account, j.Body(w.s.T)); err == nil {
			w.sent.Add(1)
		}
	}
}

// pace is how many posts a second X takes, over the next so many.
func (w *stream) pace(posts int64) float64 {
	w.s.T.Helper()
	from, began := w.made.Load(), time.Now()
	testkit.Eventually(w.s.T, "posts", func() bool { return w.made.Load() >= from+posts })
	return float64(w.made.Load()-from) / time.Since(began).Seconds()
}

// TestPruneUnderLoad: workers post on while what finished long ago is pruned, at hardly
// less of a pace, and an id that was pruned posts nothing when it comes again.
func TestPruneUnderLoad(t *testing.T) { //nolint:paralleltest // what is measured is the pace
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it compares two paces, which takes a quiet machine; set JETPOST_TEST_FULL=1")
	}
	const rows, measured = prunedMany, int64(paceMany)
	accounts := harness.AccountNames(40)
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: accounts})
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 10_000_000, WindowMS: 900_000},
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: 10_000_000, WindowMS: 86_400_000},
	}))
	old := &harness.Job{Account: "acct7", Id: "old-7", Posts: 1}
	pgtest.VacuumByItself(t, s.Cfg.DatabaseURL.Reveal())
	s.fillFinished(rows, old)

	w := &stream{s: s}
	count := func(r *http.Request, made bool) {
		if made && r.Method == http.MethodPost && r.URL.Path == harness.PostPath {
			w.made.Add(1)
		}
	}
	s.OnCall.Store(&count)
	workers := []*harness.Process{s.Worker("worker-1", "--keep-finished", "0"), s.Worker("worker-2", "--keep-finished", "0")}
	ctx, stopStream := context.WithCancel(t.Context())
	var producer sync.WaitGroup
	defer producer.Wait()
	defer stopStream()
	producer.Go(func() { w.run(ctx, accounts) })
	w.pace(measured / 2) // until all is warm
	before := w.pace(measured)

	from, began := w.made.Load(), time.Now()
	p := harness.Start(t, "prune", s.Settings(), "jetpost", "prune", "-o", "json", "--log-level", "debug")
	<-p.Done
	took := time.Since(began)
	meanwhile := float64(w.made.Load()-from) / took.Seconds()
	if want := fmt.Sprintf(`"requests":%d,`, rows); p.Exit() != exitOK || !strings.Contains(p.Output(), want) {
		t.Errorf("pruning ended with code %d, want %s", p.Exit(), want)
	}
	after := w.pace(measured)
	share := meanwhile / ((before + after) / 2)
	t.Logf("%d requests were pruned in %s: %.0f posts a second before, %.0f meanwhile (%.0f %%), %.0f after",
		rows, took.Round(time.Millisecond), before, meanwhile, 100*share, after)
	if share < leastPace {
		t.Errorf("the pace fell to %.0f %%, want %.0f %% at least", 100*share, 100*leastPace)
	}
	stopStream()
	producer.Wait()

	// In its account's partition what comes behind it is accepted after it.
	last := &harness.Job{Account: old.Account, Id: "last", Posts: 1}
	s.Publish([]*harness.Job{old, last})
	sent := int(w.sent.Load()) + 1
	testkit.Eventually(t, "the last post", func() bool { return len(s.Live(last)) == 1 && int(w.made.Load()) >= sent })
	if live := s.Live(old); len(live) != 0 {
		t.Errorf("a pruned request was posted again: %v", live)
	}
	if status := s.Status(old.Account, old.Id); !status.Pruned || status.State != jetpost.StatePublished {
		t.Errorf("the pruned request is %+v", status)
	}
	for _, v := range s.Sim.Violations() {
		t.Errorf("violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
	harness.Stop(workers...)
}

// fillFinished brings finished requests into the ledger, one of them with the body of a
// job.
func (s *site) fillFinished(rows int, known *harness.Job) {
	s.T.Helper()
	conn, err := pgx.Connect(s.T.Context(), s.Cfg.DatabaseURL.Reveal())
	testkit.Must(s.T, err)
	defer func() { _ = conn.Close(s.T.Context()) }()
	for statement := range strings.SplitSeq(fmt.Sprintf(fillFinished, rows), ";\n") {
		_, err := conn.Exec(s.T.Context(), statement)
		testkit.Must(s.T, err)
	}
	body := known.Body(s.T)
	request, err := jetpost.Decode(known.Account, body)
	testkit.Must(s.T, err)
	_, err = conn.Exec(s.T.Context(), "UPDATE requests SET body = $1, digest = $2 WHERE account = $3 AND id = $4", body, request.Digest(), known.Account, known.Id)
	testkit.Must(s.T, err)
}
