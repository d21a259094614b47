package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/pgtest"
)

// poolerSetting is the setting that the documentation names for poolers.
const poolerSetting = "&default_query_exec_mode=cache_describe"

// TestPooler: behind PgBouncer in transaction mode, each statement may be in another
// session. With one setting every call works there, at once and repeatedly, and leaves
// nothing in the sessions.
func TestPooler(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	url := pgtest.Pooler(t, database)
	if _, err := Open(t.Context(), url, newSealer(t)); err == nil {
		t.Error("it works without the setting: then there is no need to document one")
	}
	url += poolerSetting
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if err := Migrate(t.Context(), url); err != nil {
				t.Errorf("migrate: %v", err)
			}
		})
	}
	group.Wait()
	b := &testBundle{url: url, st: open(t, url, newSealer(t)), now: time.Now()}
	check(t, b.add(t.Context()))
	for w := range 4 {
		group.Go(func() {
			for i := range 12 {
				if err := b.mix(t.Context(), fmt.Sprintf("r%d-%d", w, i)); faulty(err) {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	counts, err := b.st.CountRequests(t.Context())
	check(t, err)
	if counts[jetpost.StatePublished] == 0 {
		t.Errorf("requests by state: %v, want some published", counts)
	}
	p := &proxied{testBundle: b}
	p.hold(t)
	for range 2 {
		for name, call := range p.calls() {
			if err := call(t.Context()); faulty(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	conn := connect(t, database)
	left := texts(t, conn, `SELECT 'a lock' FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		UNION ALL SELECT state FROM pg_stat_activity WHERE datname = current_database() AND state LIKE '%in transaction%'`)
	if len(left) > 0 {
		t.Errorf("the sessions are left with %v", left)
	}
	pooled := connect(t, strings.TrimSuffix(url, poolerSetting)+"&default_query_exec_mode=simple_protocol")
	for _, setting := range []string{paramStatement, paramIdle} {
		if got := texts(t, pooled, "SHOW "+setting); got[0] != "0" {
			t.Errorf("%s of a session that others have after us is %v", setting, got)
		}
	}
}

// faulty reports whether an error comes from the database and is no refusal by our own
// rules.
func faulty(err error) bool {
	return err != nil && (errors.As(err, new(*pgconn.PgError)) || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "does not answer"))
}
