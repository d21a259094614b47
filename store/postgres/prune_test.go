package postgres

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// setupPrunable has one request, "old", that prune prunes.
func setupPrunable(t *testing.T) (b *testBundle, prune func() (store.Pruned, error)) {
	t.Helper()
	b = setup(t)
	_, err := b.st.Accept(t.Context(), b.acceptance("old"))
	check(t, err)
	_, err = b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "old"}, b.now)
	check(t, err)
	execute(t, b.url, "DELETE FROM outbox")
	return b, func() (store.Pruned, error) {
		return b.st.Prune(t.Context(), acme, []string{"old"}, time.Now().Add(time.Hour))
	}
}

// TestPrunePassesOverLockedLanes: whoever changes an account's queue is not waited for,
// nobody waits for a batch that takes long, and a worker's steps wait for none.
func TestPrunePassesOverLockedLanes(t *testing.T) {
	t.Parallel()
	b, prune := setupPrunable(t)
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
	// A worker's steps lock the lane as FOR NO KEY UPDATE does, and go on beside a batch.
	tx, err := holder.Begin(t.Context())
	check(t, err)
	_, err = tx.Exec(t.Context(), sqlPrune, time.Now().Add(time.Hour), acme, []string{"old"}, rules.DigestKept)
	check(t, err)
	if _, claimed, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, b.now); err != nil || !claimed {
		t.Errorf("beside a batch: claimed %t, %v", claimed, err)
	}
	check(t, tx.Rollback(t.Context()))
	tx, err = holder.Begin(t.Context())
	check(t, err)
	_, err = tx.Exec(t.Context(), "SELECT FROM lanes WHERE account = 'acme' FOR NO KEY UPDATE")
	check(t, err)
	if got, err := prune(); err != nil || got.Requests != 1 {
		t.Errorf("beside a step: %+v, %v", got, err)
	}
}

// TestPruneTakenBack: a batch whose commit fails has pruned nothing, and says so.
func TestPruneTakenBack(t *testing.T) {
	t.Parallel()
	b, prune := setupPrunable(t)
	execute(t, b.url, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$`)
	execute(t, b.url, `CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON pruned DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	got, err := prune()
	if err == nil || got != (store.Pruned{}) {
		t.Errorf("pruned %+v, %v; want nothing and an error", got, err)
	}
}
