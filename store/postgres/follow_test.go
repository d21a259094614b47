package postgres

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// TestFollowBesideAChange: another request comes to the front of the lane after the step
// has read it, and before it has the lane. The request behind does not begin then.
func TestFollowBesideAChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"first", "second", "later"} {
		in := b.acceptance(id)
		if id == "later" {
			in.Request.PublishAt = b.now.Add(time.Hour)
		}
		_, err := b.st.Accept(t.Context(), in)
		check(t, err)
	}
	lane, claimed, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, b.now)
	testkit.Equal(t, "claimed", claimed && err == nil, true)
	intent := store.Intent{TextHash: []byte("text"), NotAfter: time.Now().Add(time.Minute), Now: time.Now(), Lease: lease}
	check(t, b.st.Begin(t.Context(), lane, "first", intent))
	behind, there := lane.Behind()
	testkit.Equal(t, "there is one behind", there, true)

	other := connect(t, b.url)
	tx, err := other.Begin(t.Context())
	check(t, err)
	_, err = tx.Exec(t.Context(), "UPDATE lanes SET generation = generation + 1 WHERE account = 'acme'")
	check(t, err)
	_, err = tx.Exec(t.Context(), "UPDATE requests SET due_at = due_at - interval '2 hours', revision = revision + 1 WHERE id = 'later'")
	check(t, err)
	posted := make(chan error, 1)
	go func() {
		_, err := b.st.Posted(t.Context(), lane, "first", store.LivePost{PostID: "1", Now: time.Now(),
			Following: &store.Following{ID: behind.ID, Revision: behind.Status.Revision, Intent: intent}})
		posted <- err
	}()
	b.locked(t)
	check(t, tx.Commit(t.Context()))
	check(t, <-posted)
	for id, want := range map[string]jetpost.PostState{"first": jetpost.PostPosted, "second": jetpost.PostPending, "later": jetpost.PostPending} {
		r, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: id})
		check(t, err)
		testkit.Equal(t, id, r.Posts[0].State, want)
	}
}
