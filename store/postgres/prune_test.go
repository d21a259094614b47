package postgres

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost/store"
)

// TestPrunePassesOverLockedLanes: whoever works on an account is not waited for, and
// nobody waits for a batch that takes long.
func TestPrunePassesOverLockedLanes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.st.Accept(t.Context(), b.acceptance("old"))
	check(t, err)
	_, err = b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "old"}, b.now)
	check(t, err)
	execute(t, b.url, "DELETE FROM outbox")
	prune := func() (store.Pruned, error) {
		return b.st.Prune(t.Context(), acme, []string{"old"}, time.Now().Add(time.Hour))
	}
	holder := connect(t, b.url)
	for _, test := range []struct {
		name, lock string
		busy       bool
	}{
		{"the lane", "SELECT FROM lanes WHERE account = 'acme' FOR UPDATE", true},
		{"the request", "SELECT FROM requests WHERE id = 'old' FOR UPDATE", false},
	} {
		tx, err := holder.Begin(t.Context())
		check(t, err)
		_, err = tx.Exec(t.Context(), test.lock)
		check(t, err)
		got, err := prune()
		switch {
		case test.busy && (err != nil || !got.Busy || got.Requests != 0):
			t.Errorf("%s is locked: %+v, %v; want it passed over", test.name, got, err)
		case !test.busy && !store.Unavailable(err):
			t.Errorf("%s is locked: %+v, %v; want the batch to be given up", test.name, got, err)
		}
		check(t, tx.Rollback(t.Context()))
	}
	got, err := prune()
	if err != nil || got.Requests != 1 {
		t.Errorf("nothing is locked: %+v, %v", got, err)
	}
}
