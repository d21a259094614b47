package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	fewRequests, fewAccounts   = 100, 10
	manyRequests, manyAccounts = 1_000_000, 10_000
	// mostSlower is how many times as long the slowest page of many may take as that of few.
	mostSlower   = 5
	mostPage     = 200_000 // bytes
	pageRounds   = 7       // of which the median counts
	liveReaders  = 500
	livePosts    = 4000 // that a pace is measured over
	liveRounds   = 4    // with readers and without, in turn
	leastWithAll = 0.95 // of the pace without readers
)

// fillAccounts and fillRequests copy rows: accounts from one that is there, and requests of
// each state. %[1]d is the first of them, %[2]d the last, and %[3]d how many accounts they are of.
const (
	fillAccounts = `
INSERT INTO accounts (name, x_user_id, username, created_at) SELECT 'bulk' || n, 'bulk' || n, 'bulk' || n, now() FROM generate_series(%[1]d, %[2]d) AS n;
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
SELECT gen_random_uuid(), 'bulk' || n, t.access_token, t.refresh_token, now() + interval '10 days', now() + interval '5 days', t.scope, 1, now(), sha256(('bulk' || n)::bytea)
FROM (SELECT * FROM oauth_tokens WHERE user_id = 'acct0') AS t, generate_series(%[1]d, %[2]d) AS n;
INSERT INTO lanes (account) SELECT 'bulk' || n FROM generate_series(%[1]d, %[2]d) AS n;`
	fillRequests = `
INSERT INTO requests (account, id, seq, state, revision, event, reason_code, hold_until, began_at, accepted_at, due_at, publish_at, updated_at, body, digest, cost_micros)
SELECT 'bulk' || 1 + n %% %[3]d, 'r' || n, n, state, 3, 'request.' || state,
    CASE state WHEN 'failed' THEN 'refused_by_x' WHEN 'held' THEN 'x_unavailable' WHEN 'unknown' THEN 'outcome_unknown' END,
    CASE state WHEN 'held' THEN now() + interval '1 day' END,
    CASE WHEN state IN ('published', 'unknown') THEN t END, t, CASE state WHEN 'scheduled' THEN now() + interval '1 hour' + (n %% 20000) * interval '1 minute' ELSE t END,
    CASE state WHEN 'scheduled' THEN now() + interval '1 hour' + (n %% 20000) * interval '1 minute' END, t,
    convert_to('{"id":"r' || n || '","posts":[{"text":"Some words of a post, number ' || n || '"}]}', 'UTF8'), sha256(n::text::bytea), 15000
FROM generate_series(%[1]d, %[2]d) AS n,
    LATERAL (SELECT now() - interval '1 minute' - n * interval '30 days' / %[2]d AS t,
        CASE WHEN n %% 100 < 93 THEN 'published' WHEN n %% 100 < 96 THEN 'failed' WHEN n %% 100 < 98 THEN 'scheduled' WHEN n %% 100 < 99 THEN 'held'
        WHEN n %% 1000 = 99 THEN 'unknown' ELSE 'cancelled' END AS state) AS made;
INSERT INTO posts (account, request_id, idx, state, post_id, sent_at, not_after, attempt, text_hash)
SELECT account, id, 0, CASE state WHEN 'published' THEN 'posted' WHEN 'unknown' THEN 'sending' WHEN 'failed' THEN 'failed' ELSE 'pending' END,
    CASE state WHEN 'published' THEN '1' || lpad(substr(id, 2), 12, '0') END, began_at, began_at, 1, digest
FROM requests WHERE account LIKE 'bulk%%' AND seq BETWEEN %[1]d AND %[2]d;
UPDATE lanes SET next_seq = %[2]d + 1 WHERE account LIKE 'bulk%%';
VACUUM ANALYZE requests;
VACUUM ANALYZE posts;
ANALYZE;`
)

// fill runs statements, one at a time.
func (s *site) fill(statements string, arguments ...any) {
	s.T.Helper()
	conn, err := pgx.Connect(s.T.Context(), s.Cfg.DatabaseURL.Reveal())
	testkit.Must(s.T, err)
	defer func() { _ = conn.Close(s.T.Context()) }()
	for statement := range strings.SplitSeq(fmt.Sprintf(statements, arguments...), ";\n") {
		_, err := conn.Exec(s.T.Context(), statement)
		testkit.Must(s.T, err)
	}
}

// pageTimes opens each page in turn, some times over, and tells how long the slowest takes.
func pageTimes(t *testing.T, what, address string, paths []string) (slowest time.Duration) {
	t.Helper()
	took := map[string][]time.Duration{}
	sizes := map[string]int{}
	for range pageRounds {
		for _, path := range paths {
			began := time.Now()
			status, page := get(t, address+"/dashboard/"+path)
			took[path] = append(took[path], time.Since(began))
			if sizes[path] = len(page); status != http.StatusOK || len(page) > mostPage {
				t.Errorf("%s, with %s: status %d, %d bytes", path, what, status, len(page))
			}
		}
	}
	for _, path := range paths {
		slices.Sort(took[path])
		median := took[path][pageRounds/2]
		t.Logf("with %s: %-40s %8s (%s to %s), %6d bytes", what, path, median.Round(100*time.Microsecond),
			took[path][0].Round(100*time.Microsecond), took[path][pageRounds-1].Round(100*time.Microsecond), sizes[path])
		slowest = max(slowest, median)
	}
	return slowest
}

// TestDashboardUnderLoad: with a million requests of ten thousand accounts no page takes much
// longer than with a hundred, and hundreds of live pages cost the workers hardly anything.
func TestDashboardUnderLoad(t *testing.T) { //nolint:paralleltest // what is measured is how long it takes
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it compares times, which takes a quiet machine; set JETPOST_TEST_FULL=1")
	}
	accounts := harness.AccountNames(40)
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: accounts})
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 10_000_000, WindowMS: 900_000},
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: 10_000_000, WindowMS: 86_400_000},
	}))
	s.fill(fillAccounts, 1, fewAccounts)
	s.fill(fillRequests, 1, fewRequests, fewAccounts)
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	pages := harness.Start(t, "web", s.Settings(), "jetpost", "web", "--listen", "127.0.0.1:0", "--dashboard", "--log-format", "json")
	pages.Until("web.started")
	address := fmt.Sprintf("http://%s", pages.Entries("web.started")[0]["listen"])
	paths := []string{
		"", "requests", "requests?state=published", "requests?state=failed", "requests?state=scheduled", "requests?state=held&code=x_unavailable",
		"requests?account=bulk7", "requests/bulk7/r6", "accounts", "accounts/bulk7", "limits", "dead-letters", "dead-letters?kind=failed", "workers",
		"cancel?state=scheduled", "replay",
	}
	few := pageTimes(t, "few", address, paths)
	s.fill(fillAccounts, fewAccounts+1, manyAccounts)
	s.fill(fillRequests, fewRequests+1, manyRequests, manyAccounts)
	many := pageTimes(t, "many", address, paths)
	t.Logf("the slowest page takes %s with %d requests of %d accounts, and %s with %d of %d: %.1f times as long",
		few, fewRequests, fewAccounts, many, manyRequests, manyAccounts, float64(many)/float64(few))
	if many > mostSlower*few {
		t.Errorf("the slowest page takes %.1f times as long, want %d at most", float64(many)/float64(few), mostSlower)
	}
	s.liveReaders(accounts, address)
	harness.Stop(append(workers, pages)...)
}

// liveReaders compares the pace of posts with live pages and without.
func (s *site) liveReaders(accounts []string, address string) {
	s.T.Helper()
	w := &stream{s: s}
	count := func(r *http.Request, made bool) {
		if made && r.Method == http.MethodPost && r.URL.Path == harness.PostPath {
			w.made.Add(1)
		}
	}
	s.OnCall.Store(&count)
	ctx, stop := context.WithCancel(s.T.Context())
	var producer sync.WaitGroup
	defer producer.Wait()
	defer stop()
	producer.Go(func() { w.run(ctx, accounts) })
	w.pace(livePosts) // until all is warm
	var without, with float64
	var heard int64
	for range liveRounds {
		without += w.pace(livePosts)
		reading, stop := context.WithCancel(ctx)
		var readers sync.WaitGroup
		var open, changed atomic.Int64
		for range liveReaders {
			readers.Go(func() { follow(reading, address, &open, &changed) })
		}
		testkit.Eventually(s.T, "the pages to be live", func() bool { return open.Load() == liveReaders })
		with += w.pace(livePosts)
		stop()
		readers.Wait()
		heard += changed.Load()
	}
	share := with / without
	s.T.Logf("%.0f posts a second with %d live pages, %.0f without: %.3f of it; the pages were told of changes %d times",
		with/liveRounds, liveReaders, without/liveRounds, share, heard)
	if share < leastWithAll || heard < liveReaders*liveRounds {
		s.T.Errorf("the pace is %.3f of that without live pages, want %.2f at least; they were told %d times", share, leastWithAll, heard)
	}
}

// follow reads what a live page is told.
func follow(ctx context.Context, address string, open, changed *atomic.Int64) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/dashboard/live", nil)
	if err != nil {
		return
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewScanner(io.LimitReader(response.Body, mostPage))
	for lines.Scan() {
		switch lines.Text() {
		case "event: live":
			open.Add(1)
		case "event: changed":
			changed.Add(1)
		}
	}
}
