package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// arriving are calls of AcceptMany for one job each, of a partition each, while the lane of
// the first job's account is locked.
type arriving struct {
	t      *testing.T
	b      *testBundle
	locked pgx.Tx
}

// lock locks the lane of acme until free is called.
func (a *arriving) lock() {
	a.t.Helper()
	var err error
	a.locked, err = connect(a.t, a.b.url).Begin(a.t.Context())
	check(a.t, err)
	_, err = a.locked.Exec(a.t.Context(), "SELECT FROM lanes WHERE account = $1 FOR UPDATE", acme)
	check(a.t, err)
}

func (a *arriving) free() {
	a.t.Helper()
	check(a.t, a.locked.Rollback(a.t.Context()))
}

// accept has a job of the account accepted under the lease of a partition of its name.
func (a *arriving) accept(account, id string) <-chan error {
	a.t.Helper()
	leases, err := a.b.st.TakeLeases(a.t.Context(), []string{account}, "worker", lease, a.b.now)
	check(a.t, err)
	return a.acceptUnder(leases[0], account, id)
}

func (a *arriving) acceptUnder(lease store.Lease, account, id string) <-chan error {
	in := a.b.acceptance(id)
	in.Request.Account = account
	done := make(chan error, 1)
	go func() {
		out, err := a.b.st.AcceptMany(context.WithoutCancel(a.t.Context()), lease, []store.Acceptance{in})
		if err == nil && out[0].Decision != store.Accepted {
			err = fmt.Errorf("decision on %s of %s: %v", id, account, out[0].Decision)
		}
		done <- err
	}()
	return done
}

// waits waits until so many calls wait for the one under way.
func (a *arriving) waits(n int) {
	a.t.Helper()
	waitFor(a.t, a.b.st.arrivals, n)
}

// locked waits until a statement waits for a lock.
func (b *testBundle) locked(t *testing.T) {
	t.Helper()
	watch := connect(t, b.url)
	testkit.Eventually(t, "a statement waits for a lock", func() bool {
		var waits bool
		check(t, watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits))
		return waits
	})
}

// waitFor waits until a statement is under way, and so many questions wait for it.
func waitFor[Q, A any](t *testing.T, g *gather[Q, A], n int) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("%d that wait", n), func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.busy && len(g.waiting) == n
	})
}

// transactions is in how many transactions the requests of that id were accepted.
func (a *arriving) transactions(id string) (n int) {
	a.t.Helper()
	check(a.t, a.b.st.pool.QueryRow(a.t.Context(), "SELECT count(DISTINCT xmin::text) FROM requests WHERE id = $1 AND account <> $2", id, acme).Scan(&n))
	return n
}

// TestAcceptancesShareACommit: calls of many partitions share a transaction, a call that is
// refused fails alone, and a locked lane delays the calls of other partitions only once.
func TestAcceptancesShareACommit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i, name := range []string{"beta", "gamma"} {
		_, err := b.st.ImportAccount(t.Context(), store.Import{
			Name: name, XUserID: fmt.Sprint(i + 2), Username: name, Now: b.now,
			Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New(uuid.NewString()), ExpiresAt: b.now.Add(time.Hour)},
		})
		check(t, err)
	}
	a := &arriving{t: t, b: b}

	a.lock()
	first := a.accept(acme, "shared")
	a.waits(0)
	beta, gamma := a.accept("beta", "shared"), a.accept("gamma", "shared")
	a.waits(2)
	a.free()
	for _, done := range []<-chan error{first, beta, gamma} {
		check(t, <-done)
	}
	if n := a.transactions("shared"); n != 1 {
		t.Errorf("two calls took %d transactions, want 1", n)
	}

	a.lock()
	first = a.accept(acme, "fenced")
	a.waits(0)
	beta, lost := a.accept("beta", "fenced"), a.acceptUnder(store.Lease{Name: "gamma", Owner: "other", Fence: 1}, "gamma", "fenced")
	a.waits(2)
	a.free()
	check(t, <-first)
	check(t, <-beta)
	if err := <-lost; !errors.Is(err, store.ErrFenced) {
		t.Errorf("a call without its lease: %v, want %v", err, store.ErrFenced)
	}

	a.lock()
	first = a.accept(acme, "apart")
	check(t, <-a.accept("beta", "apart"))
	a.free()
	check(t, <-first)
}

// TestMediaOfPostsInOneStatement: the media of several posts cost no more statements than those
// of one.
func TestMediaOfPostsInOneStatement(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.acceptance("thread")
	in.Request.Posts = make([]jetpost.Post, 4)
	_, err := b.st.Accept(t.Context(), in)
	check(t, err)
	lane, _, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, b.now)
	check(t, err)
	check(t, b.st.Uploaded(t.Context(), lane, "thread", map[int][]store.Media{0: {{ID: "1"}}, 2: {{ID: "2"}}, 3: {{ID: "3"}, {ID: "4"}}}))
	// A row shows by which transaction it was written, and by which of its commands.
	var posts, commands int
	const written = "SELECT count(*), count(DISTINCT (xmin::text, cmin::text)) FROM posts WHERE request_id = 'thread' AND media::text <> '[]'"
	check(t, b.st.pool.QueryRow(t.Context(), written).Scan(&posts, &commands))
	if posts != 3 || commands != 1 {
		t.Errorf("the media of %d posts took %d statements, want 3 and 1", posts, commands)
	}
}
