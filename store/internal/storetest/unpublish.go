package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

func (b *bundle) unpublish(t *testing.T, id string) jetpost.State {
	t.Helper()
	before, err := b.st.Unpublish(t.Context(), store.Key{Account: acme, ID: id}, b.now)
	testkit.Must(t, err)
	return before
}

// unpublishing is the request whose deletion comes first, or "".
func (b *bundle) unpublishing(t *testing.T, lane store.Claim) string {
	t.Helper()
	record, _, err := b.st.Unpublishing(t.Context(), lane)
	testkit.Must(t, err)
	return record.ID
}

func (b *bundle) deleted(t *testing.T, lane store.Claim, id string, post int) store.Record {
	t.Helper()
	testkit.Must(t, b.st.PostDeleted(t.Context(), lane, id, post, b.now))
	return b.request(t, id)
}

// holdUnpublish makes a deletion wait, with a snapshot of this moment.
func (b *bundle) holdUnpublish(t *testing.T, lane store.Claim, id string, out store.Outcome) {
	t.Helper()
	out.Generation, out.Now = b.snapshot(t, lane, b.now).Generation, b.now
	testkit.Must(t, b.st.HoldUnpublish(t.Context(), lane, id, out))
}

// unpublish: the posts of a published thread are deleted, and it stays published.
func unpublish(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	b.acceptAll(t, "behind")
	lane := b.claim(t)
	b.publish(t, lane, "thread", 0)
	b.publish(t, lane, "thread", 1)
	equal(t, "nothing to delete", b.snapshot(t, lane, b.now).UnpublishAt.IsZero(), true)
	fails(t, "nobody asked", b.st.PostDeleted(t.Context(), lane, "thread", 1, b.now), store.ErrNotRunnable)
	b.release(t, lane, time.Time{})

	equal(t, "before", b.unpublish(t, "thread"), jetpost.StatePublished)
	record := b.state(t, "thread", jetpost.StatePublished, "", jetpost.EventRequestUnpublishing)
	equal(t, "asked at", record.Status.Unpublish.AskedAt, b.now)
	equal(t, "lane is due", b.due(t, b.now), true)
	lane = b.claim(t)
	next, known := lane.Next()
	equal(t, "the claim has a snapshot", known, true)
	equal(t, "due with the claim", next.UnpublishAt, b.now)
	equal(t, "due", b.snapshot(t, lane, b.now).UnpublishAt, b.now)
	equal(t, "the queue goes on beside it", b.head(t, lane, b.now), "behind")
	equal(t, "first", b.unpublishing(t, lane), "thread")

	record = b.deleted(t, lane, "thread", 1)
	equal(t, "deleted at", record.Status.Posts[1].DeletedAt, b.now)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPosted, jetpost.PostPosted})
	equal(t, "event", record.Event, jetpost.EventRequestUnpublishing)
	equal(t, "reported again", b.deleted(t, lane, "thread", 1), record)
	record = b.deleted(t, lane, "thread", 0)
	equal(t, "last event", record.Event, jetpost.EventRequestUnpublished)
	equal(t, "done at", record.Status.Unpublish.DoneAt, b.now)
	equal(t, "still published", record.Status.Posted, 2)
	equal(t, "none is left", b.unpublishing(t, lane), "")
	equal(t, "not due", b.snapshot(t, lane, b.now).UnpublishAt.IsZero(), true)

	equal(t, "asked for again", b.unpublish(t, "thread"), jetpost.StatePublished)
	equal(t, "which changes nothing", b.request(t, "thread"), record)
	_, err := b.st.Unpublish(t.Context(), store.Key{Account: acme, ID: "none"}, b.now)
	fails(t, "no such request", err, store.ErrNotFound)
}

// unpublishUnfinished: an unfinished request is cancelled, and a post that may be live
// is checked first.
func unpublishUnfinished(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("doubt", 2))
	b.acceptAll(t, "waits")
	lane := b.claim(t)
	b.publish(t, lane, "doubt", 0)
	b.doubt(t, lane, "doubt", 1)

	equal(t, "before", b.unpublish(t, "waits"), jetpost.StateQueued)
	record := b.state(t, "waits", jetpost.StateCancelled, "", jetpost.EventRequestCancelled)
	equal(t, "nothing was live", record.Status.Unpublish.DoneAt, b.now)

	equal(t, "before", b.unpublish(t, "doubt"), jetpost.StateUnknown)
	b.state(t, "doubt", jetpost.StateCancelled, "", jetpost.EventRequestUnpublishing)
	equal(t, "head", b.head(t, lane, b.now), "")
	absent, later := b.now.Add(time.Minute), b.now.Add(time.Hour)
	b.holdUnpublish(t, lane, "doubt", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: later},
		Post: 1, PostState: jetpost.PostSending, Checks: 3, AbsentAt: absent,
	})
	record = b.state(t, "doubt", jetpost.StateCancelled, "", jetpost.EventRequestUnpublishing)
	equal(t, "checks", record.Posts[1].Checks, 3)
	equal(t, "absent at", record.Posts[1].AbsentAt, absent)
	equal(t, "reason", record.Status.Unpublish.Reason.Code, jetpost.CodeReconciling)
	equal(t, "next try", record.Status.Unpublish.NextTryAt, later)

	// By hand: check again, and then say that it is there.
	testkit.Must(t, b.st.Reconcile(t.Context(), record.Key, b.now))
	record = b.state(t, "doubt", jetpost.StateCancelled, "", jetpost.EventRequestUnpublishing)
	equal(t, "checks anew", record.Posts[1].Checks, 0)
	equal(t, "at once", record.Status.Unpublish.NextTryAt, b.now)
	state, err := b.st.Resolve(t.Context(), record.Key, "p1", b.now)
	testkit.Must(t, err)
	equal(t, "state", state, jetpost.StateCancelled)
	equal(t, "still to be deleted", b.request(t, "doubt").Status.Unpublish.DoneAt.IsZero(), true)
	b.deleted(t, lane, "doubt", 1)
	record = b.deleted(t, lane, "doubt", 0)
	equal(t, "done at", record.Status.Unpublish.DoneAt, b.now)
	equal(t, "state", record.Status.State, jetpost.StateCancelled)
}

// unpublishNothing: nothing is to be deleted of a finished request without a live post.
func unpublishNothing(t *testing.T, b *bundle) {
	b.acceptAll(t, "failed", "cancelled")
	lane := b.claim(t)
	b.begin(t, lane, "failed", 0)
	b.concludePost(t, lane, "failed", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	for _, id := range []string{"failed", "cancelled"} {
		before := b.request(t, id)
		state, err := b.st.Unpublish(t.Context(), store.Key{Account: acme, ID: id}, b.now)
		fails(t, "nothing of it is live", err, store.ErrNotRunnable)
		equal(t, "state", state, before.Status.State)
		equal(t, "request", b.request(t, id), before)
	}
}

// unpublishWhilePublishing: the worker that posts it learns that, and what it has sent
// is recorded and deleted.
func unpublishWhilePublishing(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	b.begin(t, lane, "thread", 0)
	equal(t, "before", b.unpublish(t, "thread"), jetpost.StatePublishing)
	equal(t, "posted", b.posted(t, lane, "thread", 0, "p0"), jetpost.StateCancelled)
	fails(t, "next post", b.st.Begin(t.Context(), lane, "thread", b.intent(1)), store.ErrNotRunnable)
	record := b.deleted(t, lane, "thread", 0)
	equal(t, "done at", record.Status.Unpublish.DoneAt, b.now)
}

// unpublishLateAnswer: a worker that froze brings an answer after the post was presumed
// absent, and after the deletion ended for that reason.
func unpublishLateAnswer(t *testing.T, b *bundle) {
	b.acceptAll(t, "late")
	old, lane := b.overtaken(t, "late")
	equal(t, "before", b.unpublish(t, "late"), jetpost.StatePublishing)
	b.holdUnpublish(t, lane, "late", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: b.now}, PostState: jetpost.PostPending,
	})
	equal(t, "done", b.request(t, "late").Status.Unpublish.DoneAt, b.now)
	equal(t, "none is left", b.unpublishing(t, lane), "")
	b.release(t, lane, time.Time{})

	equal(t, "posted", b.posted(t, old, "late", 0, "p0"), jetpost.StateCancelled)
	equal(t, "not done any more", b.request(t, "late").Status.Unpublish.DoneAt.IsZero(), true)
	equal(t, "lane is due", b.due(t, b.now), true)
	lane = b.claim(t)
	equal(t, "taken up again", b.unpublishing(t, lane), "late")
	record := b.deleted(t, lane, "late", 0)
	equal(t, "done at last", record.Status.Unpublish.DoneAt, b.now)
}

// unpublishHold: a deletion that waits, one that is given up, and what ends that.
func unpublishHold(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two")
	lane := b.claim(t)
	b.publish(t, lane, "one", 0)
	b.publish(t, lane, "two", 0)
	b.unpublish(t, "one")
	b.unpublish(t, "two")
	later := b.now.Add(time.Hour)
	hold := func(state jetpost.State, code jetpost.Code, until time.Time) store.Outcome {
		return store.Outcome{State: state, Reason: jetpost.Reason{Code: code, Until: until}, Post: -1}
	}
	equal(t, "first", b.unpublishing(t, lane), "one")
	b.holdUnpublish(t, lane, "one", hold(jetpost.StateHeld, jetpost.CodeXUnavailable, later))
	equal(t, "the other one meanwhile", b.unpublishing(t, lane), "two")
	equal(t, "due", b.snapshot(t, lane, b.now).UnpublishAt, b.now)
	revision := b.request(t, "one").Status.Revision
	b.holdUnpublish(t, lane, "one", hold(jetpost.StateHeld, jetpost.CodeXUnavailable, later))
	record := b.request(t, "one")
	equal(t, "the same wait again is no news", record.Status.Revision, revision)
	equal(t, "next try", record.Status.Unpublish.NextTryAt, later)
	equal(t, "which is no end", record.Status.Unpublish.Reason.Until.IsZero(), true)
	equal(t, "holds", record.Deletion.Holds, 2)

	b.holdUnpublish(t, lane, "two", hold(jetpost.StateFailed, jetpost.CodeRefusedByX, time.Time{}))
	record = b.state(t, "two", jetpost.StatePublished, "", jetpost.EventRequestUnpublishing)
	equal(t, "given up", record.Status.Unpublish.NextTryAt.IsZero(), true)
	equal(t, "why", record.Status.Unpublish.Reason.Code, jetpost.CodeRefusedByX)
	equal(t, "due then", b.snapshot(t, lane, b.now).UnpublishAt, later)

	_, err := b.st.EndHolds(t.Context(), acme, jetpost.CodeAccountReauthRequired, b.now)
	testkit.Must(t, err)
	equal(t, "what it waits for may have happened", b.snapshot(t, lane, b.now).UnpublishAt, b.now)
	equal(t, "one of them", b.unpublishing(t, lane), "one")
	b.deleted(t, lane, "one", 0)
	equal(t, "given up all the same", b.unpublishing(t, lane), "")
	b.unpublish(t, "two")
	equal(t, "until somebody asks again", b.unpublishing(t, lane), "two")

	lane.Fence++
	fails(t, "another fence", b.st.HoldUnpublish(t.Context(), lane, "two", hold(jetpost.StateHeld, jetpost.CodeXUnavailable, later)), store.ErrFenced)
	_, _, err = b.st.Unpublishing(t.Context(), lane)
	fails(t, "another fence", err, store.ErrFenced)
	equal(t, "a deleted post stays deleted", b.deleted(t, lane, "two", 0).Status.Unpublish.DoneAt, b.now)
}

// unpublishedIsGone: a deleted post is no anchor post and is not sent again, but is
// still known as ours.
func unpublishedIsGone(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two")
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	for i, id := range []string{"one", "two"} {
		b.now = b.now.Add(time.Minute)
		b.begin(t, lane, id, 0)
		b.posted(t, lane, id, 0, fmt.Sprint("p", i))
	}
	b.unpublish(t, "two")
	b.deleted(t, lane, "two", 0)
	w, err := b.st.Anchor(t.Context(), acme)
	testkit.Must(t, err)
	equal(t, "anchor post", w.PostID, "p0")
	ids := []string{"p1", "foreign", "p0"}
	owned, err := b.st.Owned(t.Context(), ids)
	testkit.Must(t, err)
	slices.Sort(owned)
	equal(t, "owned", owned, []string{"p0", "p1"})
	deleted, err := b.st.Deleted(t.Context(), ids)
	testkit.Must(t, err)
	equal(t, "deleted", deleted, []string{"p1"})

	b.fail(t, lane, "thread")
	b.unpublish(t, "thread")
	equal(t, "replay", b.replay(t, "thread", b.now), store.ReplayResult{State: jetpost.StateFailed, Left: 1, Unpublished: true})
	b.state(t, "thread", jetpost.StateFailed, jetpost.CodeRefusedByX, jetpost.EventRequestUnpublishing)
}
